"""What every family says of the rows its linears take is what they take. The models are those of `conftest`."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from sonotune.adapters.calibration.activations import channels_last, collect_activations
from sonotune.adapters.calibration.direction_gradients import differentiate
from sonotune.adapters.calibration.spectrum import leading_directions
from sonotune.errors import ModelError
from sonotune.features.batching import Batch
from sonotune.models.base import AUDIO, PADDING, TEXT, LoadedModel, Stream
from sonotune.models.quantize import quantize
from sonotune.training.objectives.base import ObjectiveSettings
from sonotune.training.objectives.task import TaskObjective
from sonotune.types import CONTEXTS, Context


def _beside(name: str) -> Any:
    """A module of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(f"streams_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


Case = _beside("test_families").Case
models = _beside("conftest")
TOKENS = 24


@pytest.fixture(scope="module")
def case(row: str, checkpoint: Callable[[str], tuple[str, str]]) -> Any:
    return Case(*checkpoint(row))


@contextmanager
def inputs_of(loaded: LoadedModel) -> Iterator[dict[str, list[Tensor]]]:
    """What goes into every adaptable linear inside, rows flattened (R, D), call by call."""
    seen: dict[str, list[Tensor]] = {}
    handles = []
    for name in loaded.linears:

        def hook(module: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
            rows = channels_last(module, args[0]).detach()
            seen.setdefault(name, []).append(rows.reshape(-1, rows.shape[-1]).clone())

        handles.append(loaded.module.get_submodule(name).register_forward_pre_hook(hook))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def objective_of(case: Any) -> TaskObjective:
    return TaskObjective(case.task, ObjectiveSettings())


def computed(case: Any, batch: Batch) -> tuple[dict[str, Tensor], tuple[Stream, ...]]:
    with torch.no_grad(), inputs_of(case.loaded) as seen:
        case.task.loss(case.loaded, batch, label_smoothing=0.0)
    return {name: torch.cat(calls) for name, calls in seen.items()}, case.family.streams(case.loaded, batch)


def stream_for(name: str, streams: tuple[Stream, ...]) -> Stream:
    return next(stream for stream in streams if re.search(stream.modules, name))


def valid_rows(rows_RD: Tensor, stream: Stream) -> Tensor:
    """Rows that are not padding, of a module that takes them with padding or packed."""
    valid = stream.kinds.flatten() != PADDING
    assert len(rows_RD) in (valid.numel(), int(valid.sum()))
    return rows_RD[valid] if len(rows_RD) == valid.numel() else rows_RD


def test_every_linear_has_a_stream_and_every_stream_a_kind(case: Any) -> None:
    streams = case.family.streams(case.loaded, case.batch([0, 1, 2]))
    for name in case.loaded.linears:
        assert any(re.search(stream.modules, name) for stream in streams), name
    for stream in streams:
        assert stream.kinds.dtype == torch.int8
        assert stream.kinds.ndim == 2
        assert set(stream.kinds.unique().tolist()) <= {PADDING, AUDIO, TEXT}


@pytest.mark.parametrize("context", CONTEXTS)
def test_every_linear_takes_the_rows_of_its_stream(case: Any, context: Context) -> None:
    batch = case.batch([0, 1, 2], context=context)
    inputs, streams = computed(case, batch)
    assert set(inputs) == set(case.loaded.linears)
    for name, rows in inputs.items():
        valid = stream_for(name, streams).kinds != PADDING
        assert len(rows) in (valid.numel(), int(valid.sum())), name
        assert bool(valid.any()), name


@pytest.mark.parametrize("context", CONTEXTS)
def test_the_valid_rows_of_a_batch_are_those_of_its_clips_alone(case: Any, context: Context) -> None:
    together, streams = computed(case, case.batch([0, 1, 2], context=context))
    alone = [computed(case, case.batch([row], context=context)) for row in range(3)]
    for name, rows in together.items():
        stream = stream_for(name, streams)
        parts = [valid_rows(inputs[name], stream_for(name, own)) for inputs, own in alone]
        if len(stream.kinds) == 1:  # rows that all clips share, which are as many as the longest needs
            parts = parts[-1:]
        torch.testing.assert_close(valid_rows(rows, stream), torch.cat(parts), rtol=1e-4, atol=2e-4)


OTHERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    name: (
        "ast",
        lambda folder, config=config, head=head: models.save_classifier(
            folder,
            getattr(transformers, config)(**(models.WAVEFORM | extra(config))),
            head,
            transformers.Wav2Vec2FeatureExtractor(),
        ),
    )
    for name, config, head in (
        ("hubert", "HubertConfig", "HubertForSequenceClassification"),
        ("wavlm", "WavLMConfig", "WavLMForSequenceClassification"),
        ("data2vec-audio", "Data2VecAudioConfig", "Data2VecAudioForSequenceClassification"),
        ("unispeech", "UniSpeechConfig", "UniSpeechForSequenceClassification"),
        ("unispeech-sat", "UniSpeechSatConfig", "UniSpeechSatForSequenceClassification"),
        ("wav2vec2-conformer", "Wav2Vec2ConformerConfig", "Wav2Vec2ConformerForSequenceClassification"),
        ("sew", "SEWConfig", "SEWForSequenceClassification"),
    )
}


def extra(config: str) -> dict[str, Any]:
    if config == "Wav2Vec2ConformerConfig":
        return {"position_embeddings_type": "relative"}
    if config == "Data2VecAudioConfig":
        return {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 3}
    return {"squeeze_factor": 2} if config == "SEWConfig" else {}


def tiny_whisper_classifier(folder: Path) -> None:
    config = transformers.WhisperConfig(
        d_model=32,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=48,
        num_mel_bins=80,
        classifier_proj_size=16,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=48,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=0,
        vocab_size=8,
    )
    models.save_classifier(
        folder, config, "WhisperForAudioClassification", transformers.WhisperFeatureExtractor(feature_size=80)
    )


OTHERS |= {
    "whisper": ("ast", tiny_whisper_classifier),
    "speech_llm-linear": ("speech_llm", lambda f: models.speech_llm(f, projector_kind="linear", downsample=3)),
    "speech_llm-cross-perceiver": (
        "speech_llm",
        lambda f: models.speech_llm(f, projector_kind="perceiver", perceiver_latents=3, fusion="cross_attention"),
    ),
}


@pytest.mark.parametrize("other", sorted(OTHERS))
def test_architectures_without_a_row_have_streams_as_exact(other: str, tmp_path: Path) -> None:
    family, build = OTHERS[other]
    torch.manual_seed(3)
    build(tmp_path / other)
    case = Case(family, str(tmp_path / other))
    for context in CONTEXTS if other.startswith("speech_llm") or other == "whisper" else ("cut",):
        test_every_linear_takes_the_rows_of_its_stream(case, context)
        test_the_valid_rows_of_a_batch_are_those_of_its_clips_alone(case, context)
    assert (
        collect_activations(
            case.loaded, objective_of(case), [case.batch([0], context="thinned" if other == "whisper" else "cut")]
        )
        is not None
    )


def test_an_architecture_whose_rows_nobody_knows_says_so(tmp_path: Path) -> None:
    config = transformers.SEWDConfig(**models.WAVEFORM, squeeze_factor=2, max_position_embeddings=64)
    models.save_classifier(tmp_path, config, "SEWDForSequenceClassification", transformers.Wav2Vec2FeatureExtractor())
    case = Case("ast", str(tmp_path))
    with pytest.raises(ModelError, match=r"'sew-d' classifier take is known for .* wav2vec2.*Take adapter\.allocator"):
        case.family.streams(case.loaded, case.batch([0]))


def test_a_whole_window_adds_nothing_but_padding(case: Any) -> None:
    """What is computed behind a clip is not the clip's, in the encoder, the projector and what reads them."""
    own, *windows = (
        case.family.streams(case.loaded, case.batch([0, 2], context=context)) for context in ("cut", "thinned", "full")
    )
    for window in windows:
        assert [stream.modules for stream in window] == [stream.modules for stream in own]
        for one, other in zip(own, window, strict=True):
            for kind in (AUDIO, TEXT):
                assert int((other.kinds == kind).sum()) == int((one.kinds == kind).sum()), one.modules


def test_kinds_say_which_rows_hold_audio_and_which_text(case: Any) -> None:
    """Of a longer clip with the same text there is more audio and as much text."""
    counts: dict[int, list[int]] = {AUDIO: [], TEXT: []}
    for row in (0, 2):
        batch = case.batch([row])
        streams = case.family.streams(case.loaded, batch)
        for kind, found in counts.items():
            found.append(max(int((stream.kinds == kind).sum()) for stream in streams))
        written = int(batch.target_lengths[0])
        assert counts[TEXT][-1] == 0 or counts[TEXT][-1] >= written - 1
    assert counts[AUDIO][1] > counts[AUDIO][0] > 0
    assert (counts[TEXT][0] > 0) == (case.family.name in ("whisper", "qwen3_asr", "speech_llm"))


def sampled(case: Any, batches: list[Batch], **settings: Any) -> Any:
    sample = collect_activations(case.loaded, objective_of(case), batches, tokens=TOKENS, **settings)
    assert sample is not None
    return sample


def test_padding_changes_nothing_in_the_sample(case: Any) -> None:
    """The same clip cut out of a batch with a longer one has that batch's padding."""
    alone = sampled(case, [case.batch([0])])
    padded = sampled(case, [case.batch([0, 2]).split(2)[0]])
    assert [item.modules for item in padded.inputs] == [item.modules for item in alone.inputs]
    assert padded.reservoirs.keys() == alone.reservoirs.keys()
    for key, reservoir in alone.reservoirs.items():
        assert padded.reservoirs[key].keys.tolist() == reservoir.keys.tolist()
        for name in reservoir.inputs:
            torch.testing.assert_close(padded.reservoirs[key].rows(name), reservoir.rows(name), rtol=1e-4, atol=2e-4)


def test_order_and_sharding_change_no_bit_of_the_sample(case: Any) -> None:
    clips = [case.batch([row]) for row in range(3)]
    whole = sampled(case, clips)
    merged = sampled(case, clips[1:]).merge(sampled(case, clips[:1]))
    assert merged.clips == whole.clips
    for other in (sampled(case, clips[::-1]), merged):
        assert other.inputs == whole.inputs
        assert other.reservoirs.keys() == whole.reservoirs.keys()
        for key, reservoir in whole.reservoirs.items():
            assert other.reservoirs[key].keys.tolist() == reservoir.keys.tolist()
            assert other.reservoirs[key].seen == reservoir.seen
            for name in reservoir.inputs:
                assert torch.equal(other.reservoirs[key].rows(name), reservoir.rows(name))


def test_projections_of_one_tensor_share_its_statistics(case: Any) -> None:
    sample = sampled(case, [case.batch([0])])
    together = {name: item.modules for item in sample.inputs for name in item.modules}
    assert set(together) == set(case.loaded.linears)
    for one, other in (("q_proj", "k_proj"), ("k_proj", "v_proj"), ("gate_proj", "up_proj")):
        for name in together:
            if re.search(rf"(self_attn|attention|mlp)\.{one}$", name) and "cross_attention" not in name:
                partner = name[: -len(one)] + other
                if "encoder_attn" not in name and partner in together and "read" not in name:
                    assert partner in together[name], name
    ends = [
        modules
        for modules in together.values()
        if any(re.search(r"(out_proj|o_proj|fc2|down_proj)$", m) for m in modules)
    ]
    assert all(len(modules) == 1 for modules in ends)


def test_the_gradient_along_directions_is_that_of_an_adapter(case: Any) -> None:
    """Against autograd on the weights themselves: dL/dB of an adapter with A = V is G Vᵀ."""
    loaded, clips = case.fresh(), [case.batch([row]) for row in (0, 1)]
    sample = collect_activations(loaded, objective_of(case), clips, tokens=TOKENS)
    assert sample is not None
    directions = {}
    for item in sample.inputs:
        if len(part := next(iter(sample.parts(item).values()))) >= 4:
            found = leading_directions(part.rows(item.modules[0]), 5)
            directions |= dict.fromkeys(item.modules, found)
    evidence = differentiate(loaded, objective_of(case), clips, directions)
    assert evidence is not None
    assert (evidence.clips, evidence.dropped) == (2, 0)
    losses = [case.task.loss(loaded, batch, label_smoothing=0.0) for batch in clips]
    mean = sum(one.total for one in losses) / sum(one.count for one in losses)
    mean.backward()
    assert evidence.labels == sum(one.count for one in losses)
    for name, found in directions.items():
        gradient = loaded.module.get_submodule(name).weight.grad.flatten(1).double()
        along_P = (gradient @ found.vectors.T.double()).square().sum(dim=0)
        damped_P = found.shares * found.trace + 1e-3 * found.trace / found.vectors.shape[1]
        scale = float((along_P / damped_P).max())
        torch.testing.assert_close(
            torch.from_numpy(evidence.gains[name]), along_P / damped_P, rtol=1e-3, atol=1e-4 * scale
        )


def test_a_quantised_base_gives_a_sample_and_gradients_and_stays_as_it_was(case: Any) -> None:
    kept = {name for name in case.loaded.linears if case.loaded.owner(name) == "head"}
    loaded, clips = quantize(case.fresh(), bits=4, keep=kept), [case.batch([row]) for row in (0, 1)]
    trained = {name for name, parameter in loaded.module.named_parameters() if parameter.requires_grad}
    sample = collect_activations(loaded, objective_of(case), clips, tokens=TOKENS)
    assert sample is not None
    directions = {
        name: leading_directions(part.rows(item.modules[0]), 5)
        for item in sample.inputs
        for part in [next(iter(sample.parts(item).values()))]
        if len(part) >= 4
        for name in item.modules
    }
    evidence = differentiate(loaded, objective_of(case), clips, directions)
    assert evidence is not None
    assert all(bool((gains >= 0).all()) for gains in evidence.gains.values())
    assert sum(float(gains.sum()) > 0 for gains in evidence.gains.values()) == len(directions)
    assert {name for name, parameter in loaded.module.named_parameters() if parameter.requires_grad} == trained
    assert all(parameter.grad is None for parameter in loaded.module.parameters())
