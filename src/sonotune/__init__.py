"""Fine-tune pretrained audio models on modest hardware.

The packages, in the order data takes through them (`docs/tour.md` follows one clip): `config` and `registry` say what
is wanted, `audio` and `data` find and check the clips, `features` turns them into batches, `models` loads what is
adapted, `adapters` attaches what is trained, `tasks` says what is learned, `training` runs it, `evaluation` and
`metrics` judge it, `serving` hands it on, `reports` shows it.

From Python: `sonotune.train`, `evaluate`, `transcribe`, `classify`, `load`, `plan`, `inspect`, `export`, `compare`,
`label`, `prune`, `realign`, `filter_corpus`, `resegment`, `read_run` and `read_manifest`
(docs/how-to/use-from-python.md). They are imported when they are first used.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("sonotune")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

_API = (
    "train",
    "evaluate",
    "transcribe",
    "classify",
    "load",
    "plan",
    "inspect",
    "export",
    "compare",
    "label",
    "prune",
    "realign",
    "filter_corpus",
    "resegment",
    "read_run",
    "Run",
)
_PUBLIC = {
    **dict.fromkeys(_API, "sonotune.api"),
    "read_manifest": "sonotune.data.manifest",
    **dict.fromkeys(("Clip", "Prediction", "Score"), "sonotune.types"),
    "SonotuneError": "sonotune.errors",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
