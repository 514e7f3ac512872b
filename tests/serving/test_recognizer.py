"""Files and folders in, texts out; what cannot be used is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from sonotune.adapters.kinds import lora
from sonotune.errors import ConfigError, ManifestError, ModelError, NumericError
from sonotune.features.batching import Batch
from sonotune.models.base import LoadedModel
from sonotune.models.families.whisper import WhisperFamily
from sonotune.serving.recognizer import Recognizer, clips_of
from sonotune.types import Clip, DecodingSettings, Hypothesis

Trained = Callable[..., tuple[Path, LoadedModel]]


@pytest.fixture(scope="module")
def recognizer() -> Recognizer:
    return Recognizer.open("assets:whisper-nano", language="en", precision="fp32")


def test_folders_are_searched_and_files_are_taken_in_order(recordings: Path):
    clips, findings = clips_of([recordings / "deep" / "c.ogg", recordings])
    assert [Path(clip.id).name for clip in clips] == ["c.ogg", "a.wav", "b.flac"]
    assert all(clip.duration_s == pytest.approx(0.5, abs=0.01) for clip in clips)
    assert not findings


def test_what_is_no_usable_audio_is_named_and_the_rest_goes_on(recordings: Path):
    (recordings / "empty.wav").write_bytes(b"")
    (recordings / "page.mp3").write_text("<html>")
    whole = (recordings / "a.wav").read_bytes()
    (recordings / "cut.wav").write_bytes(whole[:4000])
    (recordings / "notes.txt").write_text("no audio is expected here")
    clips, findings = clips_of([recordings, recordings / "absent.wav"], language="he")
    assert len(clips) == 3
    assert {clip.language for clip in clips} == {"he"}
    found = {Path(str(finding.path)).name: finding.check for finding in findings}
    assert found == {
        "empty.wav": "audio.empty",
        "page.mp3": "audio.not_audio",
        "cut.wav": "audio.truncated",
        "absent.wav": "audio.missing",
    }


def test_recordings_of_kinds_that_cannot_be_read_are_named(recordings: Path):
    (recordings / "deep" / "memo.m4a").touch()
    clips, (finding,) = clips_of([recordings])
    assert len(clips) == 3
    assert finding.severity == "error"
    assert "deep/memo.m4a" in finding.message


def test_a_file_without_signal_is_named_and_has_no_text(recognizer: Recognizer, recordings: Path):
    tone, rate_hz = soundfile.read(recordings / "a.wav")
    soundfile.write(recordings / "aa.wav", np.zeros(8000), 16000)
    soundfile.write(recordings / "opposed.wav", np.stack([tone, -tone], axis=1), rate_hz)
    found = recognizer.recognize([recordings], decoding=DecodingSettings(max_new_tokens=4))
    flags = {Path(one.clip_id).name: (one.no_signal, one.text == "") for one in found.predictions}
    assert list(flags) == ["a.wav", "aa.wav", "b.flac", "c.ogg", "opposed.wav"]
    assert {name for name, (no_signal, _) in flags.items() if no_signal} == {"aa.wav", "opposed.wav"}
    assert flags["aa.wav"] == flags["opposed.wav"] == (True, True)
    warned = [finding for finding in found.findings if finding.check == "audio.silent"]
    assert [Path(str(finding.path)).name for finding in warned] == ["aa.wav", "opposed.wav"]
    assert all("no signal" in finding.message and finding.severity == "warning" for finding in warned)
    only = recognizer.recognize([recordings / "aa.wav"])
    assert [(one.text, one.no_signal) for one in only.predictions] == [("", True)]
    asked = recognizer.recognize(
        [recordings / "aa.wav"], silence_db=-200.0, decoding=DecodingSettings(max_new_tokens=4)
    )
    assert not asked.predictions[0].no_signal
    assert not [finding for finding in asked.findings if finding.check == "audio.silent"]


def test_the_check_for_speech_can_be_switched_off(recognizer: Recognizer, recordings: Path):
    soundfile.write(recordings / "aa.wav", np.zeros(8000), 16000)
    found = recognizer.recognize(
        [recordings / "aa.wav"], speech_check="off", decoding=DecodingSettings(max_new_tokens=4)
    )
    assert not found.predictions[0].no_signal
    assert found.predictions[0].text
    assert [finding.check for finding in found.findings if finding.severity == "warning"][:1] == ["audio.silent"]


def test_evaluation_asks_the_model_about_silence(recognizer: Recognizer, recordings: Path):
    """What it would write there is what the score is to show."""
    soundfile.write(recordings / "aa.wav", np.zeros(8000), 16000)
    silence = Clip(id="aa", path=recordings / "aa.wav", duration_s=0.5, text="", language="en")
    found = recognizer.evaluate([silence], bootstrap=100)
    written = len((found.predictions[0].text or "").split())
    assert written > 0  # whisper-nano has never heard silence alone
    assert found.scores["wer"].value == written
    assert found.details["decoding"]["silent_words"] == written


def test_transcripts_come_in_the_order_of_the_files_whatever_the_batches(recognizer: Recognizer, recordings: Path):
    (recordings / "bad.wav").write_bytes(b"")
    together = recognizer.recognize([recordings], decoding=DecodingSettings(max_new_tokens=4))
    assert [Path(prediction.clip_id).name for prediction in together.predictions] == ["a.wav", "b.flac", "c.ogg"]
    assert [finding.check for finding in together.findings if finding.severity == "error"] == ["audio.empty"]
    assert together.scores == {}
    one_by_one = [
        recognizer.recognize([Path(prediction.clip_id)], decoding=DecodingSettings(max_new_tokens=4))
        .predictions[0]
        .text
        for prediction in together.predictions
    ]
    assert one_by_one == [prediction.text for prediction in together.predictions]


def test_one_absurd_sample_costs_its_clip_alone(recognizer: Recognizer, recordings: Path):
    before = recognizer.recognize([recordings], decoding=DecodingSettings(max_new_tokens=4))
    samples = 0.1 * np.random.default_rng(0).standard_normal(8000)
    samples[4000] = 1e30
    soundfile.write(recordings / "b.wav", samples, 16_000, subtype="FLOAT")
    after = recognizer.recognize([recordings], decoding=DecodingSettings(max_new_tokens=4))
    assert after.predictions == before.predictions
    [finding] = [finding for finding in after.findings if finding.severity == "error"]
    assert finding.check == "audio.amplitude"
    assert str(recordings / "b.wav") in finding.message


@pytest.mark.parametrize("beam_size", [1, 2])
def test_a_scale_beyond_all_numbers_is_an_error_and_not_a_text(trained: Trained, recordings: Path, beam_size: int):
    """Every weight is finite, and the products are not."""
    folder, loaded = trained()
    for layer in lora.lora_layers(loaded).values():
        layer.lora_B["default"].weight.data.mul_(1e30)
        layer.lora_A["default"].weight.data.mul_(1e30)
    lora.save(loaded, folder, extra={"bits": 16, "language": "en"})
    opened = Recognizer.open(str(folder), precision="fp32")
    with pytest.raises(NumericError, match=r"NaN or infinity .* for each of the 3 clips.*lora_alpha"):
        opened.recognize([recordings], decoding=DecodingSettings(max_new_tokens=4, beam_size=beam_size))


def test_nothing_to_transcribe_is_an_error_with_the_reason(recognizer: Recognizer, tmp_path: Path):
    with pytest.raises(ManifestError, match="no audio file in the folders"):
        recognizer.recognize([tmp_path])
    with pytest.raises(ManifestError, match="absent"):
        recognizer.recognize([tmp_path / "absent.wav"])


@pytest.mark.parametrize(("asked", "told"), [(None, "en"), ("he", "he")])
def test_the_language_of_an_adapter_is_used(
    trained: Trained, recordings: Path, monkeypatch: pytest.MonkeyPatch, asked: str | None, told: str
):
    languages: list[str | None] = []

    def transcribe(self: WhisperFamily, loaded: LoadedModel, batch: Batch, settings: Any) -> list[Hypothesis]:
        languages.extend(clip.language for clip in batch.clips)
        return [Hypothesis(text="") for _ in batch.clips]

    monkeypatch.setattr(WhisperFamily, "transcribe", transcribe)
    folder, _ = trained()
    Recognizer.open(str(folder), precision="fp32", language=asked).recognize([recordings])
    assert languages == [told] * 3


def test_an_adapter_and_its_export_say_the_same(trained: Trained, recordings: Path, tmp_path: Path):
    from sonotune.serving.export import export

    folder, _ = trained(bits=4)
    export(str(folder), tmp_path / "export", dtype="fp32")
    texts = []
    for place in (folder, tmp_path / "export"):
        opened = Recognizer.open(str(place), precision="fp32", language="en")
        texts.append(
            [
                item.text
                for item in opened.recognize([recordings], decoding=DecodingSettings(max_new_tokens=8)).predictions
            ]
        )
    assert texts[0] == texts[1]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_precision_runs(trained: Trained, recordings: Path, precision: str):
    folder, _ = trained(bits=4)
    opened = Recognizer.open(str(folder), precision=precision)  # type: ignore[arg-type]
    assert len(opened.recognize([recordings], decoding=DecodingSettings(max_new_tokens=3)).predictions) == 3


def test_clips_are_scored(recognizer: Recognizer, recordings: Path):
    clips = [
        Clip(id=name, path=recordings / name, duration_s=0.5, text="one two", speaker=name, language="en")
        for name in ("a.wav", "b.flac")
    ]
    result = recognizer.evaluate(clips, decoding=DecodingSettings(max_new_tokens=4), bootstrap=100)
    assert result.scores["wer"].count == 2
    assert result.scores["wer"].detail["reference"] == 4


def test_an_unknown_language_is_refused_with_those_there_are(recordings: Path):
    opened = Recognizer.open("assets:whisper-nano", language="xx", precision="fp32")
    with pytest.raises(ConfigError, match=r"model\.language=xx: .*'xx'"):
        opened.recognize([recordings])


def test_a_model_that_is_not_there_is_refused():
    with pytest.raises(ModelError, match="neither a folder"):
        Recognizer.open("./nowhere")


def test_a_recording_longer_than_the_window_is_heard_to_its_end(recognizer: Recognizer, recordings: Path):
    """Cut in pauses, and the texts of the pieces joined, so nothing is silently empty."""
    rng = np.random.default_rng(0)
    part = np.concatenate([0.1 * rng.standard_normal(16_000), np.zeros(8_000)])
    soundfile.write(recordings / "long.wav", np.tile(part, 14), 16_000)
    result = recognizer.recognize(
        [recordings / "long.wav", recordings / "a.wav"], decoding=DecodingSettings(max_new_tokens=4)
    )
    assert [Path(prediction.clip_id).name for prediction in result.predictions] == ["long.wav", "a.wav"]
    assert result.clips == 2
    assert "evaluation.too_long" not in {finding.check for finding in result.findings}


def test_a_file_named_twice_is_transcribed_once(recordings: Path):
    clips, _ = clips_of([recordings, recordings / "a.wav"])
    assert [Path(clip.id).name for clip in clips] == ["a.wav", "b.flac", "c.ogg"]


def test_a_language_the_model_lacks_is_detected_instead(recognizer: Recognizer, recordings: Path):
    """One such clip in an evaluation set stops nothing."""
    clips, _ = clips_of([recordings])
    clips = [replace(clip, language=language) for clip, language in zip(clips, ("en", "xx", None), strict=True)]
    result = recognizer.evaluate(clips, decoding=DecodingSettings(max_new_tokens=4))
    assert len(result.predictions) == 3
