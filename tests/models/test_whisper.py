"""Whisper: its component map, its context modes and its loss."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoTokenizer, GenerationMixin
from transformers.modeling_outputs import BaseModelOutput

from sonotune.errors import ModelError, TextError
from sonotune.features.batching import Batch, ClipBatches, pad_targets
from sonotune.models import decoding
from sonotune.models.base import LoadedModel, component_of_parameters, count_parameters, select
from sonotune.models.families.whisper import WhisperFamily, text_tokens
from sonotune.models.speech_encoders import encode
from sonotune.registry import resolve_asset
from sonotune.types import Clip, DecodingSettings, Hypothesis

FAMILY = WhisperFamily()


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    torch.manual_seed(0)
    return FAMILY.load("assets:whisper-nano", random_weights=True)


def make_batch(loaded: LoadedModel, seconds: list[float], texts: list[str], *, full: bool = False) -> Batch:
    rng = np.random.default_rng(3)
    waveforms = [
        rng.standard_normal(round(16_000 * length)).astype(np.float32) * 0.1 for length in (0.9, 0.5, 1.37, 2.0)
    ]
    waveforms = [waveforms[index][: round(16_000 * length)] for index, length in enumerate(seconds)]
    inputs, lengths = loaded.frontend(waveforms, full_context=full)
    targets, target_lengths = pad_targets([FAMILY.encode_text(loaded, text, "en") for text in texts])
    clips = tuple(
        Clip(id=str(index), path="x.wav", duration_s=length, text=text, language="en")  # type: ignore[arg-type]
        for index, (length, text) in enumerate(zip(seconds, texts, strict=True))
    )
    return Batch(
        inputs=inputs,
        input_lengths=lengths,
        targets=targets,
        target_lengths=target_lengths,
        clips=clips,
        context="full" if full else "cut",
    )


def test_every_parameter_belongs_to_exactly_one_component(loaded: LoadedModel):
    owners = component_of_parameters(loaded)
    assert set(owners.values()) == {"stem", "encoder", "decoder", "embeddings"}
    total = sum(row["parameters"] for row in count_parameters(loaded).values())
    assert total == sum(parameter.numel() for parameter in loaded.module.parameters())


def test_selectors(loaded: LoadedModel):
    assert all(".conv" in name or "embed_positions" in name for name in select(loaded, ["stem"]))
    norms = select(loaded, ["encoder.norms"])
    layers = loaded.module.config.encoder_layers
    assert len(norms) == 2 * (2 * layers + 1)
    last = select(loaded, ["encoder.layers[-1:]"])
    assert last
    assert all(f".layers.{layers - 1}." in name for name in last)
    cross = select(loaded, ["decoder.cross_attention"])
    assert cross
    assert all("encoder_attn" in name for name in cross)
    assert select(loaded, ["encoder.layers[0]"]) == select(loaded, ["encoder.layers[:1]"])


@pytest.mark.parametrize("selector", ["projector", "encoder.nothing", "encoder.layers[99:]", "encoder.layers[99]"])
def test_a_selector_that_matches_nothing_is_an_error(loaded: LoadedModel, selector: str):
    with pytest.raises(ModelError):
        select(loaded, [selector])


def test_linears_are_all_of_both_towers_and_not_the_head(loaded: LoadedModel):
    config = loaded.module.config
    assert len(loaded.linears) == 6 * config.encoder_layers + 10 * config.decoder_layers
    assert "proj_out" not in loaded.linears


def test_full_context_is_transformers_to_the_bit(loaded: LoadedModel):
    batch = make_batch(loaded, [0.9, 0.5], ["one", "two"], full=True)
    with torch.no_grad():
        ours = encode(
            loaded.module.model.encoder,
            batch.inputs,
            batch.input_lengths,
            context=batch.context,
            thinning=loaded.thinning,
        ).states
        theirs = loaded.module.model.encoder(batch.inputs.transpose(1, 2)).last_hidden_state
    assert torch.equal(ours, theirs)


def test_logits_at_full_context_are_those_of_transformers(loaded: LoadedModel):
    batch = make_batch(loaded, [0.9, 0.5], ["one", "two"], full=True)
    with torch.no_grad():
        ours = FAMILY.logits(loaded, batch)
        theirs = loaded.module(
            input_features=batch.inputs.transpose(1, 2), decoder_input_ids=batch.targets[:, :-1].clamp_min(0)
        ).logits
    torch.testing.assert_close(ours, theirs[batch.targets[:, 1:] >= 0], atol=1e-5, rtol=1e-5)


def test_a_clip_gives_the_same_loss_alone_and_in_any_batch(loaded: LoadedModel):
    seconds, texts = [0.9, 0.5, 1.37, 2.0], ["one", "seven three", "שלום", "zero"]
    with torch.no_grad():
        together = FAMILY.forward(loaded, make_batch(loaded, seconds, texts)).losses()
        batch = make_batch(loaded, seconds, texts)
        alone, counts = 0.0, 0
        for row in batch.split(4):
            length = int(row.input_lengths.max())
            own = replace(
                row,
                inputs=row.inputs[:, : length + length % 2 + 4],
                targets=row.targets[:, : int(row.target_lengths[0])],
            )
            losses = FAMILY.forward(loaded, own).losses()
            alone, counts = alone + float(losses.total), counts + losses.count
    assert together.count == counts
    assert float(together.total) == pytest.approx(alone, rel=1e-5)


def test_padding_frames_never_change_an_output(loaded: LoadedModel):
    batch = make_batch(loaded, [0.9, 2.0, 1.0], ["one", "two", "six"])
    noisy = batch.inputs.clone()
    length = int(batch.input_lengths[0])
    noisy[0, length + 4 :] += 5.0
    with torch.no_grad():
        before = FAMILY.logits(loaded, batch.split(3)[0])
        after = FAMILY.logits(loaded, replace(batch, inputs=noisy).split(3)[0])
    torch.testing.assert_close(before, after, atol=1e-5, rtol=1e-5)


def test_the_loss_counts_text_and_end_but_not_the_prompt(loaded: LoadedModel):
    assert FAMILY.forward(loaded, make_batch(loaded, [0.9], ["one"])).losses().count == len("one") + 1


def test_the_loss_is_that_of_transformers_on_the_same_labels(loaded: LoadedModel):
    batch = make_batch(loaded, [0.9, 0.5], ["one", "seven"], full=True)
    labels = batch.targets[:, 1:].clone()
    labels[:, :3] = -100
    with torch.no_grad():
        ours = FAMILY.forward(loaded, batch).losses()
        theirs = loaded.module(
            input_features=batch.inputs.transpose(1, 2),
            decoder_input_ids=batch.targets[:, :-1].clamp_min(0),
            labels=labels,
        ).loss
    assert float(ours.total) / ours.count == pytest.approx(float(theirs), rel=1e-5)


def test_decoding_does_not_depend_on_the_batch(loaded: LoadedModel):
    settings = DecodingSettings(max_new_tokens=12)
    batch = make_batch(loaded, [0.9, 0.5, 1.37], ["one", "two", "six"])
    state = torch.get_rng_state()
    together = FAMILY.transcribe(loaded, batch, settings)
    alone = [FAMILY.transcribe(loaded, row, settings)[0] for row in batch.split(3)]
    assert together == alone
    assert max(one.attempts for one in together) == 6  # untrained, it is sure of nothing
    assert torch.equal(state, torch.get_rng_state())


def written_by_transformers(
    loaded: LoadedModel, batch: Batch, settings: DecodingSettings, *, limit: int
) -> list[list[int]]:
    """The tokens that `generate` of `transformers` writes greedily in each clip, over the same encoder states."""
    states = encode(
        loaded.module.model.encoder, batch.inputs, batch.input_lengths, context=batch.context, thinning=loaded.thinning
    )
    weights = states.log_weights
    loaded.module.model.decoder.cross_mask = None if weights is None else weights[:, None, None, :]
    prompt = torch.tensor([FAMILY.prompt_tokens(loaded, "en")] * len(batch.clips))
    limits = [limit] * len(batch.clips)
    chosen = decoding.generation_settings(
        loaded.module.generation_config, limits, settings, forced_decoder_ids=None, return_timestamps=False
    )
    rows = GenerationMixin.generate(
        loaded.module,
        encoder_outputs=BaseModelOutput(last_hidden_state=states.states),
        decoder_input_ids=prompt,
        generation_config=chosen,
        stopping_criteria=decoding.stopping(limits, prompt=prompt.shape[1]),
    )
    ends = {loaded.module.config.eos_token_id, chosen.pad_token_id}
    return [[one for one in row if one not in ends] for row in rows[:, prompt.shape[1] :].tolist()]


@dataclass
class Judged:
    """What a first pass over a batch is judged by: its texts and how probable they and silence are."""

    texts: list[str]
    mean_logprobs: list[float]
    no_speech: list[float]


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Judged]:
    """Transcribes a batch and gives what the first texts were judged by, before any is decoded again."""
    found: list[Judged] = []
    honest = decoding.fall_back

    def watched(first: Any, no_speech: Any, *rest: Any) -> Any:
        texts, means = [one.text for one in first], [one.mean_logprob for one in first]
        found.append(Judged(texts, means, list(no_speech)))
        return honest(first, no_speech, *rest)

    def transcribe(loaded: LoadedModel, batch: Batch, settings: DecodingSettings) -> Judged:
        FAMILY.transcribe(loaded, batch, settings)
        return found.pop()

    monkeypatch.setattr(decoding, "fall_back", watched)
    return transcribe


@pytest.mark.parametrize("penalties", [{}, {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2}])
def test_greedy_decoding_is_that_of_transformers(loaded: LoadedModel, penalties: dict[str, Any]):
    batch = make_batch(loaded, [0.9, 0.5], ["one", "two"])
    settings = DecodingSettings(max_new_tokens=20, temperatures=(0.0,), **penalties)
    with torch.no_grad():
        rows = written_by_transformers(loaded, batch, settings, limit=20)
    assert [one.text for one in FAMILY.transcribe(loaded, batch, settings)] == [
        FAMILY.decode_text(loaded, row) for row in rows
    ]


@pytest.mark.parametrize("beams", [1, 3])
def test_a_text_is_judged_by_its_log_probability_and_by_that_of_silence(judged: Callable[..., Judged], beams: int):
    """Greedy decoding adds it up, beam search reads the text again; both are the model's, the end token included."""
    loaded = FAMILY.load("assets:whisper-nano")
    suppressed = [*(loaded.module.generation_config.suppress_tokens or ())]
    at_first = [*suppressed, *(loaded.module.generation_config.begin_suppress_tokens or ())]
    batch = make_batch(loaded, [0.9, 1.37, 2.0], ["one", "two", "six"])
    found = judged(loaded, batch, DecodingSettings(beam_size=beams, max_new_tokens=60, temperatures=(0.0,)))
    assert len(set(found.texts)) > 1
    silence = loaded.processor.tokenizer.convert_tokens_to_ids("<|nospeech|>")
    for row, text, mean, no_speech in zip(
        batch.split(3), found.texts, found.mean_logprobs, found.no_speech, strict=True
    ):
        targets, lengths = pad_targets([FAMILY.encode_text(loaded, text, "en")])
        with torch.no_grad():
            logits = FAMILY.logits(loaded, replace(row, targets=targets, target_lengths=lengths))
        assert no_speech == pytest.approx(float(logits[0].softmax(dim=-1)[silence]), rel=1e-4)
        written = logits[3:].clone()  # behind the prompt
        written[:, suppressed] = -torch.inf
        written[0, at_first] = -torch.inf
        expected = -torch.nn.functional.cross_entropy(written, targets[0, 4:])
        assert mean == pytest.approx(float(expected), rel=1e-4, abs=1e-6)


def test_beam_search_does_not_depend_on_the_batch(loaded: LoadedModel):
    batch = make_batch(loaded, [0.9, 0.5], ["one", "two"])
    settings = DecodingSettings(beam_size=3, max_new_tokens=6)
    together = FAMILY.transcribe(loaded, batch, settings)
    assert together == [FAMILY.transcribe(loaded, row, settings)[0] for row in batch.split(2)]


def test_beam_search_has_one_limit_and_warns_of_no_other(
    loaded: LoadedModel, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """Published checkpoints have a `max_length` of their own, which `generate` weighs against ours."""
    monkeypatch.setattr(loaded.module.generation_config, "max_length", 448)
    library = logging.getLogger("transformers")
    monkeypatch.setattr(library, "propagate", True)
    own = loaded.module.generation_config
    FAMILY.transcribe(loaded, make_batch(loaded, [0.9], ["one"]), DecodingSettings(beam_size=2, max_new_tokens=6))
    assert not [record.message for record in caplog.records if "max_length" in record.getMessage()]
    assert loaded.module.generation_config is own


def test_a_drawn_text_knows_neither_the_name_of_its_recording_nor_its_batch(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def drawn(first: Any, no_speech: Any, settings: Any, again: Any) -> list[Hypothesis]:
        return [Hypothesis(text=one.text) for one in again(range(len(first)), 2.0)]

    monkeypatch.setattr(decoding, "fall_back", drawn)
    settings = DecodingSettings(max_new_tokens=40)
    rng = np.random.default_rng(4)
    clips = []
    for name, sound in (("a", 0), ("b/a", 0), ("b/c", 1), ("d", 0), ("e", 2)):
        path = tmp_path / f"{name}.wav"
        path.parent.mkdir(exist_ok=True)
        samples = 0.1 * np.random.default_rng(sound).standard_normal(12_000 + 4000 * sound)
        soundfile.write(path, samples, 16_000, subtype="FLOAT")
        clips.append(Clip(id=str(path), path=path, duration_s=samples.size / 16_000, language="en"))
    found: dict[str, set[Hypothesis]] = {}
    for rows in ([0, 1, 2, 3, 4], [4, 3], [2, 0], [1]):
        chosen = [clips[row] for row in rng.permutation(rows)]
        none = [np.zeros(0, dtype=np.int64)] * len(chosen)
        [batch] = ClipBatches(
            chosen, none, loaded.frontend, batches=[range(len(chosen))], seed=0, epoch=0, context="cut"
        )
        for clip, made in zip(chosen, FAMILY.transcribe(loaded, batch, settings), strict=True):
            found.setdefault(clip.id, set()).add(made)
    assert all(len(made) == 1 for made in found.values())
    texts = [found[clip.id].pop() for clip in clips]
    assert texts[0] == texts[1] == texts[3]
    assert len({texts[0].text, texts[2].text, texts[4].text}) == 3


def test_the_language_is_detected_where_it_is_unknown(loaded: LoadedModel):
    batch = make_batch(loaded, [0.9], ["one"])
    unknown = replace(batch, clips=(replace(batch.clips[0], language=None),))
    read: list[list[int]] = []
    hook = loaded.module.model.decoder.register_forward_pre_hook(
        lambda module, inputs, named: read.append(named["input_ids"][0].tolist()), with_kwargs=True
    )
    FAMILY.transcribe(loaded, unknown, DecodingSettings(max_new_tokens=4, temperatures=(0.0,)))
    hook.remove()
    with torch.no_grad():
        after_start = FAMILY.logits(loaded, batch)[0]
    prompts = {code: FAMILY.prompt_tokens(loaded, code) for code in ("en", "he")}
    scores = {code: float(after_start[prompt[1]]) for code, prompt in prompts.items()}
    assert read[0] == prompts["en"][:1]  # asked which language comes after it
    assert read[1] == prompts[max(scores, key=scores.__getitem__)]


@pytest.mark.parametrize("text", ["seven", "שלום עולם", "naïve café", "🎉"])
def test_text_comes_back_from_its_targets(loaded: LoadedModel, text: str):
    ids = FAMILY.encode_text(loaded, text, "English")
    assert FAMILY.decode_text(loaded, ids.tolist()) == text


def test_text_that_cannot_be_a_target_is_refused(loaded: LoadedModel):
    with pytest.raises(TextError, match="can write"):
        FAMILY.encode_text(loaded, "seven " * 40, "en")
    with pytest.raises(TextError, match="klingon"):
        FAMILY.encode_text(loaded, "seven", "klingon")
    with pytest.raises(TextError, match=r"model\.language"):
        FAMILY.encode_text(loaded, "seven", None)


def test_gradient_checkpointing_changes_no_gradient(loaded: LoadedModel):
    batch = make_batch(loaded, [0.9, 0.5], ["one", "two"])
    loaded.module.eval()
    gradients = []
    for on in (False, True):
        if on:
            loaded.module.activation_checkpointing_enable({"use_reentrant": False})
            loaded.module.train()
            for layer in (*loaded.module.model.encoder.layers, *loaded.module.model.decoder.layers):
                layer.dropout = 0.0
            loaded.module.model.encoder.dropout = loaded.module.model.decoder.dropout = 0.0
        loaded.module.zero_grad(set_to_none=True)
        FAMILY.forward(loaded, batch).losses().total.backward()
        gradients.append({n: p.grad.clone() for n, p in loaded.module.named_parameters() if p.grad is not None})
    loaded.module.activation_checkpointing_disable()
    loaded.module.eval()
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.allclose(gradients[0][name], gradients[1][name], atol=1e-5) for name in gradients[0])


def without_generation_config(tmp_path: Path, **config: Any) -> Path:
    folder = shutil.copytree(resolve_asset("assets:whisper-nano"), tmp_path / "model")
    (folder / "generation_config.json").unlink()
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | config), "utf-8")
    return folder


@pytest.mark.parametrize("random_weights", [False, True])
def test_the_languages_come_from_the_tokenizer_where_nothing_else_names_them(tmp_path: Path, random_weights: bool):
    """Else a multilingual model would be prompted, without a word, as one that knows English alone."""
    found = FAMILY.load(str(without_generation_config(tmp_path)), random_weights=random_weights)
    packaged = FAMILY.load("assets:whisper-nano")
    assert FAMILY.knows_language(found, "he")
    assert not FAMILY.knows_language(found, "klingon")
    with pytest.raises(
        TextError, match=r"does not know the language 'hebrw'; did you mean he \(Hebrew\)\? It knows af, .* and 95 more"
    ):
        FAMILY.encode_text(found, "seven", "hebrw")
    text = "seven"
    assert FAMILY.encode_text(found, text, "he").tolist() == FAMILY.encode_text(packaged, text, "he").tolist()
    found.module.save_pretrained(tmp_path / "kept")
    assert "lang_to_id" in json.loads((tmp_path / "kept" / "generation_config.json").read_text("utf-8"))


def test_an_english_only_model_stays_one(tmp_path: Path):
    """Its tokenizer has the tokens of all languages as well."""
    folder = without_generation_config(tmp_path, vocab_size=51_864)
    loaded = FAMILY.load(str(folder), random_weights=True)
    assert FAMILY.encode_text(loaded, "seven", None).tolist()[:2] == [
        loaded.module.config.decoder_start_token_id,
        loaded.processor.tokenizer.convert_tokens_to_ids("<|notimestamps|>"),
    ]


@pytest.mark.parametrize("language", ["he_IL", "he-IL", "iw", "Hebrew", "HE"])
def test_a_language_has_one_token_however_it_is_written(language: str):
    loaded = FAMILY.load("assets:whisper-nano")
    assert FAMILY.knows_language(loaded, language)
    assert FAMILY.note_on_language(loaded, language) is None
    plain = FAMILY.encode_text(loaded, "שבע", "he").tolist()
    assert FAMILY.encode_text(loaded, "שבע", language).tolist() == plain


# --- the limit of tokens, and the first token of a text

FAST_CHARACTERS_PER_SECOND = 22  # hurried speech of any language stays below
SENTENCES = {
    "he": "הממשלה החליטה היום להעלות את שכר המינימום במשק",
    "am": "መንግሥት ዛሬ የሠራተኞችን ደመወዝ ለመጨመር ወሰነ ብለዋል ሚኒስትሩ",
    "ka": "მთავრობამ დღეს გადაწყვიტა მინიმალური ხელფასის გაზრდა",
    "th": "รัฐบาลตัดสินใจเพิ่มค่าแรงขั้นต่ำทั่วประเทศในวันนี้",
    "my": "အစိုးရက ယနေ့ အနည်းဆုံးလုပ်ခကို တိုးမြှင့်ရန် ဆုံးဖြတ်ခဲ့သည်",
}


def fits(tokenizer: Any, text: str) -> bool:
    """Whether a text said as fast as anybody speaks is within the limit, the end token included."""
    text = " ".join([text] * 3)  # so that the margin alone is not enough
    duration_s = len(text) / FAST_CHARACTERS_PER_SECOND
    return len(text_tokens(tokenizer, text)) + 1 <= decoding.token_limit(duration_s)


@pytest.mark.parametrize("text", [*SENTENCES.values(), "הַמֶּמְשָׁלָה הֶחְלִיטָה הַיּוֹם לְהַעֲלוֹת אֶת שְׂכַר הַמִּינִימוּם"])
def test_the_limit_leaves_room_for_fast_speech_in_characters_and_bytes(loaded: LoadedModel, text: str):
    assert fits(loaded.processor.tokenizer, text)


def test_a_character_tokenizer_puts_no_space_in_front(loaded: LoadedModel):
    tokenizer = loaded.processor.tokenizer
    assert text_tokens(tokenizer, "seven") == tokenizer("seven", add_special_tokens=False).input_ids
    assert text_tokens(tokenizer, "") == []


@pytest.mark.realdata
@pytest.mark.parametrize("language", SENTENCES)
def test_the_limit_leaves_room_for_fast_speech_in_the_published_tokens(whisper_base: Path, language: str):
    tokenizer = AutoTokenizer.from_pretrained(whisper_base)
    assert fits(tokenizer, SENTENCES[language])
    assert tokenizer.decode(text_tokens(tokenizer, SENTENCES[language])).strip() == SENTENCES[language]


@pytest.mark.realdata
def test_the_first_published_token_of_a_text_holds_a_space_where_there_is_one(whisper_base: Path):
    tokenizer = AutoTokenizer.from_pretrained(whisper_base)
    firsts = {
        text: tokenizer.decode(text_tokens(tokenizer, text)[:1])
        for text in ("seven", " seven", "שלום", "政府今天", "รัฐบาล")
    }
    # The space alone can never be written first, so scripts that are not joined to it go without.
    assert firsts == {"seven": " seven", " seven": " seven", "שלום": " של", "政府今天": "政府", "รัฐบาล": "ร"}


@pytest.mark.slow
@pytest.mark.realdata
def test_real_weights_write_what_transformers_writes(judged: Callable[..., Judged], whisper_base: Path, fsdd: Path):
    loaded = FAMILY.load(str(whisper_base), context="full")
    loaded.module.float().eval()
    paths = [fsdd / "7_jackson_0.wav", fsdd / "3_theo_1.wav"]
    clips = [Clip(id=path.stem, path=path, duration_s=soundfile.info(path).duration, language="en") for path in paths]
    [batch] = ClipBatches(
        clips,
        [np.zeros(0, dtype=np.int64)] * 2,
        loaded.frontend,
        batches=[[0, 1]],
        seed=0,
        epoch=0,
        full_context_share=1.0,
        context="cut",
    )
    settings = DecodingSettings(max_new_tokens=60)
    ours = judged(loaded, batch, settings)
    with torch.no_grad():
        rows = written_by_transformers(loaded, batch, settings, limit=60)
    assert ours.texts == [FAMILY.decode_text(loaded, row) for row in rows]
    assert all(0 <= value < 0.6 for value in ours.no_speech)
