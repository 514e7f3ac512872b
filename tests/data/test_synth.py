"""Synthetic corpora: what is planned, what is heard, and that neither depends on how many processes work."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonotune.audio import io
from sonotune.data import espeak, synth, vocabulary
from sonotune.data.audio_checks import check_audio
from sonotune.data.channels import CHANNELS
from sonotune.data.espeak import Voice
from sonotune.data.manifest import filter_clips, read_manifest
from sonotune.data.speech_plans import PlannedClip, nano_speech, quickstart
from sonotune.errors import ConfigError, MissingExtraError, ResourceError
from sonotune.registry import resolve_asset
from sonotune.runs import generator

RATE_HZ = synth.SAMPLE_RATE_HZ


def planned(number: int = 0, text: str = "zero, one, two", **more: object) -> PlannedClip:
    defaults = {"lead_s": 0.1, "trail_s": 0.2}
    words = text.replace(",", "")
    return PlannedClip(id=f"c{number}", text=words, spoken=text, **{**defaults, **more})


@pytest.fixture
def speech() -> None:
    pytest.importorskip("espeakng_loader", reason="espeak-ng is not installed: pip install sonotune[synth]")


# --- what is planned -----------------------------------------------------------------------------


def test_a_plan_is_a_function_of_seed_and_index() -> None:
    assert nano_speech(30, 7)[:10] == nano_speech(10, 7)[:10]
    assert nano_speech(10, 7)[:10] != nano_speech(10, 8)[:10]
    ids = [clip.id for clip in nano_speech(30, 7)]
    assert len(set(ids)) == len(ids)


def test_nano_speech_is_mostly_short_digit_strings_and_every_word_occurs() -> None:
    plan = [clip for clip in nano_speech(4000, 0) if clip.split == "manifest"]
    kinds = Counter(clip.domain for clip in plan)
    assert 0.42 < kinds["digits"] / len(plan) < 0.50
    assert 0.13 < kinds["digit"] / len(plan) < 0.19
    lengths = Counter(len(clip.text.split()) for clip in plan if clip.domain == "digits")
    assert lengths[2] > lengths[3] > lengths[5] > lengths[8] > 0
    assert 0.07 < kinds["hebrew"] / len(plan) < 0.12
    words = {word for clip in plan for word in clip.text.split()}
    assert {*vocabulary.DIGITS, *vocabulary.COMMANDS, *vocabulary.HEBREW_DIGITS, *vocabulary.HEBREW_WORDS} <= words
    for clip in plan:
        assert clip.text.replace(" ", "").isalpha()
        assert clip.text == clip.text.lower()
        assert clip.spoken is not None
        assert len(clip.spoken.split()) == len(clip.text.split())  # else the words could not be placed in time


def test_no_voice_is_heard_in_two_places() -> None:
    nano = nano_speech(4000, 0)
    training = {clip.voice.variant for clip in nano if clip.split == "manifest"}
    development = {clip.voice.variant for clip in nano if clip.split == "dev"}
    plan = quickstart(150, 0)
    of_split = {name: {clip.voice.name for clip in plan if clip.split == name} for name in ("train", "eval", "test")}
    assert training == set(vocabulary.TRAINING_VARIANTS)
    assert not training & development
    assert not (training | development) & {clip.voice.variant for clip in plan}
    assert [len(names) for names in of_split.values()] == [6, 3, 3]
    assert len(set.union(*of_split.values())) == 12
    assert not {clip.channel for clip in nano} - {None}
    assert all(0.8 <= clip.tract <= 0.86 or 1.16 <= clip.tract <= 1.25 for clip in plan)


@pytest.mark.parametrize(
    ("number", "say_and", "words"),
    [
        (0, True, "zero"),
        (10, True, "ten"),
        (21, True, "twenty one"),
        (100, True, "one hundred"),
        (105, True, "one hundred and five"),
        (105, False, "one hundred five"),
        (2045, True, "two thousand and forty five"),
        (9999, False, "nine thousand nine hundred ninety nine"),
    ],
)
def test_number_words(number: int, say_and: bool, words: str) -> None:
    assert vocabulary.number_words(number, say_and=say_and) == words


@given(st.integers(0, 9999), st.integers(0, 9999), st.booleans())
def test_different_numbers_are_different_words(first: int, second: int, say_and: bool) -> None:
    same = vocabulary.number_words(first, say_and=say_and) == vocabulary.number_words(second, say_and=say_and)
    assert same == (first == second)


@pytest.mark.parametrize("number", [-1, 10_000])
def test_numbers_outside_the_range_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match=r"0\.\.9999"):
        vocabulary.number_words(number, say_and=True)


def test_every_foreign_accent_has_all_digits() -> None:
    assert {len(words) for words in vocabulary.FOREIGN_DIGITS.values()} == {10}


# --- what is heard -------------------------------------------------------------------------------


@pytest.mark.usefixtures("speech")
def test_words_hold_the_sound_and_the_pauses_between_them_are_silent() -> None:
    waveform_S, words = synth.speak(planned())
    assert [word.text for word in words] == ["zero", "one", "two"]
    assert words[0].start_s == pytest.approx(0.1 + 0.015, abs=0.006)  # the lead and the edge that is kept
    assert words[-1].end_s == pytest.approx(len(waveform_S) / RATE_HZ - 0.2 - 0.015, abs=0.016)
    inside = np.zeros(len(waveform_S), bool)
    for word, after in zip(words, [*words[1:], None], strict=True):
        assert 0.1 < word.end_s - word.start_s < 0.8
        assert after is None or word.end_s + 0.02 < after.start_s
        inside[round(word.start_s * RATE_HZ) : round(word.end_s * RATE_HZ)] = True
    assert np.square(waveform_S[~inside]).sum() < 1e-4 * np.square(waveform_S).sum()
    assert len(waveform_S) % 160 == 0


@pytest.mark.usefixtures("speech")
def test_hebrew_is_spoken_from_phonemes_and_written_without_them() -> None:
    spoken = f"[[{vocabulary.HEBREW_DIGITS['שבע']}]], [[{vocabulary.HEBREW_WORDS['שלום']}]]"
    clip = PlannedClip(id="h", text="שבע שלום", spoken=spoken, phonemes=True, voice=Voice(accent="he"), language="he")
    waveform_S, words = synth.speak(clip)
    assert [word.text for word in words] == ["שבע", "שלום"]
    assert 0.6 < len(waveform_S) / RATE_HZ < 2.0  # spelling the phonemes letter by letter would take far longer


@pytest.mark.usefixtures("speech")
def test_a_shorter_vocal_tract_moves_the_spectrum_and_not_the_tempo() -> None:
    def heard(tract: float) -> tuple[float, float]:
        waveform_S, _ = synth.speak(planned(text="yellow radio", tract=tract, lead_s=0.0, trail_s=0.0))
        power = np.abs(np.fft.rfft(waveform_S)) ** 2
        frequency = np.fft.rfftfreq(len(waveform_S), 1 / RATE_HZ)
        speech = (frequency > 300) & (frequency < 4000)  # formants, without the voice's fundamental
        return len(waveform_S) / RATE_HZ, float((power * frequency)[speech].sum() / power[speech].sum())

    (long_s, low_hz), (short_s, high_hz) = heard(0.8), heard(1.25)
    assert short_s == pytest.approx(long_s, rel=0.15)
    assert high_hz > 1.25 * low_hz


@pytest.mark.usefixtures("speech")
def test_tempo_level_and_speaker_follow_the_plan() -> None:
    slow_S, _ = synth.speak(planned(voice=Voice(words_per_minute=100)))
    fast_S, _ = synth.speak(planned(voice=Voice(words_per_minute=300), peak_db=-20.0))
    assert len(slow_S) > 1.6 * len(fast_S)
    assert np.abs(slow_S).max() == pytest.approx(10 ** (-3 / 20), rel=1e-4)
    assert np.abs(fast_S).max() == pytest.approx(0.1, rel=1e-4)
    other_S, _ = synth.speak(planned(voice=Voice(words_per_minute=100, variant="f3")))
    assert not np.array_equal(slow_S[:8000], other_S[:8000])


@pytest.mark.usefixtures("speech")
@pytest.mark.parametrize(("change", "named"), [({"variant": "m99"}, "m99"), ({"accent": "en-mars"}, "en-mars")])
def test_an_unknown_voice_is_refused_by_name(change: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        synth.speak(planned(voice=dataclasses.replace(Voice(), **change)))


@pytest.mark.usefixtures("speech")
def test_a_text_without_sound_is_refused() -> None:
    with pytest.raises(ResourceError, match=r"c0|nothing"):
        synth.speak(planned(text=" "))


def test_a_missing_library_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(MissingExtraError, match=r"pip install sonotune\[synth\]"):
        espeak.Synthesizer()


def test_intercom_keeps_time_and_cuts_the_band() -> None:
    rng = np.random.default_rng(0)
    white_S = rng.standard_normal(RATE_HZ).astype(np.float32) * 0.1
    white_S[: RATE_HZ // 2] = 0
    heard_S = CHANNELS["intercom"](white_S, RATE_HZ, generator(0, "a"))
    assert heard_S.shape == white_S.shape
    assert np.array_equal(heard_S, CHANNELS["intercom"](white_S, RATE_HZ, generator(0, "a")))
    assert not np.array_equal(heard_S, CHANNELS["intercom"](white_S, RATE_HZ, generator(0, "b")))
    power = np.abs(np.fft.rfft(heard_S[RATE_HZ // 2 :])) ** 2
    frequency = np.fft.rfftfreq(RATE_HZ // 2, 1 / RATE_HZ)
    assert power[frequency > 4000].sum() < 0.01 * power.sum()
    # The hum is there before the sound, and the sound is where it was.
    before, after = np.square(heard_S[: RATE_HZ // 2]).mean(), np.square(heard_S[RATE_HZ // 2 :]).mean()
    assert 0.1 < before / after < 0.9


# --- corpora on disk -----------------------------------------------------------------------------


def small_plan(clips: int = 10) -> list[PlannedClip]:
    variants = ("", "f3", "m2", "klatt", "Alex")
    return [
        planned(index, "four, seven", voice=Voice(variant=variants[index % 5]), split=("train", "eval")[index % 2])
        for index in range(clips)
    ]


@pytest.mark.usefixtures("speech")
def test_output_does_not_depend_on_the_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synth, "SHARD_CLIPS", 4)
    for workers in (1, 2):
        synth.synthesize_corpus(small_plan(), tmp_path / str(workers), seed=3, clips_per_file=2, workers=workers)
    one, two = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("1", "2")
    )
    shards = ("0000-000", "0000-001", "0001-000", "0001-001", "0002-000")
    assert sorted(map(str, one)) == [*(f"audio/{name}.wav" for name in shards), "eval.jsonl", "train.jsonl"]
    assert [name for name in one if one[name] != two[name]] == []


@pytest.mark.usefixtures("speech")
@pytest.mark.parametrize("audio_format", ["wav", "flac", "opus"])
def test_manifests_load_and_their_spans_hold_the_clips(tmp_path: Path, audio_format: str) -> None:
    plan = small_plan()
    made = synth.synthesize_corpus(plan, tmp_path, seed=0, format=audio_format, workers=1)  # type: ignore[arg-type]
    for split in ("train", "eval"):
        clips = read_manifest(tmp_path / f"{split}.jsonl", require=("text", "language", "speaker"))
        assert clips == made[split]
        assert [clip.id for clip in clips] == [clip.id for clip in plan if clip.split == split]
        assert check_audio(clips)[1] == []
        for clip in clips:
            waveform_S = io.read(clip.path, start_s=clip.start_s, duration_s=clip.duration_s)
            assert len(waveform_S) == round(clip.duration_s * RATE_HZ)
            first, last = (round(edge * RATE_HZ) for edge in (clip.words[0].start_s, clip.words[-1].end_s))
            inner = np.square(waveform_S[first:last]).mean()
            for outer_S in (waveform_S[: first - 320], waveform_S[last + 320 :]):  # a neighbour would be loud here
                assert len(outer_S) > 160
                assert np.square(outer_S).mean() < 1e-3 * inner


@pytest.mark.usefixtures("speech")
def test_a_named_corpus_says_what_it_wrote(tmp_path: Path) -> None:
    body = synth.synthesize_named("nano_speech", tmp_path, clips=5, workers=2)
    assert json.loads(json.dumps(body)) == body
    assert {name: part["clips"] for name, part in body["manifests"].items()} == {"manifest": 5, "dev": 300}
    clips = read_manifest(Path(body["manifests"]["dev"]["path"]))
    assert sum(clip.duration_s for clip in clips) / 3600 == pytest.approx(body["manifests"]["dev"]["hours"])
    assert filter_clips(clips, min_duration_s=0.1, max_duration_s=15.0)[0] == clips
    assert sum(bool(clip.words) for clip in clips) >= 298


@pytest.mark.usefixtures("speech")
def test_an_error_in_a_worker_arrives_whole(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="m99"):
        synth.synthesize_corpus([planned(voice=Voice(variant="m99"))], tmp_path, seed=0, workers=1)
    assert not list(tmp_path.glob("*.jsonl"))


@pytest.mark.parametrize(
    ("plan", "numbers", "named"),
    [
        ([], {}, "0 clips"),
        ([planned(1), planned(2), planned(1)], {}, "c1"),
        ([planned()], {"workers": 0}, "workers 0"),
        ([planned()], {"clips_per_file": 0}, "clips_per_file 0"),
    ],
)
def test_a_plan_that_cannot_be_spoken_is_refused(
    tmp_path: Path, plan: list[PlannedClip], numbers: dict[str, int], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        synth.synthesize_corpus(plan, tmp_path, seed=0, **numbers)


def test_an_unknown_corpus_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nano_speech, quickstart"):
        synth.synthesize_named("nano_speach", tmp_path)


# --- what the package carries --------------------------------------------------------------------


def test_the_packaged_quickstart_is_its_plan() -> None:
    plan = quickstart(200, 0)
    folder = resolve_asset("assets:quickstart/train.jsonl").parent
    for split in ("train", "eval", "test"):
        clips = read_manifest(folder / f"{split}.jsonl", require=("text", "language", "speaker"))
        wanted = [(clip.id, clip.text, clip.voice.name) for clip in plan if clip.split == split]
        assert [(clip.id, clip.text, clip.speaker) for clip in clips] == wanted
        assert check_audio(clips)[1] == []
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 2_200_000
