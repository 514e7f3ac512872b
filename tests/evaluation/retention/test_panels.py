"""Panels on the packaged model: what they are made of, what they count, what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sonotune.audio.io import write
from sonotune.data import manifest
from sonotune.errors import ConfigError, ManifestError
from sonotune.evaluation.evaluate import predict_clips
from sonotune.evaluation.retention.base import Measured
from sonotune.evaluation.retention.measure import compare_panel, from_json, key_of, measure, to_json
from sonotune.evaluation.retention.run import RetentionSettings, measure_base
from sonotune.models.base import LoadedModel
from sonotune.models.families.whisper import WhisperFamily
from sonotune.models.frame_merging.settings import NO_MERGING, FrameMerging
from sonotune.registry import resolve_asset
from sonotune.tasks.base import TaskSettings
from sonotune.tasks.transcribe import Transcribe
from sonotune.types import Clip, DecodingSettings, Prediction

QUICKSTART = "assets:quickstart/test.jsonl"
GREEDY = DecodingSettings(temperatures=(0.0,), max_new_tokens=4)
CORPUS = {
    "root": None,
    "allow_outside_root": True,
    "min_duration_s": 0.0,
    "max_duration_s": None,
    "check": "header",
    "max_bad_fraction": 0.01,
    "truncated": "use",
    "eval_speakers": (),
    "eval_fraction": 0.1,
    "leaks": "report",
}


class Says(Transcribe):
    """Transcribes as it is told, clip by clip."""

    def __init__(self, text: Callable[[Clip], str]) -> None:
        super().__init__(WhisperFamily(), TaskSettings())
        self._text = text

    def predict(self, loaded: Any, batch: Any, settings: DecodingSettings = GREEDY) -> list[Prediction]:
        self._written = str
        return [Prediction(clip_id=clip.id, text=self._text(clip)) for clip in batch.clips]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return WhisperFamily().load("assets:whisper-nano")


def settings(*keep: str, **changes: Any) -> RetentionSettings:
    given: dict[str, Any] = {
        "keep": keep,
        "clips": 14,
        "corpus": CORPUS,
        "seed": 0,
        "resamples": 200,
        "decoding": GREEDY,
        "precision": "fp32",
        "language": "en",
    }
    return RetentionSettings(**(given | changes))


def asked(found: RetentionSettings, task: Any, loaded: Any) -> tuple[Any, Measured]:
    with found.panels(task, loaded) as ([panel], _):
        return panel, measure(panel, task, loaded, partial(predict_clips, decoding=GREEDY), where="now")


def test_nonspeech_counts_clips_with_words_and_words_a_minute(loaded: LoadedModel):
    def text(clip: Clip) -> str:
        return {"music": "la la la", "tones": " ... "}.get(str(clip.domain), "")

    panel, found = asked(settings("nonspeech"), Says(text), loaded)
    assert len(panel.clips) == 14
    assert {clip.domain for clip in panel.clips} == {
        "silence",
        "white_noise",
        "pink_noise",
        "brown_noise",
        "tones",
        "music",
        "reversed_babble",
    }
    share, rate = (one.score(panel.clips, resamples=100, seed=0) for one in found.scores)
    assert share.value == 2 / 14  # marks alone are no words
    assert share.low == pytest.approx(0.0401, abs=1e-3)  # Wilson, 2 of 14
    assert share.high == pytest.approx(0.3994, abs=1e-3)
    minutes = sum(clip.duration_s for clip in panel.clips) / 60
    assert rate.value == pytest.approx(6 / minutes)
    assert rate.low < rate.value < rate.high
    assert rate.unit == "words/min"


def test_generated_clips_are_the_same_each_time_and_gone_afterwards(loaded: LoadedModel):
    digests, paths = [], []
    for seed in (0, 0, 1):
        with settings("nonspeech", seed=seed).panels(Says(str), loaded) as ([panel], _):
            digests.append((panel.digest, [clip.path.read_bytes() for clip in panel.clips]))
            paths += [clip.path for clip in panel.clips]
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]
    assert not any(path.exists() for path in paths)


def test_a_manifest_is_scored_by_the_rate_that_its_references_ask_for(loaded: LoadedModel):
    panel, found = asked(settings(QUICKSTART), Says(lambda clip: f"{clip.text} one"), loaded)
    [score] = found.scores
    words = sum(len((clip.text or "").split()) for clip in panel.clips)
    assert score.name == "wer"
    assert sum(score.counts) == 14  # one inserted word a clip
    assert sum(score.totals) == words
    assert panel.name == "quickstart/test"


def test_languages_are_identified_by_the_model_itself(loaded: LoadedModel):
    panel, found = asked(settings(f"language:{QUICKSTART}"), Says(str), loaded)
    [score] = found.scores
    known = WhisperFamily().languages(loaded)
    assert set(found.texts) <= set(known)
    assert score.better == "higher"
    assert sum(score.counts) == sum(code == "en" for code in found.texts)
    assert panel.name == "language of quickstart/test"


def test_long_recordings_are_longer_than_the_window_and_have_every_word_once(loaded: LoadedModel):
    with settings(f"long:{QUICKSTART}", clips=50).panels(Says(str), loaded) as ([panel], _):
        lengths = [clip.duration_s for clip in panel.clips]
        words = " ".join(clip.text or "" for clip in panel.clips).split()
    assert all(22.5 <= length <= 45.0 for length in lengths)
    sources = [name for clip in panel.clips for name in str(clip.extra["sources"]).split()]
    texts = {clip.id: clip.text for clip in manifest.read_manifest(resolve_asset(QUICKSTART))}
    assert len(set(sources)) == len(sources) > len(panel.clips)
    assert words == " ".join(str(texts[name]) for name in sources).split()
    assert {clip.language for clip in panel.clips} == {"en"}


def test_long_recordings_are_decoded_in_windows_and_every_error_is_counted(loaded: LoadedModel):
    panel, found = asked(settings(f"long:{QUICKSTART}", clips=50), Says(lambda clip: "wrong"), loaded)
    [score] = found.scores
    assert sum(score.totals) == sum(len((clip.text or "").split()) for clip in panel.clips)
    assert all(len(text.split()) > 1 for text in found.texts)  # a word a window
    assert all(count > 0 for count in score.counts)


def test_clips_that_are_together_shorter_than_a_window_are_no_long_recording(loaded: LoadedModel):
    with (
        pytest.raises(ManifestError, match=r"evaluation\.keep=long:.*2 clips cannot be joined .* 22\.5 to 45 s"),
        settings(f"long:{QUICKSTART}", clips=2).panels(Says(str), loaded),
    ):
        pass


def test_lost_marks_and_lost_case_are_counted_apart_from_lost_words(loaded: LoadedModel, tmp_path: Path):
    written = tmp_path / "written.jsonl"
    clips = manifest.read_manifest(resolve_asset(QUICKSTART))[:3]
    texts = ("Hello, world.", "\u05e9\u05dc\u05d5\u05dd, \u05e2\u05d5\u05dc\u05dd!", "nothing here")
    manifest.write_manifest(written, [replace(c, text=t, words=()) for c, t in zip(clips, texts, strict=True)])
    keep = f"punctuation:{written}"
    _, same = asked(settings(keep), Says(lambda clip: clip.text or ""), loaded)
    assert [sum(score.counts) for score in same.scores] == [0, 0]
    assert [sum(score.totals) for score in same.scores] == [4, 6]
    panel, bare = asked(settings(keep), Says(lambda clip: (clip.text or "").lower().replace(",", "")), loaded)
    assert {clip.id: counts for clip, counts in zip(panel.clips, bare.scores[0].counts, strict=True)} == {
        clips[0].id: 1.0,
        clips[1].id: 1.0,
        clips[2].id: 0.0,
    }
    assert sum(bare.scores[1].counts) == 2  # "hello" and the Hebrew word without its comma
    plain = tmp_path / "plain.jsonl"
    manifest.write_manifest(plain, [replace(clips[0], text="nothing here", words=())])
    with (
        pytest.raises(ManifestError, match="has a mark of punctuation"),
        settings(f"punctuation:{plain}").panels(Says(str), loaded),
    ):
        pass


def test_the_last_time_is_compared_with_the_end_of_speech(loaded: LoadedModel, tmp_path: Path):
    class Timed(WhisperFamily):
        def writes_timestamps(self, loaded: LoadedModel) -> bool:
            return True

        def timestamps(self, loaded: Any, batch: Any, settings: DecodingSettings = GREEDY) -> list[tuple[float, ...]]:
            said = {"right": (0.0, 1.2), "late": (0.0, 1.9), "none": ()}
            return [said[clip.id] for clip in batch.clips]

    times = np.arange(32000) / 16000
    tone = (0.3 * np.sin(2 * np.pi * 440 * times) * ((times > 0.3) & (times < 1.0))).astype(np.float32)
    write(tmp_path / "tone.wav", tone, 16000)
    write(tmp_path / "quiet.wav", np.zeros(32000, dtype=np.float32), 16000)
    clips = [Clip(id=name, path=tmp_path / "tone.wav", duration_s=2.0) for name in ("right", "late", "none")]
    quiet = Clip(id="quiet", path=tmp_path / "quiet.wav", duration_s=2.0)
    manifest.write_manifest(tmp_path / "clips.jsonl", [*clips, quiet])
    timed = loaded.with_(family=Timed())
    panel, found = asked(settings(f"timestamps:{tmp_path / 'clips.jsonl'}"), Says(str), timed)
    counts = dict(zip([clip.id for clip in panel.clips], found.scores[0].counts, strict=True))
    assert counts == {"right": 1.0, "late": 0.0, "none": 0.0}
    manifest.write_manifest(tmp_path / "quiet.jsonl", [quiet])
    with (
        pytest.raises(ManifestError, match="no speech ends"),
        settings(f"timestamps:{tmp_path / 'quiet.jsonl'}").panels(Says(str), timed),
    ):
        pass
    with (
        pytest.raises(ConfigError, match="no tokens for times"),
        settings(f"timestamps:{QUICKSTART}").panels(Says(str), loaded.with_(family=object())),
    ):
        pass


def test_a_change_of_every_clip_is_clear_and_its_clips_are_shown(loaded: LoadedModel):
    task = Says(lambda clip: "")
    panel, before = asked(settings("nonspeech"), task, loaded)
    _, after = asked(settings("nonspeech"), Says(lambda clip: "thank you for watching"), loaded)
    row = compare_panel(panel, before, after, resamples=200, seed=0)
    assert row["outcome"] == "broke"
    assert row["difference"]["clips_with_words"]["low"] > 0.5
    assert row["difference"]["words_a_minute"]["unit"] == "words/min"
    assert row["slices"][0] == {"value": "silence", "clips": 2, "before": 0.0, "after": 1.0}
    assert row["examples"][0]["after"] == "thank you for watching"
    same = compare_panel(panel, before, before, resamples=200, seed=0)
    assert same["outcome"] == "no clear change"
    assert same["examples"] == []
    json.dumps(row)


def test_the_base_is_asked_once_and_read_afterwards(loaded: LoadedModel, tmp_path: Path):
    calls: list[int] = []

    def predict(task: Any, model: Any, clips: Sequence[Clip]) -> Any:
        calls.append(len(clips))
        return predict_clips(task, model, clips, decoding=GREEDY)

    found = settings("nonspeech", folder=tmp_path)
    task = Says(lambda clip: "a")
    with found.panels(task, loaded) as (panels, _):
        first = measure_base(panels, task, loaded, found, predict)
        assert measure_base(panels, task, loaded, found, predict) == first
        assert calls == [14]
        measure_base(panels, task, loaded, replace(found, precision="bf16"), predict)
        assert calls == [14, 14]
        [path, _] = sorted((tmp_path / "retention").iterdir(), key=lambda one: one.stat().st_mtime_ns)
        for damaged in ("", "[]", '{"key": 1}', json.dumps({**json.loads(path.read_text()), "texts": ["a"]})):
            path.write_text(damaged)
            assert measure_base(panels, task, loaded, found, predict) == first
        assert len(calls) == 6


def test_a_measurement_survives_json_and_is_bound_to_its_key(loaded: LoadedModel):
    panel, found = asked(settings("nonspeech"), Says(lambda clip: "\u05e9\u05dc\u05d5\u05dd"), loaded)
    key = key_of(panel, {"context": "full"})
    kept = json.loads(json.dumps(to_json(found, key)))
    assert from_json(kept, key, 14) == found
    assert from_json(kept, key_of(panel, {"context": "thinned"}), 14) is None
    assert from_json(kept, key, 13) is None


def test_a_base_that_merges_frames_is_asked_again(loaded: LoadedModel):
    found = settings("nonspeech")
    with found.panels(Says(str), loaded) as ([panel], _):
        merging = loaded.with_(merging=FrameMerging(ratio=0.25))
        assert found.key(panel, merging) != found.key(panel, loaded)
        assert found.key(panel, loaded.with_(merging=NO_MERGING)) == found.key(panel, loaded)


def test_confidences_change_no_text_and_ask_nothing_again(loaded: LoadedModel):
    found = settings("nonspeech")
    with found.panels(Says(str), loaded) as ([panel], _):
        rated = replace(found, decoding=replace(GREEDY, confidence=True))
        assert rated.key(panel, loaded) == found.key(panel, loaded)
        for other in (replace(GREEDY, length_penalty=0.5), replace(GREEDY, beam_size=2)):
            assert replace(found, decoding=other).key(panel, loaded) != found.key(panel, loaded)


def test_half_a_surrogate_pair_can_be_kept(loaded: LoadedModel, tmp_path: Path):
    found = settings("nonspeech", folder=tmp_path)
    with found.panels(Says(lambda clip: "a \ud800"), loaded) as (panels, _):
        measured = measure_base(
            panels, Says(lambda clip: "a \ud800"), loaded, found, partial(predict_clips, decoding=GREEDY)
        )
    assert set(measured["nonspeech"].texts) == {"a ?"}
    assert len(list((tmp_path / "retention").iterdir())) == 1


@pytest.mark.parametrize(
    ("keep", "told"),
    [
        ("language:", "the panel language needs a manifest"),
        ("nonspeech:here.jsonl", "makes its own clips"),
        ("language", "the panel language needs a manifest"),
    ],
)
def test_a_panel_that_is_named_wrongly_is_refused(loaded: LoadedModel, keep: str, told: str):
    with pytest.raises(ConfigError, match=told), settings(keep).panels(Says(str), loaded):
        pass


def test_a_model_that_cannot_be_asked_is_refused_with_the_reason(loaded: LoadedModel):
    class Monolingual(WhisperFamily):
        def languages(self, loaded: LoadedModel) -> tuple[str, ...]:
            return ()

    other = loaded.with_(family=Monolingual())
    with (
        pytest.raises(ConfigError, match="cannot be asked, for it has no tokens for languages"),
        settings(f"language:{QUICKSTART}").panels(Says(str), other),
    ):
        pass
    task = Says(str)
    task.reference = "label"
    with pytest.raises(ConfigError, match="it writes no text"), settings("nonspeech").panels(task, loaded):
        pass


def test_a_manifest_that_cannot_be_used_is_refused_by_its_setting(loaded: LoadedModel, tmp_path: Path):
    with (
        pytest.raises(ManifestError, match=r"evaluation\.keep=nothing\.jsonl"),
        settings("nothing.jsonl").panels(Says(str), loaded),
    ):
        pass
    clips = manifest.read_manifest(resolve_asset(QUICKSTART))[:3]
    silent, unnamed = tmp_path / "silent.jsonl", tmp_path / "unnamed.jsonl"
    manifest.write_manifest(silent, [replace(clip, text="", words=()) for clip in clips])
    manifest.write_manifest(unnamed, [replace(clip, language=None) for clip in clips])
    with (
        pytest.raises(ManifestError, match="none of its 3 clips has a transcript with words"),
        settings(str(silent)).panels(Says(str), loaded),
    ):
        pass
    with (
        pytest.raises(ManifestError, match="no clip names a language"),
        settings(f"language:{unnamed}").panels(Says(str), loaded),
    ):
        pass


def test_panels_of_the_same_name_are_told_apart(loaded: LoadedModel, tmp_path: Path):
    clips = manifest.read_manifest(resolve_asset(QUICKSTART))[:3]
    named = []
    for folder in ("a/x", "b/x"):
        (tmp_path / folder).mkdir(parents=True)
        named.append(str(tmp_path / folder / "test.jsonl"))
        manifest.write_manifest(Path(named[-1]), clips)
    with settings(*named).panels(Says(str), loaded) as (panels, _):
        assert [panel.name for panel in panels] == named
