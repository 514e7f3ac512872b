"""The command that compares two systems on the same clips: compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sonotune.cli.shared import Json, app, check_page, print_result
from sonotune.metrics.confidence import show_confidence
from sonotune.metrics.scores import in_percent, score_title, shown_number, shown_unit
from sonotune.paths import exists, short_names
from sonotune.wording import counted

if TYPE_CHECKING:
    from sonotune.evaluation.compare import Comparison

_SHOWN_SLICES = 12

First = Annotated[str, typer.Argument(metavar="A", help="A run, or a file of predictions; several seeds: A1,A2.")]
Second = Annotated[str, typer.Argument(metavar="B", help="The same of the other system.")]
Resamples = Annotated[int, typer.Option(min=100, max=1_000_000, help="Bootstrap resamples.")]
Moment = Annotated[str | None, typer.Option(help="test, after or before; default the first that all runs have.")]


Primary = Annotated[
    str | None, typer.Option(help="The score that decides; default that of the runs, or of the references.")
]
Scores = Annotated[
    str, typer.Option(help="Further scores of texts, commas between; those that the runs were scored by are given.")
]


@app.command()
def compare(
    first: First,
    second: Second,
    moment: Moment = None,
    primary: Primary = None,
    scores: Scores = "",
    resamples: Resamples = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the resampling.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Page to write (HTML), with the texts that changed.")] = None,
    as_json: Json = False,
) -> None:
    """Say whether B differs from A on the same clips, how sure that is, and what could have been seen.

    sonotune compare runs/round1 runs/round2

    Differences are B minus A. Speakers are resampled for both together; no model is loaded.
    """
    from sonotune.evaluation.compare import compare as compare_runs

    check_page(out, instead="comparison.html")
    places = [_places(text) for text in (first, second)]
    names = tuple(dict.fromkeys(name.strip() for name in scores.split(",") if name.strip()))
    found = compare_runs(
        places[0], places[1], moment=moment, primary=primary, scores=names, resamples=resamples, seed=seed
    )
    body = found.to_json()
    lines = [
        *(f"{letter} is {', '.join(map(str, side))}" for letter, side in zip("AB", places, strict=True)),
        f"B minus A on {counted(found.clips, 'clip')}{_split_of(found.files)}{_in_points(body)}",
    ]
    width = max(len(score_title(name, row)) for name, row in body["difference"].items())
    lines += [f"{score_title(name, row):<{max(8, width)}} {_points(row)}" for name, row in body["difference"].items()]
    decides = found.primary
    called = score_title(decides.name, body["difference"][decides.name])
    row = body["difference"][decides.name]
    seen = (
        f"{shown_number(row, decides.minimum_detectable):.2f} {shown_unit(row, difference=True)}".rstrip() + " or more"
    )
    lines.append(f"{called} decides; seen in 80 % of the cases would be {seen}")
    if found.matched_pairs is not None:
        pairs = found.matched_pairs
        lines.append(f"matched segments (speakers taken as alike): z = {pairs.z:.2f}, p = {pairs.p:.4f}")
    shown = [row for row in body["slices"] if row["difference"] and row["clips"] < found.clips]
    lines += [
        f"  {row['by']}={row['value']}: {_points(next(iter(row['difference'].values())))} on "
        f"{counted(row['clips'], 'clip')}"
        for row in shown[:_SHOWN_SLICES]
    ]
    if len(shown) > _SHOWN_SLICES:
        lines.append(f"  and {len(shown) - _SHOWN_SLICES} more slices (--json)")
    lines += [
        f"  {row['by']}={row['value']}: {', '.join(f'{name.upper()} {change}' for name, change in sure.items())}"
        for row in shown[:_SHOWN_SLICES]
        if (sure := show_confidence(row["difference"], _change))
    ]
    lines += [f"note: {warning}" for warning in (*found.warnings, *decides.warnings)]
    if out is not None:
        _write_page(out, found, places, moment)
        lines.append(f"page      {out}")
    print_result(body, as_json=as_json, lines=lines)


def _write_page(out: Path, found: Comparison, places: Sequence[Sequence[Path]], moment: str | None) -> None:
    from sonotune.evaluation.compare import same_clips
    from sonotune.reports.comparison import System, build_comparison_html
    from sonotune.runs import atomic_write_text, read_events, read_record

    _, rows = same_clips([side[0] for side in found.files], moment=moment)
    names = short_names([side[0].absolute() for side in places])
    systems = []
    for name, side, own in zip(names, places, rows, strict=True):
        run = side[0] if (side[0] / "run.json").is_file() else None
        events = side[0] / "events.jsonl"
        systems.append(
            System(
                name=name,
                places=[str(place) for place in side],
                rows=own,
                record=None if run is None else read_record(run),
                events=list(read_events(events)) if run is not None and events.is_file() else (),
            )
        )
    atomic_write_text(out, build_comparison_html(found, *systems))


def _in_points(body: Mapping[str, Any]) -> str:
    return ", in percentage points" if all(map(in_percent, body["difference"].values())) else ""


def _split_of(files: Sequence[Sequence[Path]]) -> str:
    """Whose clips they are, where all files are those of runs."""
    from sonotune.reports.verdict import SPLITS

    moments = {path.stem if path.parent.name == "predictions" else "" for side in files for path in side}
    return f": {told}" if len(moments) == 1 and (told := SPLITS.get(moments.pop())) else ""


def _places(text: str) -> list[Path]:
    """Paths with commas between, or one path that has commas in it."""
    return [Path(text)] if exists(text) else [Path(part.strip()) for part in text.split(",")]


def _change(row: Mapping[str, Any]) -> str:
    low, value, high = (shown_number(row, row[key]) for key in ("low", "value", "high"))
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"


def _points(row: Mapping[str, Any]) -> str:
    first, second = (shown_number(row, row[key]) for key in ("first", "second"))
    rates = f"{first:.2f} -> {second:.2f} {shown_unit(row)}".rstrip()
    return f"{_change(row)}  p = {row['p']:.4f}  ({rates})"
