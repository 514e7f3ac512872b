"""Fixtures every room shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ["SONOTUNE_PROGRESS"] = "never"  # what is shown after a second would be in the output of some runs of a test


def fsdd_folder() -> Path | None:
    """The Free Spoken Digit Dataset: `SONOTUNE_FSDD`, or where a checkout beside its shared data has it."""
    for candidate in (os.environ.get("SONOTUNE_FSDD"), ROOT.parent / "shared" / "data" / "fsdd"):
        if candidate and Path(candidate).is_dir():
            return Path(candidate)
    return None


@pytest.fixture(scope="session")
def whisper_base() -> Path:
    """Folder of the published multilingual Whisper-base; the test is skipped with the reason where it is absent."""
    for candidate in (os.environ.get("SONOTUNE_WHISPER_BASE"), ROOT.parent / "shared" / "data" / "whisper_base"):
        if candidate and Path(candidate).is_dir():
            return Path(candidate)
    pytest.skip("real weights not found: set SONOTUNE_WHISPER_BASE to a folder of openai/whisper-base")


@pytest.fixture(scope="session")
def fsdd() -> Path:
    """Folder of `{digit}_{speaker}_{index}.wav`; the test is skipped with the reason where it is absent."""
    folder = fsdd_folder()
    if folder is None:
        pytest.skip("real recordings not found: set SONOTUNE_FSDD to a Free Spoken Digit Dataset recordings folder")
    return folder
