"""The command that shows the whole pipeline: quickstart."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sonotune.cli.shared import Json, app, print_result
from sonotune.cli.train import run_and_report


@app.command()
def quickstart(
    folder: Annotated[Path | None, typer.Option("--dir", help="Run directory; default runs/quickstart-<time>.")] = None,
    as_json: Json = False,
) -> None:
    """Run the whole pipeline on packaged data, offline: check, QLoRA-train whisper-nano, score, report, export."""
    from sonotune.arguments import parity_settings
    from sonotune.cli.parity import parity_lines, record_parity
    from sonotune.quickstart import quickstart as run_quickstart

    result, lines = run_quickstart(
        folder,
        run=lambda settings: run_and_report(settings, quiet=as_json),
        parity=lambda place: parity_settings(str(place), manifest=None, clips=50),
    )
    record_parity(Path(result["run"]), result["parity"])
    lines += parity_lines(result["parity"])
    print_result(result, as_json=as_json, lines=lines)
