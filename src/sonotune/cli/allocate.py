"""The command that chooses ranks without training: allocate."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from sonotune.cli.findings import warning_lines, worth_telling
from sonotune.cli.shared import Json, Words, app, print_result
from sonotune.progress import phase

Folder = Annotated[Path, typer.Option(help="Folder for ranks.json and its pictures.")]


@app.command()
def allocate(words: Words = None, out: Folder = Path("ranks"), as_json: Json = False) -> None:
    """Calibrate on training clips, spend the budget of adapter parameters, and write ranks.json and its heat map.

    sonotune allocate model=whisper_nano data.train=train.jsonl adapter.rank=8

    Train with them by allocation.file=ranks/ranks.json.
    """
    with phase("starting"):
        from sonotune.adapters.ranks.choose import components_text, ranks_text
        from sonotune.adapters.ranks.plan import plan_to_json, targets_in
        from sonotune.training.adaptation import Adaptation
        from sonotune.training.inputs import load_inputs
        from sonotune.training.model import choose_ranks, measure_components
        from sonotune.training.runtime import set_up_compute
    from sonotune.config.load import load_run_config
    from sonotune.errors import RunDirectoryError
    from sonotune.reports.rank_heatmap import save_pictures
    from sonotune.runs import atomic_write_json, atomic_write_text, make_folder
    from sonotune.runs.folders import adding, can_replace
    from sonotune.types import Finding

    given = list(words or [])
    config = load_run_config(given, require=("data.train",), inherited={"adapter.allocator": "entropy"}).config
    target = out / "ranks.json"
    if target.exists():
        raise RunDirectoryError(f"{target} exists already. Name another folder with --out.")
    make_folder(out.parent if can_replace(out) else out, choose="--out")
    compute = set_up_compute(config.training.precision, threads=config.training.threads)
    autocast = compute.accelerator.autocast
    findings: list[Finding] = []
    inputs = load_inputs(config, compute, finding=findings.extend)
    adaptation, objective, split = Adaptation.of(config, inputs.opened.loaded), inputs.calibration_objective, None
    if config.adapter.split == "measured":
        split = measure_components(inputs, adaptation, objective, autocast=autocast)
        adaptation = adaptation.measured(split)
    plan, found = choose_ranks(inputs, adaptation, objective, autocast=autocast)
    findings += () if found is None else found.findings
    loaded = inputs.opened.loaded
    with adding(out) as place:
        files = save_pictures(plan_to_json(plan, targets_in(loaded, list(plan.ranks))), place)
        if split is not None:
            atomic_write_text(place / "split.json", components_text(split))
            files = [*files, place / "split.json"]
        if found is not None:
            atomic_write_json(place / "entropy.json", found.spectra())
            files = [*files, place / "entropy.json"]
        if target.exists():
            raise RunDirectoryError(f"{target} was made meanwhile. Name another folder with --out.")
        atomic_write_text(place / target.name, ranks_text(plan, loaded))  # last: without it, all is written again
    files = [out / path.name for path in files]
    entropy = {} if found is None else dict(found.evidence.effective_ranks)
    warnings = worth_telling(findings)
    body = {
        "ranks": dict(plan.ranks),
        "parameters": plan.parameters,
        "budget": plan.budget,
        "entropy": entropy,
        "allocator": plan.allocator,
        "file": str(target),
        "pictures": [str(path) for path in files if path.suffix != ".json"],
        "clips": len(inputs.prepared.clips),
        "warnings": [finding.message for finding in warnings],
        **({} if found is None else {"calibration": found.summary(), "spectra": found.spectra()}),
        **({} if split is None else {"split": split.to_json()}),
    }
    ranks = sorted(plan.ranks.values())
    read = (
        "no clip was read"
        if found is None
        else f"calibrated on {found.clips} of {len(inputs.prepared.clips)} training clips"
    )
    lines = [
        f"{plan.allocator}: {plan.parameters:,} of {plan.budget:,} parameters in {len(ranks)} modules, "
        f"ranks {ranks[0]} to {ranks[-1]}, median {ranks[len(ranks) // 2]}; {read}",
        *([] if split is None else [split.sentence(), "as settings: " + shlex.join(split.words())]),
        *warning_lines(warnings, "--json"),
        *(f"  {path}" for path in (target, *files)),
    ]
    print_result(body, as_json=as_json, lines=lines)
