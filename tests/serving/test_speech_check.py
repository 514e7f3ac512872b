"""Whether anybody speaks in a recording."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from sonotune.errors import MissingExtraError
from sonotune.serving import speech_check
from sonotune.serving.recognizer import Recognizer
from sonotune.serving.speech_check import clips_without_speech
from sonotune.types import Clip, DecodingSettings

RATE_HZ = 16_000


@pytest.fixture
def recording(tmp_path: Path) -> Callable[[str, float, float], Clip]:
    """A file of noise, loud in its last seconds, as a clip."""

    def write(name: str, quiet_s: float, loud_s: float) -> Clip:
        noise_S = np.random.default_rng(0).standard_normal(round((quiet_s + loud_s) * RATE_HZ))
        noise_S[: round(quiet_s * RATE_HZ)] *= 0.01
        soundfile.write(tmp_path / name, 0.1 * noise_S, RATE_HZ)
        return Clip(id=name, path=tmp_path / name, duration_s=quiet_s + loud_s)

    return write


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A stand-in for the package, to which what is loud is speech; it counts the blocks that it was asked about."""
    asked: list[int] = []

    def find(block: torch.Tensor, model: Any, *, sampling_rate: int) -> list[dict[str, int]]:
        assert sampling_rate == RATE_HZ
        assert block.dtype == torch.float32
        asked.append(len(block))
        return [{"start": 0, "end": 1}] if float(block.abs().max()) > 0.1 else []

    module = types.ModuleType("silero_vad")
    module.load_silero_vad = lambda: torch.set_num_threads(1)  # type: ignore[attr-defined]
    module.get_speech_timestamps = find  # type: ignore[attr-defined]
    module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "silero_vad", module)
    return asked


def test_a_clip_without_speech_is_named_and_the_threads_are_as_before(
    recording: Callable[..., Clip], detector: list[int]
):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = clips_without_speech([recording("still.wav", 2.0, 0.0), recording("talk.wav", 1.0, 1.0)])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    [finding] = found
    assert (finding.check, finding.severity, finding.clip_ids) == ("audio.no_speech", "warning", ("still.wav",))
    assert "no speech was found" in finding.message


def test_a_long_recording_is_read_up_to_the_first_speech(recording: Callable[..., Clip], detector: list[int]):
    assert clips_without_speech([recording("long.wav", 0.0, 400.0)]) == []
    assert len(detector) == 1
    assert detector[0] < 400 * RATE_HZ


def test_a_recogniser_asks_the_model_about_speech_only(
    recording: Callable[..., Clip], detector: list[int], tmp_path: Path
):
    recording("still.wav", 1.0, 0.0)
    recording("talk.wav", 0.0, 1.0)
    soundfile.write(tmp_path / "zero.wav", np.zeros(RATE_HZ), RATE_HZ)
    recognizer = Recognizer.open("assets:whisper-nano", language="en")
    found = recognizer.recognize([tmp_path], speech_check="silero", decoding=DecodingSettings(max_new_tokens=4))
    flags = {Path(one.clip_id).name: one.no_signal for one in found.predictions}
    assert flags == {"still.wav": True, "talk.wav": False, "zero.wav": True}
    assert len(detector) == 2  # a file without signal is not asked about
    checks = [finding.check for finding in found.findings if finding.severity == "warning"]
    assert checks[:2] == ["audio.silent", "audio.no_speech"]


def test_without_the_package_the_command_to_install_it_is_named(
    recording: Callable[..., Clip], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(speech_check.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sonotune\[speech\]'"):
        clips_without_speech([recording("a.wav", 1.0, 0.0)])
