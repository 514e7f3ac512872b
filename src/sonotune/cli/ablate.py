"""The command that measures what each part of a recipe is worth: ablate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sonotune.cli.shared import Json, Words, app, print_result, tell

if TYPE_CHECKING:
    from sonotune.sweeps.ablation import Session
    from sonotune.sweeps.plan import Plan

Resamples = Annotated[int, typer.Option(min=100, max=1_000_000, help="Bootstrap resamples.")]
ArmNames = Annotated[str, typer.Option("--arms", help="Names of arms or groups: standard, ranks, split.")]
OwnArms = Annotated[list[str] | None, typer.Option("--arm", help='One of your own: "NAME: SETTING=VALUE ...".')]
Baseline = Annotated[str | None, typer.Option(help="Arm to measure against; default uniform or uniform_share.")]
Seeds = Annotated[str, typer.Option(help="Seeds, with commas; the first chooses learning rates.")]
FinalSeeds = Annotated[str, typer.Option(help="Further seeds, with commas, of the baseline and the finalists.")]
Finalists = Annotated[int, typer.Option(min=1, help="Arms that get them: the best on data.eval.")]
Rates = Annotated[int, typer.Option(min=1, max=15, help="Learning rates of each arm, a factor 3.16 apart.")]
Folder = Annotated[Path | None, typer.Option("--dir", help="Directory; default follows from the settings.")]
Hours = Annotated[
    float | None, typer.Option(min=0, help="Begin no run that would end later; go on with the same line.")
]


@app.command()
def ablate(
    words: Words = None,
    arms: ArmNames = "standard",
    arm: OwnArms = None,
    baseline: Baseline = None,
    seeds: Seeds = "0,1,2",
    final_seeds: FinalSeeds = "",
    finalists: Finalists = 2,
    rates: Rates = 3,
    folder: Folder = None,
    hours: Hours = None,
    apart: Annotated[bool, typer.Option("--subprocess", help="A process for each run, to tell peak memory.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the runs and the expected time, and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Compare ways to spend the same adapter budget, each at its own best learning rate, over seeds.

    sonotune ablate model=whisper_nano data.train=train.jsonl data.eval=dev.jsonl data.test=test.jsonl
    --arms uniform,entropy_half,shuffled

    The learning rate of each arm is chosen on data.eval with the first seed; all seeds are scored on data.test. With
    --final-seeds the arms that data.eval likes best get more of them. The same line goes on where a stopped one left
    off, and takes further arms and seeds.
    """
    from sonotune.sweeps.ablation import REPORT, Session, exit_code
    from sonotune.sweeps.arms import choose_arms
    from sonotune.sweeps.plan import plan_ablation
    from sonotune.sweeps.trials import run_apart, run_here

    plan = plan_ablation(
        words or [],
        choose_arms(arms, arm or ()),
        baseline=baseline,
        seeds=_seeds("--seeds", seeds),
        final_seeds=_seeds("--final-seeds", final_seeds) if final_seeds else (),
        finalists=finalists,
        points=rates,
        folder=folder,
        parameters_of=_parameters,
    )

    def told(line: str) -> None:
        tell(line, stdout=not as_json)

    session = Session(plan=plan, run=run_apart if apart else run_here, hours=hours, apart=apart, told=told)
    if dry_run:
        session.look()
        _print_plan(plan, session, as_json=as_json)
        return
    body = session.go()
    body |= {"ablation": str(plan.folder), "report": str(plan.folder / REPORT)}
    lines = [*body["verdict"], *(f"note: {note}" for note in body["notes"]), f"report   {body['report']}"]
    if body["status"] == "stopped":
        lines.append("the hours are used up; the same line goes on")
    print_result(body, as_json=as_json, lines=lines)
    if code := exit_code(body):
        raise typer.Exit(code)


def _seeds(option: str, text: str) -> list[int]:
    from sonotune.errors import ConfigError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"{option}: {text!r} is not a list of whole numbers such as 0,1,2.") from error


def _parameters(words: Sequence[str]) -> dict[str, int]:
    """What some settings train, in all and in adapters, without reading weights."""
    from sonotune.api import inspect

    counts = inspect(words).to_json()["parameters"]
    return {name: int(counts[name]) for name in ("adapter", "trainable", "total")}


def _print_plan(plan: Plan, session: Session, *, as_json: bool) -> None:
    from sonotune.sweeps.schedule import expected_trials, waiting_trials
    from sonotune.sweeps.trials import train_line

    waiting = waiting_trials(plan.schedule, session.outcomes())
    runs = [{"run": trial.name, "line": train_line(plan.words(trial))} for trial in waiting]
    count, seconds = expected_trials(plan.schedule, session.outcomes()), session.seconds_to_come()
    body = {"ablation": str(plan.folder), "runs": runs, "expected_runs": count, "seconds": seconds}
    lines = [str(run["line"]) for run in runs]
    later = count - len(runs)
    if later:
        lines.append(f"and {later} with the other seeds, when the learning rates are chosen; a grid may grow")
    when = "unknown before the first run is finished" if seconds is None else f"about {seconds / 3600:.2f} h"
    lines.append(f"{count} runs to come, {len(session.results)} done; expected time {when}")
    print_result(body, as_json=as_json, lines=lines)
