"""The command that averages tuned models: average."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sonotune.cli.shared import Json, app, print_result
from sonotune.progress import phase

Places = Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Runs, adapters or model folders of one base.")]


@app.command()
def average(
    places: Places,
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
    shares: Annotated[str, typer.Option(help="Weight of each, commas between, such as 2,1,1; default all alike.")] = "",
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="Of adapters: shorten every update to this rank by SVD; else the average is exact."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Average several runs of one base into one adapter, or one model, which costs no more to use than each of them.

    sonotune average runs/seed1 runs/seed2 runs/seed3 --out runs/averaged

    Of adapters the average is of what they add to the weights, with the sum of their ranks; averages of their factors
    would be another function. Whether it is better is for `sonotune evaluate model=runs/averaged` to say.
    """
    with phase("starting"):
        from sonotune.serving.average import average as write_average
        from sonotune.serving.average import members_of

    result = write_average(members_of(places, _numbers(shares)), out, rank=rank)
    lines = [f"average  {result['average']} ({result['bytes'] / 1e6:.1f} MB, {result['kind']})"]
    lines += [f"member   {one['place']}: {one['share']:.1%}, weights {one['digest']}" for one in result["members"]]
    if result["kind"] == "adapter":
        lines.append(f"ranks    {result['rank']} at most, {result['ranks']} in all")
        error = result["error"]
        lines.append(
            "error    none: the average is exact"
            if error is None
            else f"error    {error['whole']:.2%} of the update is lost by the SVD, most in {error['module']}: "
            f"{error['worst']:.2%} of its own"
        )
    lines += [f"warning  {warning}" for warning in result["warnings"]]
    print_result(result, as_json=as_json, lines=lines)


def _numbers(text: str) -> list[float] | None:
    from sonotune.errors import ConfigError

    if not text:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--shares {text[:200]} is no list of numbers; write one a member, such as 2,1,1.") from error
