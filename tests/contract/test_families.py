"""What every model family promises. A new family adds a row: a checkpoint that comes with the package."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from sonotune.features.batching import Batch, pad_targets
from sonotune.models.base import LoadedModel, ModelFamily, count_parameters, parameter_owners, select
from sonotune.registry import names, resolve
from sonotune.types import Clip

CHECKPOINTS = {"whisper": "assets:whisper-nano"}
TEXTS = ["one", "two three", "שבע"]


@pytest.fixture(params=sorted(CHECKPOINTS), scope="module")
def opened(request: pytest.FixtureRequest) -> tuple[ModelFamily, LoadedModel]:
    family: ModelFamily = resolve("families", request.param)()
    return family, family.load(CHECKPOINTS[request.param])


def batch_of(family: ModelFamily, loaded: LoadedModel, rows: list[int]) -> Batch:
    """Clips of several lengths of seeded noise; the same clip is the same in every batch."""
    rate = loaded.frontend.sample_rate_hz
    waveforms = [
        (0.1 * np.random.default_rng(row).standard_normal(rate // 2 + 1600 * row)).astype(np.float32) for row in rows
    ]
    inputs, lengths = loaded.frontend(waveforms, full_context=False)
    targets, target_lengths = pad_targets([family.encode_text(loaded, TEXTS[row], "en") for row in rows])
    clips = tuple(
        Clip(id=f"c{row}", path="x.wav", duration_s=1.0, text=TEXTS[row], language="en")  # type: ignore[arg-type]
        for row in rows
    )
    return Batch(inputs=inputs, input_lengths=lengths, targets=targets, target_lengths=target_lengths, clips=clips)


def test_every_family_has_a_row():
    assert set(names("families")) == set(CHECKPOINTS)


def test_the_name_is_that_of_the_registry(opened: tuple[ModelFamily, LoadedModel]):
    family, loaded = opened
    assert resolve("families", family.name) is type(family)
    assert loaded.family == family.name
    assert family.tasks <= set(names("tasks"))


def test_every_parameter_belongs_to_exactly_one_component(opened: tuple[ModelFamily, LoadedModel]):
    _, loaded = opened
    owners = parameter_owners(loaded)
    assert set(owners) == {name for name, _ in loaded.module.named_parameters()}
    rows = count_parameters(loaded)
    assert sum(row["parameters"] for row in rows.values()) == sum(p.numel() for p in loaded.module.parameters())
    for component in rows:
        assert select(loaded, [component])


def test_linears_are_full_names_of_linear_modules_in_model_order(opened: tuple[ModelFamily, LoadedModel]):
    _, loaded = opened
    found = [name for name, module in loaded.module.named_modules() if isinstance(module, nn.Linear)]
    assert [name for name in found if name in set(loaded.linears)] == list(loaded.linears)
    tied = {name.removesuffix(".weight") for group in loaded.tied for name in group}
    assert not tied & set(loaded.linears)


def test_the_model_is_loaded_in_fp32_in_evaluation_mode(opened: tuple[ModelFamily, LoadedModel]):
    _, loaded = opened
    assert {parameter.dtype for parameter in loaded.module.parameters()} == {torch.float32}
    assert not loaded.module.training
    assert loaded.revision


def test_an_outline_has_every_shape_and_no_weight(opened: tuple[ModelFamily, LoadedModel]):
    family, loaded = opened
    outline = family.outline(loaded.checkpoint)
    shapes = {name: value.shape for name, value in loaded.module.named_parameters()}
    assert {name: value.shape for name, value in outline.module.named_parameters()} == shapes
    assert all(value.is_meta for value in outline.module.parameters())
    assert (outline.components, outline.linears, outline.tied) == (loaded.components, loaded.linears, loaded.tied)
    assert outline.frontend.max_duration_s == loaded.frontend.max_duration_s


def test_the_loss_is_a_sum_over_a_count(opened: tuple[ModelFamily, LoadedModel]):
    family, loaded = opened
    with torch.no_grad():
        together = family.loss(loaded, batch_of(family, loaded, [0, 1, 2]))
        parts = [family.loss(loaded, batch_of(family, loaded, [row])) for row in range(3)]
    assert together.counts.tolist() == [part.count for part in parts]
    torch.testing.assert_close(together.sums, torch.stack([part.total for part in parts]), rtol=1e-4, atol=1e-5)
    assert float(together.total) == pytest.approx(sum(float(part.total) for part in parts), rel=1e-4)


def test_the_order_of_a_batch_changes_no_text(opened: tuple[ModelFamily, LoadedModel]):
    family, loaded = opened
    forward = family.transcribe(loaded, batch_of(family, loaded, [0, 1, 2]), max_new_tokens=6)
    backward = family.transcribe(loaded, batch_of(family, loaded, [2, 1, 0]), max_new_tokens=6)
    assert forward == backward[::-1]


def test_logits_have_a_row_for_each_target_position(opened: tuple[ModelFamily, LoadedModel]):
    family, loaded = opened
    batch = batch_of(family, loaded, [0, 1, 2])
    with torch.no_grad():
        logits = family.logits(loaded, batch)
    assert logits.shape == (int((batch.targets[:, 1:] >= 0).sum()), loaded.module.config.vocab_size)
    assert bool(torch.isfinite(logits).all())


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_from_its_targets(opened: tuple[ModelFamily, LoadedModel], text: str):
    family, loaded = opened
    ids = family.encode_text(loaded, text, "en")
    assert ids.dtype == np.int64
    assert family.decode_text(loaded, ids.tolist()) == text


def test_transcribing_leaves_gradients_and_mode_alone(opened: tuple[ModelFamily, LoadedModel]):
    family, loaded = opened
    batch = replace(batch_of(family, loaded, [0]))
    family.transcribe(loaded, batch, max_new_tokens=2)
    assert not loaded.module.training
    assert all(parameter.grad is None for parameter in loaded.module.parameters())
