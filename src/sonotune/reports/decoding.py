"""The report of a sweep of decoding: one HTML file made of `decoding.json` alone, that opens offline and can be mailed.

The same content gives the same bytes. All text is escaped: values of settings are data.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from sonotune.metrics.scores import (
    Change,
    better_sign,
    score_title,
    show_change,
    show_score,
    show_signed,
    show_value,
)
from sonotune.reports.page import render_page
from sonotune.reports.record import show_count
from sonotune.reports.verdict import Verdict

_ROWS: Final = 50  # of the table, before the rest folds away
_SECTION: Final = "evaluation."


class _Way(NamedTuple):
    """A row of the table: what was tried and what came of it, as shown."""

    settings: Sequence[str]
    proposed: bool
    score: str
    change: str
    outcome: Change
    told: str
    inserted: str
    row: Mapping[str, Any]


def build_decoding_html(body: Mapping[str, Any], *, name: str) -> str:
    """Make the report.

    Args:
        body: Content of `decoding.json`, finished or not.
        name: Of the sweep, such as that of its folder.

    Returns:
        A whole HTML document with inline style; no script, no link to the network.
    """
    score, rows = body["score"], body["trials"]
    current, proposed = rows[0], rows[body["proposed"]]
    ways = _ways(body)
    return render_page(
        "decoding.html",
        filters={"count": show_count},
        body=body,
        name=name,
        model=body.get("model", "a model"),
        notes=body.get("notes", ()),
        identity=body.get("identity", {}),
        code=body.get("code", {}),
        title=score_title(score, current["scores"][score]),
        verdict=_verdict(body),
        tiles=_tiles(score, current, proposed),
        use=_use(body, proposed) if body["shown"] else "",
        ways=ways[:_ROWS],
        folded=ways[_ROWS:],
        axes={one: ", ".join(map(str, values)) for one, values in body.get("axes", {}).items()},
        line=shlex.join(["sonotune", "sweep", "decode", *map(str, body.get("words", ()))]),
    )


def _verdict(body: Mapping[str, Any]) -> Verdict:
    if body["shown"]:
        return Verdict("better", "better decoding", f"{body['sentence']}.")
    return Verdict("none", "keep the current decoding", f"{body['sentence']}.")


def _tiles(score: str, current: Mapping[str, Any], proposed: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Caption, value and its interval: of the current decoding and, where it is another, of the best."""
    tiles = []
    for called, row in [("now", current), ("best", proposed)][: 1 if proposed is current else 2]:
        found = [row["scores"][score]] + ([row["insertion_rate"]] if "insertion_rate" in row else [])
        for one in found:
            tiles.append((f"{one.get('title') or score_title(score, one)}, {called}", show_value(one), _ends(one)))
    return tiles


def _ends(score: Mapping[str, Any]) -> str:
    return f"{show_value(score, 'low')} to {show_value(score, 'high')}"


def _use(body: Mapping[str, Any], proposed: Mapping[str, Any]) -> str:
    """The words that decode in the proposed way."""
    words = [f"model={body.get('model', 'RUN')}", *(f"{name}={value}" for name, value in proposed["values"].items())]
    return shlex.join(words)


def _ways(body: Mapping[str, Any]) -> list[_Way]:
    """Every way that was scored, the best first."""
    score, rows = body["score"], body["trials"]
    sign = better_sign(rows[0]["scores"][score].get("better", "lower"))
    order = sorted(range(len(rows)), key=lambda number: sign * rows[number]["scores"][score]["value"])
    return [_way(rows[number], score, proposed=number == body["proposed"]) for number in order]


def _way(row: Mapping[str, Any], score: str, *, proposed: bool) -> _Way:
    change, rate, told = row["difference"], row.get("insertion_rate"), row.get("outcome", "")
    return _Way(
        settings=[f"{name.removeprefix(_SECTION)}={value}" for name, value in row["values"].items()] or [row["name"]],
        proposed=proposed,
        score=show_score(row["scores"][score]),
        change="" if change is None else _shown(change),
        outcome=told if told in ("better", "worse") else "none",
        told="" if change is None else told,
        inserted=show_count(row["insertions"]) if rate is None else show_score(rate),
        row=row,
    )


def _shown(change: Mapping[str, Any]) -> str:
    low, high = (show_signed(change, change[end]) for end in ("low", "high"))
    return f"{show_change(change, change['value'])} [{low}, {high}]"
