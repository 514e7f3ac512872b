"""What the events of a run tell over its steps: training, evaluations, and seconds by phase."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sonotune.reports.figures import Series

Event = Mapping[str, Any]


class RunEvents(NamedTuple):
    """Events by what they tell, by step; the last event of a step counts.

    Attributes:
        training: With `step` and `loss`.
        evaluations: With `step` and `scores`.
        phases: Seconds by phase of training, the longest first.
    """

    training: Sequence[Event]
    evaluations: Sequence[Event]
    phases: Mapping[str, float]


def sort_events(events: Iterable[Event]) -> RunEvents:
    """Read the lines of `events.jsonl`; those that tell nothing of the above are passed over."""
    training: dict[int, Event] = {}
    evaluations: dict[int, Event] = {}
    phases: dict[str, float] = {}
    for event in events:
        step = event.get("step")
        if isinstance(step, int):
            if isinstance(event.get("scores"), Mapping):
                evaluations[step] = event
            elif isinstance(event.get("loss"), int | float):
                training[step] = event
        if isinstance(spent := event.get("seconds"), Mapping):
            phases = {str(phase): float(seconds) for phase, seconds in spent.items()}
    return RunEvents(
        [training[step] for step in sorted(training)],
        [evaluations[step] for step in sorted(evaluations)],
        dict(sorted(phases.items(), key=lambda item: -item[1])),
    )


def series(label: str, events: Sequence[Event], key: str) -> Series | None:
    """A number of each event over the steps; None where no event has it."""
    points = [(event["step"], float(event[key])) for event in events if isinstance(event.get(key), int | float)]
    return Series(label=label, x=[x for x, _ in points], y=[y for _, y in points]) if points else None


def scores_over_steps(evaluations: Sequence[Event], name: str) -> list[tuple[int, Mapping[str, Any]]]:
    """Step and score of each evaluation that has one of this name."""
    return [
        (event["step"], score)
        for event in evaluations
        if isinstance(score := event["scores"].get(name), Mapping) and "value" in score
    ]
