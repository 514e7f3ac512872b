"""Comparing an export with its run: what is compared, what is told, and the run's record of it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError


def parity_settings(checkpoint: str, *, manifest: str | None, clips: int) -> Any:
    """How an export of this is compared: with the settings that the run was scored with.

    Args:
        checkpoint: A run, an adapter, or a model folder.
        manifest: Clips to take instead of the run's development clips.
        clips: How many.

    Returns:
        `sonotune.serving.parity.ParitySettings`.
    """
    from sonotune.cli.models import _decoding
    from sonotune.data.corpus import CORPUS_SETTINGS
    from sonotune.serving.parity import ParitySettings
    from sonotune.serving.recognizer import Recognizer

    config = _config_of(checkpoint)
    data = config.data
    named = {"train": data.train, "eval": data.eval}
    sources = {"eval": str(data.eval)} if data.eval is not None else named
    # The run has checked its clips; reading all of them again to recognise fifty would take as long as the check did.
    corpus = data.model_dump(include=CORPUS_SETTINGS) | {"check": "header", "max_bad_fraction": 1.0}
    if manifest is not None:
        sources = {"eval": manifest}
        corpus |= {"root": None, "limit": None}

    def open_scored() -> Recognizer:
        return Recognizer.open(
            checkpoint,
            task=config.model.task,
            language=config.model.language,
            multi_label=data.multi_label,
            text_scoring=data.text_scoring,
            precision=config.training.precision,
            family=config.model.family,
        )

    return ParitySettings(
        sources={name: str(source) for name, source in sources.items() if source is not None},
        corpus=corpus,
        open_scored=open_scored,
        decoding=_decoding(config),
        language=config.model.language,
        clips=clips,
        seed=config.training.seed,
    )


def _config_of(checkpoint: str) -> Any:
    """The settings a run was made with; those of its use, for anything else."""
    from sonotune.cli.models import _settings_of_use
    from sonotune.config.schema import RunConfig
    from sonotune.runs import read_record

    if (run := run_of(Path(checkpoint))) is not None:
        try:
            return RunConfig.model_validate(read_record(run).config)
        except ValidationError:
            pass  # an older version's; the settings it is used with are there in any case
    return _settings_of_use([f"model.checkpoint={checkpoint}"], require=()).config


def run_of(place: Path) -> Path | None:
    """The run directory that this is, or is the adapter or model of."""
    return next((folder for folder in (place, place.absolute().parent) if (folder / "run.json").is_file()), None)


def parity_lines(parity: Mapping[str, Any]) -> list[str]:
    """What a person reads beside the export; a warning goes to stderr as well."""
    from sonotune.serving.parity import finding_of

    found = finding_of(parity)
    if found.severity == "warning":
        print(f"sonotune: WARNING: {found.message}", file=sys.stderr)
        return [f"parity   NOT SHOWN: {found.message}"]
    return [f"parity   {found.message}"]


def record_parity(checkpoint: Path, parity: Mapping[str, Any]) -> None:
    """Put what was found into the record of a finished run, and into its report."""
    from dataclasses import replace

    from sonotune.cli.runs import _write_report
    from sonotune.runs import atomic_write_json, read_record, record_to_json
    from sonotune.serving.parity import finding_of, with_finding

    run = run_of(checkpoint)
    if run is None:
        return
    record = read_record(run)
    if record.status == "running":  # its own process writes the record
        return
    changed = replace(record, findings=with_finding(record.findings, finding_of(parity)))
    atomic_write_json(run / "run.json", record_to_json(changed))
    if (run / "report.html").is_file():
        _write_report(run)
