"""The panels of a tuned model from end to end: open them, ask the base once, ask the tuned model, compare."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sonotune.data.corpus import load_corpus
from sonotune.errors import ManifestError, RunDirectoryError, SonotuneError
from sonotune.evaluation.confidence import decoding_entries
from sonotune.evaluation.retention.base import Measured, Predict
from sonotune.evaluation.retention.measure import (
    Panel,
    compare_panel,
    from_json,
    key_of,
    measure,
    open_panels,
    to_json,
)
from sonotune.json_files import OBJECT, read_json
from sonotune.runs import atomic_write_text
from sonotune.types import Clip, DecodingSettings, Finding

FOLDER = "retention"
"""Of a run directory: what the base model did on each panel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionSettings:
    """What is kept, and how it is asked.

    Attributes:
        keep: Entries of `evaluation.keep`.
        clips: Of each panel at most.
        corpus: Arguments of `data.corpus.load_corpus` that manifests are read with.
        seed: Of draws, generated clips and intervals.
        resamples: Of the bootstrap.
        decoding: How texts are decoded.
        precision: Of the matrix products.
        language: Of clips that name none.
        normalizer: Digest of the scoring form of texts.
        scales: Parts of the strength that are scored as well.
        folder: Run directory whose measurements of the base model are used again; None where there is none.
    """

    keep: Sequence[str]
    clips: int
    corpus: Mapping[str, Any]
    seed: int
    resamples: int
    decoding: DecodingSettings
    precision: str
    language: str | None = None
    normalizer: str = ""
    scales: Sequence[float] = ()
    folder: Path | None = None

    def read(self, source: str, require: Literal["text", "label"] | None) -> tuple[list[Clip], list[Finding]]:
        """Clips of a source, checked as those of `data.test` are.

        Raises:
            ManifestError: It cannot be read, or no clip can be used.
        """
        try:
            corpus = load_corpus(
                {"keep": source},
                seed=self.seed,
                require=require,
                **{**self.corpus, "limit": self.clips},
            )
        except ManifestError as error:
            raise ManifestError(f"evaluation.keep={source}: {error}") from error
        return corpus.splits["keep"], list(corpus.findings)

    def panels(self, task: Any, loaded: Any) -> AbstractContextManager[tuple[list[Panel], list[Finding]]]:
        """See `open_panels`."""
        return open_panels(
            self.keep, task, loaded, read=self.read, clips=self.clips, seed=self.seed, language=self.language
        )

    def key(self, panel: Panel, loaded: Any) -> str:
        """Digest of what decides what the base model does on a panel."""
        return key_of(
            panel,
            {
                "revision": loaded.revision,
                "context": loaded.context,
                "tokens_per_second": loaded.tokens_per_second,
                "decoding": decoding_entries(self.decoding),
                "precision": self.precision,
                "language": self.language,
                "normalizer": self.normalizer,
                **({"frame_merging": loaded.merging.plain()} if loaded.merging.parts else {}),
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Retained:
    """What was found.

    Attributes:
        rows: One a panel (`measure.compare_panel`).
        before: Panel -> what the base model did.
        after: Panel -> what the tuned model did.
        findings: What was found in the clips of the panels.
    """

    rows: list[dict[str, Any]]
    before: Mapping[str, Measured]
    after: Mapping[str, Measured]
    findings: list[Finding] = field(default_factory=list)


def measure_base(
    panels: Sequence[Panel],
    task: Any,
    loaded: Any,
    settings: RetentionSettings,
    predict: Predict,
    *,
    agree: Callable[[Any], Any] = lambda value: value,
    write: bool = True,
) -> dict[str, Measured]:
    """What the base model does on each panel: read from the run directory where it is there, else asked and kept.

    Args:
        panels: What is asked.
        task: The task of the model.
        loaded: The model, which computes as the base does.
        settings: How it is asked, and where measurements are kept.
        predict: See `base.Predict`.
        agree: Takes what the first process has read to all of them.
        write: Whether this process keeps what was measured.

    Raises:
        ResourceError: The disk is full.
    """
    found = {}
    for panel in panels:
        key = settings.key(panel, loaded)
        path = None if settings.folder is None else settings.folder / FOLDER / _file_name(panel, key)
        kept = agree(None if path is None else _read(path))
        known = None if kept is None else from_json(kept, key, len(panel.clips))
        if known is None:
            known = measure(panel, task, loaded, predict, where="base model")
            if path is not None and write:
                _write(path, to_json(known, key))
        found[panel.name] = known
    return found


def compare_all(
    panels: Sequence[Panel],
    before: Mapping[str, Measured],
    after: Mapping[str, Measured],
    settings: RetentionSettings,
    findings: Sequence[Finding] = (),
) -> Retained:
    """Every panel before and after."""
    rows = [
        compare_panel(panel, before[panel.name], after[panel.name], resamples=settings.resamples, seed=settings.seed)
        for panel in panels
    ]
    return Retained(rows=rows, before=before, after=after, findings=list(findings))


def _file_name(panel: Panel, key: str) -> str:
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', panel.name)[-60:].strip('-') or 'panel'}-{key[:8]}.json"


def _read(path: Path) -> dict[str, Any] | None:
    """What was kept; None where nothing is, or it cannot be read, so that the base is asked again."""
    try:
        return read_json(path, OBJECT, error=RunDirectoryError, do="") if path.is_file() else None
    except SonotuneError:
        return None


def _write(path: Path, value: Mapping[str, Any]) -> None:
    atomic_write_text(path, json.dumps(value, ensure_ascii=False) + "\n")
