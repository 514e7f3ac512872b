"""The command that looks for good settings: sweep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sonotune.cli.shared import Json, Words, app, print_result, tell
from sonotune.cli.sweep_decode import sweep_decode

if TYPE_CHECKING:
    from sonotune.sweeps.sweep_plan import SweepPlan

_SHOWN = 5  # configurations, and notes, below the best


@app.command()
def sweep(
    words: Words = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the trials, and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Try settings: every combination, random ones, or those that Optuna asks for.

    sonotune sweep model=whisper_nano data=quickstart adapter.rank=4,8,16 training.learning_rate=1e-4:1e-2:log:5

    Commas part values, LOW:HIGH[:log] is a range, and a list is one value in brackets. sweep=rank, bits, placement,
    learning_rate and group_rates are ready-made. Each trial is a `sonotune train` of its own. The best is chosen on
    data.eval, and it alone is scored on data.test. The same line goes on where a stopped one left off, and may run
    several times at once.

    sonotune sweep decode model=runs/x evaluation.beam_size=1,4 tries settings of decoding of a trained run on its
    development clips, without training, and goes on in the same way.
    """
    if words and words[0] == "decode":
        sweep_decode(words[1:], dry_run=dry_run, as_json=as_json)
        return
    from sonotune.sweeps.sweep import Worker, exit_code
    from sonotune.sweeps.sweep_plan import plan_sweep
    from sonotune.sweeps.sweep_record import REPORT, show, winner_line

    plan = plan_sweep(words or [])
    if dry_run:
        _print_plan(plan, as_json=as_json)
        return

    def told(line: str) -> None:
        tell(line, stdout=not as_json)

    told(f"sweep    {plan.folder}: {plan.method} ({plan.why})")
    body = Worker(plan=plan, told=told).go()
    report = plan.folder / REPORT
    body |= {"sweep": str(plan.folder), "report": str(report) if report.is_file() else None}
    lines = []
    if body["winner"] is not None:
        lines = [winner_line(body), *(f"run      {run}" for run in body["winner"]["runs"])]
        for tested in body["winner"]["test"] or ():
            score = tested["scores"].get(body["score"])
            lines += [f"test     {body['title']} {show(body, score)} on data.test"] if score else []
        for one in body["configurations"][1 : _SHOWN + 1]:
            values = " ".join(f"{name}={value}" for name, value in one["values"].items())
            lines.append(f"  then   {values}: {show(body, one)}")
    lines += [f"note: {note}" for note in body["notes"][:_SHOWN]]
    if len(body["notes"]) > _SHOWN:
        lines.append(f"note: and {len(body['notes']) - _SHOWN} more, in sweep.json")
    if body["status"] == "unfinished":
        lines.append("other processes still have trials of this sweep; the last one writes the report")
    else:
        lines.append(f"report   {report}")
    print_result(body, as_json=as_json, lines=lines)
    if code := exit_code(body):
        raise typer.Exit(code)


def _print_plan(plan: SweepPlan, *, as_json: bool) -> None:
    from sonotune.sweeps.trials import train_line
    from sonotune.wording import counted

    trials = [
        {"name": trial.name, "values": dict(trial.values), "line": train_line(trial.words)}
        for trials in plan.listed
        for trial in trials
    ]
    body = {
        "sweep": str(plan.folder),
        "method": plan.method,
        "why": plan.why,
        "axes": [{"name": axis.name, "text": axis.text} for axis in plan.space.axes],
        "trials": trials,
        "expected_trials": len(trials) or plan.limit,
        "left_out": list(plan.left_out),
    }
    lines = [f"{axis.name} = {axis.text}" for axis in plan.space.axes]
    lines += [str(trial["line"]) for trial in trials]
    lines += [f"left out: {one}" for one in plan.left_out]
    count = counted(len(trials) or plan.limit, "trial")
    later = "" if trials else ", which Optuna chooses one after the other"
    lines.append(f"{count}{later}; {plan.method} ({plan.why}), in {plan.folder}")
    print_result(body, as_json=as_json, lines=lines)
