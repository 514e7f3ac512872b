"""Calibration of the packaged model on recordings: what it finds, that nothing else changes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from sonotune import progress
from sonotune.adapters.calibration import activations as listening
from sonotune.adapters.calibration.activations import sample_activations
from sonotune.adapters.calibration.calibrate import Calibration, collect, measure_sample
from sonotune.adapters.calibration.direction_gradients import gradient_gains
from sonotune.adapters.calibration.spectrum import measure
from sonotune.adapters.ranks.plan import matrix_shape
from sonotune.errors import AdapterError
from sonotune.features.batching import ClipBatches
from sonotune.models.base import AUDIO, TEXT, LoadedModel
from sonotune.models.families.whisper import WhisperFamily
from sonotune.tasks.base import TaskSettings
from sonotune.tasks.classify import Classify
from sonotune.tasks.transcribe import Transcribe
from sonotune.training.objectives.base import ObjectiveSettings
from sonotune.training.objectives.task import TaskObjective
from sonotune.types import Clip

TASK = Transcribe(WhisperFamily(), TaskSettings(language="en"))
OBJECTIVE = TaskObjective(TASK, ObjectiveSettings())
WORDS = ("one two", "three", "four five six", "seven", "eight nine", "zero one", "two", "three four")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    """Modulated noise of several lengths, with texts."""
    folder = tmp_path_factory.mktemp("calibration")
    made = []
    for index, text in enumerate(WORDS):
        draw = np.random.default_rng(index)
        samples = 8000 + 1777 * index
        tone = np.sin(np.arange(samples) * (0.02 + 0.01 * index)) * (1 + np.sin(np.arange(samples) / 900))
        path = folder / f"{index}.wav"
        soundfile.write(path, 0.1 * tone + 0.05 * draw.standard_normal(samples), 16_000)
        made.append(Clip(id=f"clip {index}", path=path, duration_s=samples / 16_000, text=text, language="en"))
    return made


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return WhisperFamily().load("assets:whisper-nano", context="cut")


@pytest.fixture(scope="module")
def found(loaded: LoadedModel, clips: list[Clip]) -> Calibration:
    return collect(loaded, OBJECTIVE, clips, tokens=64, directions=8, gradient_clips=3)


def test_every_clip_is_counted(loaded: LoadedModel, clips: list[Clip], monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[tuple[int, int | None]] = []
    monkeypatch.setattr(progress, "changed", lambda phase: counts.append((phase.done, phase.total)))
    sample_activations(loaded, OBJECTIVE, clips[:3], tokens=16)
    assert counts[-3:] == [(1, 3), (2, 3), (3, 3)]


def test_every_linear_has_evidence_of_its_own_size(loaded: LoadedModel, found: Calibration) -> None:
    evidence = found.evidence
    for table in (evidence.effective_ranks, evidence.shares, evidence.directions, evidence.gains):
        assert set(table) == set(loaded.linears)
    for name in loaded.linears:
        _, inputs = matrix_shape(loaded, name)
        assert 1.0 < evidence.effective_ranks[name] <= min(63, inputs)
        assert evidence.directions[name].shape == (8, inputs)
        assert evidence.directions[name].dtype == np.float32
        assert evidence.shares[name].shape == evidence.gains[name].shape == (8,)
        assert bool((np.diff(evidence.shares[name]) <= 0).all())
        assert 0 < evidence.shares[name].sum() <= 1 + 1e-9
        assert bool((evidence.gains[name] > 0).all())
    assert found.gradient is not None
    assert set(found.gradient.squared_norms) == set(loaded.linears)
    assert min(found.gradient.squared_norms.values()) > 0


def test_inputs_are_one_for_what_takes_the_same_tensor_and_by_nothing_else(
    loaded: LoadedModel, found: Calibration
) -> None:
    groups = {name: item.modules for item in found.inputs for name in item.modules}
    first = "model.encoder.layers.0."
    assert groups[first + "self_attn.q_proj"] == tuple(first + f"self_attn.{part}_proj" for part in "qkv")
    assert groups[first + "fc1"] == (first + "fc1",)
    layers = len(loaded.module.model.decoder.layers)
    crossing = groups["model.decoder.layers.0.encoder_attn.k_proj"]
    assert set(crossing) == {
        f"model.decoder.layers.{layer}.encoder_attn.{part}_proj" for layer in range(layers) for part in "kv"
    }
    encoder_layers = len(loaded.module.model.encoder.layers)
    assert len(found.inputs) == 4 * encoder_layers + 6 * layers + 1


def test_what_is_measured_is_the_rows_that_a_plain_hook_sees(loaded: LoadedModel, clips: list[Clip]) -> None:
    """With room for every token the sample is all of them: an independent hook and mask give the same numbers."""
    name = "model.encoder.layers.1.fc2"
    sample = sample_activations(loaded, OBJECTIVE, clips, tokens=4096, names=[name])
    rows: list[torch.Tensor] = []
    prepared = TASK.prepare(loaded, clips)
    batches = ClipBatches(
        prepared.clips,
        prepared.targets,
        loaded.frontend,
        batches=[(i,) for i in range(len(clips))],
        seed=0,
        epoch=0,
        context="cut",
    )
    handle = loaded.module.get_submodule(name).register_forward_pre_hook(
        lambda _, args: rows.append(args[0][0].clone())
    )
    with torch.no_grad():
        for index in range(len(clips)):
            batch = batches[index]
            TASK.loss(loaded, batch)
            rows[-1] = rows[-1][: (int(batch.input_lengths[0]) + 1) // 2]
    handle.remove()
    every = torch.cat(rows)
    (item,) = sample.inputs
    kept = sample.parts(item)["audio"].rows(name)
    assert {tuple(row) for row in kept.tolist()} == {tuple(row) for row in every.tolist()}
    (measured,) = measure_sample(sample)
    assert measured.seen == len(every)
    assert measured.spectra["all"].effective_rank == pytest.approx(measure(every).effective_rank, rel=1e-5)


def test_encoder_rows_are_audio_and_decoder_rows_text(
    found: Calibration, loaded: LoadedModel, clips: list[Clip]
) -> None:
    sample = sample_activations(loaded, OBJECTIVE, clips, tokens=16)
    kinds = {item.modules[0]: set(sample.parts(item)) for item in sample.inputs}
    assert kinds["model.encoder.layers.0.fc1"] == {"audio"}
    assert kinds["model.decoder.layers.0.fc1"] == {"text"}
    assert kinds["model.decoder.layers.0.encoder_attn.k_proj"] == {"audio"}
    assert {kind for _, kind in sample.reservoirs} == {AUDIO, TEXT}
    assert found.effective_ranks("audio") == {}  # nothing has both, so `all` is each


def test_the_result_is_the_same_for_any_order_and_another_for_another_seed(
    loaded: LoadedModel, clips: list[Clip], found: Calibration
) -> None:
    again = collect(loaded, OBJECTIVE, clips[::-1], tokens=64, directions=8, gradient_clips=3)
    assert dict(again.evidence.effective_ranks) == dict(found.evidence.effective_ranks)
    for name in loaded.linears:
        assert np.array_equal(again.evidence.directions[name], found.evidence.directions[name])
        assert np.array_equal(again.evidence.gains[name], found.evidence.gains[name])
    other = collect(loaded, OBJECTIVE, clips, tokens=64, seed=1)
    assert dict(other.evidence.effective_ranks) != dict(found.evidence.effective_ranks)


def test_shards_of_the_clips_merge_to_the_whole(loaded: LoadedModel, clips: list[Clip]) -> None:
    whole = sample_activations(loaded, OBJECTIVE, clips, tokens=32)
    merged = sample_activations(loaded, OBJECTIVE, clips[5:], tokens=32).merge(
        sample_activations(loaded, OBJECTIVE, clips[:5], tokens=32)
    )
    assert merged.clips == whole.clips
    one, other = measure_sample(whole, directions=4), measure_sample(merged, directions=4)
    assert [item.spectra for item in one] == [item.spectra for item in other]
    with pytest.raises(AdapterError, match="only those of the same modules"):
        whole.merge(sample_activations(loaded, OBJECTIVE, clips[:1], tokens=32, names=loaded.linears[:3]))


class _Broken(Transcribe):
    """Fails in the middle of the second clip."""

    calls = 0

    def loss(self, loaded: LoadedModel, batch: Any, *, label_smoothing: float = 0.0) -> Any:
        type(self).calls += 1
        losses = super().loss(loaded, batch, label_smoothing=label_smoothing)
        if type(self).calls > 2:
            raise RuntimeError("in the middle")
        return losses


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
def test_the_model_is_left_as_it_was(clips: list[Clip], found: Calibration, fails: bool, gradients: bool) -> None:
    loaded = WhisperFamily().load("assets:whisper-nano", context="cut")
    loaded.module.train()
    loaded.module.model.encoder.layers[1].eval()
    loaded.module.model.decoder.layers[0].fc1.weight.requires_grad_(False)
    state = lambda: (  # noqa: E731  (taken twice, and nowhere else)
        [(name, module.training) for name, module in loaded.module.named_modules()],
        [(name, value.requires_grad, value.grad) for name, value in loaded.module.named_parameters()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in loaded.module.modules()],
        {name: value.clone() for name, value in loaded.module.state_dict().items()},
    )
    before = state()
    _Broken.calls = 0 if fails else -100
    broken = TaskObjective(_Broken(WhisperFamily(), TaskSettings(language="en")), ObjectiveSettings())
    directions = {name: item.directions for item in found.inputs for name in item.modules if item.directions}

    def run() -> None:
        if gradients:
            gradient_gains(loaded, broken, clips, directions)
        else:
            collect(loaded, broken, clips, tokens=32)

    if fails:
        with pytest.raises(RuntimeError, match="in the middle"):
            run()
    else:
        run()
    after = state()
    assert before[:3] == after[:3]
    assert all(torch.equal(before[3][name], value) for name, value in after[3].items())


def test_modules_that_are_never_reached_are_named(loaded: LoadedModel, clips: list[Clip]) -> None:
    fresh = WhisperFamily().load("assets:whisper-nano", context="cut")
    fresh.module.model.encoder.layers[0].spare = nn.Linear(8, 8)
    with pytest.raises(AdapterError, match=r"1 of 2 modules are never reached.*encoder\.layers\.0\.spare"):
        collect(fresh, OBJECTIVE, clips, names=["model.encoder.layers.0.spare", "model.encoder.layers.0.fc1"])


def test_a_module_that_takes_other_rows_than_said_is_refused(
    clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = WhisperFamily().load("assets:whisper-nano", context="cut")
    layer = fresh.module.model.encoder.layers[0]
    plain = layer.fc1.forward
    monkeypatch.setattr(layer.fc1, "forward", lambda x: plain(x))
    layer.fc1.register_forward_pre_hook(lambda _, args: (torch.cat([args[0], args[0]], dim=1),))
    layer.fc2.register_forward_pre_hook(lambda _, args: (args[0][:, : args[0].shape[1] // 2],))
    with pytest.raises(AdapterError, match=r"layers\.0\.fc1 takes \d+ rows; \d+ with padding or \d+ without"):
        collect(fresh, OBJECTIVE, clips, names=["model.encoder.layers.0.fc1"])


def test_a_tensor_changed_in_place_or_made_where_another_was_is_another_input(clips: list[Clip]) -> None:
    """The same object with other values, and new objects at a used address, must not share statistics."""
    fresh = WhisperFamily().load("assets:whisper-nano", context="cut")
    layer = fresh.module.model.encoder.layers[0]
    layer.spare = nn.Linear(layer.fc1.in_features, 4)

    def change(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        layer.spare(args[0].add_(1.0))

    layer.fc1.register_forward_hook(change)
    names = ["model.encoder.layers.0.fc1", "model.encoder.layers.0.spare"]
    sample = sample_activations(fresh, OBJECTIVE, clips[:2], tokens=16, names=names)
    assert [item.modules for item in sample.inputs] == [(names[0],), (names[1],)]
    first, second = (sample.parts(item)["audio"].rows(item.modules[0]) for item in sample.inputs)
    torch.testing.assert_close(second, first + 1.0)


def test_unusable_clips_become_findings_and_none_at_all_is_an_error(
    loaded: LoadedModel, clips: list[Clip], tmp_path: Path
) -> None:
    missing = Clip(id="gone", path=tmp_path / "gone.wav", duration_s=1.0, text="one", language="en")
    foreign = Clip(id="foreign", path=clips[0].path, duration_s=0.5, text="one", language="xx")
    found = collect(loaded, OBJECTIVE, [*clips[:2], missing, foreign], tokens=8, directions=2, gradient_clips=4)
    assert found.clips == 2
    assert found.gradient is not None
    assert found.gradient.clips == 2
    assert {"audio.missing", "text.not_encodable"} <= {finding.check for finding in found.findings}
    with pytest.raises(AdapterError, match=r"could use none of 2 clips: .*gone"):
        collect(loaded, OBJECTIVE, [foreign, missing])
    with pytest.raises(AdapterError, match="could use none of 0 clips: there are none"):
        collect(loaded, OBJECTIVE, [])


def test_few_tokens_are_warned_of_and_ranks_beyond_them_refused(
    loaded: LoadedModel, found: Calibration, clips: list[Clip]
) -> None:
    short = collect(loaded, OBJECTIVE, clips[:1], tokens=512)
    (finding,) = [finding for finding in short.findings if finding.check == "calibration.few_tokens"]
    assert "fewer than 512 positions" in finding.message
    found.check_rows(dict.fromkeys(loaded.linears, 8))
    with pytest.raises(AdapterError, match=r"a rank of 32 needs 128; 1 modules have too few"):
        found.check_rows({loaded.linears[0]: 32})


def test_rows_that_are_not_finite_are_left_out_and_reported(clips: list[Clip]) -> None:
    fresh = WhisperFamily().load("assets:whisper-nano", context="cut")

    def spoil(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        args[0][:, 3] = torch.nan

    name = "model.encoder.layers.1.fc2"
    fresh.module.get_submodule(name).register_forward_pre_hook(spoil)
    found = collect(fresh, OBJECTIVE, clips, tokens=4096, names=[name])
    (item,) = found.inputs
    assert item.spectra["all"].dropped == len(clips)
    assert item.spectra["all"].rows == item.seen - len(clips)
    assert [finding.check for finding in found.findings][-1] == "calibration.not_finite"


def test_large_samples_are_kept_in_16_bits(
    loaded: LoadedModel, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = sample_activations(loaded, OBJECTIVE, clips[:3], tokens=16)
    assert {reservoir.dtype for reservoir in wide.reservoirs.values()} == {torch.float32}
    needed = 4 * 16 * sum(item.channels for item in wide.inputs)
    monkeypatch.setattr(listening, "MAX_FP32_BYTES", needed)
    again = sample_activations(loaded, OBJECTIVE, clips[:3], tokens=16)
    assert {part.dtype for part in again.reservoirs.values()} == {torch.float32}
    monkeypatch.setattr(listening, "MAX_FP32_BYTES", needed - 1)
    narrow = sample_activations(loaded, OBJECTIVE, clips[:3], tokens=16)
    assert {reservoir.dtype for reservoir in narrow.reservoirs.values()} == {torch.bfloat16}
    assert 2 * narrow.nbytes == wide.nbytes
    for one, other in zip(measure_sample(wide), measure_sample(narrow), strict=True):
        assert other.spectra["all"].effective_rank == pytest.approx(one.spectra["all"].effective_rank, rel=0.01)


def test_precision_is_that_of_the_context(loaded: LoadedModel, clips: list[Clip], found: Calibration) -> None:
    made: list[int] = []

    def autocast() -> Any:
        made.append(1)
        return torch.autocast("cpu", dtype=torch.bfloat16)

    half = collect(loaded, OBJECTIVE, clips, tokens=64, autocast=autocast, directions=8, gradient_clips=3)
    assert len(made) == len(clips) + 1 + 3
    assert dict(half.evidence.effective_ranks) != dict(found.evidence.effective_ranks)
    for name, rank in found.evidence.effective_ranks.items():
        assert half.evidence.effective_ranks[name] == pytest.approx(rank, rel=0.1)


def test_the_weights_of_classes_in_a_task_are_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Preparing the calibration clips must not change how the classes of the training clips weigh."""
    from sonotune.models.families.ast import AstFamily

    family = AstFamily()
    loaded = family.load("assets:ast-nano")
    samples = 0.1 * np.random.default_rng(0).standard_normal(16_000)
    soundfile.write(tmp_path / "a.wav", samples, 16_000)
    clips = [Clip(id=str(i), path=tmp_path / "a.wav", duration_s=1.0, label=(loaded.labels[i % 3],)) for i in range(9)]
    task = Classify(family, TaskSettings(class_weights="balanced"))
    prepared = task.prepare(loaded, clips)
    batches = ClipBatches(
        prepared.clips, prepared.targets, loaded.frontend, batches=[[0, 1, 2]], seed=0, epoch=0, context="cut"
    )

    def losses() -> torch.Tensor:
        with torch.no_grad():
            return task.loss(loaded, batches[0]).sums

    before = losses()
    objective = TaskObjective(task, ObjectiveSettings())
    found = collect(loaded, objective, clips[:4], tokens=16, directions=2, gradient_clips=2)
    assert torch.equal(losses(), before)
    assert set(found.evidence.gains) == set(loaded.linears)
    task.prepare(loaded, clips[:4])  # what this guards against is seen by the same measure
    assert not torch.equal(losses(), before)


def test_the_summary_is_json(found: Calibration) -> None:
    body = json.loads(json.dumps(found.summary()))
    assert body["clips"] == len(WORDS)
    assert body["gradient_clips"] == 3
    assert body["tokens"]["most"] == 64
    assert body["effective_rank"]["least"] <= body["effective_rank"]["median"] <= body["effective_rank"]["largest"]
    assert body["modules"] > body["inputs"] > 0


def test_gradients_need_directions(loaded: LoadedModel, clips: list[Clip]) -> None:
    with pytest.raises(AdapterError, match="Give collect directions=64"):
        collect(loaded, OBJECTIVE, clips[:2], tokens=8, gradient_clips=1)
    with pytest.raises(AdapterError, match="directions"):
        gradient_gains(loaded, OBJECTIVE, clips, {})
