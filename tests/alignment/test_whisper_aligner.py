"""Whisper as an aligner: likelihoods, times, heads, batches, bad input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from sonotune.alignment.base import AlignerSettings, Alignment
from sonotune.alignment.placing import placed_words
from sonotune.alignment.whisper import WhisperAligner, select_heads
from sonotune.alignment.whisper_tokens import word_of_each_token
from sonotune.data.manifest import read_manifest
from sonotune.errors import ConfigError, ManifestError, ModelError
from sonotune.features.batching import pad_targets
from sonotune.loading import open_model
from sonotune.models.base import LoadedModel
from sonotune.models.families.whisper import text_tokens
from sonotune.registry import resolve_asset
from sonotune.types import Clip, Context, Finding

SETTINGS = AlignerSettings(transcribe=False)
QUICKSTART = resolve_asset("assets:quickstart")


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return open_model("assets:whisper-nano").loaded


@pytest.fixture(scope="module")
def aligner(loaded: LoadedModel) -> WhisperAligner:
    return WhisperAligner(loaded, SETTINGS)


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return [clip for clip in read_manifest(QUICKSTART / "test.jsonl") if clip.words][:16]


def aligned(aligner: WhisperAligner, clips: Sequence[Clip]) -> list[Alignment]:
    found = list(aligner.align(clips))
    assert all(isinstance(one, Alignment) for one in found), found
    return [one for one in found if isinstance(one, Alignment)]


def only_finding(aligner: WhisperAligner, clip: Clip) -> Finding:
    (found,) = aligner.align([clip])
    assert isinstance(found, Finding)
    assert found.clip_ids == (clip.id,)
    return found


def errors_s(found: Sequence[Alignment], clips: Sequence[Clip]) -> tuple[float, float]:
    pairs = [pair for one, clip in zip(found, clips, strict=True) for pair in zip(one.words, clip.words, strict=True)]
    starts = [abs(word.start_s - true.start_s) for word, true in pairs]
    ends = [abs(word.end_s - true.end_s) for word, true in pairs]
    return float(np.median(starts)), float(np.median(ends))


def test_every_word_has_times_in_order(aligner: WhisperAligner, clips: list[Clip]):
    for one, clip in zip(aligned(aligner, clips), clips, strict=True):
        assert one.clip_id == clip.id
        assert [word.text for word in one.words] == (clip.text or "").split()
        bounds = [bound for word in one.words for bound in (word.start_s, word.end_s)]
        assert bounds == sorted(bounds)
        assert bounds[0] >= 0
        assert bounds[-1] <= clip.duration_s
        assert (np.diff(one.token_starts_s) >= 0).all()
        assert (one.token_ends_s >= one.token_starts_s).all()
        assert (np.diff(one.token_words) >= 0).all()
        assert len(one.token_words) == len(one.token_posteriors) == len(one.token_starts_s) == len(one.token_ends_s)
        assert all(word.score is not None and 0 <= word.score <= 1 for word in one.words)


def test_times_are_near_those_that_were_synthesised(aligner: WhisperAligner, clips: list[Clip]):
    start_s, end_s = errors_s(aligned(aligner, clips), clips)
    assert start_s < 0.08
    assert end_s < 0.13


@pytest.mark.parametrize("context", ["thinned", "full", "cut"])
def test_a_clip_does_not_depend_on_its_batch(loaded: LoadedModel, clips: list[Clip], context: Context):
    model = loaded.with_(context=context)
    together = aligned(WhisperAligner(model, SETTINGS), clips[:5])
    alone = aligned(WhisperAligner(model, replace(SETTINGS, batch_max_clips=1)), clips[:5])
    for one, other in zip(together, alone, strict=True):
        assert one.evidence is not None
        assert other.evidence is not None
        np.testing.assert_allclose(one.evidence.given, other.evidence.given, atol=1e-4)
        np.testing.assert_allclose(one.evidence.best, other.evidence.best, atol=1e-4)
        np.testing.assert_allclose(one.token_starts_s, other.token_starts_s, atol=1e-4)
        np.testing.assert_allclose(one.token_ends_s, other.token_ends_s, atol=1e-4)


def test_evidence_is_the_distribution_of_decoding(loaded: LoadedModel, aligner: WhisperAligner, clips: list[Clip]):
    clip = clips[0]
    (one,) = aligned(aligner, [clip])
    assert one.evidence is not None
    waveform = soundfile.read(clip.path, dtype="float32")[0][: round(clip.duration_s * 16_000)]
    inputs, _ = loaded.frontend([waveform])
    target_U = loaded.family.encode_text(loaded, clip.text, clip.language)
    targets, _ = pad_targets([target_U])
    batch = aligner._batch([aligner._prepare(clip)])  # type: ignore[list-item]
    torch.testing.assert_close(batch.inputs, inputs)
    torch.testing.assert_close(batch.targets, targets)
    with torch.no_grad():
        rows_NV = loaded.family.logits(loaded, batch)[3:].float()
    text = [place for place in range(loaded.module.config.vocab_size) if place <= loaded.module.config.eos_token_id]
    logs_NV = rows_NV[:, text].log_softmax(dim=-1).numpy()
    wanted = target_U[4:]
    rows = [*range(len(wanted)), *[-1] * (one.evidence.window - 1)]  # no prompt, and the end in a window of its own
    np.testing.assert_allclose(one.evidence.given, logs_NV[np.arange(len(wanted)), wanted][rows], atol=1e-4)
    np.testing.assert_allclose(one.evidence.best, logs_NV.max(axis=1)[rows], atol=1e-4)
    assert (one.evidence.given <= one.evidence.best).all()


def test_text_that_stops_early_makes_the_end_unlikely(aligner: WhisperAligner, clips: list[Clip]):
    longer = [clip for clip in clips if len(clip.words) > 1]
    short = [replace(clip, text=" ".join((clip.text or "").split()[:-1])) for clip in longer]
    whole = [one.evidence.given[-1] for one in aligned(aligner, longer) if one.evidence]
    cut = [one.evidence.given[-1] for one in aligned(aligner, short) if one.evidence]
    assert np.median(cut) < np.median(whole) - 2


def test_a_wrong_transcript_is_unlikely(aligner: WhisperAligner, clips: list[Clip]):
    same = [clip for clip in clips if clip.language == "en"]
    wrong = [replace(clip, text=other.text) for clip, other in zip(same, same[1:] + same[:1], strict=True)]
    differ = [place for place, (one, other) in enumerate(zip(same, wrong, strict=True)) if one.text != other.text]

    def least(found: list[Alignment]) -> list[float]:
        ratios = [one.evidence.given - one.evidence.best for one in found if one.evidence]
        return [float(np.convolve(one, np.full(5, 0.2), "valid").min()) for one in ratios]

    right, false = least(aligned(aligner, same)), least(aligned(aligner, wrong))
    assert np.mean([right[place] > false[place] for place in differ]) > 0.9


def test_a_suppressed_token_that_was_said_stays_possible(loaded: LoadedModel, clips: list[Clip]):
    settings = loaded.module.generation_config
    before = settings.suppress_tokens
    tokens = text_tokens(loaded.processor.tokenizer, clips[0].text or "")
    settings.suppress_tokens = tokens[:1]
    try:
        (one,) = aligned(WhisperAligner(loaded, SETTINGS), clips[:1])
    finally:
        settings.suppress_tokens = before
    assert one.evidence is not None
    assert np.isfinite(one.evidence.given).all()


def test_the_model_is_left_as_it_was(loaded: LoadedModel, aligner: WhisperAligner, clips: list[Clip]):
    loaded.module.train()
    loaded.module.model.encoder.eval()
    try:
        first = aligned(aligner, clips[:2])
        assert loaded.module.training
        assert not loaded.module.model.encoder.training
        assert all(not layer.encoder_attn._forward_pre_hooks for layer in loaded.module.model.decoder.layers)
        second = aligned(aligner, clips[:2])
        assert np.array_equal(first[0].token_posteriors, second[0].token_posteriors)  # no dropout
    finally:
        loaded.module.eval()


def test_the_transcript_is_what_the_model_writes_by_itself(loaded: LoadedModel, clips: list[Clip]):
    asked = WhisperAligner(loaded, AlignerSettings())
    found = aligned(asked, clips[:8])
    others = aligned(asked, [replace(clip, text="seven") for clip in clips[:8]])
    assert [one.transcript for one in found] == [one.transcript for one in others]
    assert np.mean([one.transcript == clip.text for one, clip in zip(found, clips, strict=False)]) > 0.2
    assert aligned(WhisperAligner(loaded, SETTINGS), clips[:1])[0].transcript is None


# --- heads


def test_selected_heads_are_those_that_look_at_the_word(
    loaded: LoadedModel, aligner: WhisperAligner, clips: list[Clip]
):
    heads = select_heads(aligner, clips, count=8)
    assert len(heads) == len(set(heads)) == 8  # of two layers of four
    best, worst = (WhisperAligner(loaded, SETTINGS, heads=chosen) for chosen in (heads[:2], heads[-2:]))
    good, bad = errors_s(aligned(best, clips), clips), errors_s(aligned(worst, clips), clips)
    assert good[0] < 0.06
    assert good[0] < bad[0]
    shifted = [
        replace(clip, words=tuple(replace(word, start_s=0.0, end_s=0.05) for word in clip.words)) for clip in clips
    ]
    assert select_heads(aligner, shifted, count=8) != heads  # the times decide


def test_heads_need_times(aligner: WhisperAligner, clips: list[Clip]):
    with pytest.raises(ManifestError, match="words"):
        select_heads(aligner, [replace(clip, words=()) for clip in clips])
    with pytest.raises(ValueError, match="count"):
        select_heads(aligner, clips, count=0)


@pytest.mark.parametrize("head", [(2, 0), (0, 4), (-1, 0)])
def test_heads_that_are_not_there_are_refused(loaded: LoadedModel, head: tuple[int, int]):
    with pytest.raises(ModelError, match="no cross-attention head"):
        WhisperAligner(loaded, SETTINGS, heads=[head])


def test_the_heads_of_the_checkpoint_are_taken(loaded: LoadedModel):
    loaded.module.generation_config.alignment_heads = [[1, 3], [0, 2]]
    try:
        assert WhisperAligner(loaded, SETTINGS).heads == ((1, 3), (0, 2))
    finally:
        del loaded.module.generation_config.alignment_heads


# --- words


@pytest.mark.parametrize("text", ["one two", "שלום two", "a  b", "x"])
def test_every_token_has_its_word(loaded: LoadedModel, text: str):
    tokenizer = loaded.processor.tokenizer
    text = " ".join(text.split())
    ids = text_tokens(tokenizer, text)
    owners = word_of_each_token(tokenizer, text, ids, range(len(text.split())))
    for number, word in enumerate(text.split()):
        own = [token for token, owner in zip(ids, owners, strict=True) if owner == number]
        assert tokenizer.decode(own).strip() == word


def test_a_word_without_tokens_lies_between_its_neighbours():
    placed = placed_words(
        ["☃", "one", "☃", "two", "☃"],
        np.array([1, 1, 3]),
        np.array([0.5, 0.6, 1.0]),
        np.array([0.6, 0.8, 1.4]),
        np.array([0.5, 1.0, 0.25], dtype=np.float32),
    )
    assert [(word.start_s, word.end_s) for word in placed] == [
        (0.0, 0.5),
        (0.5, 0.8),
        (0.8, 1.0),
        (1.0, 1.4),
        (1.4, 1.4),
    ]
    assert [word.score for word in placed] == [None, 0.75, None, 0.25, None]


def test_characters_that_cannot_be_written_are_counted(aligner: WhisperAligner, clips: list[Clip]):
    clip = clips[0]
    before = dict(aligner._writable)
    aligner._writable.update(dict.fromkeys("xyz", False))
    try:
        (one,) = aligned(aligner, [replace(clip, text=f"{clip.text} xyz")])
        nothing = only_finding(aligner, replace(clip, text="xyz zyx"))
    finally:
        aligner._writable.clear()
        aligner._writable.update(before)
    assert one.unknown_share == pytest.approx(3 / len(f"{clip.text} xyz".replace(" ", "")))
    assert one.words[-1].text == "xyz"
    assert one.words[-1].score is None
    assert nothing.check == "align.unknown_text"


# --- bad input


def test_what_cannot_be_aligned_is_a_finding_in_its_place(aligner: WhisperAligner, clips: list[Clip], tmp_path: Path):
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF0000WAVE")
    given = [
        clips[0],
        replace(clips[1], id="empty", text=" ... "),
        replace(clips[1], id="none", text=None),
        replace(clips[1], id="long text", text="one " * 60),
        replace(clips[1], id="long audio", duration_s=15.5),
        replace(clips[1], id="gone", path=tmp_path / "gone.wav"),
        replace(clips[1], id="broken", path=broken),
        replace(clips[1], id="tongue", language="xx"),
        replace(clips[1], id="no language", language=None),
        clips[2],
    ]
    found = list(aligner.align(given))
    checks = [one.check if isinstance(one, Finding) else "aligned" for one in found]
    assert checks[:5] == [
        "aligned",
        "align.empty_text",
        "align.empty_text",
        "align.too_long_text",
        "align.too_long_audio",
    ]
    assert all(check.startswith("audio.") for check in checks[5:7])
    assert checks[7:] == ["align.unwritable_text", "align.unwritable_text", "aligned"]
    assert [one.clip_ids for one in found if isinstance(one, Finding)] == [(clip.id,) for clip in given[1:-1]]
    assert list(aligner.align([])) == []


def test_a_clip_may_come_twice_with_different_texts(aligner: WhisperAligner, clips: list[Clip]):
    right, wrong = aligned(aligner, [clips[0], replace(clips[0], text="seven seven")])
    assert right.token_posteriors.mean() > wrong.token_posteriors.mean()
    assert [word.text for word in wrong.words] == ["seven", "seven"]


def test_the_language_of_the_settings_is_of_clips_that_name_none(loaded: LoadedModel, clips: list[Clip]):
    english = next(clip for clip in clips if clip.language == "en")
    told = WhisperAligner(loaded, replace(SETTINGS, language="en"))
    (one,), (other,) = aligned(told, [replace(english, language=None)]), aligned(told, [english])
    assert np.array_equal(one.token_posteriors, other.token_posteriors)


@pytest.mark.parametrize("seconds", [0.02, 0.3, 15.0])
def test_silence_and_very_short_clips_have_words(aligner: WhisperAligner, tmp_path: Path, seconds: float):
    path = tmp_path / "silence.wav"
    soundfile.write(path, np.zeros(round(16_000 * seconds), dtype=np.float32) + 1e-4, 16_000)
    clip = Clip(id="silence", path=path, duration_s=seconds, text="seven three nine", language="en")
    (one,) = aligned(aligner, [clip])
    assert len(one.words) == 3
    assert max(word.end_s for word in one.words) <= seconds


def test_an_unknown_language_is_refused_by_name(aligner: WhisperAligner):
    aligner.check_languages(["en", "he", "iw"])
    with pytest.raises(ConfigError, match=r"'sw'.*'fr'.*en, he"):
        aligner.check_languages(["en", "sw", "fr"])


def test_another_model_is_refused():
    with pytest.raises(ModelError, match="whisper"):
        WhisperAligner(open_model("assets:ctc-nano").loaded, SETTINGS)


# --- a published model


@pytest.mark.realdata
@pytest.mark.slow
def test_heads_of_a_published_model_find_the_words(whisper_base: Path, clips: list[Clip]):
    real = open_model(str(whisper_base)).loaded
    english = [clip for clip in clips if clip.language == "en"]
    own = WhisperAligner(real, SETTINGS)
    assert own.heads is not None
    assert len(own.heads) == 8
    heads = select_heads(own, english)
    start_s, end_s = errors_s(aligned(WhisperAligner(real, SETTINGS, heads=heads), english), english)
    assert start_s < 0.08
    assert end_s < 0.08
    with pytest.raises(ConfigError, match="'xx'"):
        own.check_languages(["sw", "xx"])


def test_the_language_that_is_heard_does_not_depend_on_the_one_that_is_named(
    aligner: WhisperAligner, clips: list[Clip]
) -> None:
    first = aligned(aligner, clips[:4])
    other = aligned(aligner, [replace(clip, language="he") for clip in clips[:4]])
    for one, same in zip(first, other, strict=True):
        assert one.language is not None
        assert same.language is not None
        assert one.language.code == same.language.code
        assert 0 < one.language.probability <= 1
        assert same.language.probability == pytest.approx(one.language.probability, abs=1e-5)
