"""A whole run in this process: what it leaves behind, how it goes on, and what it refuses."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from sonotune.adapters.metadata import use_of
from sonotune.config.load import LoadedConfig
from sonotune.data.manifest import read_manifest
from sonotune.errors import (
    AdapterError,
    CheckpointError,
    Interrupted,
    ManifestError,
    NumericError,
    ResourceError,
    RunDirectoryError,
    TextError,
)
from sonotune.loading import open_model
from sonotune.metrics.scores import primary_score
from sonotune.models.decoding import TOKENS_MARGIN
from sonotune.models.losses import Losses
from sonotune.models.precision import choose_precision
from sonotune.runs import read_events, read_record
from sonotune.tasks.transcribe import Transcribe
from sonotune.training import checkpoint, runtime, scoring
from sonotune.training.inputs import load_inputs
from sonotune.training.logging.header import header
from sonotune.training.run import run
from sonotune.training.runtime import set_up_compute

Settings = Callable[..., LoadedConfig]


class StopAfter:
    """Sends this process a signal after a step, as a scheduler would."""

    def __init__(self, step: int, number: signal.Signals = signal.SIGTERM) -> None:
        self.step, self.number = step, number

    def started(self, total_steps: int, step: int) -> None:
        pass

    def stepped(self, values: Mapping[str, Any]) -> None:
        if values["step"] == self.step:
            os.kill(os.getpid(), self.number)

    def evaluated(self, step: int, scores: Mapping[str, Any]) -> None:
        pass


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert left
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(folder / "events.jsonl") if event["kind"] == kind]


def of_work(folder: Path) -> list[tuple[str, int]]:
    """What was done, in order, once each: steps, evaluations, checkpoints."""
    kinds = {"step", "evaluation", "checkpoint"}
    return [(event["kind"], event["step"]) for event in read_events(folder / "events.jsonl") if event["kind"] in kinds]


# --- what a run leaves ---------------------------------------------------------------------------


def test_a_run_leaves_all_that_the_design_lists(settings: Settings, tmp_path: Path):
    record, folder = run(settings("data.test=" + str(settings().config.data.eval)))
    assert folder == tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {
        "run.json",
        "ranks.json",
        "audio.json",
        "trained_on.jsonl",
        "events.jsonl",
        "run.lock",
        "checkpoints",
        "adapter",
        "predictions",
    }
    assert read_record(folder) == record
    assert record.status == "finished"
    assert set(record.scores) == {"before", "after", "test"}
    for moment in record.scores.values():
        for score in moment.values():
            assert {"value", "low", "high", "count", "unit"} <= score.keys()
            assert score["count"] == 4
    assert record.config["training"]["max_epochs"] == 2
    assert record.config_origin["training.max_epochs"] == "command line"
    assert set(record.data_digest) == {"train", "eval", "test"}
    assert record.environment["world_size"] == 1
    assert len(record.ranks) == 22  # 2 encoder layers of 6 linears and 1 decoder layer of 10
    assert set(record.ranks.values()) == {8}
    assert record.peak_memory_bytes > 0
    assert "below 300 M" in record.choices["quantization.bits"]
    assert "asked for" in record.choices["training.precision"]
    components = record.model["components"]
    assert components["stem"]["trainable"] > 0
    assert components["embeddings"]["trainable"] == 0
    [stage] = record.stages
    assert sum(group["parameters"] for group in stage["groups"]) == sum(row["trainable"] for row in components.values())
    for moment in record.scores:
        lines = (folder / "predictions" / f"{moment}.jsonl").read_text("utf-8").splitlines()
        assert [json.loads(line)["id"] for line in lines] == ["c20", "c21", "c22", "c23"]
    assert [event["step"] for event in events(folder, "step")] == list(range(1, 11))
    metadata = json.loads((folder / "adapter" / "sonotune.json").read_text("utf-8"))
    assert metadata["bits"] == 16
    assert metadata["checkpoint"] == record.model["checkpoint"]
    for name in ("text_scoring", "min_duration_s", "max_duration_s", "multi_label"):
        assert metadata[name] == record.config["data"][name]
    assert use_of(str(folder / "adapter")) == use_of(str(folder))


@pytest.mark.parametrize("asked", [True, False])
def test_the_score_that_decides_is_one_in_the_whole_run_and_in_its_use(
    settings: Settings, corpus: Path, tmp_path: Path, asked: bool
):
    """Asked for, or because the references have no spaces."""
    lines = [json.loads(line) for line in (corpus / "eval.jsonl").read_text("utf-8").splitlines()]
    for line in lines:
        line |= {"path": str(corpus / line["path"])} | ({} if asked else {"text": "".join(line["text"].split()) * 6})
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    words = [f"data.eval={tmp_path / 'eval.jsonl'}", "data.allow_outside_root=true"]
    record, folder = run(settings(*words, *(["evaluation.primary=cer"] if asked else [])))
    assert {moment: primary_score(scores) for moment, scores in record.scores.items()} == {
        "before": "cer",
        "after": "cer",
    }
    evaluations = events(folder, "evaluation")
    values = [event["scores"]["cer"]["value"] for event in evaluations]
    assert record.scores["after"]["cer"]["value"] == pytest.approx(min(values))
    assert [primary_score(event["scores"]) for event in evaluations] == ["cer", "cer"]
    chosen = record.choices.get("evaluation.primary", "")
    assert chosen.startswith("CER: ") and "no spaces" in chosen if not asked else chosen == ""
    assert use_of(str(folder))["primary"] == ("cer" if asked else "auto")
    assert use_of(str(folder / "adapter")) == use_of(str(folder))
    told = header(record, {}, device="cpu", bits=16, decides=chosen, folder=folder)
    assert f"decides  {chosen}" in told.splitlines()
    parts = {name: row["trainable"] for name, row in record.model["components"].items() if row["trainable"]}
    assert "stem" in parts
    named = ", ".join(f"{name} {count:,}" for name, count in parts.items())
    assert f"trains   {sum(parts.values()):,} parameters ({named}); adapters of rank " in told


def test_the_densest_transcripts_bound_the_texts_of_what_was_trained(settings: Settings, corpus: Path, tmp_path: Path):
    lines = [json.loads(line) for line in (corpus / "train.jsonl").read_text("utf-8").splitlines()]
    for line in lines:
        line |= {"path": str(corpus / line["path"])}
    lines[0]["text"] = "seven " * 14
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    words = [f"data.train={tmp_path / 'train.jsonl'}", "data.allow_outside_root=true"]
    record, folder = run(settings(*words, "training.max_steps=2", "evaluation.zero_shot=false"))
    rate = record.model["tokens_per_second"]
    assert rate == pytest.approx((6 * 14 - 1 + 1 - TOKENS_MARGIN) / 0.5)
    for place in (folder, folder / "adapter"):
        assert open_model(str(place)).loaded.tokens_per_second == rate
    assert record.scores["after"]["wer"]["detail"]["cut"] <= 4


def test_silence_is_learned_where_it_is_asked_for(settings: Settings, corpus: Path, tmp_path: Path):
    soundfile.write(tmp_path / "nothing.wav", np.zeros(16_000), 16_000)
    lines = [json.loads(line) for line in (corpus / "train.jsonl").read_text("utf-8").splitlines()]
    for line in lines:
        line |= {"path": str(corpus / line["path"])}
    silence = {"id": "nothing", "path": str(tmp_path / "nothing.wav"), "text": "", "language": "en"}
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, silence]), "utf-8")
    words = [f"data.train={tmp_path / 'train.jsonl'}", "data.allow_outside_root=true", "training.max_epochs=1"]
    for learn, clips in ((False, 20), (True, 21)):
        extra = ["data.empty_texts=learn"] if learn else []
        record, folder = run(settings(*words, *extra, folder=tmp_path / str(learn)))
        assert sum(event["clips"] for event in events(folder, "step")) == clips
        left_out = [finding for finding in record.findings if finding.check == "data.empty_text"]
        assert [finding.clip_ids for finding in left_out] == ([] if learn else [("nothing",)])
        assert "audio.silent" in {finding.check for finding in record.findings}


def test_the_kept_adapter_is_the_best_checkpoint(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    values = iter([0.9, 0.3, 0.5, 0.3])  # before, two evaluations, after
    honest = scoring.evaluate

    def evaluate(*arguments: Any, **options: Any) -> Any:
        result = honest(*arguments, **options)
        score = result.scores["wer"]
        object.__setattr__(score, "value", next(values))
        return result

    monkeypatch.setattr(scoring, "evaluate", evaluate)
    record, folder = run(settings("training.learning_rate=1e-2"))
    best = checkpoint.read(folder / "checkpoints" / "step-000005")
    last = checkpoint.read(folder / "checkpoints" / "step-000010")
    kept = adapter(folder)
    assert len(kept) == len(best.weights)
    for name, value in kept.items():
        inside = next(key for key in best.weights if plain(key) == plain(name))
        assert torch.equal(value, best.weights[inside]), name
    assert any(not torch.equal(best.weights[name], last.weights[name]) for name in best.weights)
    assert record.scores["after"]["wer"]["value"] == 0.3


def plain(name: str) -> str:
    for piece in ("base_model.model.", "modules_to_save.default.", ".default"):
        name = name.replace(piece, "")
    return name


def test_full_fine_tuning_keeps_a_plain_model(settings: Settings, tiny_model: Path):
    from transformers import WhisperForConditionalGeneration

    _, folder = run(settings("adapter.kind=none", "training.learning_rate=1e-3"))
    assert not (folder / "adapter").exists()
    trained = dict(WhisperForConditionalGeneration.from_pretrained(folder / "model").named_parameters())
    start = dict(WhisperForConditionalGeneration.from_pretrained(tiny_model).named_parameters())
    assert trained.keys() == start.keys()
    unmoved = [name for name in trained if torch.equal(trained[name], start[name])]
    assert unmoved == ["model.encoder.embed_positions.weight"]  # sinusoids do not train
    assert use_of(str(folder / "model")) == use_of(str(folder)) != {}


@pytest.mark.parametrize(
    "words",
    [
        ("quantization.bits=4", "training.precision=bf16"),
        ("quantization.bits=8",),
        ("training.precision=bf16",),
        ("training.precision=bf16", "adapter.stem=frozen"),
        ("training.precision=bf16", "adapter.kind=none", "training.learning_rate=1e-3"),
        ("quantization.bits=4", "adapter.stem=lora", "adapter.unfreeze=encoder.norms", "quantization.skip=decoder"),
        ("model.context=full", "training.gradient_checkpointing=true"),
        ("adapter.targets=q_v", "model.full_context_share=0.5"),
    ],
    ids=lambda words: " ".join(word.partition("=")[2] for word in words),
)
def test_every_kind_of_run_trains_and_keeps_what_is_frozen(settings: Settings, words: tuple[str, ...]):
    """The run's own checks (everything moved, nothing frozen did, the adapter is applied) are what is tested."""
    with warnings.catch_warnings():
        # bitsandbytes casts the inputs of 8-bit layers and says so.
        warnings.filterwarnings("ignore", message="MatMul8bitLt: inputs will be cast")
        record, folder = run(settings("training.max_epochs=1", *words))
    assert record.status == "finished"
    losses = [event["loss"] for event in events(folder, "step")]
    assert len(losses) == 5
    assert all(loss is not None and loss > 0 for loss in losses)


def test_what_trains_in_full_carries_no_adapter_and_no_rank(settings: Settings):
    record, folder = run(settings("training.max_epochs=1", "adapter.unfreeze=encoder.layers[-1:]"))
    assert len(record.ranks) == 16  # 22 less the 6 linears of the last encoder layer
    assert not [name for name in record.ranks if name.startswith("model.encoder.layers.1.")]
    layer = [name for name in adapter(folder) if ".encoder.layers.1." in name]
    assert layer
    assert not [name for name in layer if "lora" in name]


def test_findings_of_the_data_are_in_the_record(settings: Settings, clips: Callable[..., Path], tmp_path: Path):
    manifest = clips(tmp_path / "clips", "train", 6)
    lines = [json.loads(line) for line in manifest.read_text("utf-8").splitlines()]
    lines[1]["text"] = "one <|endoftext|>"
    (tmp_path / "clips" / "2.wav").write_bytes(b"no audio")
    lines[3]["duration_s"] = 0.2
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    record, folder = run(settings(f"data.train={manifest}", "data.max_bad_fraction=0.5", "training.max_epochs=1"))
    found = {finding.check: finding for finding in record.findings}
    assert found["text.not_encodable"].clip_ids == ("c1",)
    assert found["audio.not_audio"].clip_ids == ("c2",)
    assert found["data.too_short"].clip_ids == ("c3",)
    assert sum(event["clips"] for event in events(folder, "step")) == 3


# --- going on ------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [(1,), (5,), (3, 7), (2, 6, 9)])
def test_a_run_stopped_by_a_signal_goes_on_to_the_same_adapter(
    settings: Settings, tmp_path: Path, steps: tuple[int, ...]
):
    """With augmentation, SpecAugment and both dropouts on; every session has another number of loader workers."""
    _, straight = run(settings(folder=tmp_path / "straight", augmented=True))
    stopped = tmp_path / "stopped"
    for workers, step in enumerate(steps):
        with pytest.raises(Interrupted, match=f"stopped by SIGTERM after step {step} of 10"):
            run(
                settings(f"data.loader_workers={workers}", folder=stopped, augmented=True),
                listeners=[StopAfter(step)],
            )
        assert read_record(stopped).status == "interrupted"
    record, _ = run(settings("data.loader_workers=2", folder=stopped, augmented=True))
    assert_same(adapter(straight), adapter(stopped))
    assert record.scores == read_record(straight).scores
    assert [event["step"] for event in events(stopped, "resumed")] == list(steps)
    done = [item for item in of_work(stopped) if item[0] != "checkpoint"]
    assert done == [item for item in of_work(straight) if item[0] != "checkpoint"]
    losses = [[event["loss"] for event in events(folder, "step")] for folder in (straight, stopped)]
    assert losses[0] == losses[1]


def test_augmentation_and_dropout_do_change_the_result(settings: Settings, tmp_path: Path):
    """Otherwise the test above would say nothing."""
    _, plain_run = run(settings(folder=tmp_path / "plain"))
    _, augmented = run(settings(folder=tmp_path / "augmented", augmented=True))
    _, reseeded = run(settings("training.seed=1", folder=tmp_path / "reseeded", augmented=True))
    a, b, c = adapter(plain_run), adapter(augmented), adapter(reseeded)
    assert any(not torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(b[name], c[name]) for name in b)


def test_the_handlers_of_signals_are_put_back(settings: Settings):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted):
        run(settings(), listeners=[StopAfter(1, signal.SIGINT)])
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_second_interrupt_stops_at_once_and_the_last_checkpoint_stands(settings: Settings):
    class Twice(StopAfter):
        def stepped(self, values: Mapping[str, Any]) -> None:
            super().stepped(values)
            super().stepped(values)

    with pytest.raises(KeyboardInterrupt):
        run(settings("training.save_steps=1"), listeners=[Twice(3, signal.SIGINT)])
    folder = settings().run_dir()
    assert read_record(folder).status == "failed"
    saved = checkpoint.newest(folder / "checkpoints", on_damage=lambda path, problem: pytest.fail(problem))
    assert saved is not None
    assert saved.step == 2
    record, _ = run(settings("training.save_steps=1"))
    assert record.status == "finished"


def test_a_damaged_checkpoint_is_quarantined_logged_and_trained_again(settings: Settings, tmp_path: Path):
    _, straight = run(settings(folder=tmp_path / "straight", augmented=True))
    words = ("training.save_steps=1",)
    with pytest.raises(Interrupted):
        run(settings(*words, augmented=True), listeners=[StopAfter(4)])
    folder = tmp_path / "run"
    weights = folder / "checkpoints" / "step-000004" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(bytes(data))
    run(settings(*words, augmented=True))
    [event] = events(folder, "quarantined")
    assert "weights.safetensors" in event["problem"]
    assert [event["step"] for event in events(folder, "resumed")] == [3]
    assert (folder / "checkpoints" / event["path"]).is_dir()
    assert_same(adapter(straight), adapter(folder))
    assert [event["step"] for event in events(folder, "step")] == list(range(1, 11))


def test_when_no_checkpoint_is_whole_the_run_is_refused(settings: Settings, tmp_path: Path):
    with pytest.raises(Interrupted):
        run(settings(), listeners=[StopAfter(2)])
    (tmp_path / "run" / "checkpoints" / "step-000002" / "state.json").unlink()
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"state\.json") as caught:
            run(settings())
        assert caught.value.exit_code == 6


def test_a_run_killed_before_its_first_checkpoint_starts_over_and_logs_each_step_once(
    settings: Settings, tmp_path: Path
):
    class Killed(StopAfter):
        def stepped(self, values: Mapping[str, Any]) -> None:
            if values["step"] == self.step:
                raise SystemError("the power went")

    with pytest.raises(SystemError):
        run(settings(), listeners=[Killed(3)])
    folder = tmp_path / "run"
    assert not list((folder / "checkpoints").glob("step-*"))
    run(settings())
    assert [event["step"] for event in events(folder, "step")] == list(range(1, 11))


def test_bad_steps_are_logged_once_over_a_resume(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    honest = Transcribe.loss
    calls = {"count": 0}

    def loss(self: Transcribe, *arguments: Any, **named: Any) -> Losses:
        losses = honest(self, *arguments, **named)
        calls["count"] += 1
        return replace(losses, sums=losses.sums * float("nan")) if calls["count"] == 4 else losses

    monkeypatch.setattr(Transcribe, "loss", loss)

    class Killed(StopAfter):
        def stepped(self, values: Mapping[str, Any]) -> None:
            if values["step"] == self.step:
                raise SystemError("the power went")

    with pytest.raises(SystemError):
        run(settings("training.save_steps=3"), listeners=[Killed(5)])
    calls["count"] = 3  # the fourth step comes again
    run(settings("training.save_steps=3"))
    assert [event["step"] for event in events(tmp_path / "run", "bad_step")] == [4]


def test_three_bad_steps_end_the_run_as_failed(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    honest = Transcribe.loss

    def loss(self: Transcribe, *arguments: Any, **named: Any) -> Losses:
        losses = honest(self, *arguments, **named)
        return replace(losses, sums=losses.sums * float("inf"))

    monkeypatch.setattr(Transcribe, "loss", loss)
    with pytest.raises(NumericError):
        run(settings())
    folder = tmp_path / "run"
    assert read_record(folder).status == "failed"
    assert [event["step"] for event in events(folder, "bad_step")] == [1, 2, 3]
    assert events(folder, "failed")[0]["error"] == "NumericError"


# --- what is refused -----------------------------------------------------------------------------


def test_a_finished_run_is_not_overwritten(settings: Settings, tmp_path: Path):
    run(settings("training.max_epochs=1"))
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(RunDirectoryError, match="finished"):
        run(settings("training.max_epochs=1"))
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_changed_settings_are_refused_with_what_differs(settings: Settings):
    with pytest.raises(Interrupted):
        run(settings("training.learning_rate=1e-3"), listeners=[StopAfter(2)])
    with pytest.raises(RunDirectoryError) as caught:
        run(settings("training.learning_rate=2e-3", "adapter.rank=4"))
    assert caught.value.exit_code == 2
    assert "training.learning_rate: was 0.001, now 0.002" in str(caught.value)
    assert "adapter.rank: was 8, now 4" in str(caught.value)


def test_settings_that_change_no_result_may_differ(settings: Settings):
    with pytest.raises(Interrupted):
        run(settings(), listeners=[StopAfter(2)])
    record, _ = run(settings("data.loader_workers=2", "training.save_steps=1", "training.keep_checkpoints=1"))
    assert record.status == "finished"


@pytest.mark.parametrize(
    ("what", "file", "change"),
    [
        ("training data", "clips/train.jsonl", ("nine", "four")),
        ("evaluation data", "clips/eval.jsonl", ("nine", "four")),  # they decide which checkpoint is the best
        ("content of the training audio", "train", None),
        ("content of the evaluation audio", "eval", None),
        ("base model", "model/model.safetensors", None),
        ("configuration of the base model", "model/config.json", ('"gelu"', '"relu"')),
        ("configuration of the base model", "model/generation_config.json", ("{", '{"num_beams": 3, ')),
        ("configuration of the base model", "model/tokenizer_config.json", ("{", '{"padding_side": "left", ')),
    ],
)
def test_changed_data_or_model_is_refused(
    settings: Settings,
    clips: Callable[..., Path],
    tmp_path: Path,
    tiny_model: Path,
    what: str,
    file: str,
    change: tuple[str, str] | None,
):
    manifests = {
        "train": clips(tmp_path / "clips", "train", 8),
        "eval": clips(tmp_path / "clips", "eval", 4, first=8, speaker="e"),
    }
    model = shutil.copytree(tiny_model, tmp_path / "model")
    words = (
        f"data.train={manifests['train']}",
        f"data.eval={manifests['eval']}",
        f"model={model}",
        "training.save_steps=1",
    )
    with pytest.raises(Interrupted):
        run(settings(*words), listeners=[StopAfter(1)])
    changed = read_manifest(manifests[file])[0].path if file in manifests else tmp_path / file
    if change is None:
        content = bytearray(changed.read_bytes())
        content[-1] ^= 1  # of the same size
        changed.write_bytes(bytes(content))
    else:
        text = changed.read_text("utf-8")
        assert change[0] in text
        changed.write_text(text.replace(*change), "utf-8")
    with pytest.raises(CheckpointError, match=f"; {what} was|: {what} was [0-9a-f]+ and is now") as caught:
        run(settings(*words))
    assert caught.value.exit_code == 6


def test_too_many_texts_the_model_cannot_write_stop_the_run_before_it_trains(
    settings: Settings, clips: Callable[..., Path], tmp_path: Path
):
    manifest = clips(tmp_path / "clips", "train", 8)
    manifest.write_text(manifest.read_text("utf-8").replace("nine", "<|endoftext|> nine"), "utf-8")
    with pytest.raises(ManifestError, match=r"1 of 8 clips of data\.train cannot be used") as caught:
        run(settings(f"data.train={manifest}"))
    assert "c3" in str(caught.value)
    assert not events(tmp_path / "run", "step")


def test_a_multilingual_model_without_a_language_says_so(
    settings: Settings, clips: Callable[..., Path], tmp_path: Path
):
    """Otherwise every clip would be left out, and a run of no steps would end in a puzzle."""
    manifest = clips(tmp_path / "clips", "train", 4)
    manifest.write_text(manifest.read_text("utf-8").replace(', "language": "en"', ""), "utf-8")
    with pytest.raises(ManifestError, match=r"model\.language=en.* The same holds for 3 more\.") as caught:
        run(settings(f"data.train={manifest}", "data.max_bad_fraction=1"))
    assert str(caught.value).count("model.language=en") == 1
    record, _ = run(settings(f"data.train={manifest}", "model.language=en", folder=tmp_path / "other"))
    assert record.status == "finished"


def test_an_adapter_target_that_matches_nothing_is_refused_before_training(settings: Settings, tmp_path: Path):
    with pytest.raises(AdapterError, match=r"'qproj' matches none of the 22 .* did you mean 'q_proj'"):
        run(settings("adapter.targets=[qproj]"))
    assert not (tmp_path / "run").exists()


def test_a_full_disk_at_a_checkpoint_ends_with_exit_5_and_can_go_on(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    _, straight = run(settings(folder=tmp_path / "straight"))
    honest = safetensors.torch.save_file
    with monkeypatch.context() as patched:

        def full(tensors: Any, path: Path) -> None:
            if "000004" in str(path):
                raise OSError(errno.ENOSPC, "No space left on device")
            honest(tensors, path)

        patched.setattr(safetensors.torch, "save_file", full)
        with pytest.raises(ResourceError) as caught:
            run(settings("training.save_steps=1"))
    assert caught.value.exit_code == 5
    folder = tmp_path / "run"
    assert sorted(path.name for path in (folder / "checkpoints").glob("*-*")) == ["step-000002", "step-000003"]
    run(settings("training.save_steps=1"))
    assert_same(adapter(straight), adapter(folder))


def test_a_full_disk_while_the_adapter_is_kept_leaves_none_and_can_go_on(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, honest = tmp_path / "run", os.fsync

    def full(descriptor: int) -> None:
        opened = os.fstat(descriptor)
        if any(os.path.samestat(file.stat(), opened) for file in folder.glob(".adapter.*.tmp/*")):
            raise OSError(errno.ENOSPC, "No space left on device")
        honest(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(ResourceError, match="adapter") as caught:
            run(settings())
    assert caught.value.exit_code == 5
    assert not (folder / "adapter").exists()
    assert not list(folder.glob(".adapter.*"))
    (folder / ".adapter.0123abcd.tmp").mkdir()  # of a process that was killed
    record, _ = run(settings())
    assert not list(folder.glob(".adapter.*"))
    assert record.status == "finished"
    assert adapter(folder)
    assert [event["step"] for event in events(folder, "step")] == list(range(1, 11))


def test_what_was_trained_is_kept_though_the_test_clips_cannot_be_scored(
    settings: Settings, clips: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    manifest = clips(tmp_path / "odd", "odd", 2, speaker="t")
    honest = scoring.evaluate

    def evaluate(task: Any, loaded: Any, scored: Any, **options: Any) -> Any:
        if {clip.speaker for clip in scored} <= {"t0", "t1"}:
            raise TextError("these clips cannot be scored")
        return honest(task, loaded, scored, **options)

    monkeypatch.setattr(scoring, "evaluate", evaluate)
    with pytest.raises(TextError, match="cannot be scored"):
        run(settings(f"data.test={manifest}"))
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
    assert read_record(tmp_path / "run").status == "failed"


def test_test_clips_on_which_nothing_is_said_are_scored(settings: Settings, clips: Callable[..., Path], tmp_path: Path):
    manifest = clips(tmp_path / "odd", "odd", 2, speaker="t")
    lines = [
        json.loads(line) | {"text": text}
        for line, text in zip(manifest.read_text("utf-8").splitlines(), ("!!!", ""), strict=True)
    ]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    record, _ = run(settings(f"data.test={manifest}", "training.max_steps=1", "training.max_epochs=1"))
    score = record.scores["test"]["wer"]
    assert score["title"] == "WER per silent clip"
    assert score["detail"]["silent_clips"] == 2
    assert score["value"] == score["detail"]["silent_words"] / 2


def test_a_clip_that_breaks_while_training_is_in_the_record(
    settings: Settings, clips: Callable[..., Path], tmp_path: Path
):
    manifest = clips(tmp_path / "train", "train", 8)

    class Vandal(StopAfter):
        def started(self, total_steps: int, step: int) -> None:
            (tmp_path / "train" / json.loads(manifest.read_text("utf-8").splitlines()[3])["path"]).unlink()

        def stepped(self, values: Mapping[str, Any]) -> None:
            return

    record, _ = run(settings(f"data.train={manifest}", "training.max_epochs=3"), listeners=[Vandal(0)])
    [finding] = [finding for finding in record.findings if finding.check == "audio.missing"]
    assert len(finding.clip_ids) == 1


def test_another_precision_does_not_go_on_with_a_run(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    """Under `auto` the settings are the same on a machine with bf16 and on one without; the arithmetic is not."""
    with pytest.raises(Interrupted):
        run(settings("training.precision=auto"), listeners=[StopAfter(2)])
    honest = choose_precision("auto")[0]
    other = "fp32" if honest == "bf16" else "bf16"
    monkeypatch.setattr(runtime, "choose_precision", lambda asked: (other, "for the test"))
    AcceleratorState._reset_state(reset_partial_state=True)  # another process would begin without it
    with pytest.raises(CheckpointError, match="precision"):
        run(settings("training.precision=auto"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_outside_the_steps_ends_a_run_at_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: signal.Signals
):
    """While it loads, calibrates or scores there is nothing to finish first."""
    evaluate, calls = scoring.evaluate, []

    def signalled(*values: Any, **options: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == 1:
            os.kill(os.getpid(), number)
        return evaluate(*values, **options)

    monkeypatch.setattr(scoring, "evaluate", signalled)
    words = ("training.max_steps=2", "evaluation.zero_shot=true")
    with pytest.raises(Interrupted, match=f"stopped by {number.name} outside the steps of training"):
        run(settings(*words, folder=tmp_path / "run"))
    assert read_record(tmp_path / "run").status == "interrupted"
    record, _ = run(settings(*words, folder=tmp_path / "run"))
    assert (record.status, "before" in record.scores) == ("finished", True)


def losses(folder: Path) -> list[float]:
    return [event["loss"] for event in read_events(folder / "events.jsonl") if event["kind"] == "step"]


def test_signals_while_a_checkpoint_is_written_wait_for_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    words = ("training.max_steps=4", "training.save_steps=2")
    run(settings(*words, folder=tmp_path / "straight"))
    write = safetensors.torch.save_file

    def interrupted(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
        write(tensors, path)
        if path.name in (checkpoint.WEIGHTS, checkpoint.OPTIMIZER):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(safetensors.torch, "save_file", interrupted)
    with pytest.raises(Interrupted, match="stopped by SIGTERM after step 3 of 4"):
        run(settings(*words, folder=tmp_path / "run"))
    monkeypatch.undo()
    saved = checkpoint.published(tmp_path / "run" / "checkpoints")
    assert [(path.name, checkpoint.damage(path)) for path in saved] == [("step-000003", None), ("step-000002", None)]
    run(settings(*words, folder=tmp_path / "run"))
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")


def test_evaluations_leave_training_alone_even_where_they_fail(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """However often there are any, and where one is broken off and done again."""
    words = ("training.max_steps=4", "training.save_steps=1", "adapter.dropout=0.2", "evaluation.zero_shot=false")
    run(settings(*words, "training.eval_steps=never", folder=tmp_path / "never"))
    run(settings(*words, "training.eval_steps=1", folder=tmp_path / "each"))
    evaluate, calls = scoring.evaluate, []

    def failing(*values: Any, **options: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == 3:
            raise OSError("the disk has gone")
        return evaluate(*values, **options)

    monkeypatch.setattr(scoring, "evaluate", failing)
    with pytest.raises(OSError, match="the disk has gone"):
        run(settings(*words, "training.eval_steps=1", folder=tmp_path / "broken"))
    run(settings(*words, "training.eval_steps=1", folder=tmp_path / "broken"))
    assert losses(tmp_path / "never") == losses(tmp_path / "each") == losses(tmp_path / "broken")


def test_a_checkpoint_as_it_comes_trains_and_is_exported(settings: Settings, tiny_model: Path, tmp_path: Path):
    """In 16 bits, in several files, without decoding settings and without a feature extractor."""
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    from sonotune.serving.export import export

    found = tmp_path / "found"
    module = WhisperForConditionalGeneration.from_pretrained(tiny_model).half()
    module.save_pretrained(found, max_shard_size="100KB")
    (found / "generation_config.json").unlink()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / name, found)
    assert len(list(found.glob("*.safetensors"))) > 1
    record, folder = run(settings(f"model={found}"))
    assert record.status == "finished"
    assert next(event["loss"] for event in events(folder, "step")) < 20
    export(str(folder), tmp_path / "export")
    saved = {value.dtype for value in load_file(tmp_path / "export" / "model.safetensors").values()}
    assert saved == {torch.float16}
    assert json.loads((tmp_path / "export" / "config.json").read_text("utf-8"))["dtype"] == "float16"
    told = json.loads((tmp_path / "export" / "generation_config.json").read_text("utf-8"))
    assert told["lang_to_id"]
    assert told["no_timestamps_token_id"]
    assert (
        WhisperProcessor.from_pretrained(tmp_path / "export").feature_extractor.feature_size
        == module.config.num_mel_bins
    )


def test_long_clips_are_counted_apart_from_bad_ones(settings: Settings, clips: Callable[..., Path], tmp_path: Path):
    """With times of their words they are cut between them; without, left out. Neither trips `data.max_bad_fraction`."""
    manifest = clips(tmp_path / "clips", "train", 4)
    lines = [json.loads(line) for line in manifest.read_text("utf-8").splitlines()]
    rng = np.random.default_rng(0)
    soundfile.write(
        tmp_path / "clips" / "long.wav", 0.1 * rng.standard_normal(20 * 16_000), 16_000
    )  # the window is 15 s
    long = lines[0] | {"path": "long.wav", "text": "one two"}
    words = [{"text": "one", "start_s": 1.0, "end_s": 9.0}, {"text": "two", "start_s": 11.0, "end_s": 19.0}]
    lines += [long | {"id": "untimed"}, long | {"id": "timed", "words": words, "path": "other.wav"}]
    shutil.copy(tmp_path / "clips" / "long.wav", tmp_path / "clips" / "other.wav")
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    trained = trained_clips(settings(f"data.train={manifest}", "data.max_bad_fraction=0", "training.max_epochs=1"))
    assert trained == {"c0", "c1", "c2", "c3", "timed#0", "timed#1"}
    found = {finding.check: finding.clip_ids for finding in read_record(tmp_path / "run").findings}
    assert found["data.too_long"] == ("untimed",)
    assert found["train.cut_at_words"] == ("timed",)


def trained_clips(configuration: LoadedConfig) -> set[str]:
    """Clips that a run trains on."""
    run(configuration)
    return {clip.id for clip in load_inputs(configuration.config, set_up_compute("fp32")).prepared.clips}


def test_the_language_that_all_clips_name_goes_with_what_was_trained(settings: Settings, tmp_path: Path):
    """`model.language` is not set: the tools that serve the model are told what the clips were trained with."""
    record, folder = run(settings("training.max_steps=1", folder=tmp_path / "one"))
    assert record.config["model"]["language"] is None
    assert record.model["language"] == "en"
    assert record.choices["model.language"].startswith("en: every training clip names it")
    assert json.loads((folder / "adapter" / "sonotune.json").read_text("utf-8"))["language"] == "en"
    assert use_of(str(folder))["language"] == use_of(str(folder / "adapter"))["language"] == "en"


def test_a_run_that_made_the_model_no_better_keeps_it_as_it_was_and_says_so(settings: Settings, tmp_path: Path):
    with pytest.raises(Interrupted):
        run(settings(), listeners=[StopAfter(7)])
    path = tmp_path / "run" / "run.json"
    record = json.loads(path.read_text("utf-8"))
    for name in ("wer", "cer"):  # as if the model had been perfect
        record["scores"]["before"][name] |= {"value": 0.0, "low": 0.0}
    path.write_text(json.dumps(record), "utf-8")
    finished, folder = run(settings())
    assert all(not value.any() for name, value in adapter(folder).items() if "lora_B" in name)
    found = next(finding for finding in finished.findings if finding.check == "training.worse")
    assert "WER on the development clips was 0.0 %" in found.message
    assert "The weights from before training are kept" in found.message
