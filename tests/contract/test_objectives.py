"""What every objective promises: the losses of a batch are those of its clips alone, and gradients reach the model."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pytest
import torch

from sonotune.data.manifest import read_manifest
from sonotune.features.batching import Batch, ClipBatches
from sonotune.loading import Opened, open_model
from sonotune.models.losses import Losses
from sonotune.registry import names, resolve_asset
from sonotune.tasks.base import PreparedClips, TaskSettings
from sonotune.tasks.transcribe import Transcribe
from sonotune.training.objectives.base import ObjectiveSettings, Weighted, make_objective
from sonotune.training.teacher import Distillation, Teacher, open_teacher

WHISPER = "assets:whisper-nano"
SETTINGS = ObjectiveSettings(label_smoothing=0.1, ctc_share=0.3)
MODELS = {"star": "assets:ctc-nano"}
"""What an objective is tried on that does not take every family."""
OBJECTIVES = [(name, MODELS.get(name, WHISPER)) for name in names("objectives")]


@pytest.fixture(scope="module")
def opened(request: pytest.FixtureRequest) -> Opened:
    return open_model(getattr(request, "param", WHISPER))


@pytest.fixture(scope="module")
def task(opened: Opened) -> Transcribe:
    return Transcribe(opened.loaded.family, TaskSettings(language="en"))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def prepared(opened: Opened, task: Transcribe) -> PreparedClips:
    clips = read_manifest(resolve_asset("assets:quickstart/train.jsonl"))[:3]
    return task.prepare(opened.loaded, clips)


@lru_cache
def teacher() -> Teacher:
    return open_teacher(WHISPER, bits=4, precision="fp32", device="cpu")


def made(name: str, task: Transcribe) -> Weighted:
    learned = Distillation(teacher=teacher(), temperature=2.0, on_policy_share=0.5) if name == "distill" else None
    return make_objective(name, task, replace(SETTINGS, distillation=learned))


def batch_of(opened: Opened, prepared: PreparedClips, *rows: int) -> Batch:
    batches = ClipBatches(
        prepared.clips, prepared.targets, opened.loaded.frontend, batches=[rows], seed=0, epoch=0, context="cut"
    )
    return batches[0]


@pytest.mark.parametrize(("name", "opened"), OBJECTIVES, indirect=["opened"])
def test_losses_are_those_of_the_clips_alone(name: str, opened: Opened, task: Transcribe, prepared: PreparedClips):
    objective = made(name, task)
    assert objective.task is task
    opened.loaded.module.eval()
    with torch.no_grad():
        together = objective.losses(opened.loaded, batch_of(opened, prepared, 0, 1, 2))
        alone = [objective.losses(opened.loaded, batch_of(opened, prepared, row)) for row in range(3)]
    torch.testing.assert_close(together.sums, torch.cat([one.sums for one in alone]), rtol=1e-4, atol=1e-4)
    assert together.counts.tolist() == [one.count for one in alone]


@pytest.mark.parametrize(("name", "opened"), OBJECTIVES, indirect=["opened"])
def test_gradients_reach_the_model(name: str, opened: Opened, task: Transcribe, prepared: PreparedClips):
    opened.loaded.module.requires_grad_(True)
    made(name, task).losses(opened.loaded, batch_of(opened, prepared, 0, 1)).total.backward()
    name_of_first, weight = next(
        (name, one) for name, one in opened.loaded.module.named_parameters() if one.ndim > 1 and "encoder" in name
    )
    assert float(weight.grad.abs().max()) > 0, name_of_first
    opened.loaded.module.zero_grad()


@pytest.mark.parametrize(("name", "opened"), OBJECTIVES, indirect=["opened"])
def test_clips_count_by_their_weight(name: str, opened: Opened, task: Transcribe, prepared: PreparedClips):
    objective = made(name, task)
    opened.loaded.module.eval()
    batch = batch_of(opened, prepared, 0, 1, 2)

    def losses(*weights: float) -> Losses:
        clips = tuple(replace(clip, weight=weight) for clip, weight in zip(batch.clips, weights, strict=True))
        return objective.losses(opened.loaded, replace(batch, clips=clips))

    def gradient(found: Losses) -> torch.Tensor:
        weight = next(one for one in opened.loaded.module.parameters() if one.ndim > 1)
        weight.requires_grad_(True)
        return torch.autograd.grad(found.total / found.count, weight)[0]

    plain = objective.of.losses(opened.loaded, batch)
    full = losses(1.0, 1.0, 1.0)
    assert torch.equal(full.sums, plain.sums)
    assert torch.equal(full.counts, plain.counts)
    assert isinstance(full.count, int)

    some = losses(1.0, 0.25, 0.0)
    scale = torch.tensor([1.0, 0.25, 0.0])
    torch.testing.assert_close(some.sums, plain.sums * scale)
    torch.testing.assert_close(some.counts, plain.counts * scale.double())
    # One weight for all is none; a weight of 0 is absence; and the mean goes from one clip to the other with it.
    torch.testing.assert_close(gradient(losses(0.3, 0.3, 0.3)), gradient(losses(1.0, 1.0, 1.0)), rtol=1e-4, atol=1e-6)
    without = objective.losses(opened.loaded, batch_of(opened, prepared, 0, 1))
    torch.testing.assert_close(gradient(losses(1.0, 1.0, 0.0)), gradient(without), rtol=1e-3, atol=1e-4)
    mixed = gradient(losses(1.0, 0.5, 0.0))
    first, second = (gradient(losses(*(float(row == index) for index in range(3)))) for row in range(2))
    counts = plain.counts.double()
    share = float(0.5 * counts[1] / (counts[0] + 0.5 * counts[1]))
    torch.testing.assert_close(mixed, (1 - share) * first + share * second, rtol=1e-3, atol=1e-4)


def test_auto_mixes_ctc_where_a_share_is_asked_for(task: Transcribe):
    kinds = [type(make_objective("auto", task, ObjectiveSettings(ctc_share=share)).of).__name__ for share in (0.0, 0.2)]
    assert kinds == ["TaskObjective", "CtcMix"]
