"""CTC models: their vocabularies, what fits into a clip, the loss, and texts from scores."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from sonotune.data.tokenizer import train_tokenizer
from sonotune.errors import ConfigError, ModelError, TextError
from sonotune.features.batching import Batch, pad_targets
from sonotune.models.base import LoadedModel
from sonotune.models.families.ctc import CtcFamily, character_tokenizer
from sonotune.tasks.base import TaskSettings
from sonotune.tasks.transcribe import Transcribe
from sonotune.types import Clip, DecodingSettings

FAMILY = CtcFamily()


def transcripts(*arguments: Any) -> list[str]:
    return [one.text for one in FAMILY.transcribe(*arguments)]


RATE_HZ = 16_000
WAVEFORM = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 8, 4),
    "conv_stride": (5, 8, 8),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
}
FOUR_FRAMES = 1125  # samples: (((4 - 1) * 8 + 4 - 1) * 8 + 8 - 1) * 5 + 10
ENGLISH = [*"abcdefghijklmnopqrstuvwxyz"]
HEBREW = [*map(chr, range(ord("א"), ord("ת") + 1))]
TOKENIZER_FILES = ("vocab.json", "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json")
EXTRACTOR_FILES = ("preprocessor_config.json", "processor_config.json")


def save(folder: Path, symbols: Sequence[str], *, vocab_size: int | None = None) -> Path:
    """A tiny wav2vec 2.0 with CTC whose scores depend on what it hears."""
    tokenizer = character_tokenizer(symbols)
    config = transformers.Wav2Vec2Config(**WAVEFORM, vocab_size=vocab_size or len(tokenizer), pad_token_id=0)
    torch.manual_seed(3)
    module = transformers.Wav2Vec2ForCTC(config)
    with torch.no_grad():
        module.lm_head.weight.mul_(40)
    module.save_pretrained(folder)
    transformers.Wav2Vec2Processor(transformers.Wav2Vec2FeatureExtractor(), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("ctc") / "model", [*ENGLISH, *HEBREW])


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return FAMILY.load(str(folder))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pretrained without any output layer, as wav2vec2-base is published."""
    place = tmp_path_factory.mktemp("ctc-encoder") / "model"
    torch.manual_seed(3)
    transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**WAVEFORM)).save_pretrained(place)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def parakeet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("ctc-parakeet") / "model"
    tokenizer = character_tokenizer(ENGLISH)
    parts = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "conv_kernel_size": 7,
        "subsampling_factor": 4,
        "subsampling_conv_channels": 8,
        "num_mel_bins": 80,
    }
    torch.manual_seed(3)
    module = transformers.ParakeetForCTC(
        transformers.ParakeetCTCConfig(
            vocab_size=len(tokenizer), pad_token_id=0, encoder_config=parts, ctc_loss_reduction="sum"
        )
    )
    with torch.no_grad():
        module.ctc_head.weight.mul_(80)
    module.save_pretrained(place)
    transformers.ParakeetProcessor(
        transformers.ParakeetFeatureExtractor(feature_size=80), tokenizer, decoder_type="ctc"
    ).save_pretrained(place)
    return place


def copy(folder: Path, place: Path, *, without: Sequence[str] = ()) -> str:
    shutil.copytree(folder, place)
    for name in without:
        (place / name).unlink(missing_ok=True)
    return str(place)


def waveform(samples: int, *, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    rng = np.random.default_rng(seed)
    envelope = np.repeat(rng.random(samples // 800 + 1), 800)[:samples]
    return (0.3 * envelope * rng.standard_normal(samples)).astype(np.float32)


def batch_of(loaded: LoadedModel, sizes: Sequence[int], texts: Sequence[str]) -> Batch:
    inputs, lengths = loaded.frontend([waveform(size, seed=row) for row, size in enumerate(sizes)])
    targets, target_lengths = pad_targets([FAMILY.encode_text(loaded, text, "en") for text in texts])
    return Batch(
        inputs=inputs,
        input_lengths=lengths,
        targets=targets,
        target_lengths=target_lengths,
        clips=tuple(clip(f"c{row}", size / RATE_HZ, texts[row]) for row, size in enumerate(sizes)),
        context="cut",
    )


def clip(name: str, duration_s: float, text: str) -> Clip:
    return Clip(id=name, path=Path("x.wav"), duration_s=duration_s, text=text, language="en")


# --- vocabularies --------------------------------------------------------------------------------


def test_the_characters_of_the_data_become_the_vocabulary_of_an_encoder_without_one(encoder: Path):
    task = Transcribe(FAMILY, TaskSettings())
    texts = ["one two", "שבע שתיים", "it's"]
    wanted = task.outputs([clip(str(index), 1.0, text) for index, text in enumerate(texts)])
    loaded = FAMILY.load(str(encoder), outputs=wanted)
    assert loaded.new_outputs == ("<pad>", "<unk>", "|", *sorted(set("".join(texts)) - {" "}))
    assert loaded.module.config.vocab_size == loaded.module.lm_head.out_features == len(loaded.new_outputs)
    assert loaded.module.config.pad_token_id == loaded.processor.tokenizer.pad_token_id == 0
    for text in texts:
        ids = FAMILY.encode_text(loaded, text, None)
        assert [loaded.new_outputs[index] for index in ids] == [*text.replace(" ", "|")]
        assert FAMILY.decode_text(loaded, ids.tolist()) == text


def test_the_order_in_which_the_data_comes_changes_no_vocabulary(encoder: Path):
    first = FAMILY.load(str(encoder), outputs=("b a", "ש")).new_outputs
    assert first == FAMILY.load(str(encoder), outputs=("ש", "a", "b")).new_outputs


def test_a_checkpoint_keeps_its_vocabulary_unless_told_otherwise(folder: Path, loaded: LoadedModel):
    kept = FAMILY.load(str(folder), outputs=("x", "y"))
    assert kept.new_outputs == ()
    assert torch.equal(kept.module.lm_head.weight, loaded.module.lm_head.weight)
    renewed = FAMILY.load(str(folder), outputs=("x", "y"), renew_outputs=True)
    assert renewed.new_outputs == ("<pad>", "<unk>", "|", "x", "y")
    with pytest.raises(TextError, match="'a'"):
        FAMILY.encode_text(renewed, "a", None)
    body = "wav2vec2.encoder.layers.1.attention.q_proj.weight"
    assert torch.equal(renewed.module.get_parameter(body), loaded.module.get_parameter(body))


def test_a_new_vocabulary_of_the_old_size_inherits_nothing(folder: Path, loaded: LoadedModel):
    """What writes one symbol would write another that has its place."""
    others = [*map(chr, range(ord("а"), ord("а") + len(ENGLISH) + len(HEBREW)))]  # Cyrillic
    renewed = FAMILY.load(str(folder), outputs=others, renew_outputs=True)
    assert renewed.module.lm_head.weight.shape == loaded.module.lm_head.weight.shape
    assert not torch.equal(renewed.module.lm_head.weight, loaded.module.lm_head.weight)


def test_a_new_vocabulary_is_the_same_whoever_opens_it(encoder: Path):
    layers = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        layers.append(FAMILY.load(str(encoder), outputs=("a", "b")).module.lm_head.weight)
    assert torch.equal(*layers)
    assert len(layers[0].detach().unique(dim=0)) == 5


def test_a_vocabulary_of_upper_case_is_written_upper_and_read_lower(tmp_path: Path):
    loaded = FAMILY.load(str(save(tmp_path / "upper", [*"ABCDEFGHIJKLMNOPQRSTUVWXYZ'", *HEBREW])))
    ids = FAMILY.encode_text(loaded, "it's שבע", "en")
    assert loaded.processor.tokenizer.convert_ids_to_tokens(ids.tolist()) == [*"IT'S|שבע"]
    assert FAMILY.decode_text(loaded, ids.tolist()) == "it's שבע"
    with pytest.raises(TextError, match="'é'"):
        FAMILY.encode_text(loaded, "café", "en")


@pytest.mark.parametrize("text", ["IT'S שבע", "it's שבע", "It's שבע"])
@pytest.mark.parametrize("letters", ["ABCDEFGHIJKLMNOPQRSTUVWXYZ'", "abcdefghijklmnopqrstuvwxyz'"])
def test_a_vocabulary_of_one_case_writes_texts_of_any(tmp_path: Path, letters: str, text: str):
    loaded = FAMILY.load(str(save(tmp_path / "one", [*letters, *HEBREW])))
    ids = FAMILY.encode_text(loaded, text, "en")
    written = "IT'S|שבע" if letters.isupper() else "it's|שבע"
    assert loaded.processor.tokenizer.convert_ids_to_tokens(ids.tolist()) == [*written]
    assert FAMILY.decode_text(loaded, ids.tolist()) == "it's שבע"
    assert FAMILY.written_form(loaded)(text) == written.replace("|", " ")
    with pytest.raises(TextError, match=r"lacks '1' 'É'\. .*model\.outputs=data"):
        FAMILY.encode_text(loaded, "CAFÉ 1", "en")


def test_what_a_new_vocabulary_lacks_is_not_mended_by_making_it(encoder: Path):
    loaded = FAMILY.load(str(encoder), outputs=("A", "B"))
    assert FAMILY.encode_text(loaded, "ab A", "en").size == 4
    with pytest.raises(TextError, match=r"lacks 'c'\. .*data\.train with all the characters") as caught:
        FAMILY.encode_text(loaded, "abc", "en")
    assert "model.outputs" not in str(caught.value)


def test_a_vocabulary_of_both_cases_keeps_them(tmp_path: Path):
    loaded = FAMILY.load(str(save(tmp_path / "both", [*"Aab"])))
    ids = FAMILY.encode_text(loaded, "Aa b", "en")
    assert loaded.processor.tokenizer.convert_ids_to_tokens(ids.tolist()) == [*"Aa|b"]
    assert FAMILY.decode_text(loaded, ids.tolist()) == "Aa b"


@pytest.mark.parametrize("kind", ["unigram", "bpe", "characters"])
def test_a_trained_tokenizer_becomes_the_vocabulary(encoder: Path, tmp_path: Path, kind: str):
    texts = ["one two three", "two three seven", "שבע שתיים", "hello hall", "three three seven"]
    train_tokenizer(texts, kind=kind, vocab_size=48, folder=tmp_path / "words", bos=False, eos=False)
    loaded = FAMILY.load(str(encoder), outputs=("z",), tokenizer=str(tmp_path / "words"))
    tokenizer = loaded.processor.tokenizer
    assert len(loaded.new_outputs) == len(tokenizer) == loaded.module.lm_head.out_features
    assert loaded.module.config.pad_token_id == 0
    for text in texts:  # `ll` and `ee` would be lost where a decoder merged repeats
        ids = FAMILY.encode_text(loaded, text, "en")
        assert not set(ids.tolist()) & set(tokenizer.all_special_ids)
        assert FAMILY.decode_text(loaded, ids.tolist()) == text
    if kind != "characters":
        assert len(FAMILY.encode_text(loaded, "three", "en")) < len("▁three")
    with pytest.raises(TextError, match="'q'"):
        FAMILY.encode_text(loaded, "quiz", "en")


def test_a_tokenizer_of_recognisers_with_start_and_end_writes_neither(encoder: Path, tmp_path: Path):
    train_tokenizer(["one two"], kind="bpe", vocab_size=24, folder=tmp_path / "words")
    loaded = FAMILY.load(str(encoder), tokenizer=str(tmp_path / "words"))
    ids = FAMILY.encode_text(loaded, "one two", "en").tolist()
    assert not set(ids) & set(loaded.processor.tokenizer.all_special_ids)


def test_a_tokenizer_without_a_pad_token_is_refused(encoder: Path, tmp_path: Path):
    train_tokenizer(["one two"], kind="bpe", vocab_size=24, folder=tmp_path / "words", bos=False, eos=False)
    file = tmp_path / "words" / "tokenizer_config.json"
    settings = json.loads(file.read_text("utf-8"))
    del settings["pad_token"]
    file.write_text(json.dumps(settings), "utf-8")
    with pytest.raises(ModelError, match=r"no pad token.*blank.*sonotune data tokenizer"):
        FAMILY.load(str(encoder), tokenizer=str(tmp_path / "words"))


def test_characters_that_are_lacking_are_named_once_each(loaded: LoadedModel):
    with pytest.raises(TextError) as caught:
        FAMILY.encode_text(loaded, "no 3, 3 or é", "en")
    message = str(caught.value)
    assert "lacks ',' '3' 'é'." in message
    assert "data.text_training" in message
    assert "model.outputs=data" in message


@pytest.mark.parametrize("text", ["a|b", "<pad>", "<unk>", "a <pad> b"])
def test_what_means_something_to_the_tokenizer_is_no_text(loaded: LoadedModel, text: str):
    with pytest.raises(TextError):
        FAMILY.encode_text(loaded, text, "en")


def test_an_empty_transcript_is_a_target_without_symbols(loaded: LoadedModel):
    assert FAMILY.encode_text(loaded, "", "en", duration_s=0.5).tolist() == []


# --- what cannot be loaded -----------------------------------------------------------------------


def test_an_encoder_without_vocabulary_and_data_is_refused(encoder: Path):
    with pytest.raises(ModelError, match=r"no vocabulary of its own.*data\.train"):
        FAMILY.load(str(encoder))
    with pytest.raises(ModelError, match=r"no vocabulary of its own"):
        FAMILY.load(str(encoder), outputs=(" ", ""))


def test_a_checkpoint_that_lost_its_tokenizer_is_refused_with_what_is_missing(folder: Path, tmp_path: Path):
    place = copy(folder, tmp_path / "model", without=TOKENIZER_FILES)
    with pytest.raises(ModelError) as caught:
        FAMILY.load(place)
    assert "tokenizer" in str(caught.value) or "vocab" in str(caught.value)
    assert "NoneType" not in str(caught.value)


def test_a_checkpoint_that_lost_its_tokenizer_can_have_a_new_vocabulary(folder: Path, tmp_path: Path):
    place = copy(folder, tmp_path / "model", without=TOKENIZER_FILES)
    loaded = FAMILY.load(place, outputs=("a", "b"), renew_outputs=True)
    assert loaded.new_outputs == ("<pad>", "<unk>", "|", "a", "b")


@pytest.mark.parametrize("given", [{}, {"outputs": ("a", "b"), "renew_outputs": True}])
def test_missing_settings_of_the_extractor_are_named(folder: Path, tmp_path: Path, given: dict[str, Any]):
    place = copy(folder, tmp_path / "model", without=EXTRACTOR_FILES)
    with pytest.raises(ModelError, match=r"preprocessor_config\.json missing\. Save the model with its processor"):
        FAMILY.load(place, **given)


def edited(folder: Path, place: Path, file: str, **entries: Any) -> str:
    path = Path(copy(folder, place)) / file
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | entries), "utf-8")
    return str(place)


def test_convolutions_behind_the_encoder_are_refused(folder: Path, tmp_path: Path):
    place = edited(folder, tmp_path / "model", "config.json", add_adapter=True)
    for attempt in (FAMILY.load, FAMILY.outline):
        with pytest.raises(ModelError, match="add_adapter=true"):
            attempt(place)


def test_a_setting_of_the_extractor_is_quoted_in_part(folder: Path, tmp_path: Path):
    extractor = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": "/" * 10**5}
    place = edited(folder, tmp_path / "model", "processor_config.json", feature_extractor=extractor)
    with pytest.raises(ModelError, match="Wav2Vec2FeatureExtractor has a setting that it cannot have") as caught:
        FAMILY.load(place)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("vocab_size", [8, 52])
def test_a_vocabulary_that_is_larger_than_the_output_layer_is_refused(tmp_path: Path, vocab_size: int):
    place = save(tmp_path / "model", [*ENGLISH, *HEBREW], vocab_size=vocab_size)  # 3 + 26 + 27 symbols
    with pytest.raises(
        ModelError, match=rf"does not fit its output layer: ids up to 55, blank 0, {vocab_size} outputs"
    ):
        FAMILY.load(str(place))


def test_an_output_layer_with_room_to_spare_is_fine(tmp_path: Path):
    loaded = FAMILY.load(str(save(tmp_path / "model", ENGLISH, vocab_size=32)))  # padded to a multiple of 8
    assert loaded.module.lm_head.out_features == 32


@pytest.mark.parametrize("given", [{}, {"outputs": ("a", "b")}])
def test_a_checkpoint_of_another_architecture_is_refused_by_its_kind(given: dict[str, Any]):
    with pytest.raises(ModelError, match=r"'whisper' checkpoint .*the family 'ctc' .*model\.family=auto"):
        FAMILY.load("assets:whisper-nano", **given)


def test_a_classifier_is_no_ctc_model(tmp_path: Path):
    transformers.Wav2Vec2ForSequenceClassification(transformers.Wav2Vec2Config(**WAVEFORM)).save_pretrained(tmp_path)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"Wav2Vec2ForSequenceClassification.*the family 'ctc'"):
        FAMILY.load(str(tmp_path), outputs=("a", "b"))


# --- what fits into a clip -----------------------------------------------------------------------


@pytest.mark.parametrize(("text", "needed"), [("abca", 4), ("aba", 3), ("aab", 4), ("aaa", 5), ("aabb", 6), ("a a", 3)])
def test_a_transcript_needs_a_frame_for_each_symbol_and_one_between_repeats(
    loaded: LoadedModel, text: str, needed: int
):
    smallest = FOUR_FRAMES + 320 * (needed - 4)
    batch = batch_of(loaded, [smallest], [text])
    assert len(FAMILY.logits(loaded, batch)) == needed  # it is the model's own number of frames
    assert finite_and_positive(FAMILY.forward(loaded, batch).losses().total)
    assert len(FAMILY.encode_text(loaded, text, "en", duration_s=smallest / RATE_HZ)) == len(text)
    with pytest.raises(TextError, match=rf"needs {needed} frames and a clip of .* has {needed - 1}"):
        FAMILY.encode_text(loaded, text, "en", duration_s=(smallest - 1.5) / RATE_HZ)


def finite_and_positive(value: Tensor) -> bool:
    return bool(torch.isfinite(value)) and float(value.detach()) > 0


@pytest.mark.parametrize("name", ["loaded", "parakeet_loaded"])
def test_a_clip_that_just_fits_is_never_left_out(request: pytest.FixtureRequest, name: str):
    """Durations come from files as samples over the rate, which no binary fraction holds exactly."""
    model: LoadedModel = request.getfixturevalue(name)
    alternating = "ab" * 80
    # Where another frame begins.
    first, step = (FOUR_FRAMES, 320) if name == "loaded" else (1600, 160)
    refused = []
    for samples in range(first, first + 100 * step, step):
        with torch.no_grad():
            frames = len(FAMILY.logits(model, batch_of(model, [samples], ["a"])))
        try:
            FAMILY.encode_text(model, alternating[:frames], "en", duration_s=samples / RATE_HZ)
        except TextError as error:
            refused.append((samples, str(error)))
    assert refused == []


@pytest.fixture(scope="module")
def parakeet_loaded(parakeet: Path) -> LoadedModel:
    return FAMILY.load(str(parakeet))


def test_the_task_leaves_out_what_does_not_fit_and_says_why(loaded: LoadedModel):
    clips = [clip("fits", 1.0, "one"), clip("mixed-up", 0.2, "a whole sentence"), clip("odd", 1.0, "50 %")]
    prepared = Transcribe(FAMILY, TaskSettings()).prepare(loaded, clips)
    assert [kept.id for kept in prepared.clips] == ["fits"]
    assert [len(ids) for ids in prepared.targets] == [3]
    long, odd = prepared.findings
    assert (long.check, long.severity, long.clip_ids) == ("text.not_encodable", "error", ("mixed-up",))
    assert "needs 16 frames and a clip of 0.20 s has 10" in long.message
    assert "'mixed-up'" in long.message
    assert "The clip is left out." in long.message
    assert odd.clip_ids == ("odd",)
    assert prepared.dropped == prepared.findings


def test_a_language_of_another_name_is_taken_and_a_misspelt_one_is_not(loaded: LoadedModel):
    """A vocabulary is told no language: nobody else would notice."""
    for language in ("sw", "bre", "klingon"):
        Transcribe(FAMILY, TaskSettings(language=language)).check_references(loaded, [])
    with pytest.raises(ConfigError, match=r"model\.language=hebrw: no language .*did you mean he \(Hebrew\)"):
        Transcribe(FAMILY, TaskSettings(language="hebrw")).check_references(loaded, [])


# --- the loss ------------------------------------------------------------------------------------


def test_a_clip_made_too_short_counts_nothing_and_moves_nothing(loaded: LoadedModel):
    texts = ["abca", "aab", "abc"]
    batch = batch_of(loaded, [FOUR_FRAMES - 1, FOUR_FRAMES - 1, FOUR_FRAMES - 1], texts)
    losses = FAMILY.forward(loaded, batch).losses(label_smoothing=0.1)
    assert losses.counts.tolist() == [0, 0, 3]  # 3 frames hold `abc` alone
    assert losses.sums[:2].tolist() == [0.0, 0.0]
    assert finite_and_positive(losses.sums[2])
    loaded.module.zero_grad()
    losses.sums[:2].sum().backward()
    assert all(parameter.grad is None or not bool(parameter.grad.any()) for parameter in loaded.module.parameters())
    loaded.module.zero_grad()


@pytest.mark.parametrize("text", ["one two", "aabb", "שבע"])
def test_the_loss_is_that_of_transformers(folder: Path, loaded: LoadedModel, text: str):
    plain = transformers.Wav2Vec2ForCTC.from_pretrained(folder, ctc_loss_reduction="sum").eval()
    batch = batch_of(loaded, [9_000], [text])
    with torch.no_grad():
        theirs = plain(input_values=batch.inputs.squeeze(-1), labels=batch.targets).loss
        ours = FAMILY.forward(loaded, batch).losses()
    assert ours.count == len(text)
    torch.testing.assert_close(ours.total, theirs, rtol=1e-5, atol=1e-4)


def test_the_loss_of_parakeet_is_that_of_transformers(parakeet: Path, parakeet_loaded: LoadedModel):
    plain = transformers.ParakeetForCTC.from_pretrained(parakeet).eval()
    batch = batch_of(parakeet_loaded, [12_800], ["one two"])
    with torch.no_grad():
        theirs = plain(
            input_features=batch.inputs, attention_mask=torch.ones(batch.inputs.shape[:2]), labels=batch.targets
        ).loss
        ours = FAMILY.forward(parakeet_loaded, batch).losses().total
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


def test_smoothing_adds_the_distance_to_the_uniform_distribution(loaded: LoadedModel):
    batch = batch_of(loaded, [9_000, 6_000], ["one two", "six"])
    with torch.no_grad():
        rows = FAMILY.logits(loaded, batch).log_softmax(dim=-1)
        plain = FAMILY.forward(loaded, batch).losses().sums
        smooth = FAMILY.forward(loaded, batch).losses(label_smoothing=0.2).sums
    frames = [len(FAMILY.logits(loaded, batch_of(loaded, [size], ["a"]))) for size in (9_000, 6_000)]
    for row, part in enumerate(rows.split(frames)):
        alone = F.ctc_loss(
            part.unsqueeze(1),
            batch.targets[row : row + 1, : batch.target_lengths[row]],
            torch.tensor([len(part)]),
            batch.target_lengths[row : row + 1],
            reduction="sum",
        )
        torch.testing.assert_close(plain[row], alone, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(smooth[row], 0.8 * alone - 0.2 * part.mean(dim=1).sum(), rtol=1e-5, atol=1e-4)


def test_a_clip_of_silence_teaches_blanks(loaded: LoadedModel):
    batch = batch_of(loaded, [6_000], [""])
    with torch.no_grad():
        losses = FAMILY.forward(loaded, batch).losses()
        blanks = FAMILY.logits(loaded, batch).log_softmax(dim=-1)[:, 0]
    torch.testing.assert_close(losses.total, -blanks.sum(), rtol=1e-5, atol=1e-4)
    assert losses.count == 1


# --- texts ---------------------------------------------------------------------------------------


class Scored(CtcFamily):
    """Decodes scores that were made up."""

    def __init__(self, *clips: Sequence[Sequence[float]]) -> None:
        self.made = [torch.tensor(rows) for rows in clips]

    def _scores(self, loaded: LoadedModel, batch: Batch) -> tuple[Tensor, Tensor]:
        padded = torch.nn.utils.rnn.pad_sequence(self.made, batch_first=True, padding_value=1.0)
        return padded.log(), torch.tensor([len(rows) for rows in self.made])


def scores(text: str) -> list[list[float]]:
    """A row for each of blank `_`, `|`, `a`, `b`, certain of it."""
    order = "_?|ab"
    return [[0.96 if index == order.index(symbol) else 0.01 for index in range(5)] for symbol in text]


@pytest.mark.parametrize("beam_size", [1, 3])
def test_texts_of_certain_scores(tmp_path: Path, beam_size: int):
    loaded = FAMILY.load(str(save(tmp_path / "model", [*"ab"])))
    family = Scored(scores("aa_ab|b"), scores("___"), scores("b"), scores("|a||b|"))
    batch = batch_of(loaded, [2_000] * 4, ["a"] * 4)
    assert [one.text for one in family.transcribe(loaded, batch, DecodingSettings(beam_size=beam_size))] == [
        "aab b",
        "",
        "b",
        "a b",
    ]


def test_a_beam_adds_up_what_the_best_path_leaves_apart(tmp_path: Path):
    loaded = FAMILY.load(str(save(tmp_path / "model", [*"ab"])))
    rows = [[0.52, 0.01, 0.01, 0.45, 0.01]] * 2  # blank twice .27, `a` in three ways .67
    batch = batch_of(loaded, [2_000], ["a"])
    assert [one.text for one in Scored(rows).transcribe(loaded, batch)] == [""]
    assert [one.text for one in Scored(rows).transcribe(loaded, batch, DecodingSettings(beam_size=2))] == ["a"]


def test_the_text_is_that_of_plain_transformers(folder: Path, loaded: LoadedModel):
    plain = transformers.Wav2Vec2ForCTC.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    sizes = [9_000, 21_000, 14_321]
    ours = transcripts(loaded, batch_of(loaded, sizes, ["a"] * 3))
    for row, size in enumerate(sizes):
        given = processor(waveform(size, seed=row), sampling_rate=RATE_HZ, return_tensors="pt")
        with torch.no_grad():
            ids = plain(**given).logits.argmax(dim=-1)
        assert ours[row] == processor.batch_decode(ids, skip_special_tokens=True)[0].strip()
    assert len(set(ours)) == 3
    assert min(map(len, ours)) > 3


def test_the_text_of_parakeet_is_that_of_plain_transformers(parakeet: Path, parakeet_loaded: LoadedModel):
    plain = transformers.ParakeetForCTC.from_pretrained(parakeet).eval()
    processor = transformers.AutoProcessor.from_pretrained(parakeet)
    sizes = [9_000, 21_000, 14_321]
    ours = transcripts(parakeet_loaded, batch_of(parakeet_loaded, sizes, ["a"] * 3))
    for row, size in enumerate(sizes):
        given = processor(waveform(size, seed=row), sampling_rate=RATE_HZ, return_tensors="pt")
        with torch.no_grad():
            ids = plain(**given).logits.argmax(dim=-1)
        assert ours[row] == processor.batch_decode(ids, skip_special_tokens=True)[0].strip()
    assert len(set(ours)) == 3
    assert min(map(len, ours)) > 2


def test_decoding_by_a_beam_agrees_where_the_scores_are_sharp(loaded: LoadedModel):
    batch = batch_of(loaded, [9_000, 21_000], ["a", "a"])
    wide = transcripts(loaded, batch, DecodingSettings(beam_size=48))
    assert transcripts(loaded, batch, DecodingSettings(beam_size=12)) == wide
    assert all(wide)
