"""The command that chooses ranks without training: allocate."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from sonotune.cli.shared import Json, Words, app, print_result

Folder = Annotated[Path, typer.Option(help="Folder for ranks.json and its pictures.")]


@app.command()
def allocate(words: Words = None, out: Folder = Path("ranks"), as_json: Json = False) -> None:
    """Listen to training clips, spend the budget of adapter parameters, and write ranks.json and its heat map.

    sonotune allocate model=whisper_nano data.train=train.jsonl adapter.rank=8

    Train with them by allocation.file=ranks/ranks.json.
    """
    from sonotune.config.load import load_run_config
    from sonotune.errors import RunDirectoryError
    from sonotune.models.precision import choose_precision
    from sonotune.reports.ranks import save_pictures
    from sonotune.runs import atomic_write_text
    from sonotune.training.preparation import accelerator_for, choose_ranks, gather, measure_split, with_split
    from sonotune.training.ranks import ranks_text

    given = list(words or [])
    if not any(word.startswith(("adapter.allocator=", "config=")) for word in given):
        given.append("adapter.allocator=entropy")
    config = load_run_config(given, require=("data.train",)).config
    if (out / "ranks.json").exists():
        raise RunDirectoryError(f"{out / 'ranks.json'} exists already. Name another folder with --out.")
    precision, _ = choose_precision(config.training.precision)
    accelerator = accelerator_for(precision)
    material = gather(config, precision=precision, device=accelerator.device)
    split = None
    if config.adapter.split == "measured":
        split = measure_split(config, material, autocast=accelerator.autocast)
        config = with_split(config, split)
    plan, found = choose_ranks(config, material, autocast=accelerator.autocast)
    out.mkdir(parents=True, exist_ok=True)
    target = out / "ranks.json"
    atomic_write_text(target, text := ranks_text(plan, material.opened.loaded))
    pictures = save_pictures(text, out)
    entropy = {} if found is None else dict(found.evidence.effective_ranks)
    body = {
        "ranks": dict(plan.ranks), "parameters": plan.parameters, "budget": plan.budget, "entropy": entropy,
        "allocator": plan.allocator, "file": str(target), "pictures": [str(path) for path in pictures],
        **({} if found is None else {"calibration": found.summary(), "spectra": found.spectra()}),
        **({} if split is None else {"split": split.to_json()}),
    }  # fmt: skip
    ranks = sorted(plan.ranks.values())
    lines = [
        f"{plan.allocator}: {plan.parameters:,} of {plan.budget:,} parameters in {len(ranks)} modules, "
        f"ranks {ranks[0]} to {ranks[-1]}, median {ranks[len(ranks) // 2]}",
        *([] if split is None else [split.sentence(), "as settings: " + shlex.join(split.words())]),
        *(f"  {path}" for path in (target, *pictures)),
    ]
    print_result(body, as_json=as_json, lines=lines)
