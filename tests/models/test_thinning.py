"""The thinned window: which positions are kept, and that they compute what the whole window computes."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given
from hypothesis import strategies as st

from sonotune.adapters.metadata import use_of
from sonotune.errors import AdapterError, ConfigError
from sonotune.features.batching import Batch, pad_targets
from sonotune.loading import open_model
from sonotune.models.base import LoadedModel
from sonotune.models.families.ast import AstFamily
from sonotune.models.families.whisper import WhisperFamily
from sonotune.models.speech_encoders import encode
from sonotune.models.thinning import Thinning, contexts_of_training
from sonotune.types import CONTEXTS, Clip, Context, DecodingSettings

FAMILY = WhisperFamily()
WINDOW = 100  # positions: 2 s
FEW = DecodingSettings(max_new_tokens=6, temperatures=(0.0, 0.5))

WHISPER = {
    "vocab_size": 51865,
    "num_mel_bins": 80,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_source_positions": WINDOW,
    "dropout": 0.0,
}


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    """Whisper-nano's tokenizer, random weights that are far from small, and a window of two seconds."""
    torch.manual_seed(0)
    loaded = FAMILY.load("assets:whisper-nano", random_weights=True)
    config = transformers.WhisperConfig(**{**WHISPER, "vocab_size": loaded.module.config.vocab_size})
    module = transformers.models.whisper.modeling_whisper.WhisperEncoder(config).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1 and "embed" not in name:
                parameter.mul_(4.0)
    return loaded.with_(module=module)


def features(loaded: LoadedModel, seconds: list[float], context: Context) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(5)
    waves = [(0.1 * rng.standard_normal(round(16_000 * length))).astype(np.float32) for length in seconds]
    frontend = type(loaded.frontend)(80, window_s=WINDOW / 50)
    return frontend(waves, full_context=context == "full")


POSITIONS = st.lists(st.integers(1, WINDOW), min_size=1, max_size=5)


@given(POSITIONS, st.integers(0, 60), st.integers(1, 70))
def test_what_is_kept_of_a_clip_does_not_depend_on_the_others(positions: list[int], margin: int, spacing: int) -> None:
    thinning = Thinning(margin=margin, spacing=spacing)

    def kept(sizes: list[int], row: int) -> dict[int, float]:
        places, weights = thinning.keep(torch.tensor(sizes), WINDOW)
        return {int(p): float(w) for p, w in zip(places, weights[row], strict=True) if math.isfinite(w)}

    for row, size in enumerate(positions):
        own = kept(positions, row)
        assert own == kept([size], 0)
        assert {place for place, weight in own.items() if weight == 0.0} >= set(range(min(size + margin, WINDOW)))
        behind = [place for place in own if place >= size + margin]
        assert behind == [p for p in range(size + margin, WINDOW) if p % spacing == spacing // 2]
        assert all(own[place] == pytest.approx(math.log(spacing), abs=1e-6) for place in behind)


@given(POSITIONS)
def test_the_clips_own_positions_come_first_and_in_order(positions: list[int]) -> None:
    places, _ = Thinning(margin=3, spacing=7).keep(torch.tensor(positions), WINDOW)
    longest = max(positions)
    assert places[:longest].tolist() == list(range(longest))
    assert places.diff().gt(0).all()


@pytest.mark.parametrize("spacing", [0, -1])
def test_a_spacing_that_keeps_nothing_is_refused(spacing: int) -> None:
    with pytest.raises(ValueError, match="spacing"):
        Thinning(spacing=spacing)


def stem(module: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """The stem's output (B, P, D) for frames (B, T, F), as `transformers` computes it."""
    return F.gelu(module.conv2(F.gelu(module.conv1(inputs.transpose(1, 2))))).transpose(1, 2)


@pytest.mark.parametrize("seconds", [[0.5], [0.5, 1.1], [1.9, 0.3], [1.99], [2.0]])
def test_the_stem_is_computed_no_further_than_the_clips_and_is_that_of_the_window(
    loaded: LoadedModel, seconds: list[float]
) -> None:
    own, lengths = features(loaded, seconds, "thinned")
    window, _ = features(loaded, seconds, "full")
    thinning = Thinning(margin=10, spacing=7)
    places, _ = thinning.keep((lengths + 1) // 2, WINDOW)
    module = copy.deepcopy(loaded.module)
    module.layers, module.layer_norm = torch.nn.ModuleList(), torch.nn.Identity()  # what is left is the stem
    with torch.no_grad():
        found = encode(module, own, lengths, context="thinned", thinning=thinning).states
        expected = (stem(module, window) + module.embed_positions.weight)[:, places]
    assert own.shape[1] < window.shape[1] or max(seconds) > 1.9
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seconds", [[0.5, 1.1], [2.0, 0.3]])
def test_with_a_spacing_of_one_it_is_the_whole_window(loaded: LoadedModel, seconds: list[float]) -> None:
    every = Thinning(margin=4, spacing=1)
    with torch.no_grad():
        whole = encode(loaded.module, *features(loaded, seconds, "full"), context="full")
        thinned = encode(loaded.module, *features(loaded, seconds, "thinned"), context="thinned", thinning=every)
    torch.testing.assert_close(thinned.states, whole.states, atol=1e-4, rtol=1e-4)


def test_one_key_stands_for_as_many_as_it_says(loaded: LoadedModel) -> None:
    """Without positional codes all silence is alike, so one of seven must do what seven do."""
    module = loaded.module
    table = module.embed_positions.weight.data.clone()
    seconds = [0.42]
    thinning = Thinning(margin=(WINDOW - 21 - 3 * 7) - 0 - 0, spacing=7)  # 21 positions of the clip, then 3 x 7 silent
    try:
        module.embed_positions.weight.data.zero_()
        with torch.no_grad():
            inputs, lengths = features(loaded, seconds, "full")
            # A window whose silence is alike at its very end as well, where the stem reads its zero padding.
            longer = torch.cat([inputs, inputs[:, -1:].expand(-1, 6, -1)], dim=1)
            states = stem(module, longer)[:, :WINDOW]
            for layer in module.layers:
                states = layer(states, None)
            whole = module.layer_norm(states)
            found = encode(module, *features(loaded, seconds, "thinned"), context="thinned", thinning=thinning)
    finally:
        module.embed_positions.weight.data.copy_(table)
    assert int(lengths) == 42
    kept = 21 + thinning.margin
    assert found.states.shape[1] == kept + 3
    torch.testing.assert_close(found.states[:, :kept], whole[:, :kept], atol=1e-4, rtol=1e-4)


def test_gradients_of_the_stem_with_a_spacing_of_one_are_those_of_the_whole_window(loaded: LoadedModel) -> None:
    found = []
    for context in ("full", "thinned"):
        loaded.module.zero_grad()
        encoded = encode(
            loaded.module, *features(loaded, [0.6, 1.2], context), context=context, thinning=Thinning(spacing=1)
        )
        (encoded.states * torch.linspace(-1, 1, encoded.states.shape[2])).sum().backward()
        found.append([loaded.module.conv1.weight.grad.clone(), loaded.module.conv2.bias.grad.clone()])
    for whole, thinned in zip(*found, strict=True):
        torch.testing.assert_close(thinned, whole, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_clip_gives_the_same_logits_alone_and_in_any_batch(context: Context) -> None:
    torch.manual_seed(0)
    loaded = FAMILY.load("assets:whisper-nano", random_weights=True, context=context)
    rng = np.random.default_rng(3)
    waves = [(0.1 * rng.standard_normal(round(16_000 * length))).astype(np.float32) for length in (0.9, 0.5, 2.1)]
    texts = ["one", "seven three", "zero"]

    def batch(rows: list[int]) -> Batch:
        inputs, lengths = loaded.frontend([waves[row] for row in rows], full_context=context == "full")
        targets, sizes = pad_targets([FAMILY.encode_text(loaded, texts[row], "en") for row in rows])
        clips = tuple(Clip(id=str(row), path=Path("x"), duration_s=len(waves[row]) / 16_000) for row in rows)
        return Batch(
            inputs=inputs, input_lengths=lengths, targets=targets, target_lengths=sizes, clips=clips, context=context
        )

    with torch.no_grad():
        together = FAMILY.logits(loaded, batch([0, 1, 2]))
        alone = torch.cat([FAMILY.logits(loaded, batch([row])) for row in range(3)])
        written = FAMILY.transcribe(loaded, batch([0, 1, 2]), FEW)
        apart = [FAMILY.transcribe(loaded, batch([row]), FEW)[0] for row in range(3)]
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-4)
    assert written == apart


def save_classifier(folder: Path) -> str:
    config = transformers.WhisperConfig(
        **WHISPER | {"vocab_size": 8},
        classifier_proj_size=16,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=0,
        id2label={0: "a", 1: "b"},
        label2id={"a": 0, "b": 1},
    )
    torch.manual_seed(1)
    transformers.WhisperForAudioClassification(config).save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=80, chunk_length=WINDOW // 50).save_pretrained(folder)
    return str(folder)


def test_a_whisper_classifier_pools_each_position_for_as_many_as_it_stands_for(tmp_path: Path) -> None:
    loaded = AstFamily().load(save_classifier(tmp_path / "model"))
    assert loaded.context == "thinned"
    wave = (0.1 * np.random.default_rng(1).standard_normal(8_000)).astype(np.float32)
    found = {}
    for context, spacing in (("full", 30), ("thinned", 1), ("thinned", 9)):
        inputs, lengths = loaded.frontend([wave], full_context=context == "full")
        batch = Batch(
            inputs=inputs,
            input_lengths=lengths,
            targets=torch.zeros(1, 1),
            target_lengths=torch.ones(1),
            clips=(Clip(id="a", path=Path("x"), duration_s=0.5),),
            context=context,  # type: ignore[arg-type]
        )
        with torch.no_grad():
            found[spacing] = AstFamily().logits(loaded.with_(thinning=Thinning(margin=10, spacing=spacing)), batch)
    torch.testing.assert_close(found[1], found[30], atol=1e-5, rtol=1e-4)
    assert not torch.equal(found[9], found[30])


def test_a_context_that_an_architecture_has_not_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.context=thinned .* Take model\.context=full or cut"):
        AstFamily().load("assets:ast-nano", context="thinned")


def test_a_checkpoint_says_in_which_context_it_was_trained(tmp_path: Path) -> None:
    assert use_of("assets:whisper-nano")["context"] == "cut"
    nano = open_model("assets:whisper-nano").loaded
    assert (nano.context, nano.trained_contexts) == ("cut", ("cut", "full", "thinned"))  # a share had the window
    nano.module.save_pretrained(tmp_path)
    nano.processor.save_pretrained(tmp_path)
    plain = open_model(str(tmp_path)).loaded
    assert (plain.context, plain.trained_contexts) == ("thinned", ("full", "thinned"))
    drums = open_model("assets:ast-nano").loaded
    assert (drums.context, drums.trained_contexts) == ("cut", ("cut",))
    assert open_model("assets:ast-nano", context="full").loaded.trained_contexts == ("cut",)
    (tmp_path / "sonotune_export.json").write_text('{"context": "dynamic"}')
    old = open_model(str(tmp_path)).loaded
    assert (old.context, old.trained_contexts) == ("cut", ("cut",))


def test_contexts_after_training() -> None:
    assert contexts_of_training("thinned", full_after_thinned=True) == ("thinned", "full")
    assert contexts_of_training("full", full_after_thinned=True) == ("full",)
    assert contexts_of_training("full", full_after_thinned=False) == ("full",)
    assert contexts_of_training("cut", full_after_thinned=True) == ("cut",)
    assert contexts_of_training("cut", full_after_thinned=True, full_context_share=0.1) == ("cut", "full")


@given(st.floats(0.02, 30), st.integers(0, 100), st.integers(1, 60))
def test_the_seconds_that_are_computed_are_those_of_the_kept_positions(
    duration_s: float, margin: int, spacing: int
) -> None:
    thinning = Thinning(margin=margin, spacing=spacing)
    places, _ = thinning.keep(torch.tensor([math.ceil(50 * duration_s)]), 1500)
    assert thinning.computed_s(duration_s, 30.0) == pytest.approx(len(places) / 50, abs=0.05)


def test_batches_are_filled_by_what_is_computed() -> None:
    loaded = FAMILY.load("assets:whisper-nano", random_weights=True)
    assert loaded.computed_s(3.0) == pytest.approx(4 + 11 / 30)
    assert loaded.computed_s(3.0, "full") == loaded.frontend.max_duration_s == 15.0
    assert loaded.computed_s(3.0, "cut") == 3.0
    assert open_model("assets:qwen3-asr-nano").loaded.computed_s(3.0) == 3.0
    assert open_model("assets:ctc-nano").loaded.computed_s(3.0, "full") == 3.0


def test_margin_and_spacing_go_with_an_adapter(tmp_path: Path) -> None:
    (tmp_path / "sonotune_export.json").write_text('{"context": "thinned", "thinning": {"margin": 7, "spacing": 5}}')
    loaded = FAMILY.load("assets:whisper-nano", random_weights=True)
    loaded.module.save_pretrained(tmp_path)
    loaded.processor.save_pretrained(tmp_path)
    assert open_model(str(tmp_path)).loaded.thinning == Thinning(margin=7, spacing=5)
    (tmp_path / "sonotune_export.json").write_text('{"context": "thinned", "thinning": {"margin": -7}}')
    with pytest.raises(AdapterError, match="margin is -7"):
        open_model(str(tmp_path))


def test_a_batch_on_another_device_keeps_its_context() -> None:
    batch = Batch(
        inputs=torch.zeros(1, 2, 3),
        input_lengths=torch.ones(1),
        targets=torch.zeros(1, 1),
        target_lengths=torch.ones(1),
        clips=(),
        context="thinned",
    )
    assert batch.to("cpu").context == replace(batch).context == "thinned"
