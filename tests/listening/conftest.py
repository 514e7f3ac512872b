"""Two systems on clips made of tones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sonotune.data.manifest import write_manifest
from sonotune.evaluation.evaluate import write_predictions
from sonotune.tasks.base import TaskSettings
from sonotune.tasks.transcribe import Transcribe
from sonotune.types import Clip, Prediction

RATE_HZ = 16_000

MakeSystems = Callable[..., tuple[Path, Path, Path]]


@pytest.fixture(scope="session")
def systems() -> MakeSystems:
    """Writes audio, a manifest and the predictions of two systems: folder, texts -> manifest, A, B."""

    def make(
        folder: Path,
        references: Sequence[str | None],
        first: Sequence[str],
        second: Sequence[str],
        *,
        seconds: float = 0.5,
    ) -> tuple[Path, Path, Path]:
        folder.mkdir(parents=True, exist_ok=True)
        times = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
        soundfile.write(folder / "tone.wav", 0.3 * np.sin(2 * np.pi * 440 * times), RATE_HZ)
        clips = [
            Clip(id=f"c{index}", path=folder / "tone.wav", duration_s=seconds, text=text, speaker=f"s{index % 5}")
            for index, text in enumerate(references)
        ]
        write_manifest(folder / "clips.jsonl", clips)
        for name, texts in (("a", first), ("b", second)):
            predictions = [Prediction(clip_id=clip.id, text=text) for clip, text in zip(clips, texts, strict=True)]
            task = Transcribe(None, TaskSettings())  # type: ignore[arg-type]
            write_predictions(folder / f"{name}.jsonl", task, predictions, clips)
        return folder / "clips.jsonl", folder / "a.jsonl", folder / "b.jsonl"

    return make
