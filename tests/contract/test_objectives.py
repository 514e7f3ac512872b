"""What every objective promises: the losses of a batch are those of its clips alone, and gradients reach the model."""

from __future__ import annotations

import pytest
import torch

from sonotune.data.manifest import read_manifest
from sonotune.features.batching import Batch, ClipBatches
from sonotune.loading import Opened, open_model
from sonotune.registry import names, resolve_asset
from sonotune.tasks.base import PreparedClips, TaskSettings
from sonotune.tasks.transcribe import Transcribe
from sonotune.training.objectives.base import ObjectiveSettings, make_objective

SETTINGS = ObjectiveSettings(label_smoothing=0.1, ctc_share=0.3)


@pytest.fixture(scope="module")
def opened() -> Opened:
    return open_model("assets:whisper-nano")


@pytest.fixture(scope="module")
def task(opened: Opened) -> Transcribe:
    return Transcribe(opened.loaded.family, TaskSettings(language="en"))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def prepared(opened: Opened, task: Transcribe) -> PreparedClips:
    clips = read_manifest(resolve_asset("assets:quickstart/train.jsonl"))[:3]
    return task.prepare(opened.loaded, clips)


def batch_of(opened: Opened, prepared: PreparedClips, *rows: int) -> Batch:
    batches = ClipBatches(
        prepared.clips, prepared.targets, opened.loaded.frontend, batches=[rows], seed=0, epoch=0, context="cut"
    )
    return batches[0]


@pytest.mark.parametrize("name", names("objectives"))
def test_losses_are_those_of_the_clips_alone(name: str, opened: Opened, task: Transcribe, prepared: PreparedClips):
    objective = make_objective(name, task, SETTINGS)
    assert objective.task is task
    opened.loaded.module.eval()
    with torch.no_grad():
        together = objective.losses(opened.loaded, batch_of(opened, prepared, 0, 1, 2))
        alone = [objective.losses(opened.loaded, batch_of(opened, prepared, row)) for row in range(3)]
    torch.testing.assert_close(together.sums, torch.cat([one.sums for one in alone]), rtol=1e-4, atol=1e-4)
    assert together.counts.tolist() == [one.count for one in alone]


@pytest.mark.parametrize("name", names("objectives"))
def test_gradients_reach_the_model(name: str, opened: Opened, task: Transcribe, prepared: PreparedClips):
    opened.loaded.module.requires_grad_(True)
    make_objective(name, task, SETTINGS).losses(opened.loaded, batch_of(opened, prepared, 0, 1)).total.backward()
    weight = opened.loaded.module.model.encoder.conv1.weight
    assert float(weight.grad.abs().max()) > 0
    opened.loaded.module.zero_grad()


def test_auto_mixes_ctc_where_a_share_is_asked_for(task: Transcribe):
    kinds = [type(make_objective("auto", task, ObjectiveSettings(ctc_share=share))).__name__ for share in (0.0, 0.2)]
    assert kinds == ["TaskObjective", "CtcMix"]
