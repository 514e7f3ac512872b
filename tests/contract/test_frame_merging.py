"""What every family promises of frame merging: it merges as it says, or refuses by name. Models are `conftest`'s."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sonotune.errors import ConfigError
from sonotune.models.frame_merging.prepare import with_merging
from sonotune.models.frame_merging.settings import NO_MERGING, FrameMerging
from sonotune.models.losses import FrameOutputs
from sonotune.types import CONTEXTS, Context, DecodingSettings


def _beside(name: str) -> Any:
    """A module of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(f"merging_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


streams = _beside("test_streams")
ENCODER = FrameMerging(ratio=0.5, min_positions=4)
AUDIO = FrameMerging(audio_ratio=0.4)
MEANS = FrameMerging(audio_ratio=0.4, audio_method="mean")
BOTH = FrameMerging(ratio=0.3, min_positions=4, audio_ratio=0.4)
ABLE = [
    ("whisper", ENCODER),
    ("wav2vec2", ENCODER),
    ("hubert", ENCODER),
    ("qwen3_asr", AUDIO),
    ("qwen3_asr", MEANS),
    ("speech_llm-mlp", BOTH),
    ("speech_llm-perceiver", BOTH),
    ("speech_llm-cross", MEANS),
    ("speech_llm-waveform", BOTH),
]
FEW = DecodingSettings(max_new_tokens=4, temperatures=(0.0,))


@pytest.fixture(scope="module", params=ABLE, ids=lambda one: f"{one[0]}-{one[1].ratio}-{one[1].audio_method}")
def case(request: pytest.FixtureRequest, checkpoint: Callable[[str], tuple[str, str]]) -> Any:
    """A family that merges."""
    row, merging = request.param
    found = streams.Case(*checkpoint(row))
    found.loaded = with_merging(found.loaded, {}, asked=merging)
    return found


@pytest.fixture(scope="module")
def plain(row: str, checkpoint: Callable[[str], tuple[str, str]]) -> Any:
    return streams.Case(*checkpoint(row))


def test_encoders_whose_attention_goes_by_distance_are_refused(plain: Any, row: str) -> None:
    refused = {"wavlm", "conformer", "parakeet", "qwen3_asr", "ast", "wav2vec2-classifier"}
    assert ("encoder" in plain.family.merging_refusals(plain.loaded)) == (row in refused)
    assert bool(plain.family.merge_layers(plain.loaded)) == (row not in refused)
    for merging in (ENCODER, AUDIO):
        if set(merging.parts) & set(plain.family.merging_refusals(plain.loaded)):
            with pytest.raises(ConfigError, match=r"frame_merging\.(audio_)?ratio=0\.\d cannot be done in .*Leave"):
                with_merging(plain.loaded, {}, asked=merging)


@pytest.mark.parametrize("context", CONTEXTS)
def test_every_linear_takes_the_rows_of_its_stream(case: Any, context: Context) -> None:
    streams.test_every_linear_takes_the_rows_of_its_stream(case, context)


@pytest.mark.parametrize("context", ["cut", "thinned"])
def test_the_rows_of_a_batch_are_those_of_its_clips_alone(case: Any, context: Context) -> None:
    streams.test_the_valid_rows_of_a_batch_are_those_of_its_clips_alone(case, context)


@pytest.mark.parametrize("context", ["cut", "thinned"])
def test_a_clip_gives_the_same_logits_and_text_alone_and_in_any_batch(case: Any, context: Context) -> None:
    def found(rows: list[int]) -> tuple[torch.Tensor, list[Any]]:
        batch = case.batch(rows, context=context)
        with torch.no_grad():
            return case.family.logits(case.loaded, batch), case.family.transcribe(case.loaded, batch, FEW)

    (together, texts), apart = found([2, 0, 1]), [found([row]) for row in (2, 0, 1)]
    torch.testing.assert_close(together, torch.cat([one for one, _ in apart]), atol=2e-4, rtol=1e-4)
    assert texts == [text for _, (text,) in apart]


def test_merging_changes_the_function_and_a_ratio_of_zero_no_bit_of_it(case: Any) -> None:
    batch = case.batch([0, 2])
    with torch.no_grad():
        merged = case.family.logits(case.loaded, batch)
        none = case.family.logits(case.loaded.with_(merging=FrameMerging(ratio=0.0, audio_ratio=0.0)), batch)
        floor = replace(case.loaded.merging, min_positions=10_000, audio_ratio=0.0)
        kept = case.family.logits(case.loaded.with_(merging=floor), batch)
        plain = case.family.logits(case.loaded.with_(merging=NO_MERGING), batch)
    assert torch.equal(none, plain)
    assert torch.equal(kept, plain)  # a clip that is shorter than the floor is computed as ever
    assert not torch.allclose(merged, plain, atol=1e-4)
    assert merged.isfinite().all()
    assert merged.shape == plain.shape


def test_ctc_keeps_its_frames_and_the_most_symbols_that_fit_them(case: Any) -> None:
    """A transcript that needs every frame of its clip has a finite loss, however much was merged."""
    batch = case.batch([0, 2])
    outputs = case.family.forward(case.loaded, batch)
    if not isinstance(outputs, FrameOutputs):
        pytest.skip("no CTC")
    plain = case.family.forward(case.loaded.with_(merging=NO_MERGING), batch)
    assert outputs.lengths.tolist() == plain.lengths.tolist()
    assert outputs.log_probs.shape == plain.log_probs.shape
    full = outputs.lengths.tolist()
    targets = torch.zeros(2, max(full), dtype=torch.long)
    for index, length in enumerate(full):
        targets[index, :length] = torch.arange(length) % 2 + 3
    crowded = replace(batch, targets=targets, target_lengths=torch.tensor(full))
    losses = case.family.forward(case.loaded, crowded).losses()
    assert losses.total.isfinite()


def test_gradients_are_the_same_with_and_without_checkpointing(case: Any) -> None:
    batch = case.batch([0, 1])

    module = case.loaded.module

    def gradients() -> dict[str, torch.Tensor]:
        module.zero_grad(set_to_none=True)
        torch.manual_seed(5)  # dropout draws alike, and is computed again alike
        losses = case.task.loss(case.loaded, batch, label_smoothing=0.0)
        (losses.total / losses.count).backward()
        found = {name: one.grad.clone() for name, one in module.named_parameters() if one.grad is not None}
        module.zero_grad(set_to_none=True)
        return found

    module.train()
    try:
        plain = gradients()
        module.activation_checkpointing_enable()
        again = gradients()
    finally:
        module.activation_checkpointing_disable()
        module.eval()
    assert plain.keys() == again.keys()
    assert plain
    for name, one in plain.items():
        assert one.isfinite().all(), name
        torch.testing.assert_close(again[name], one, atol=1e-5, rtol=1e-3)
