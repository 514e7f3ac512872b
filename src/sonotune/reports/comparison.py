"""The report of a comparison: what the second of two systems does better or worse on the same clips, in one HTML file.

It is made of what `evaluation.compare` found, the predictions, and the records and events of runs where the systems are
runs. The same inputs give the same bytes. All text is escaped: transcripts are data.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sonotune.evaluation.compare import Comparison
from sonotune.evaluation.prediction_rows import hypothesis_of, reference_of
from sonotune.metrics.confidence import show_confidence
from sonotune.metrics.error_rate import align_words, word_edits
from sonotune.metrics.retention import retention_sentence
from sonotune.metrics.scores import (
    change_of,
    score_title,
    show_change,
    show_signed,
    show_value,
    shown_number,
    shown_unit,
)
from sonotune.reports.edits import direction
from sonotune.reports.events import scores_over_steps, series, sort_events
from sonotune.reports.figures import Series, curve
from sonotune.reports.page import render_page
from sonotune.reports.predictions import facts_of
from sonotune.reports.record import component_rows, flatten, show_count, show_seconds
from sonotune.reports.verdict import Verdict
from sonotune.types import RunRecord
from sonotune.wording import counted, memory_size

MAX_CHANGED: Final = 25
"""Texts that are shown on either side: those with the most words gained and lost."""
MAX_SLICES: Final = 40
_UNLIKE: Final = ("run.", "data.root")  # settings that say where something lies, and nothing of the system

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One side of a comparison.

    Attributes:
        name: As the page calls it.
        places: Its runs or files, as a command names them.
        rows: Predictions of its first run, in the order of the clips; those with a reference are shown.
        record: Of its first run; None for a file of predictions.
        events: Of that run.
    """

    name: str
    places: Sequence[str]
    rows: Rows
    record: RunRecord | None = None
    events: Rows = ()


def build_comparison_html(found: Comparison, first: System, second: System) -> str:
    """Make the report.

    Args:
        found: What differs, second minus first.
        first: The system that is compared with.
        second: The system that is judged.

    Returns:
        A whole HTML document with inline style and figures; no script, no link to the network.
    """
    from markupsafe import Markup  # noqa: PLC0415

    body = found.to_json()
    name = found.primary.name
    slices = [row for row in body["slices"] if name in (row["difference"] or {}) and row["clips"] < found.clips]
    changes = changed_texts(first.rows, second.rows)
    return render_page(
        "comparison.html",
        filters={"score": show_value, "signed": _signed, "outcome": change_of, "count": show_count},
        first=first,
        second=second,
        found=found,
        body=body,
        name=name,
        title=score_title(name, body["difference"][name]),
        verdict=comparison_verdict(found),
        kept=[(system.name, told) for system in (first, second) if (told := _kept(system.record))],
        differences=[(score_title(one, row), row) for one, row in body["difference"].items()],
        unit=shown_unit(body["difference"][name], difference=True),
        slices=slices[:MAX_SLICES],
        slices_left=max(0, len(slices) - MAX_SLICES),
        sure_slices=[
            (row, sure)
            for row in body["slices"]
            if row["clips"] < found.clips and (sure := show_confidence(row["difference"], _change_of_slice))
        ][:MAX_SLICES],
        widest=max((abs(row["difference"][name]["value"]) for row in slices), default=0.0) or 1.0,
        changes=changes,
        most=MAX_CHANGED,
        costs=_costs(first.record, second.record, first.events, second.events),
        settings=_settings(first.record, second.record),
        figures={key: Markup(svg) for key, svg in _figures(name, first, second).items()},  # noqa: S704  (our own SVG)
    )


def comparison_verdict(found: Comparison) -> Verdict:
    """Whether the second system is better, by how much, on how many clips, and how sure that is."""
    primary = found.primary
    row = primary.to_json()
    title = score_title(primary.name, row)
    outcome = change_of(row)
    ends = f"95 % interval {show_signed(row, row['low'])} to {show_signed(row, row['high'])}, p = {row['p']:.4f}"
    change = show_change(row, row["value"])
    clips = counted(found.clips, "clip")
    moved = f"from {show_value(row, 'first')} (A) to {show_value(row, 'second')} (B)"
    if outcome == "none":
        least = show_change(row, primary.minimum_detectable).lstrip("+")
        return Verdict(
            "none",
            "no difference shown",
            f"{title} goes {moved} on {clips}: {change} ({ends}). That is within chance; a difference of {least} would "
            "be seen in 80 % of the cases.",
        )
    return Verdict(outcome, f"B is {outcome}", f"{title} goes {moved} on {clips}: {change} ({ends}).")


def _change_of_slice(row: Mapping[str, Any]) -> str:
    return f"{_signed(row, 'value')} [{_signed(row, 'low')}, {_signed(row, 'high')}]"


def _signed(row: Mapping[str, Any], key: str) -> str:
    return show_signed(row, row[key])


def _kept(record: RunRecord | None) -> list[str]:
    """What tuning broke in a run; nothing where no panel was asked for or none broke."""
    return [retention_sentence(row) for row in record.retention if row["outcome"] == "broke"] if record else []


# --- texts ---------------------------------------------------------------------------------------------------------


def changed_texts(first: Rows, second: Rows) -> dict[str, Any]:
    """How many texts have fewer, more and as many wrong words, and those that changed most on either side.

    Args:
        first: Predictions of the first system.
        second: Of the second, of the same clips in the same order.

    Returns:
        `better`, `worse`, `alike` (other words, as many errors), `same` (the same text), `texts` (how many in all),
        `gained` and `lost` (rows of the page); `texts` is 0 for classes.
    """
    counts = dict.fromkeys(("better", "worse", "alike", "same"), 0)
    changed: list[_Changed] = []
    for one, other in zip(first, second, strict=True):
        reference = reference_of(one)
        if not isinstance(reference, str):
            continue
        texts = hypothesis_of(one), hypothesis_of(other)
        errors = word_edits(reference, texts[0]).errors, word_edits(reference, texts[1]).errors
        change = errors[1] - errors[0]
        counts[_change_of(change, same=texts[0] == texts[1])] += 1
        if change:
            changed.append(_Changed(change, errors, reference, texts, one))
    ordered = sorted(changed, key=lambda one: one.change)
    gained = [one for one in ordered if one.change < 0][:MAX_CHANGED]
    lost = [one for one in reversed(ordered) if one.change > 0][:MAX_CHANGED]
    return {
        **counts,
        "texts": sum(counts.values()),
        "gained": [one.to_page() for one in gained],
        "lost": [one.to_page() for one in lost],
    }


class _Changed(NamedTuple):
    """A text with more or fewer wrong words in the second system."""

    change: int
    errors: tuple[int, int]
    reference: str
    texts: tuple[str, str]
    row: Mapping[str, Any]

    def to_page(self) -> dict[str, Any]:
        """A row of the page."""
        return {
            "id": str(self.row.get("id", "")),
            "facts": " · ".join([f"{self.errors[0]} → {self.errors[1]} wrong", *facts_of(self.row)]),
            "direction": direction(self.reference, *self.texts),
            "sides": [align_words(self.reference, text) for text in self.texts],
            "silent": [not text.strip() for text in self.texts],
        }


def _change_of(change: int, *, same: bool) -> str:
    if same:
        return "same"
    return "alike" if change == 0 else "better" if change < 0 else "worse"


# --- runs ----------------------------------------------------------------------------------------------------------


def _costs(
    first: RunRecord | None, second: RunRecord | None, first_events: Rows, second_events: Rows
) -> list[tuple[str, str, str]]:
    """What both runs cost: name and both values, where at least one is known."""
    sides = [(first, first_events), (second, second_events)]
    shown: list[tuple[str, Callable[[RunRecord, Rows], str]]] = [
        ("Wall time", lambda record, _: show_seconds(record.seconds)),
        ("Peak memory", lambda record, _: memory_size(record.peak_memory_bytes)),
        ("Trainable parameters", lambda record, _: _trainable(record)),
        ("Training, samples a second (median)", lambda _, events: _throughput(events)),
        ("Energy", lambda record, _: "" if record.energy_joules is None else f"{record.energy_joules / 3600:.3g} Wh"),
    ]
    rows = [(name, [show(record, events) if record else "" for record, events in sides]) for name, show in shown]
    return [(name, one, other) for name, (one, other) in rows if one or other]


def _trainable(record: RunRecord) -> str:
    known = [row["trainable"] for row in component_rows(record.model) if row["trainable"] is not None]
    return show_count(sum(known)) if known else ""


def _throughput(events: Rows) -> str:
    rates = [float(event["samples_per_s"]) for event in sort_events(events).training if "samples_per_s" in event]
    return f"{statistics.median(rates):.2f}" if rates else ""


def _settings(first: RunRecord | None, second: RunRecord | None) -> list[tuple[str, str, str]]:
    """Settings in which two runs differ: name and both values, each with what set it."""
    if first is None or second is None:
        return []
    sides = [dict(flatten(record.config)) for record in (first, second)]
    origins = [record.config_origin for record in (first, second)]
    names = [name for name in dict.fromkeys((*sides[0], *sides[1])) if not name.startswith(_UNLIKE)]
    return [
        (
            name,
            _with_origin(sides[0].get(name), origins[0].get(name)),
            _with_origin(sides[1].get(name), origins[1].get(name)),
        )
        for name in names
        if sides[0].get(name) != sides[1].get(name)
    ]


def _with_origin(value: str | None, origin: Any) -> str:
    if value is None:
        return "not set"
    return f"{value} ({origin})" if origin else value


def _figures(name: str, first: System, second: System) -> dict[str, str]:
    """Loss and the score that decides over the steps of both runs, where both have them."""
    told = {"A": sort_events(first.events), "B": sort_events(second.events)}
    losses = [line for label, events in told.items() if (line := series(label, events.training, "loss"))]
    points = {label: scores_over_steps(events.evaluations, name) for label, events in told.items()}
    scored = [
        Series(
            label=label,
            x=[step for step, _ in over],
            y=[shown_number(score, float(score["value"])) for _, score in over],
        )
        for label, over in points.items()
        if over
    ]
    found = {}
    if len(losses) == len(told):
        found["loss"] = curve("loss", losses, y_label="loss", title="Training loss of both over steps")
    if len(scored) == len(told):
        _, of = points["A"][0]
        label = ", ".join(filter(None, [f"{score_title(name)} on data.eval", shown_unit(of)]))
        found["steps"] = curve("steps", scored, y_label=label, title=f"{label} of both over steps", markers=True)
    return found
