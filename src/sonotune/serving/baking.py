"""Gates put at their means before an export, measured on development clips of the run."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sonotune.adapters.kinds.gate_baking import TOLERANCE, bake, metered, needs_baking
from sonotune.errors import AdapterError, ConfigError, ManifestError
from sonotune.loading import Opened
from sonotune.progress import phase
from sonotune.serving.parity import ParitySettings, clips_to_compare


@dataclass(frozen=True, slots=True, kw_only=True)
class BakeSettings:
    """How gates are put at their means.

    Attributes:
        clips: Says which clips they are measured on: those that an export is compared on.
        tolerance: Largest share of what the adapter adds that may change, by energy; None takes
            `gate_baking.TOLERANCE`.
    """

    clips: Callable[[], ParitySettings]
    tolerance: float | None = None

    def refuse_tolerance(self, why: str) -> None:
        """For an export that puts no gates at their means.

        Raises:
            ConfigError: A tolerance is given.
        """
        if self.tolerance is not None:
            raise ConfigError(f"--bake-tolerance={self.tolerance:g} is about gates, and {why}. Leave it out.")


def bake_gates(opened: Opened, settings: BakeSettings | None) -> dict[str, Any] | None:
    """Put the gates of a model at their means, in place, where it has any that are not constant.

    Args:
        opened: The run as it is exported.
        settings: None has no clips to measure on.

    Returns:
        What it changed, for the record; None where there was nothing to do.

    Raises:
        AdapterError: It would change too much, or there are no clips; nothing is changed.
        ConfigError: A tolerance is given, and there is nothing to put at its mean.
    """
    if not needs_baking(opened.loaded):
        if settings is not None:
            settings.refuse_tolerance("this model has none that depend on what is heard")
        return None
    if settings is None:
        raise AdapterError(
            "this adapter has gates, which merge only at their means, and no clips are given to measure."
        )
    with phase("measuring gates"):
        chosen = settings.clips()
        recognizer = chosen.open_scored()
        loaded = recognizer.opened.loaded
        try:
            clips, _ = clips_to_compare(chosen, recognizer.task, loaded.frontend.max_duration_s)
        except ManifestError as error:
            raise AdapterError(
                f"this adapter has gates, which merge only at their means, and there are no clips to measure these on: "
                f"{error} Name some with --parity MANIFEST, or export with --adapter."
            ) from error
        with metered(loaded) as meter:
            recognizer.evaluate(clips, **chosen.decoding)
    del recognizer, loaded
    gc.collect()
    tolerance = TOLERANCE if settings.tolerance is None else settings.tolerance
    found = bake(opened.loaded, meter, tolerance=tolerance)
    return {
        "error": found.error,
        "worst": found.worst,
        "worst_error": found.worst_error,
        "frames": found.rows,
        "clips": len(clips),
        "tolerance": tolerance,
    }
