"""The command that combines transcripts which are there: combine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from sonotune.cli.compare import Moment
from sonotune.cli.ensemble import gain_line
from sonotune.cli.shared import Json, app, check_output, print_result
from sonotune.metrics.scores import change_of, score_title, show_score
from sonotune.progress import phase
from sonotune.types import CombinationMethod
from sonotune.wording import counted

Systems = Annotated[
    list[Path], typer.Argument(metavar="A B C...", help="Runs, or files of predictions, of the same clips.")
]
MethodName = Annotated[str, typer.Option("--method", help="rover (vote word by word) or mbr (nearest to the others).")]
Votes = Annotated[str, typer.Option(help="Of rover: count, or confidence (files written with evaluation.confidence).")]


@app.command()
def combine(
    systems: Systems,
    out: Annotated[Path, typer.Option(help="File of predictions (JSONL) to write.")],
    method: MethodName = "rover",
    votes: Votes = "count",
    deletion_confidence: Annotated[
        float, typer.Option(min=0, max=1, help="What a vote for no word counts, with --votes confidence.")
    ] = 0.7,
    text_scoring: Annotated[
        str, typer.Option(help="Normaliser that all were scored with (data.text_scoring).")
    ] = "basic",
    moment: Moment = None,
    resamples: Annotated[int, typer.Option(min=100, max=1_000_000, help="Bootstrap resamples.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the resampling.")] = 0,
    as_json: Json = False,
) -> None:
    """Combine transcripts of several systems into one by ROVER or MBR, and compare it with the best of them.

    sonotune combine runs/a runs/b other.jsonl --out combined.jsonl

    Nothing is decoded. Ties go to the system that is named first.
    """
    with phase("starting"):
        from sonotune.data.text import get
        from sonotune.evaluation.stored import combine_stored, rates_of, read_members, text_of
        from sonotune.runs import atomic_write_text
        from sonotune.runs.predictions import are_predictions

    check_output(out, instead="combined.jsonl", is_ours=are_predictions)
    settings = _settings(method, votes, deletion_confidence)
    members = read_members(systems, moment=moment)
    rows = combine_stored(members, get(text_scoring), settings)
    atomic_write_text(out, text_of(rows))
    scored = [rates_of(one, resamples=resamples, seed=seed) for one in (rows, *members.rows)]
    told = {name: score.to_json() for name, score in scored[0].items()}
    body: dict[str, Any] = {
        "predictions": str(out),
        "clips": len(rows),
        "method": settings.method,
        "scores": told,
        "members": [
            {"predictions": str(file), "scores": {name: score.to_json() for name, score in one.items()}}
            for file, one in zip(members.files, scored[1:], strict=True)
        ],
        "best": None,
        "difference": None,
        "verdict": None,
        "warnings": list(members.warnings),
    }
    if scored[0]:
        body |= _against_best(members.files, out, scored[1:], resamples=resamples, seed=seed)
    print_result(body, as_json=as_json, lines=_lines(body))


def _settings(method: str, votes: str, deletion_confidence: float) -> Any:
    from sonotune.errors import ConfigError
    from sonotune.evaluation.combination import CombinationSettings

    for name, value, allowed in (
        ("--method", method, get_args(CombinationMethod)),
        ("--votes", votes, ("count", "confidence")),
    ):
        if value not in allowed:
            raise ConfigError(f"{name} {value!r} is not known; take one of {', '.join(allowed)}.")
    if method == "mbr" and votes == "confidence":
        raise ConfigError("--votes confidence is of rover; mbr takes a whole text. Leave one of them out.")
    return CombinationSettings(
        method=cast(CombinationMethod, method),
        deletion_confidence=deletion_confidence if votes == "confidence" else None,
    )


def _against_best(files: Any, out: Path, scored: Any, *, resamples: int, seed: int) -> dict[str, Any]:
    """The best member, and the paired difference from it; that is None where too few clips have a reference."""
    from sonotune.evaluation.compare import compare
    from sonotune.metrics.intervals import MIN_BLOCKS

    clips = scored[0]["wer"].count
    if clips < MIN_BLOCKS:
        best = min(range(len(files)), key=lambda place: (scored[place]["wer"].value, place))
        return {"best": str(files[best])}
    name = compare(files[:1], [out], resamples=100, slices=False).primary.name  # words, or signs of the script
    best = min(range(len(files)), key=lambda place: (scored[place][name].value, place))
    found = compare([files[best]], [out], primary=name, resamples=max(resamples, 1000), seed=seed, slices=False)
    difference = {"score": name, **found.primary.to_json()}
    verdicts = {"better": "gain", "none": "no gain was shown", "worse": "worse"}
    return {"best": str(files[best]), "difference": difference, "verdict": verdicts[change_of(difference)]}


def _lines(body: dict[str, Any]) -> list[str]:
    lines = [f"{counted(body['clips'], 'clip')} of {len(body['members'])} systems to {body['predictions']}"]
    named = [(body["predictions"], body["scores"]), *((one["predictions"], one["scores"]) for one in body["members"])]
    for place, scores in named:
        told = "  ".join(f"{score_title(name, score)} {show_score(score)}" for name, score in scores.items())
        lines.append(f"  {place}: {told or 'not scored, for no clip has a reference'}")
    if body["difference"] is not None:
        lines.append(gain_line(body["difference"], body["verdict"], body["best"]))
    elif body["best"] is not None:
        lines.append("too few clips to say whether that is a gain")
    return lines + [f"warning: {warning}" for warning in body["warnings"]]
