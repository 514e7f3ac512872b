"""What a report says first: whether the run made the model better, when, by which line, and how to use it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, get_args

from sonotune.audit.gate import Decision
from sonotune.audit.verdict import VERDICT
from sonotune.evaluation.compare import Comparison
from sonotune.metrics.scores import (
    WORSE,
    Change,
    primary_score,
    score_title,
    show_change,
    show_signed,
    show_value,
    spelling_of_numbers,
)
from sonotune.types import RunRecord

SPLITS: Final = {
    "test": "test clips (data.test)",
    "after": "development clips (data.eval), after training",
    "before": "development clips (data.eval), before training",
}
"""A file of predictions of a run -> whose clips they are."""
_SAME_RECORDINGS: Final = ("leak.span", "leak.audio")


class Verdict(NamedTuple):
    """The sentence on top of a report.

    Attributes:
        outcome: Colour of the badge.
        badge: One or two words.
        sentence: What was scored before and after, and how sure the change is.
    """

    outcome: Change
    badge: str
    sentence: str


def verdict(record: RunRecord, change: Comparison | None) -> Verdict | None:
    """What the run did to the score that decides; None where nothing was scored.

    Args:
        record: Of the run.
        change: The scores before and after training, paired by clip; None where there are too few clips.
    """
    before, after, test = (record.scores.get(point, {}) for point in ("before", "after", "test"))
    name = primary_score(after) or primary_score(test) or primary_score(before)
    if name is None:
        return None
    title = score_title(name, (after or test or before)[name])
    outcome: Change = "none"
    badge, sentences = "scored", [_unfinished(record)]
    if name in before and name in after:
        told, sure = _change(name, before[name], after[name], change)
        outcome, badge = _outcome(record, before[name], after[name], sure=sure)
        if outcome == "worse" and before[name]["value"] == after[name]["value"]:
            sentences.append(
                f"Training made the model no better than the {show_value(before[name])} of {title} that it had on the "
                f"{after[name]['count']} development clips; the weights from before it are kept."
            )
        else:
            sentences.append(
                f"{title} on the {after[name]['count']} development clips went from {show_value(before[name])} before "
                f"training to {show_value(after[name])} after it{told}."
            )
        sentences.append(spelling_of_numbers(before, after) or "")
    elif name in after:
        sentences.append(
            f"{title} on the {after[name]['count']} development clips is {show_value(after[name])} after training; the "
            "model was not scored before."
        )
    elif name in before:
        sentences.append(
            f"Before training, {title} on the development clips is {show_value(before[name])}; there is no score "
            "after it."
        )
    if name in test:
        low, value, high = (show_value(test[name], key) for key in ("low", "value", "high"))
        sentences.append(
            f"On the {test[name]['count']} test clips, which decided nothing, it is {value} (95 % interval {low} to "
            f"{high})."
        )
    if any(finding.check in _SAME_RECORDINGS for finding in record.findings):
        sentences.append("Recordings that are scored were also trained on, so the scores say little of new ones.")
    return Verdict(outcome, badge, " ".join(filter(None, sentences)))


def audit_verdict(record: RunRecord) -> Verdict | None:
    """What the audit of the training clips said, in one line; None where there was none."""
    found = next((finding for finding in record.findings if finding.check == VERDICT), None)
    if found is None:
        return None
    said = next((one for one in get_args(Decision) if f" said {one}" in found.message), None)
    outcome: Change = "better" if found.severity == "note" else "worse" if said == "STOP" else "none"
    return Verdict(outcome, f"audit: {said}" if said else "audit", found.message[:1].upper() + found.message[1:])


def _outcome(
    record: RunRecord, before: Mapping[str, Any], after: Mapping[str, Any], *, sure: bool
) -> tuple[Change, str]:
    """Worse wherever the run says so, as it does of any change to the worse; better only where chance is ruled out."""
    gain = (before["value"] - after["value"]) * (-1 if after.get("better") == "higher" else 1)
    if gain < 0 or any(finding.check == WORSE for finding in record.findings):
        return "worse", "worse"
    return ("better", "better") if gain > 0 and sure else ("none", "no clear change")


def _unfinished(record: RunRecord) -> str:
    return "" if record.status == "finished" else f"The run is {record.status}, and its scores are not final."


def _change(
    name: str, before: Mapping[str, Any], after: Mapping[str, Any], change: Comparison | None
) -> tuple[str, bool]:
    """The difference in words, and whether chance is ruled out."""
    told = f" ({show_change(after, after['value'] - before['value'])}"
    if change is None or change.clips != after["count"]:
        return f"{told}; too few clips to tell it from chance)".replace("-", "\u2212"), False
    found = change.differences.get(name)
    if found is None:
        return f"{told}; no paired interval is computed for this score)".replace("-", "\u2212"), False
    sure = not found.low <= 0 <= found.high
    told += f", 95 % interval {show_signed(after, found.low)} to {show_signed(after, found.high)}"
    told += ")" if sure else "; chance alone can do that)"
    return told.replace("-", "\u2212"), sure


def domain_rows(change: Comparison | None, name: str | None) -> list[dict[str, Any]]:
    """Before and after by domain: `value`, `clips`, and `difference` of the score that decides, None for few clips."""
    if change is None or name not in change.differences:
        return []
    rows = [row for row in change.slices if row["by"] == "domain"]
    return [{"value": row["value"], "clips": row["clips"], "difference": row["difference"].get(name)} for row in rows]


def command_line(record: RunRecord) -> str:
    """A line that asks for the settings of the run: presets, a file, and what was set beside them."""
    words: dict[str, None] = {}
    given: list[str] = []
    for name, origin in record.config_origin.items():
        kind, _, rest = origin.partition(" ")
        if kind == "preset":
            words[rest] = None
        elif origin == "command line":
            section, _, setting = name.partition(".")
            given.append(f"{name}={_word(record.config.get(section, {}).get(setting))}")
        elif not origin.startswith("the run"):
            words[f"config={origin}"] = None
    return shlex.join(["sonotune", "train", *words, *given])


def _word(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        return ",".join(value)
    return json.dumps(value, ensure_ascii=False)


def dates(events: Sequence[Mapping[str, Any]]) -> str | None:
    """When the first and the last thing of a run happened, in UTC; None where no event says."""
    times = [event["time"] for event in events if isinstance(event.get("time"), int | float)]
    if not times:
        return None
    first, last = (datetime.fromtimestamp(moment, UTC) for moment in (min(times), max(times)))
    if first.date() == last.date():
        return f"{first:%Y-%m-%d}, {first:%H:%M} to {last:%H:%M} UTC"
    return f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC"


def usage_lines(record: RunRecord, place: str | None, task: str) -> list[tuple[str, str]]:
    """What to do with the result: a purpose and a command each; nothing before the run is finished."""
    if place is None or record.status != "finished":
        return []
    model = shlex.quote(f"model={place}")
    return [
        ("recognise recordings" if task == "transcribe" else "classify recordings", f"sonotune {task} {model} FILES"),
        ("score it on other clips", f"sonotune evaluate {model} data.test=MANIFEST"),
        ("compare it with another run", f"sonotune compare {shlex.quote(place)} OTHER_RUN"),
        ("merge it, for other tools to load", f"sonotune export {shlex.quote(place)} FOLDER"),
    ]
