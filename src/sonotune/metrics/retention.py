"""What tuning broke, in words: rows that compare a panel before and after tuning, and the scale that is proposed.

A row is one entry of `retention` in `run.json` and in `sonotune evaluate --json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from sonotune.metrics.scores import Change, change_of, in_percent, score_title, show_value
from sonotune.types import Finding

Outcome = Literal["broke", "better", "no clear change", "too few clips"]
Row = Mapping[str, Any]
_OUTCOMES: Final[Mapping[Change, Outcome]] = {"worse": "broke", "better": "better", "none": "no clear change"}

BROKE: Final = "retention.broke"
"""The finding of a panel that tuning made worse, beyond what chance explains."""
KNEE_SHARE: Final = 0.9
"""Share of the largest gain that the proposed scale must keep."""


def outcome_of(difference: Mapping[str, Any] | None) -> Outcome:
    """What happened to a score: clear where the whole interval lies on one side of 0.

    Args:
        difference: After minus before in JSON form, with `low`, `high` and `better`; None where it is not known.
    """
    if difference is None:
        return "too few clips"
    return _OUTCOMES[change_of(difference)]


def retention_sentence(row: Row) -> str:
    """A panel before and after: `fsdd/test: WER 12.0 % -> 80.0 % (+68.0 points, 95 % interval +60.1 to +75.2)`."""
    name = row["score"]
    before, after = row["before"][name], row["after"][name]
    told = f"{row['panel']}: {score_title(name, after)} {show_value(before)} \u2192 {show_value(after)}"
    return f"{told} ({change_in_words(row['difference'].get(name), before, after)}, {row['clips']} clips)"


def change_in_words(difference: Mapping[str, Any] | None, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The change of a score with its interval: `+68.0 points, 95 % interval +60.1 to +75.2`."""
    scale, unit = (100.0, "points") if in_percent(after) else (1.0, str(after["unit"]))
    found = difference or {"value": after["value"] - before["value"]}
    told = f"{scale * found['value']:+.1f} {unit}"
    if difference is None:
        told += "; too few clips to tell it from chance"
    else:
        told += f", 95 % interval {scale * found['low']:+.1f} to {scale * found['high']:+.1f}"
    return told.replace("-", "\u2212")


def retention_findings(rows: Sequence[Row]) -> list[Finding]:
    """A warning for each panel that tuning broke."""
    found = []
    for row in rows:
        if row["outcome"] != "broke":
            continue
        name = row["score"]
        before, after = row["before"][name], row["after"][name]
        scale, unit = (100.0, "%") if in_percent(after) else (1.0, str(after["unit"]))
        found.append(
            Finding(
                check=BROKE,
                severity="warning",
                message=f"tuning broke {retention_sentence(row)}. Mix such clips into data.train, train shorter or at "
                "a lower training.learning_rate, or use the adapter at a part of its strength "
                "(evaluation.adapter_scales shows what that costs).",
                measured=round(scale * after["value"], 2),
                limit=round(scale * before["value"], 2),
                unit=unit,
            )
        )
    return found


def propose_scale(points: Sequence[Mapping[str, Any]], name: str) -> tuple[float | None, str]:
    """The knee of scores over scales, and the rule that it was found by.

    Args:
        points: One a scale, with `scale` and `scores` (name -> score in JSON form).
        name: Of the score that decides.

    Returns:
        The smallest scale that keeps `KNEE_SHARE` of the largest gain over the smallest scale; None where there is no
        gain, or where no scale is the base model. And a sentence.
    """
    rule = (
        f"the smallest scale that keeps {100 * KNEE_SHARE:.0f} % of the largest gain in {score_title(name)} over the "
        "base model"
    )
    ordered = sorted(points, key=lambda point: float(point["scale"]))
    scored = [(float(point["scale"]), point["scores"][name]) for point in ordered if name in point["scores"]]
    if not scored or scored[0][0] != 0:
        return None, f"{rule}; the scale 0, which is the base model, is not among those that were scored"
    sign = 1 if scored[0][1]["better"] == "higher" else -1
    gains = [(scale, sign * (score["value"] - scored[0][1]["value"])) for scale, score in scored]
    largest = max(gain for _, gain in gains)
    if largest <= 0:
        return None, f"{rule}; no scale gains anything"
    return next(scale for scale, gain in gains if gain >= KNEE_SHARE * largest), rule
