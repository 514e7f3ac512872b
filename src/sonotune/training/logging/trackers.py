"""Weights & Biases, TensorBoard and any other tracker that `accelerate` knows, as listeners of a run.

A tracker is a convenience: one that fails is told of, left out from then on, and never stops a run. Everything it is
told stands in `events.jsonl` as well.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from sonotune.errors import ConfigError, MissingExtraError
from sonotune.types import Score

logger = logging.getLogger(__name__)

_EXTRAS = ("wandb", "tensorboard")
PROJECT = "sonotune"
"""What runs are kept under, where a tracker has projects."""


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are not known or not installed, before anything is loaded.

    Raises:
        ConfigError: A name is not known.
        MissingExtraError: Its package is not installed.
    """
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ConfigError(f"run.trackers: no tracker called {name!r}. Known: {', '.join(LOGGER_TYPE_TO_CLASS)}.")
        if importlib.util.find_spec(name) is None:
            package = f"'sonotune[{name}]'" if name in _EXTRAS else name
            raise MissingExtraError(
                f"run.trackers has {name}, which is not installed: pip install {package}, or leave it out; "
                "events.jsonl and report.html have the same numbers."
            )


class Trackers:
    """The trackers of a run; a context that closes them.

    Args:
        names: Known to `accelerate`; none is fine.
        folder: The run's directory; what they write goes into `trackers/` below it.
        config: Settings of the run, nested.
        event: Writes one line of `events.jsonl`.
    """

    def __init__(
        self, names: Sequence[str], *, folder: Path, config: Mapping[str, Any], event: Callable[..., None]
    ) -> None:
        self._event, self._stage, self._step = event, "", 0
        self._open: dict[str, Any] = {}
        for name in names:
            self._try(name, partial(self._start, name, folder, config))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, tracker in list(self._open.items()):
            self._try(name, tracker.finish)

    def started(self, total_steps: int, step: int) -> None:
        """See `Listener.started`."""
        self._step = step

    def stepped(self, values: Mapping[str, Any]) -> None:
        """See `Listener.stepped`; a new stage is a line of text of its own."""
        self._step, told = values["step"], dict[str, Any]()
        for name, value in values.items():
            if isinstance(value, Mapping):
                told |= {f"{name}/{part}": number for part, number in value.items()}
            elif isinstance(value, int | float) and name != "step":
                told[name] = value
        if values["stage"] != self._stage:
            self._stage = told["stage"] = values["stage"]
        self._log({f"train/{name}": value for name, value in told.items()})

    def evaluated(self, step: int, scores: Mapping[str, Score]) -> None:
        """See `Listener.evaluated`."""
        self.scored("eval", scores)

    def scored(self, moment: str, scores: Mapping[str, Score]) -> None:
        """Scores of a moment of the run (`before`, `eval`, `after`, `test`), at the step it has come to."""
        self._log({f"{moment}/{name}": score.value for name, score in scores.items()})

    def _start(self, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        place = folder / "trackers"
        place.mkdir(exist_ok=True)
        flat = dict(_flat(config))
        if name == "wandb":
            # Offline unless somebody says otherwise: a run must not wait for a network.
            os.environ.setdefault("WANDB_MODE", "offline")
            tracker = LOGGER_TYPE_TO_CLASS[name](
                PROJECT, dir=str(place), name=folder.name, id=folder.name, resume="allow", config=flat
            )
            tracker.start()
        else:
            kind = LOGGER_TYPE_TO_CLASS[name]
            tracker = kind(folder.name, str(place)) if kind.requires_logging_directory else kind(PROJECT)
            tracker.start()
            tracker.store_init_configuration(flat)
        self._open[name] = tracker

    def _log(self, values: Mapping[str, Any]) -> None:
        for name, tracker in list(self._open.items()):
            self._try(name, partial(tracker.log, dict(values), step=self._step))

    def _try(self, name: str, act: Callable[[], Any]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001  (whatever a foreign library raises)
            self._open.pop(name, None)
            problem = f"{type(error).__name__}: {error}"
            logger.warning("the tracker %s failed and is left out from here on: %s", name, problem)
            self._event("tracker_failed", tracker=name, problem=problem[:500])


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, bool | int | float | str]]:
    rows: list[tuple[str, bool | int | float | str]] = []
    for name, value in config.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, value if isinstance(value, bool | int | float | str) else str(value)))
    return rows
