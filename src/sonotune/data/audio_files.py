"""Which files of a folder are audio: those that can be read, and those of kinds that cannot."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from sonotune.types import Finding

AUDIO_SUFFIXES: Final = frozenset(
    {
        ".wav",
        ".flac",
        ".ogg",
        ".oga",
        ".opus",
        ".mp3",
        ".aiff",
        ".aif",
        ".aifc",
        ".au",
        ".snd",
        ".rf64",
        ".sph",
        ".nist",
    }
)
UNREADABLE_SUFFIXES: Final = frozenset(
    {".m4a", ".m4b", ".mp4", ".m4v", ".mov", ".aac", ".webm", ".mkv", ".mka", ".wma", ".amr", ".awb", ".3gp", ".3ga"}
    | {".avi", ".ape", ".wv", ".ac3", ".mpc", ".spx", ".dss", ".shn", ".caf", ".w64", ".voc"}
)
"""Kinds of recordings that `audio.io` does not read."""
MAX_NAMED: Final = 10


def find_audio(folder: Path) -> tuple[list[Path], list[Path]]:
    """Every recording below a folder, sorted; hidden files are not counted, folders that are links not entered.

    Returns:
        The files that can be read by their kind, and those that cannot.
    """
    found = find_files(folder, AUDIO_SUFFIXES | UNREADABLE_SUFFIXES)
    readable = [path for path in found if path.suffix.lower() in AUDIO_SUFFIXES]
    return readable, [path for path in found if path.suffix.lower() not in AUDIO_SUFFIXES]


def find_files(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Every file below a folder with one of some endings, as `find_audio` finds them."""
    found: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(parent, name) for name in names if not name.startswith(".") and Path(name).suffix.lower() in suffixes
        ]
    return sorted(found)


def left_out(files: Sequence[Path], folder: Path) -> Finding:
    """The finding that names recordings of a folder whose kind cannot be read.

    Args:
        files: The recordings; at least one.
        folder: Names are shown relative to it.
    """
    names = [str(path.relative_to(folder)) for path in files]
    one = len(files) == 1
    return Finding(
        check="audio.unreadable_kind",
        severity="error",
        message=f"{len(files)} recording{' is' if one else 's are'} left out of {folder}, because files of "
        f"{'its' if one else 'their'} kind cannot be read: {enumerate_names(names)}. Convert them to WAV, FLAC, MP3 or "
        f"Ogg first, such as `ffmpeg -i {files[0].name} {files[0].stem}.wav`.",
        path=str(folder),
        measured=float(len(files)),
        limit=0.0,
        unit="files",
    )


def enumerate_names(names: Sequence[str], *, most: int = MAX_NAMED) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
