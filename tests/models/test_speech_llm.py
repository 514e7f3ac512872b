"""Models composed of parts: their map, their masks, their folder and what adapters do to them."""

from __future__ import annotations

import copy
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import sonotune
from sonotune.adapters.kinds import lora
from sonotune.adapters.merge import merge_into
from sonotune.adapters.ranks.plan import RankPlan, unit_costs
from sonotune.errors import ModelError, RunDirectoryError, TextError
from sonotune.features.batching import Batch, pad_targets
from sonotune.models.base import LoadedModel, component_of_parameters, count_parameters, select
from sonotune.models.composed.build import compose, put_together
from sonotune.models.composed.model import BOUNDS, SpeechLlm, SpeechLlmConfig
from sonotune.models.composed.projectors import PROJECTORS
from sonotune.models.encoder_rows import WAVEFORM_TYPES
from sonotune.models.families.speech_llm import SpeechLlmFamily
from sonotune.models.probe import probe_logits
from sonotune.models.quantize import quantize
from sonotune.models.speech_encoders import encode
from sonotune.types import Clip, DecodingSettings

FAMILY = SpeechLlmFamily()


def transcripts(*arguments: Any) -> list[str]:
    return [one.text for one in FAMILY.transcribe(*arguments)]


SECONDS = [0.3, 0.52, 0.41]
TEXTS = ["one", "two three", "six"]
SMALL = {"projector_hidden_size": 24, "projector_heads": 2, "perceiver_latents": 2, "perceiver_depth": 1}
KINDS = tuple(PROJECTORS)
PACKAGE = Path(sonotune.__file__).parent / "assets"


def tiny_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end|>", "<|pad|>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(["one two three Transcribe: the English audio"], trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",  # noqa: S106
        pad_token="<|pad|>",  # noqa: S106
    )


def encoder_config(kind: str, **changes: Any) -> Any:
    if kind == "whisper":
        return transformers.WhisperConfig(
            d_model=16,
            encoder_layers=2,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            num_mel_bins=80,
            vocab_size=64,
            init_std=0.3,
            max_source_positions=1500,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
            begin_suppress_tokens=None,
            suppress_tokens=None,
        )
    settings = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "conv_dim": (8, 8, 8),
        "conv_kernel": (10, 8, 4),
        "conv_stride": (5, 8, 8),
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
        "vocab_size": 8,
        "num_feat_extract_layers": 3,
    } | changes
    return transformers.AutoConfig.for_model(kind, **settings)


def text_config(kind: str) -> Any:
    if kind == "gpt2":
        return transformers.GPT2Config(vocab_size=300, n_embd=16, n_layer=2, n_head=2, n_positions=128)
    return transformers.AutoConfig.for_model(
        kind,
        vocab_size=300,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=kind == "qwen2",
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )


def save_encoder(folder: Path, kind: str, **changes: Any) -> Path:
    torch.manual_seed(1)
    config = encoder_config(kind, **changes)
    if kind == "whisper":
        transformers.WhisperForConditionalGeneration(config).save_pretrained(folder)
        transformers.WhisperFeatureExtractor().save_pretrained(folder)
    else:
        transformers.AutoModel.from_config(config).save_pretrained(folder)
        transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    return folder


def save_language_model(folder: Path, kind: str) -> Path:
    torch.manual_seed(2)
    transformers.AutoModelForCausalLM.from_config(text_config(kind)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("parts")
    encoders = {kind: save_encoder(root / kind, kind) for kind in ("whisper", "wav2vec2")}
    return encoders | {kind: save_language_model(root / kind, kind) for kind in ("qwen2", "llama", "gpt2")}


@pytest.fixture(scope="module")
def made(parts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Composes once for each combination; hands out the folder."""
    root, known = tmp_path_factory.mktemp("made"), {}

    def make(encoder: str, language_model: str, kind: str, fusion: str) -> str:
        key = f"{encoder}-{language_model}-{kind}-{fusion}"
        if key not in known:
            prompt = "<audio>Transcribe:" if fusion == "prompt" else "Transcribe:"
            compose(
                root / key,
                encoder=str(parts[encoder]),
                language_model=str(parts[language_model]),
                projector_kind=kind,
                fusion=fusion,
                prompt=prompt,
                **SMALL,
            )
            known[key] = str(root / key)
        return known[key]

    return make


def open_gates(loaded: LoadedModel) -> LoadedModel:
    with torch.no_grad():
        for name, parameter in loaded.module.named_parameters():
            if name.endswith("gate.scale"):
                parameter.fill_(0.7)
    return loaded


def batch_of(loaded: LoadedModel, rows: list[int], *, full: bool = False) -> Batch:
    waveforms = [
        (0.1 * np.random.default_rng(row).standard_normal(round(16_000 * SECONDS[row]))).astype(np.float32)
        for row in rows
    ]
    inputs, lengths = loaded.frontend(waveforms, full_context=full)
    targets, target_lengths = pad_targets([FAMILY.encode_text(loaded, TEXTS[row], "en") for row in rows])
    clips = tuple(
        Clip(id=f"c{row}", path=Path("x.wav"), duration_s=SECONDS[row], text=TEXTS[row], language="en") for row in rows
    )
    return Batch(
        inputs=inputs,
        input_lengths=lengths,
        targets=targets,
        target_lengths=target_lengths,
        clips=clips,
        context="full" if full else "cut",
    )


EVERY = list(itertools.product(("whisper", "wav2vec2"), ("qwen2", "llama"), KINDS, ("prompt", "cross_attention")))


@pytest.mark.parametrize(("encoder", "language_model", "kind", "fusion"), EVERY)
def test_the_map_and_batches_of_every_combination(made: Any, encoder: str, language_model: str, kind: str, fusion: str):
    folder = made(encoder, language_model, kind, fusion)
    loaded = open_gates(FAMILY.load(folder))
    owners = component_of_parameters(loaded)
    assert set(owners) == {name for name, _ in loaded.module.named_parameters()}
    tied = language_model == "qwen2"
    names = {"stem", "encoder", "projector", "decoder", "embeddings"} | (set() if tied else {"head"})
    assert set(owners.values()) == names
    assert bool(loaded.tied) == tied
    total = sum(parameter.numel() for parameter in loaded.module.parameters())
    assert sum(row["parameters"] for row in count_parameters(loaded).values()) == total
    assert {parameter.dtype for parameter in loaded.module.parameters()} == {torch.float32}
    assert len(loaded.component("decoder").layers) == len(loaded.component("encoder").layers) == 2
    if fusion == "cross_attention":
        assert all(name.startswith("cross_attention.1.") for name in select(loaded, ["decoder.cross_attention"]))
    with torch.no_grad():
        together = FAMILY.forward(loaded, batch_of(loaded, [0, 1, 2])).losses()
        alone = [FAMILY.forward(loaded, batch_of(loaded, [row])).losses() for row in range(3)]
    assert together.counts.tolist() == [losses.count for losses in alone]
    torch.testing.assert_close(together.sums, torch.stack([losses.total for losses in alone]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [*WAVEFORM_TYPES, "group"])
def test_padding_reaches_no_waveform_encoder(tmp_path: Path, parts: dict[str, Path], kind: str):
    changes = {"feat_extract_norm": "group", "do_stable_layer_norm": False} if kind == "group" else {}
    encoder = save_encoder(tmp_path / "encoder", "wav2vec2" if kind == "group" else kind, **changes)
    compose(tmp_path / "made", encoder=str(encoder), language_model=str(parts["llama"]), **SMALL)
    loaded = FAMILY.load(str(tmp_path / "made"))
    assert set(component_of_parameters(loaded)) == {name for name, _ in loaded.module.named_parameters()}
    with torch.no_grad():
        together = FAMILY.logits(loaded, batch_of(loaded, [0, 1, 2]))
        alone = torch.cat([FAMILY.logits(loaded, batch_of(loaded, [row])) for row in range(3)])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
        theirs = transformers.AutoModel.from_pretrained(encoder).eval()
        one = batch_of(loaded, [1])
        states = loaded.module.audio_encoder
        expected = theirs(one.inputs.squeeze(-1)).last_hidden_state
        ours = encode(states, one.inputs, one.input_lengths, context=one.context).states
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_whisper_at_full_context_is_that_of_transformers(made: Any, parts: dict[str, Path]):
    loaded = FAMILY.load(made("whisper", "llama", "linear", "prompt"))
    batch = batch_of(loaded, [0, 1], full=True)
    theirs = transformers.WhisperModel.from_pretrained(parts["whisper"]).eval()
    with torch.no_grad():
        encoded = encode(loaded.module.audio_encoder, batch.inputs, batch.input_lengths, context="full")
        expected = theirs.encoder(batch.inputs.transpose(1, 2)).last_hidden_state
    assert encoded.positions.tolist() == [1500, 1500]
    assert torch.equal(encoded.states, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_projector_does_not_hear_padding(kind: str):
    torch.manual_seed(0)
    projector = PROJECTORS[kind](6, 5, downsample=3, hidden=8, latents=2, depth=2, heads=2)
    states, lengths = torch.randn(2, 17, 6), torch.tensor([17, 7])
    noisy = states.clone()
    noisy[1, 7:] = float("nan")
    audio, sizes = projector(noisy, lengths)
    alone, size = projector(states[1:, :7], lengths[1:])
    torch.testing.assert_close(audio[1, : sizes[1]], alone[0, : size[0]], rtol=1e-5, atol=1e-6)
    assert sizes[1] == size[0] == (4 if kind == "perceiver" else 3)
    audio[0].sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in projector.parameters() if p.grad is not None)


def test_a_perceiver_latent_hears_its_whole_window():
    projector = PROJECTORS["perceiver"](6, 5, downsample=3, hidden=8, latents=2, depth=1, heads=2)
    states = torch.randn(1, 12, 6, requires_grad=True)
    audio, _ = projector(states, torch.tensor([12]))
    audio[0, 0].sum().backward()
    heard = states.grad[0].abs().sum(dim=1) > 0  # type: ignore[index]
    assert heard.tolist() == [True] * 6 + [False] * 6


def test_a_perceiver_reads_a_window_that_is_not_full_without_what_is_missing():
    projector = PROJECTORS["perceiver"](6, 5, downsample=3, hidden=8, latents=2, depth=1, heads=2)
    states = torch.randn(1, 4, 6)
    part, _ = projector(states, torch.tensor([4]))
    projector.window = 4  # the same positions fill the window
    whole, _ = projector(states, torch.tensor([4]))
    torch.testing.assert_close(part, whole)


@pytest.mark.parametrize("fusion", ["prompt", "cross_attention"])
def test_a_composed_model_learns_what_it_hears(made: Any, fusion: str):
    loaded = FAMILY.load(made("whisper", "llama", "conv", fusion))
    batch = batch_of(loaded, [0, 1, 2])
    optimizer = torch.optim.AdamW(loaded.module.parameters(), lr=1e-2)
    for _ in range(120):
        losses = FAMILY.forward(loaded, batch).losses()
        optimizer.zero_grad()
        (losses.total / losses.count).backward()
        optimizer.step()
    assert transcripts(loaded, batch, DecodingSettings(max_new_tokens=12)) == TEXTS
    assert transcripts(loaded, batch, DecodingSettings(beam_size=2, max_new_tokens=12)) == TEXTS


@pytest.mark.parametrize("language_model", ["qwen2", "llama", "gpt2"])
def test_closed_gates_leave_the_language_model_alone(made: Any, parts: dict[str, Path], language_model: str):
    loaded = FAMILY.load(made("whisper", language_model, "linear", "cross_attention"))
    plain = transformers.AutoModelForCausalLM.from_pretrained(parts[language_model]).eval()
    batch = batch_of(loaded, [0])
    before = loaded.processor.tokenizer("Transcribe:").input_ids
    ids = torch.tensor([[*before, *batch.targets[0].tolist()]])
    with torch.no_grad():
        expected = plain(ids).logits[0, len(before) - 1 : -1]
        torch.testing.assert_close(FAMILY.logits(loaded, batch), expected, rtol=1e-5, atol=1e-6)
        opened = FAMILY.logits(open_gates(loaded), batch)
    assert not torch.allclose(opened, expected, atol=1e-3)


def test_the_prompt_and_the_audio_stand_before_the_target(made: Any):
    loaded = FAMILY.load(made("whisper", "llama", "linear", "prompt"))
    batch = batch_of(loaded, [0, 1])
    masks: list[torch.Tensor] = []
    hook = loaded.module.register_forward_pre_hook(
        lambda module, inputs, named: masks.append(named["attention_mask"]), with_kwargs=True
    )
    outputs = FAMILY.forward(loaded, batch)
    hook.remove()
    heard = [loaded.module.audio_positions(clip.duration_s) for clip in batch.clips]
    prompt = len(loaded.processor.tokenizer("Transcribe:").input_ids)
    sizes = [audio + prompt + count for audio, count in zip(heard, batch.target_lengths.tolist(), strict=True)]
    assert [mask.sum(dim=1).tolist() for mask in masks] == [sizes]
    assert batch.targets[0, batch.target_lengths[0] - 1] == loaded.processor.tokenizer.eos_token_id
    labels = outputs.labels.split(outputs.places.sum(dim=1).tolist())
    assert [row.tolist() for row in labels] == [row[row >= 0].tolist() for row in batch.targets]
    with torch.no_grad():
        deaf = replace(batch, inputs=torch.zeros_like(batch.inputs))
        assert not torch.allclose(FAMILY.logits(loaded, batch), FAMILY.logits(loaded, deaf), atol=1e-5)


@pytest.mark.parametrize(
    ("encoder", "language_model", "kind", "fusion"),
    [
        ("whisper", "qwen2", "perceiver", "prompt"),
        ("wav2vec2", "llama", "conv", "cross_attention"),
        ("whisper", "gpt2", "mlp", "cross_attention"),
    ],
)
def test_a_folder_comes_back_as_it_was(
    made: Any, tmp_path: Path, encoder: str, language_model: str, kind: str, fusion: str
):
    loaded = open_gates(FAMILY.load(made(encoder, language_model, kind, fusion)))
    loaded.module.save_pretrained(tmp_path / "again", safe_serialization=True)
    loaded.processor.save_pretrained(tmp_path / "again")
    again = FAMILY.load(str(tmp_path / "again"))
    assert torch.equal(probe_logits(loaded), probe_logits(again))
    assert again.components == loaded.components
    outline = FAMILY.outline(str(tmp_path / "again"))
    assert all(parameter.is_meta for parameter in outline.module.parameters())
    assert {name: value.shape for name, value in outline.module.named_parameters()} == {
        name: value.shape for name, value in loaded.module.named_parameters()
    }
    assert (outline.components, outline.linears, outline.tied) == (loaded.components, loaded.linears, loaded.tied)
    assert outline.frontend.max_duration_s == loaded.frontend.max_duration_s
    loaded.module.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    loaded.processor.save_pretrained(tmp_path / "half")
    half = FAMILY.load(str(tmp_path / "half"))
    assert {parameter.dtype for parameter in half.module.parameters()} == {torch.float32}
    fresh = FAMILY.load(str(tmp_path / "half"), random_weights=True, dropout=0.3)
    assert {parameter.dtype for parameter in fresh.module.parameters()} == {torch.float32}
    assert fresh.module.config.dropout == 0.3
    assert fresh.revision.startswith("random-")


@pytest.mark.parametrize(
    ("encoder", "language_model", "kind", "fusion"),
    [
        ("whisper", "qwen2", "perceiver", "cross_attention"),
        ("wav2vec2", "llama", "linear", "prompt"),
        ("wav2vec2", "gpt2", "conv", "prompt"),
    ],
)
def test_adapters_reach_exactly_the_linears_and_merge(
    made: Any, encoder: str, language_model: str, kind: str, fusion: str
):
    folder = made(encoder, language_model, kind, fusion)
    loaded = open_gates(FAMILY.load(folder))
    inside = ("encoder", "projector", "decoder")
    owners = component_of_parameters(loaded)
    found = [name for name, module in loaded.module.named_modules() if isinstance(module, nn.Linear)]
    assert list(loaded.linears) == [name for name in found if owners.get(f"{name}.weight") in inside]
    assert {owners[f"{name}.weight"] for name in loaded.linears} == set(inside)
    total = 2 * sum(unit_costs(loaded, loaded.linears).values())
    plan = RankPlan(ranks=dict.fromkeys(loaded.linears, 2), allocator="test", parameters=total)
    adapted = lora.attach(loaded, plan, rank=2, alpha=4.0, stem="train")
    assert set(lora.lora_layers(adapted)) == set(loaded.linears)
    trains = {name for name, parameter in loaded.module.named_parameters() if parameter.requires_grad}
    assert all(".lora_" in name or ".modules_to_save." in name for name in trains)
    loaded.module.train()
    FAMILY.forward(adapted, batch_of(loaded, [0, 1])).losses().total.backward()
    loaded.module.eval()
    for name, parameter in loaded.module.named_parameters():
        if parameter.requires_grad and "lora_B" in name:
            assert parameter.grad is not None, name
            with torch.no_grad():
                parameter.normal_(std=0.05)
    before = probe_logits(adapted)
    fresh = open_gates(FAMILY.load(folder))
    assert not torch.allclose(before, probe_logits(fresh), atol=1e-3)
    merged = merge_into(adapted, fresh)
    torch.testing.assert_close(probe_logits(merged), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fusion", ["prompt", "cross_attention"])
@pytest.mark.parametrize("beams", [1, 2])
def test_texts_do_not_depend_on_the_batch(made: Any, fusion: str, beams: int):
    loaded = open_gates(FAMILY.load(made("whisper", "llama", "linear", fusion)))
    batch = batch_of(loaded, [0, 1, 2])
    together = transcripts(loaded, batch, DecodingSettings(beam_size=beams, max_new_tokens=6))
    alone = [
        transcripts(loaded, batch_of(loaded, [r]), DecodingSettings(beam_size=beams, max_new_tokens=6))[0]
        for r in range(3)
    ]
    assert together == alone
    assert any(together)


def test_greedy_decoding_takes_the_best_token_each_time(made: Any):
    loaded = open_gates(FAMILY.load(made("whisper", "qwen2", "linear", "cross_attention")))
    batch = batch_of(loaded, [1])
    written: list[int] = []
    for _ in range(4):  # the last target's logits do not see it, so any token may stand there
        targets = torch.tensor([[*written, 7]])
        with torch.no_grad():
            logits = FAMILY.logits(
                loaded, replace(batch, targets=targets, target_lengths=torch.tensor([len(written) + 1]))
            )
        written.append(int(logits[-1].argmax()))
    expected = FAMILY.decode_text(loaded, written).removesuffix("\ufffd")  # it was cut, perhaps within a character
    assert transcripts(loaded, batch, DecodingSettings(max_new_tokens=4)) == [expected]


def test_gradient_checkpointing_changes_no_gradient(made: Any):
    loaded = open_gates(FAMILY.load(made("whisper", "llama", "linear", "cross_attention"), dropout=0.0))
    batch, gradients = batch_of(loaded, [0, 1]), []
    for on in (False, True):
        if on:
            loaded.module.activation_checkpointing_enable({"use_reentrant": False})
        loaded.module.train()
        loaded.module.zero_grad(set_to_none=True)
        FAMILY.forward(loaded, batch).losses().total.backward()
        gradients.append({n: p.grad.clone() for n, p in loaded.module.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert any(name.startswith("cross_attention") for name in gradients[0])
    assert all(torch.allclose(gradients[0][name], gradients[1][name], atol=1e-5) for name in gradients[0])


def test_a_copy_listens_with_its_own_blocks(made: Any):
    loaded = open_gates(FAMILY.load(made("whisper", "llama", "linear", "cross_attention")))
    batch = batch_of(loaded, [0, 1])
    before = FAMILY.logits(loaded, batch)
    twin = loaded.with_(module=copy.deepcopy(loaded.module))
    with torch.no_grad():
        for parameter in loaded.module.cross_attention.parameters():
            parameter.zero_()
        assert torch.equal(FAMILY.logits(twin, batch), before)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_weights_are_called_and_carry_adapters(made: Any, bits: int):
    loaded = open_gates(FAMILY.load(made("wav2vec2", "llama", "perceiver", "cross_attention")))
    exact = probe_logits(loaded)
    small = quantize(loaded, bits=bits, keep=set())  # type: ignore[arg-type]
    assert set(small.quantized) == set(loaded.linears)
    rough = probe_logits(small)
    assert 0 < float((rough - exact).abs().max()) < float(exact.abs().max())
    total = 2 * sum(unit_costs(small, small.linears).values())
    plan = RankPlan(ranks=dict.fromkeys(small.linears, 2), allocator="test", parameters=total)
    adapted = lora.attach(small, plan, rank=2, alpha=4.0, stem="frozen")
    torch.testing.assert_close(probe_logits(adapted), rough)
    FAMILY.forward(adapted, batch_of(adapted, [0])).losses().total.backward()
    trains = {name for name, parameter in adapted.module.named_parameters() if parameter.grad is not None}
    assert {name.split(".lora_")[0] for name in trains if ".lora_B" in name} == set(loaded.linears)


def test_the_language_and_the_chat_template_are_in_the_prompt(tmp_path: Path, parts: dict[str, Path]):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<reply>"
    folder = tmp_path / "chatty"
    save_language_model(folder, "llama")
    tokenizer.save_pretrained(folder)
    arguments = {"encoder": str(parts["whisper"]), "prompt": "the {language} <audio>audio", "chat": True, **SMALL}
    compose(tmp_path / "made", language_model=str(folder), **arguments)
    loaded = FAMILY.load(str(tmp_path / "made"))
    before, after = FAMILY.prompt_tokens(loaded, "en-GB")
    assert tokenizer.decode(before) == "<user>the English "
    assert tokenizer.decode(after) == "audio<reply>"
    with pytest.raises(TextError, match=r"model\.language"):
        FAMILY.encode_text(loaded, "one", None)
    assert not FAMILY.knows_language(loaded, "hebrw")
    with pytest.raises(TextError, match=r"'hebrw' is none that is known; did you mean he \(Hebrew\)\?"):
        FAMILY.encode_text(loaded, "one", "hebrw")
    assert FAMILY.knows_language(loaded, "Ladino")
    assert len(probe_logits(loaded)) == 36
    with pytest.raises(ModelError, match="chat template"):
        compose(tmp_path / "not", language_model=str(parts["llama"]), **arguments)


def test_text_comes_back_and_long_text_is_refused(made: Any):
    loaded = FAMILY.load(made("whisper", "llama", "linear", "prompt"))
    for text in ("seven", "שלום עולם", "naïve café", "🎉"):
        assert FAMILY.decode_text(loaded, FAMILY.encode_text(loaded, text, None).tolist()) == text
    short = "a" * 60
    assert len(FAMILY.encode_text(loaded, short, None, duration_s=1.0)) == 61
    with pytest.raises(TextError, match="has room for"):
        FAMILY.encode_text(loaded, short, None, duration_s=8.0)
    with pytest.raises(TextError, match="has room for 0"):  # the whole window is more than its positions
        FAMILY.encode_text(loaded.with_(context="full"), short, None, duration_s=1.0)


def test_wrong_parts_are_refused_and_leave_nothing(tmp_path: Path, parts: dict[str, Path]):
    whisper, llama = str(parts["whisper"]), str(parts["llama"])
    target = tmp_path / "made"
    with pytest.raises(ModelError, match=r"'llama' model cannot be the encoder; known encoders: whisper"):
        compose(target, encoder=llama, language_model=llama)
    with pytest.raises(ModelError, match="no causal language model"):
        compose(target, encoder=whisper, language_model=whisper)
    bert = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    transformers.BertForMaskedLM(bert).save_pretrained(tmp_path / "bert")
    with pytest.raises(ModelError, match="writes from left to right"):
        compose(target, encoder=whisper, language_model=str(tmp_path / "bert"))
    with pytest.raises(ModelError, match="projector_kidn"):
        compose(target, encoder=whisper, language_model=llama, projector_kidn="mlp")
    with pytest.raises(ModelError, match="allowed are linear, mlp, perceiver, conv"):
        compose(target, encoder=whisper, language_model=llama, projector_kind="magic")
    with pytest.raises(ModelError, match="make no composed model"):
        compose(target, encoder=whisper, language_model=llama, downsample="four")
    with pytest.raises(ModelError, match="exactly one is needed"):
        compose(target, encoder=whisper, language_model=llama, prompt="Transcribe:")
    with pytest.raises(ModelError, match="allowed are numbers from 0 to 1"):
        compose(target, encoder=whisper, language_model=llama, fusion="cross_attention", cross_attention_layers=[5])
    with pytest.raises(ModelError, match="attention heads"):
        compose(target, encoder=whisper, language_model=llama, projector_kind="perceiver", projector_heads=7)
    with pytest.raises(ModelError, match="neither a folder"):
        compose(target, encoder=str(tmp_path / "absent"), language_model=llama)
    assert not target.exists()
    target.mkdir()
    with pytest.raises(RunDirectoryError, match="exists already"):
        compose(target, encoder=whisper, language_model=llama)
    with pytest.raises(ModelError, match="family"):
        FAMILY.load(whisper)


def test_a_default_is_a_cross_attention_block_before_every_fourth_layer():
    text = {"model_type": "qwen2", "num_hidden_layers": 10}
    config = SpeechLlmConfig(text_config=text, fusion="cross_attention")
    assert config.cross_attention_layers == [3, 7]
    assert isinstance(SpeechLlmConfig.from_dict(config.to_dict()).audio_config, transformers.WhisperConfig)
    assert transformers.AutoModel._model_mapping[SpeechLlmConfig] is SpeechLlm


@pytest.mark.parametrize(
    ("kind", "width", "heads"), [("mlp", 896, 14), ("linear", 896, 14), ("conv", 896, 14), ("perceiver", 160, 2)]
)
def test_sizes_that_nobody_sets_follow_from_the_parts(kind: Any, width: int, heads: int):
    audio = {"model_type": "whisper", "d_model": 160}
    text = {"model_type": "qwen2", "hidden_size": 896, "num_hidden_layers": 2}
    config = SpeechLlmConfig(audio_config=audio, text_config=text, projector_kind=kind)
    assert (config.projector_hidden_size, config.projector_heads) == (width, heads)
    assert SpeechLlmConfig(text_config=text, projector_hidden_size=90).projector_heads == 1
    again = SpeechLlmConfig.from_dict(config.to_diff_dict())
    assert (again.projector_hidden_size, again.projector_heads) == (width, heads)


@pytest.mark.parametrize("name", sorted(BOUNDS))
def test_sizes_have_bounds(name: str):
    least, most = BOUNDS[name]
    for value in (least - 1, most + 1):
        with pytest.raises(ModelError, match=f"{name}={value} is out of bounds; allowed are {least} to {most}"):
            SpeechLlmConfig(text_config={"model_type": "qwen2"}, **{name: value})


def test_a_new_part_is_untrained_until_its_weights_change(made: Any, tmp_path: Path):
    folder = made("whisper", "llama", "perceiver", "cross_attention")
    loaded = FAMILY.load(folder)
    assert loaded.untrained == ("projector", "decoder.cross_attention", "decoder.gates")
    named = {name for selector in loaded.untrained for name in select(loaded, [selector])}
    assert named == {
        name for name, _ in loaded.module.named_parameters() if name.startswith(("projector.", "cross_attention."))
    }
    assert FAMILY.load(folder, random_weights=True).untrained == ()
    assert set(FAMILY.outline(folder).untrained) == set(loaded.untrained)  # as it was made: no weights are read
    for part, left in (("projector.out.bias", ("decoder.cross_attention", "decoder.gates")), ("gate.scale", ())):
        with torch.no_grad():
            for name, parameter in loaded.module.named_parameters():
                if name.endswith(part) or (part == "gate.scale" and name.endswith("q_proj.weight")):
                    parameter += 1e-3
        loaded.module.save_pretrained(tmp_path / part)
        loaded.processor.save_pretrained(tmp_path / part)
        assert FAMILY.load(str(tmp_path / part)).untrained == left
    assert FAMILY.load(made("whisper", "llama", "mlp", "prompt")).untrained == ("projector",)


def test_a_tag_without_a_name_stands_in_the_prompt_as_it_is(tmp_path: Path, parts: dict[str, Path]):
    arguments = {"encoder": str(parts["whisper"]), "prompt": "<audio>the {language}:", **SMALL}
    compose(tmp_path / "made", language_model=str(parts["llama"]), **arguments)
    loaded = FAMILY.load(str(tmp_path / "made"))
    decode = loaded.processor.tokenizer.decode
    for given, told in (("he_IL", "Hebrew"), ("iw", "Hebrew"), ("xx_YY", "xx_YY"), (" ", "unknown"), (None, "unknown")):
        assert decode(FAMILY.prompt_tokens(loaded, given)[1]) == f"the {told}:"
    assert FAMILY.note_on_language(loaded, "iw") is None
    note = FAMILY.note_on_language(loaded, "xx_YY")
    assert note is not None
    assert note.startswith("'xx_YY' is the code or name of no language")


def test_the_packaged_model_puts_its_parts_together_the_same_every_time(tmp_path: Path):
    loaded, again = (FAMILY.load("assets:speech-llm-nano", dropout=dropout) for dropout in (None, 0.3))
    assert loaded.untrained == ("projector",)
    assert loaded.revision == again.revision
    assert again.module.audio_encoder.dropout == again.module.config.dropout == 0.3
    assert torch.equal(probe_logits(loaded), probe_logits(again))
    whisper = transformers.WhisperModel.from_pretrained(PACKAGE / "whisper-nano", dtype=torch.float32)
    qwen = transformers.Qwen3ASRForConditionalGeneration.from_pretrained(
        PACKAGE / "qwen3-asr-nano", dtype=torch.float32
    )
    for mine, theirs in (
        (loaded.module.audio_encoder.layers, whisper.encoder.layers),
        (loaded.module.language_model.model, qwen.model.language_model),
        (loaded.module.language_model.lm_head, qwen.lm_head),
    ):
        ours, wanted = mine.state_dict(), theirs.state_dict()
        assert ours.keys() == wanted.keys()
        assert all(torch.equal(ours[name], wanted[name]) for name in wanted)
    loaded.module.save_pretrained(tmp_path / "whole")  # saved, it has weights of its own
    loaded.processor.save_pretrained(tmp_path / "whole")
    whole = FAMILY.load(str(tmp_path / "whole"))
    assert whole.module.config.parts is None
    assert torch.equal(probe_logits(loaded), probe_logits(whole))


def test_the_packaged_configuration_is_that_of_its_parts():
    config = SpeechLlmConfig.from_pretrained(PACKAGE / "speech-llm-nano")
    module, _ = put_together(**config.parts)
    left_out = {"untrained", "parts", "architectures", "dtype", "_name_or_path", "transformers_version"}
    kept, made = ({k: v for k, v in c.to_dict().items() if k not in left_out} for c in (config, module.config))
    for part in ("audio_config", "text_config"):
        kept[part], made[part] = ({k: v for k, v in c[part].items() if k not in left_out} for c in (kept, made))
    assert kept == made


def test_a_folder_that_names_its_parts_badly_is_refused(tmp_path: Path):
    kept = json.loads((PACKAGE / "speech-llm-nano" / "config.json").read_text("utf-8"))
    for parts, said in (
        ({"encoder": "assets:whisper-nano"}, "`parts` needs"),
        ({**kept["parts"], "language_model": 3}, "`parts` needs"),
        ({**kept["parts"], "projector_kidn": "mlp"}, "projector_kidn"),
        ({**kept["parts"], "encoder": str(tmp_path / "absent")}, "neither a folder"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(kept | {"parts": parts}), "utf-8")
        with pytest.raises(ModelError, match=said):
            FAMILY.load(str(tmp_path))
