"""The whole pipeline on packaged data, offline, in under three minutes on two cores.

It takes the packaged corpus (voices and channels the packaged model never heard), checks it, trains whisper-nano by
QLoRA (4 bits are set explicitly to show that path; so small a model does not need them), scores it before and after,
writes the report, exports the merged model and compares what plain `transformers` makes of it.
Further steps join it as they are built.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sonotune.config.load import LoadedConfig, load_run_config
from sonotune.metrics.scores import decoding_note, show_score
from sonotune.progress import phase
from sonotune.types import RunRecord

if TYPE_CHECKING:
    from sonotune.serving.parity import ParitySettings


def quickstart(
    folder: Path | None,
    *,
    run: Callable[[LoadedConfig], tuple[RunRecord, Path]],
    parity: Callable[[Path], ParitySettings],
) -> tuple[dict[str, Any], list[str]]:
    """Run it.

    Args:
        folder: Run directory; None makes one under `runs/`.
        run: Trains one configuration and writes its report.
        parity: How the export of a run is compared with it.

    Returns:
        The keys `quickstart --json` promises, and the lines a person reads.
    """
    with phase("starting"):
        from sonotune.serving.export import export  # noqa: PLC0415  (torch, only when run)

    started = time.monotonic()
    place = folder or Path("runs") / time.strftime("quickstart-%Y%m%d-%H%M%S")
    settings = load_run_config(["recipe=quickstart", f"run.dir={place}"], require=("data.train",))
    record, directory = run(settings)
    exported = export(str(directory), directory / "export", overwrite=True, parity=parity(directory))
    before, after = record.scores["before"], record.scores["after"]
    seconds = time.monotonic() - started
    result = {
        "run": str(directory),
        "before": before,
        "after": after,
        "seconds": seconds,
        "export": exported["export"],
        "parity": exported["parity"],
        "report": str(directory / "report.html"),
    }
    lines = [
        f"zero-shot WER  {show_score(before['wer'])}   on {before['wer']['count']} clips of unseen speakers"
        + decoding_note(before["wer"]),
        f"tuned WER      {show_score(after['wer'])}{decoding_note(after['wer'])}",
        f"adapter        {directory / 'adapter'}",
        f"merged model   {directory / 'export'} ({exported['bytes'] / 1e6:.1f} MB)",
        f"report         {directory / 'report.html'}",
        f"took           {seconds:.0f} s",
    ]
    return result, lines
