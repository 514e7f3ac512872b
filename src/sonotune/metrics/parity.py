"""What two transcriptions of the same clips show: that a model is served as it was scored, that it is not, or neither.

A small difference is not shown by a small estimate. It is shown where the whole interval of the difference is small.
Where no clip differs the bootstrap has nothing to resample and its interval is a point; what then is known is the exact
(Clopper-Pearson) bound on the share of clips that may differ, and the tolerance is taken for that share. How much of
its score such a clip would lose nobody has seen; a text that loops loses more than all of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from scipy.special import betaincinv

from sonotune.metrics.scores import score_title
from sonotune.wording import counted

Outcome = Literal["shown", "not shown", "differs"]
"""The difference is small; it may be, and these clips cannot tell; it is not."""

_LEVEL = 0.95
_SLACK = 1e-9
_ENDLESS = 1_000_000
"""More clips than this nobody has."""


def differing_at_most(differing: int, clips: int) -> float:
    """Upper 95 % bound on the share of clips that differ, exact; with none seen about three by the number of clips.

    Args:
        differing: Clips that were seen to differ.
        clips: All of them.
    """
    return 1.0 if differing >= clips else float(betaincinv(differing + 1, clips - differing, _LEVEL))


def outcome_of(parity: Mapping[str, Any]) -> Outcome:
    """What the clips show.

    Args:
        parity: `clips`, `equal` (the share of equal answers), `tolerance`, and `difference`, the score that decides
            first.
    """
    value, low, high, tolerance = _measured(parity)
    if abs(value) > tolerance + _SLACK:
        return "differs"
    if _is_interval(low, high):
        return "shown" if max(high, -low) <= tolerance + _SLACK else "not shown"
    return "shown" if _bound(parity) <= tolerance else "not shown"


def sentence_of(parity: Mapping[str, Any]) -> str:
    """The same for people, with the interval or the bound, the number of clips and the share of equal answers.

    Args:
        parity: As of `outcome_of`, with `scored`, `served`, `tool` and `context`.
    """
    name = next(iter(parity["difference"]))
    value, low, high, tolerance = _measured(parity)
    outcome = outcome_of(parity)
    scored, served = (100 * parity[side][name]["value"] for side in ("scored", "served"))
    between = f" (95 % interval {100 * low:+.1f} to {100 * high:+.1f})" if _is_interval(low, high) else ""
    clips, equal = counted(parity["clips"], "clip"), _equal_share(parity["equal"])
    measured = (
        f"served by {parity['tool']} the export has {score_title(name, parity['scored'][name])} {served:.1f} %, and "
        f"the run is scored {scored:.1f} % (context {parity['context']}) on the same {clips}: "
        f"{100 * value:+.1f} points{between}, {equal} % of the answers equal."
    )
    allowed = f"the {counted_points(tolerance)} allowed"
    if outcome == "differs":
        sure = _is_interval(low, high) and not low <= 0 <= high
        head = "What is served is not what was scored" if sure else "Served and scored differ, perhaps by chance"
        few = "" if _is_interval(low, high) else " These are too few clips for an interval."
        return f"{head}: {measured} That is more than {allowed}.{few}"
    told = _of_interval(parity, allowed) if _is_interval(low, high) else _of_bound(parity)
    same = outcome == "not shown" and parity["equal"] == 1
    head = f"No difference was found, and parity is {outcome}" if same else f"Parity is {outcome}"
    return f"{head}: {measured} {told}"


def counted_points(share: float) -> str:
    """A share as points, such as `1 point` and `0.5 points`."""
    return f"{100 * share:g} {'point' if math.isclose(share, 0.01) else 'points'}"


def _of_interval(parity: Mapping[str, Any], allowed: str) -> str:
    _, low, high, tolerance = _measured(parity)
    if outcome_of(parity) == "shown":
        return f"The whole interval lies within {allowed}."
    beyond = f"The interval goes {100 * (max(high, -low) - tolerance):.1f} points beyond {allowed}"
    return f"{beyond}; {_needed(clips_to_tell(parity))}."


def _of_bound(parity: Mapping[str, Any]) -> str:
    most = f"By the exact 95 % bound up to {100 * _bound(parity):.1f} % of such clips may differ"
    allowed = f"{100 * parity['tolerance']:g} %"
    if outcome_of(parity) == "shown":
        return f"{most}, where {allowed} is allowed."
    return f"{most}, where {allowed} is allowed; {_needed(clips_to_tell(parity))}."


def _needed(clips: int | None) -> str:
    return "no number of clips would tell" if clips is None else f"about {clips:,} clips like these would tell"


def clips_to_tell(parity: Mapping[str, Any]) -> int | None:
    """How many clips would show what these suggest; None where there is no such number.

    An interval narrows with the root of the number of clips. Of a bound it is the number at which no more than have
    been seen may differ.
    """
    value, low, high, tolerance = _measured(parity)
    if _is_interval(low, high):
        if tolerance - abs(value) <= _SLACK:
            return None
        factor = max((high - value) / (tolerance - value), (value - low) / (tolerance + value))
        needed: int = math.ceil(int(parity["clips"]) * float(factor) ** 2)
        return _rounded_up(needed) if needed <= _ENDLESS else None
    differing = _differing(parity)
    fewest, enough = differing + 1, _ENDLESS
    while fewest < enough:
        middle = (fewest + enough) // 2
        if differing_at_most(differing, middle) <= tolerance:
            enough = middle
        else:
            fewest = middle + 1
    return fewest if fewest < _ENDLESS else None


def _rounded_up(number: int) -> int:
    """To two digits: an estimate is not known better."""
    unit = int(10 ** max(0, len(str(number)) - 2))
    return -(-number // unit) * unit


def _measured(parity: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """The difference, the ends of its interval (not numbers where there is none), and what is allowed."""
    main = next(iter(parity["difference"].values()))
    low, high = (math.nan if main[end] is None else float(main[end]) for end in ("low", "high"))
    return float(main["value"]), low, high, float(parity["tolerance"])


def _is_interval(low: float, high: float) -> bool:
    """Whether clips were seen to differ in the score, so that there was something to resample."""
    return high > low


def _bound(parity: Mapping[str, Any]) -> float:
    return differing_at_most(_differing(parity), parity["clips"])


def _differing(parity: Mapping[str, Any]) -> int:
    return round((1 - float(parity["equal"])) * int(parity["clips"]))


def _equal_share(equal: float) -> str:
    """In per cent, and 100 only for all of them."""
    return f"{100 * equal:.0f}" if equal == 1 or equal < 0.995 else f"{math.floor(1000 * equal) / 10:.1f}"
