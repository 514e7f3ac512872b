"""The kinds of files that are damaged, and what reads each. What reads them is imported when seeds are made."""

from __future__ import annotations

from typing import Final

from harness import Target

from targets import audio, broken, manifests, models, runs, settings

ALL: Final = (*audio.TARGETS, *manifests.TARGETS, *settings.TARGETS, *runs.TARGETS, *models.TARGETS)


def find(name: str) -> Target:
    """The target with a name.

    Raises:
        SystemExit: There is none.
    """
    for target in (*ALL, *broken.TARGETS):
        if target.name == name:
            return target
    raise SystemExit(f"no target is called {name!r}; there are {', '.join(target.name for target in ALL)}")
