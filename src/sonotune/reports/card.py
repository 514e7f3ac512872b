"""The model card of a run: what was trained on what, what it scores and where, and what nobody has measured.

Front matter as the Hugging Face hub reads it; every number is from the run's record.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from sonotune.errors import RunDirectoryError
from sonotune.json_files import Count, Number, read_json
from sonotune.metrics.scores import score_title, show_value, shown_number
from sonotune.reports.tools import tools_lines
from sonotune.reports.usage import Kind, Usage, usage_lines
from sonotune.runs.record import language_of
from sonotune.types import RunRecord
from sonotune.wording import counted, memory_size

_TASKS = {"transcribe": "automatic-speech-recognition", "classify": "audio-classification"}
_MOMENTS = {
    "before": "development clips, before training",
    "after": "development clips, which chose the weights",
    "test": "test clips",
}


def build_card(
    record: RunRecord,
    *,
    kind: Kind,
    task: str,
    usage: Usage | None = None,
    parity: Mapping[str, Any] | None = None,
) -> str:
    """A `README.md` for an adapter or a model.

    Args:
        record: Of the run that trained it.
        kind: What lies beside the card.
        task: Registry name of the task.
        usage: How it is used; None takes what the record says.
        parity: What `parity.json` of an export holds.
    """
    usage = usage or usage_of(record, kind)
    front = yaml.safe_dump(_front_matter(record, kind, task), sort_keys=False, allow_unicode=True, width=120)
    base = _name_of_base(record)
    what = "Fine-tuned from"
    if kind == "adapter":
        what = "A LoRA adapter for" if (method := _adapter_of(record)) == "lora" else f"An adapter (`{method}`) for"
    parts = [
        f"---\n{front}---",
        f"# {record.run_id}",
        f"{what} `{base}`, made by [sonotune]({_HOME}) {record.code.get('version', '')}.",
        "## Scores",
        _scores(record),
        "## Parity",
        _parity(parity),
        "## What it was trained on",
        _data(record),
        "## How it was trained",
        _training(record, window=usage.window_s is not None),
        "## How to use it",
        usage_lines(usage),
        "## Which tools read it",
        tools_lines(usage),
        "## Limits",
        _limits(record),
    ]
    return "\n\n".join(parts) + "\n"


_HOME = "https://pypi.org/project/sonotune/"


def _front_matter(record: RunRecord, kind: Kind, task: str) -> dict[str, Any]:
    language = language_of(record)
    tested = bool(record.scores.get("test"))
    scores = record.scores.get("test") or record.scores.get("after") or {}
    base = _hub_name(record)
    results = [
        {"type": name, "value": round(shown_number(row, float(row["value"])), 2), "name": score_title(name, row)}
        for name, row in scores.items()
    ]
    return {
        **({"base_model": base} if base else {}),
        **({"base_model_relation": "adapter" if kind == "adapter" else "finetune"} if base else {}),
        **({"language": [language]} if language else {}),
        "library_name": "peft" if kind == "adapter" else "transformers",
        "pipeline_tag": _TASKS.get(task, "automatic-speech-recognition"),
        "tags": ["sonotune", *([_adapter_of(record)] if kind == "adapter" else [])],
        "model-index": [
            {
                "name": record.run_id,
                "results": [
                    {
                        "task": {"type": _TASKS.get(task, "automatic-speech-recognition")},
                        "dataset": {
                            "name": f"own {_MOMENTS['test' if tested else 'after']}",
                            "type": "own",
                            "split": "test" if tested else "validation",
                        },
                        "metrics": results,
                    }
                ]
                if results
                else [],
            }
        ],
    }


def _adapter_of(record: RunRecord) -> str:
    """Registry name of the kind of adapter that was trained."""
    return str(record.config.get("adapter", {}).get("kind", "lora"))


_LOCAL_REVISION = re.compile(r"[0-9a-f]{16}|random-.*")  # a digest of files, where the hub has a commit


def _hub_name(record: RunRecord) -> str | None:
    """`OWNER/NAME` where the base is from the hub; a folder of somebody's machine is nobody else's business.

    A folder may be called `models/mine`, which is somebody's name on the hub: the revision tells the two apart.
    """
    checkpoint, revision = str(record.model.get("checkpoint", "")), str(record.model.get("revision") or "")
    if checkpoint.count("/") != 1 or checkpoint.startswith((".", "/", "~")) or ":" in checkpoint:
        return None
    return None if _LOCAL_REVISION.fullmatch(revision) else checkpoint


def _name_of_base(record: RunRecord) -> str:
    checkpoint = str(record.model.get("checkpoint", "an unnamed model"))
    return _hub_name(record) or (checkpoint if ":" in checkpoint else checkpoint.rstrip("/").rpartition("/")[2])


def _scores(record: RunRecord) -> str:
    rows = []
    for moment, about in _MOMENTS.items():
        for name, row in record.scores.get(moment, {}).items():
            low, high = (f"{shown_number(row, float(row[key])):.2f}" for key in ("low", "high"))
            shown = show_value(row, digits=2)
            rows.append(f"| {score_title(name, row)} | {shown} | {low} to {high} | {about}, {_over(row)} |")
    if not rows:
        return "Nothing was scored."
    return "\n".join(["| score | value | 95 % interval | of |", "| --- | --- | --- | --- |", *rows])


def _over(row: Mapping[str, Any]) -> str:
    speakers = row.get("detail", {}).get("speakers")
    clips = counted(row["count"], "clip")
    return f"{clips} of {counted(speakers, 'speaker')}" if speakers else clips


def _data(record: RunRecord) -> str:
    digests = [f"- {split}: SHA-256 `{digest}`" for split, digest in record.data_digest.items()]
    words = "Clips of the one who trained it. A digest covers the manifest's lines and the size of every recording:"
    return "\n".join([words, "", *digests]) if digests else "No record of the clips was kept."


def _training(record: RunRecord, *, window: bool) -> str:
    components = record.model.get("components", {})
    trained = sum(row["trainable"] for row in components.values())
    total = sum(row["parameters"] for row in components.values())
    ranks, adapter = sorted(record.ranks.values()), record.config.get("adapter", {})
    beside = f"{trained:,} trained parameters beside {total:,} of the base"
    lines = [f"- {trained:,} of {total:,} parameters were trained" if adapter.get("kind") == "none" else f"- {beside}"]
    if ranks:
        allocator = adapter.get("allocator", "uniform")
        held = f"rank {ranks[0]}" if ranks[0] == ranks[-1] else f"ranks {ranks[0]} to {ranks[-1]}"
        lines.append(f"- {held} in {counted(len(ranks), 'module')} (`{allocator}`)")
    if teacher := record.model.get("teacher"):
        named = str(teacher.get("checkpoint", "")).rstrip("/").rpartition("/")[2]
        lines.append(f"- learned from the teacher {named} (digest `{str(teacher.get('digest', ''))[:12]}`)")
    lines += [f"- {context}" for context in _context(record, window=window)]
    lines += [f"- {setting}: {reason}" for setting, reason in record.choices.items()]
    training = record.config.get("training", {})
    rate = training.get("learning_rate")
    given = "" if rate == "auto" else f"learning rate {rate}, "  # why `auto` took which is among the choices
    lines.append(f"- {given}seed {training.get('seed')}")
    lines.append(f"- {_lasted(record.seconds)}, peak memory {memory_size(record.peak_memory_bytes)}")
    if record.energy_joules is not None:
        lines.append(f"- {record.energy_joules / 3600:,.0f} Wh")
    packages = record.environment.get("packages", {})
    versions = [f"{name} {packages[name]}" for name in ("torch", "transformers", "peft") if name in packages]
    lines.append(f"- {', '.join(versions)}; sonotune at commit `{record.code.get('commit', 'unknown')[:12]}`")
    return "\n".join(lines)


def _context(record: RunRecord, *, window: bool) -> list[str]:
    """How much of its window the model was trained on, where it has one and the record says it."""
    context = record.model.get("context")
    if context is None or not window:
        return []
    if context == "full":
        return ["trained with model.context=full, the whole window, as other tools compute it"]
    share = record.config.get("model", {}).get("full_context_share")
    mixed = isinstance(share, int | float) and share > 0
    whole = f" ({100 * share:g} % of the batches over the whole window)" if mixed else ""
    return [f"trained with model.context={context}{whole}; other tools compute the whole window"]


def _lasted(seconds: float) -> str:
    """The time of a run, in seconds below a minute."""
    if seconds < 1:
        return "less than a second"
    return counted(int(seconds), "second") if seconds < 60 else counted(round(seconds / 60), "minute")


_WINDOWS_S = {"whisper": 30.0}
"""Of published models; what lies beside a card says it of others."""


def usage_of(record: RunRecord, kind: Kind) -> Usage:
    """How a model is used, by the record alone; what only its files say is left at its default."""
    base = str(record.model.get("checkpoint", ""))
    return Usage(
        family=str(record.model.get("family", "")),
        kind=kind,
        base=_name_of_base(record),
        revision=record.model.get("revision"),
        language=language_of(record),
        multilingual=not base.endswith(".en"),
        multi_label=bool(record.config.get("data", {}).get("multi_label")),
        bits=_bits(record),
        method=_adapter_of(record),
        window_s=_WINDOWS_S.get(str(record.model.get("family", ""))),
    )


def _bits(record: RunRecord) -> int:
    """In which the frozen weights were held, by the choice that was made."""
    said = str(record.choices.get("quantization.bits", "")).partition(":")[0]
    return int(said) if said.isdigit() else 16


class _Rate(TypedDict):
    value: Number


class _Difference(TypedDict):
    value: Number
    low: Number | None
    high: Number | None


class _NotCompared(TypedDict):
    equal: None
    reason: str


class _Compared(TypedDict):
    equal: Number
    difference: dict[str, _Difference]
    scored: dict[str, _Rate]
    served: dict[str, _Rate]
    passed: bool
    sentence: str
    tolerance: Number
    context: str
    tool: str
    clips: Count


_PARITY: TypeAdapter[_NotCompared | _Compared] = TypeAdapter(_NotCompared | _Compared)


def read_parity(path: Path) -> Mapping[str, Any]:
    """What `parity.json` of an export holds.

    Raises:
        RunDirectoryError: It is damaged.
    """
    return read_json(path, _PARITY, error=RunDirectoryError, do="Export again.")


def _parity(parity: Mapping[str, Any] | None) -> str:
    if parity is None:
        return "What another tool makes of it was not compared with the scores above; `sonotune export` does that."
    if parity["equal"] is None:
        return f"What another tool makes of it was not compared with the scores above: {parity['reason']}."
    rows = []
    for name, difference in parity["difference"].items():
        scored, served = (100 * parity[side][name]["value"] for side in ("scored", "served"))
        low, high = difference["low"], difference["high"]
        between = "" if low is None or low == high else f"{100 * low:+.2f} to {100 * high:+.2f}"
        rows.append(
            f"| {score_title(name, parity['scored'][name])} | {scored:.2f} % | {served:.2f} % "
            f"| {100 * difference['value']:+.2f} | {between} |"
        )
    return "\n".join(
        [
            parity["sentence"],
            "",
            "| score | scored | served | points between | 95 % interval |",
            "| --- | --- | --- | --- | --- |",
            *rows,
        ]
    )


def _limits(record: RunRecord) -> str:
    scores = record.scores.get("test") or record.scores.get("after") or {}
    row = next(iter(scores.values()), None)
    which = "" if record.scores.get("test") else " that chose its weights"
    heard = "It was not scored." if row is None else f"It was scored on {_over(row)}{which}, and on nothing else."
    warnings = [
        finding.message
        for finding in record.findings
        if finding.severity == "warning" and finding.check != "export.parity"  # a section of its own
    ]
    return "\n".join(
        [
            f"{heard} How it does on other voices, rooms, microphones and subjects is not known. Nor is the licence of "
            "its training clips and of its base: see to both before you pass it on.",
            *(["", *(f"- {message}" for message in warnings)] if warnings else []),
        ]
    )
