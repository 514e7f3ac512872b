"""The command that hands a model on: export."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from sonotune.cli.report import write_card
from sonotune.cli.shared import Json, app, print_result, tell
from sonotune.progress import phase

Target = Annotated[str, typer.Option(help="`dequantized` (the function that was trained) or `original`.")]


@app.command()
def export(
    source: Annotated[str, typer.Argument(help="A run, an adapter or a model folder; or model=PLACE.")],
    folder: Annotated[Path, typer.Argument(help="Where to write.")],
    target: Target = "dequantized",
    dtype: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    adapter: Annotated[bool, typer.Option("--adapter", help="The adapter only, in PEFT format.")] = False,
    plain: Annotated[
        bool,
        typer.Option("--plain", help="With --adapter: one rank and one scale for all modules, for vLLM."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing export.")] = False,
    parity: Annotated[
        str | None, typer.Option(help="Clips to compare with; default are the run's development clips.")
    ] = None,
    parity_clips: Annotated[int, typer.Option(min=1, help="How many of them, drawn by the run's seed.")] = 50,
    no_parity: Annotated[bool, typer.Option("--no-parity", help="Do not compare the export with the run.")] = False,
    bake_tolerance: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Of gates: largest share of what they add that a merge may change; else 0.05."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 4 where parity fails (see above).")] = False,
    push: Annotated[str | None, typer.Option(help="Upload it to this OWNER/NAME of the hub (private if new).")] = None,
    as_json: Json = False,
) -> None:
    """Merge a trained adapter into plain weights that `transformers` loads, proving that the function is the same.

    Plain `transformers` then recognises development clips of the run from the export, and the difference from what the
    run is scored on is written to `parity.json`. Its verdict is `shown` where the whole interval of the difference lies
    within one point of word error rate (or accuracy), or where all of enough clips are equal; `not shown` where only
    the estimate does; `differs` where it does not. With --strict, exit code 4 means `differs`, or that nothing
    was compared.
    """
    from sonotune.arguments import parity_settings
    from sonotune.cli.parity import parity_lines, record_parity
    from sonotune.errors import ConfigError, NumericError

    with phase("starting"):
        from sonotune.serving.export import export as write_export
    from sonotune.serving.baking import BakeSettings
    from sonotune.serving.hub import check_name
    from sonotune.serving.hub import push as push_folder
    from sonotune.serving.parity import fails_strict

    for name, value, allowed in (
        ("--target", target, ("dequantized", "original")),
        ("--dtype", dtype, ("auto", "fp32", "bf16", "fp16")),
    ):
        if value not in allowed:
            raise ConfigError(f"{name} {value!r} is not known; take one of {', '.join(allowed)}.")
    if no_parity and (strict or parity is not None):
        raise ConfigError("--no-parity compares nothing, which leaves no meaning to --strict and --parity.")
    if push is not None:
        check_name(push)
    place = source.removeprefix("model=")
    run = Path(place) if (Path(place) / "run.json").is_file() else None
    on_clips = partial(parity_settings, place, manifest=parity, clips=parity_clips)
    compared = None if no_parity else on_clips()
    result = write_export(
        place,
        folder,
        target=target,  # type: ignore[arg-type]
        dtype=dtype,  # type: ignore[arg-type]
        adapter_only=adapter,
        plain=plain,
        overwrite=overwrite,
        parity=compared,
        baking=BakeSettings(clips=on_clips, tolerance=bake_tolerance),
        finish=None if run is None else lambda draft: write_card(run, draft, "adapter" if adapter else "model"),
    )
    lines = [f"export   {result['export']} ({result['bytes'] / 1e6:.1f} MB, {result['kind']})"]
    if form := result.get("plain"):
        lines.append(f"plain    every module has rank {form['rank']} and scale 1")
        if form["base"] is not None:
            lines.append(
                f"base     {Path(result['export']) / form['base']}: serve the adapter over this copy, which has the "
                f"{len(form['beside'])} weights that trained beside it, such as {form['beside'][0]}"
            )
    if baked := result.get("baked"):
        lines.append(
            f"gates    put at their means: {baked['error']:.2%} of what the adapter adds changes (by energy; "
            f"{baked['clips']} clips; at most {baked['tolerance']:.0%} is allowed)"
        )
    if merge := result.get("merge"):
        what = "proof" if adapter else "merge"
        lines.append(f"{what}    largest logit difference {merge['largest']:.2g} of {merge['scale']:.3g}")
    elif result["kind"] == "model":
        lines.append("merge    there was no adapter to merge; the weights are the model's own")
    if rounding := result.get("rounding"):
        lines.append(
            f"{result['dtype']}     largest logit difference {rounding['largest']:.2g}, "
            f"best token the same at {100 * rounding['agreement']:.1f} % of positions"
        )
    if compared is not None:
        lines += parity_lines(result["parity"])
        record_parity(Path(place), result["parity"])
    if strict and fails_strict(result["parity"]):
        why = "nothing was compared" if result["parity"]["verdict"] is None else "what is served differs from the score"
        tell(f"sonotune: --strict: {why}; exit code {NumericError.exit_code}. The export is kept.")
        print_result(result, as_json=as_json, lines=lines)
        raise typer.Exit(NumericError.exit_code)
    if push is not None:
        result["pushed"] = push_folder(Path(result["export"]), push)
        lines.append(f"pushed   {result['pushed']}")
    print_result(result, as_json=as_json, lines=lines)
