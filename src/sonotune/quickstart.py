"""The whole pipeline on packaged data, offline, in under three minutes on two cores.

It takes the packaged corpus (voices and channels the packaged model never heard), audits it with a few transcripts
exchanged on purpose, checks it, trains whisper-nano by QLoRA (4 bits are set explicitly to show that path; so small a
model does not need them), scores it before and after, writes the report, exports the merged model and compares what
plain `transformers` makes of it. Further steps join it as they are built.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sonotune import api
from sonotune.config.load import LoadedConfig, load_run_config
from sonotune.data.corpus import read_source
from sonotune.data.manifest import write_manifest
from sonotune.metrics.scores import decoding_note, show_score
from sonotune.progress import phase
from sonotune.runs import generator
from sonotune.types import RunRecord

if TYPE_CHECKING:
    from sonotune.serving.parity import ParitySettings

EXCHANGED: Final = 10
"""Clips that get the transcript of another for the audit; training sees them as they are."""
WORST: Final = 2 * EXCHANGED


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
    with tempfile.TemporaryDirectory() as draft:
        corpus = Path(draft) / "quickstart"  # its name is the title of the page
        corpus.mkdir()
        audited = _audit_with_exchanged_transcripts(corpus)
        settings = load_run_config(["recipe=quickstart", f"run.dir={place}"], require=("data.train",))
        record, directory = run(settings)
        shutil.copytree(corpus, directory / "audit", dirs_exist_ok=True)
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
        "audit": {**audited, "report": str(directory / "audit" / "report.html")},
    }
    lines = [
        f"audit          {audited['decision']}; of {EXCHANGED} transcripts exchanged on purpose, {audited['found']} "
        f"are among the {WORST} worst of {audited['clips']} clips: {directory / 'audit' / 'report.html'}",
        f"zero-shot WER  {show_score(before['wer'])}   on {before['wer']['count']} clips of unseen speakers"
        + decoding_note(before["wer"]),
        f"tuned WER      {show_score(after['wer'])}{decoding_note(after['wer'])}",
        f"adapter        {directory / 'adapter'}",
        f"merged model   {directory / 'export'} ({exported['bytes'] / 1e6:.1f} MB)",
        f"report         {directory / 'report.html'}",
        f"took           {seconds:.0f} s",
    ]
    return result, lines


def _audit_with_exchanged_transcripts(folder: Path) -> dict[str, Any]:
    """Audit the packaged training clips, some of which have the transcript of another, as a wrong cut leaves them.

    Args:
        folder: Where the manifest and the audit go.

    Returns:
        `decision`, `clips` that were looked at, `exchanged`, and how many of these were `found` among the worst.
    """
    from sonotune.reports.audit_clips import read_clips  # noqa: PLC0415

    config = load_run_config(["recipe=quickstart"]).config
    clips = read_source(str(config.data.train))
    chosen = sorted(generator(0, "quickstart", "exchanged").choice(len(clips), EXCHANGED, replace=False).tolist())
    texts = {place: clips[other].text for place, other in zip(chosen, [*chosen[1:], chosen[0]], strict=True)}
    wrong = [replace(clip, text=texts.get(place, clip.text)) for place, clip in enumerate(clips)]
    write_manifest(folder / "train.jsonl", wrong)
    report, _ = api.audit(
        {
            "model": "ctc_nano",
            "data.train": folder / "train.jsonl",
            "data.allow_outside_root": True,
            "data.eval": config.data.eval,
            "audit.dir": folder,
            "audit.fraction": 1.0,
        }
    )
    exchanged = {clips[place].id for place in chosen if texts[place] != clips[place].text}
    worst = [line["id"] for line in read_clips(folder, worst=WORST).worst]
    return {
        "decision": report.decision,
        "clips": report.rate.count,
        "exchanged": len(exchanged),
        "found": len(exchanged.intersection(worst)),
    }
