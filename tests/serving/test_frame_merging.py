"""Frame merging from the settings to what is served: recorded, merged alike everywhere, and refused where it cannot."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

import sonotune
from sonotune.alignment.base import AlignerSettings
from sonotune.alignment.whisper import WhisperAligner
from sonotune.errors import AdapterError, ConfigError, ModelError
from sonotune.loading import open_model
from sonotune.models.frame_merging.layers import SKETCH
from sonotune.models.frame_merging.settings import NO_MERGING, FrameMerging
from sonotune.models.probe import probe_logits
from sonotune.planning.exact import measure_step
from sonotune.planning.layout import TrainingSettings, lay_out
from sonotune.planning.memory import predict_step
from sonotune.registry import resolve_asset

MERGING = {"frame_merging.ratio": 0.4, "frame_merging.min_positions": 4}
SHORT = {
    "training.max_steps": 2,
    "training.batch_max_clips": 4,
    "data.limit": 8,
    "evaluation.zero_shot": "false",
    "training.precision": "fp32",
}


def quickstart(folder: Path) -> Path:
    source = resolve_asset("assets:quickstart/eval.jsonl").parent
    shutil.copytree(source, folder, dirs_exist_ok=True)
    return folder


def tune(folder: Path, model: str, **changes: object) -> Path:
    data = quickstart(folder / "data")
    place = folder / "run"
    settings = {"model": model, "data.train": str(data / "train.jsonl"), "data.eval": str(data / "eval.jsonl")}
    sonotune.train({**settings, "run.dir": str(place), **SHORT, **MERGING, **changes})
    return place


def test_what_was_trained_is_what_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tune(tmp_path, "whisper_nano")
    recorded = json.loads((run / "run.json").read_text("utf-8"))["model"]["frame_merging"]
    assert recorded == FrameMerging(ratio=0.4, min_positions=4).plain()
    assert json.loads((run / "adapter" / "sonotune.json").read_text("utf-8"))["frame_merging"] == recorded
    for place in (run, run / "adapter"):
        opened = open_model(str(place))
        assert opened.loaded.merging == FrameMerging(ratio=0.4, min_positions=4)
        assert opened.choices["frame_merging"].endswith("as the weights were trained")
    test = tmp_path / "data" / "eval.jsonl"
    used, asked, plain = (
        [one.text for one in sonotune.evaluate(run, test, {"data.limit": 4, **words}).predictions]
        for words in ({}, MERGING, {"frame_merging.ratio": 0})
    )
    assert used == asked
    loaded = open_model(str(run)).loaded
    assert not torch.allclose(probe_logits(loaded), probe_logits(loaded.with_(merging=NO_MERGING)), atol=1e-4)
    assert len(plain) == 4
    with caplog.at_level(logging.WARNING):
        sonotune.export(run, tmp_path / "exported", parity_clips=0)
    assert "plain transformers merges nothing" in caplog.text
    served = open_model(str(tmp_path / "exported")).loaded
    assert served.merging == loaded.merging
    torch.testing.assert_close(probe_logits(served), probe_logits(loaded), atol=0.05, rtol=0.02)
    with pytest.raises(ModelError, match=r"merges positions of its encoder \(frame_merging\.ratio=0\.4\)"):
        WhisperAligner(loaded, AlignerSettings())


def test_a_four_bit_run_goes_by_the_noise_of_its_own_weights(tmp_path: Path) -> None:
    noise = {"quantization.bits": 4, "frame_merging.rule": "noise_aware"}
    run = tune(tmp_path, "whisper_nano", **noise)
    first, second = open_model(str(run)).loaded, open_model(str(run)).loaded
    sketches = [
        [getattr(layer, SKETCH) for layer in one.module.model.encoder.layers if hasattr(layer, SKETCH)]
        for one in (first, second)
    ]
    assert len(sketches[0]) == len(first.merging.after(5)) == 3
    for one, other in zip(*sketches, strict=True):
        assert torch.equal(one, other)
        assert one.abs().sum() > 0
    assert torch.equal(probe_logits(first), probe_logits(second))
    assert not any(SKETCH in name for name in first.module.state_dict())
    with pytest.raises(ConfigError, match=r"noise_aware goes by the error of quantised weights, and .*is held in"):
        open_model(str(run), bits=16)


def test_gradients_pass_through_a_merging_four_bit_model() -> None:
    merging = FrameMerging(ratio=0.4, min_positions=4, rule="noise_shuffled")
    loaded = open_model("assets:whisper-nano", bits=4, merging=merging).loaded
    loaded.module.model.encoder.conv1.weight.requires_grad_()
    loaded.module.train()
    from sonotune.models.probe import probe_batch

    losses = loaded.family.forward(loaded, probe_batch(loaded)).losses()  # type: ignore[attr-defined]
    losses.total.backward()
    gradient = loaded.module.model.encoder.conv1.weight.grad
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


def test_models_that_cannot_merge_say_why() -> None:
    with pytest.raises(ConfigError, match=r"ratio=0\.3 cannot be done in assets:ctc-nano.*distance of positions"):
        open_model("assets:ctc-nano", merging=FrameMerging(ratio=0.3))
    with pytest.raises(ConfigError, match=r"audio_ratio=0\.3 cannot be done in assets:whisper-nano.*audio as tokens"):
        open_model("assets:whisper-nano", merging=FrameMerging(audio_ratio=0.3))
    with pytest.raises(ConfigError, match=r"ratio=0\.3 cannot be done in assets:ast-nano.*time and frequency"):
        open_model("assets:ast-nano", merging=FrameMerging(ratio=0.3))
    with pytest.raises(ConfigError, match=r"layers=\[9\] names layers"):
        open_model("assets:whisper-nano", merging=FrameMerging(ratio=0.3, layers=(9,)))


@pytest.mark.parametrize(
    ("entry", "said"),
    [({"ratio": 1.5}, "ratio"), ({"rule": "magic"}, "magic"), ({"layers": [0]}, "layers"), ({"size": 2}, "size")],
)
def test_a_damaged_record_is_refused(tmp_path: Path, entry: dict[str, object], said: str) -> None:
    loaded = open_model("assets:whisper-nano", random_weights=True).loaded
    loaded.module.save_pretrained(tmp_path)
    loaded.processor.save_pretrained(tmp_path)
    (tmp_path / "sonotune_export.json").write_text(json.dumps({"frame_merging": entry}))
    with pytest.raises(AdapterError, match=said):
        open_model(str(tmp_path))


def test_settings_that_do_nothing_are_named() -> None:
    with pytest.raises(ConfigError, match=r"frame_merging\.rule"):
        sonotune.inspect({"model": "whisper_nano", "frame_merging.rule": "random"})
    with pytest.raises(ConfigError, match=r"frame_merging\.noise_weight"):
        sonotune.inspect({"model": "whisper_nano", "frame_merging.ratio": 0.3, "frame_merging.noise_weight": 0.5})


def test_inspect_says_what_is_left_of_the_encoder() -> None:
    found = sonotune.inspect({"model": "whisper_nano", "frame_merging.ratio": 0.4})
    body = found.to_json()["frame_merging"]
    assert body["ratio"] == 0.4
    assert body["clips"]["10"]["positions"] == (500, 300)
    assert 0.6 < body["clips"]["10"]["flops_share"] < 1.0
    assert "frame_merging" not in sonotune.inspect({"model": "whisper_nano"}).to_json()


@pytest.mark.parametrize("rule", ["similarity", "noise_aware"])
def test_a_plan_counts_less_with_merging_and_agrees_with_the_step_that_is_run(rule: str) -> None:
    base = TrainingSettings(checkpoint="assets:whisper-nano", bits=4)
    merging = FrameMerging(ratio=0.5, rule=rule)
    peaks = []
    for one in (None, merging):
        layout = lay_out(TrainingSettings(checkpoint=base.checkpoint, bits=4, merging=one))
        batch = layout.batch(4, 10.0, 20)
        predicted = predict_step(layout, batch).peak_bytes
        measured = measure_step(layout, batch).bytes
        assert predicted == pytest.approx(measured, rel=0.12)
        peaks.append((predicted, measured))
    assert peaks[1][0] < 0.95 * peaks[0][0]
    assert peaks[1][1] < 0.95 * peaks[0][1]
    shares = [
        sonotune.plan(
            {"model": "whisper_nano", "frame_merging.ratio": ratio}, clip_seconds=[10.0]
        ).worst.worst.merged_share
        for ratio in (0, 0.25, 0.5)
    ]
    assert shares[0] is None
    assert shares[2] is not None
    assert shares[1] is not None
    assert shares[2] < shares[1] < 1.0
