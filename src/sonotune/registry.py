"""Every extension point as a literal table of names: name -> `"module:object"`.

Nothing is imported until it is asked for, so a table may name modules that need torch. A plug-in outside this package
joins a table with an entry point in the group `sonotune.<kind>` (`sonotune.families`, `sonotune.tasks`, ...); a
built-in name cannot be taken over.

Files that come with the package are named `assets:<path>` wherever a checkpoint or a manifest is named.
"""

from __future__ import annotations

import importlib
import re
from importlib import metadata, resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from sonotune.errors import ConfigError, suggest
from sonotune.paths import exists

Kind = Literal[
    "families",
    "tasks",
    "normalizers",
    "importers",
    "adapters",
    "allocators",
    "objectives",
    "frontends",
    "aligners",
    "panels",
    "scores",
]

FAMILIES = MappingProxyType(
    {
        "whisper": "sonotune.models.families.whisper:WhisperFamily",
        "qwen3_asr": "sonotune.models.families.qwen3_asr:Qwen3AsrFamily",
        "ctc": "sonotune.models.families.ctc:CtcFamily",
        "speech_llm": "sonotune.models.families.speech_llm:SpeechLlmFamily",
        "ast": "sonotune.models.families.ast:AstFamily",
    }
)
TASKS = MappingProxyType(
    {"transcribe": "sonotune.tasks.transcribe:Transcribe", "classify": "sonotune.tasks.classify:Classify"}
)
NORMALIZERS = MappingProxyType(
    {
        "identity": "sonotune.data.text:IDENTITY",
        "basic": "sonotune.data.text:BASIC",
        "english": "sonotune.data.text:ENGLISH",
        "whisper_english": "sonotune.data.normalizers.whisper_english:WHISPER_ENGLISH",
        "hebrew": "sonotune.data.normalizers.hebrew:HEBREW",
        "hebrew_folded": "sonotune.data.normalizers.hebrew:HEBREW_FOLDED",
        "arabic": "sonotune.data.normalizers.arabic:ARABIC",
        "persian": "sonotune.data.normalizers.persian:PERSIAN",
        "hindi": "sonotune.data.normalizers.hindi:HINDI",
        "cjk": "sonotune.data.normalizers.cjk:CJK",
    }
)
IMPORTERS = MappingProxyType(
    {
        "jsonl": "sonotune.data.readers.json_records:load_jsonl",
        "json": "sonotune.data.readers.json_records:load_json",
        "nemo": "sonotune.data.readers.json_records:load_json",
        "qwen": "sonotune.data.readers.json_records:load_json",
        "swift": "sonotune.data.readers.json_records:load_json",
        "whisper_finetune": "sonotune.data.readers.json_records:load_json",
        "csv": "sonotune.data.readers.tables:load_csv",
        "speechbrain": "sonotune.data.readers.tables:load_speechbrain",
        "common_voice": "sonotune.data.readers.tables:load_common_voice",
        "ljspeech": "sonotune.data.readers.tables:load_ljspeech",
        "folder": "sonotune.data.readers.folders:load_folder",
        "audiofolder": "sonotune.data.readers.folders:load_audiofolder",
        "kaldi": "sonotune.data.readers.corpora:load_kaldi",
        "librispeech": "sonotune.data.readers.corpora:load_librispeech",
        "mls": "sonotune.data.readers.corpora:load_mls",
        "fsdd": "sonotune.data.readers.corpora:load_fsdd",
        "hub": "sonotune.data.hub:load_hub",
        "rudiments": "sonotune.data.rudiments:load_rudiments",
    }
)
ADAPTERS = MappingProxyType(
    {
        "lora": "sonotune.adapters.kinds.lora:LORA",
        "gated_lora": "sonotune.adapters.kinds.gated_lora:GATED_LORA",
        "clip_gated_lora": "sonotune.adapters.kinds.gated_lora:CLIP_GATED_LORA",
        "shuffled_gated_lora": "sonotune.adapters.kinds.gated_lora:SHUFFLED_GATED_LORA",
        "conv_lora": "sonotune.adapters.kinds.conv_lora:CONV_LORA",
        "none": "sonotune.adapters.kinds.none:NONE",
    }
)
ALLOCATORS = MappingProxyType(
    {
        "uniform": "sonotune.adapters.ranks.allocators.uniform:UniformAllocator",
        "entropy": "sonotune.adapters.ranks.allocators.entropy:EntropyAllocator",
        "gradient": "sonotune.adapters.ranks.allocators.gradient:GradientAllocator",
        "gradient_eva": "sonotune.adapters.ranks.allocators.gradient:GradientEvaAllocator",
        "eva": "sonotune.adapters.ranks.allocators.eva:EvaAllocator",
        "eva_ranks": "sonotune.adapters.ranks.allocators.eva:EvaRanksAllocator",
        "uniform_eva": "sonotune.adapters.ranks.allocators.eva:UniformEvaAllocator",
        "inverse": "sonotune.adapters.ranks.allocators.entropy:InverseAllocator",
        "shuffled": "sonotune.adapters.ranks.allocators.controls:ShuffledAllocator",
        "random": "sonotune.adapters.ranks.allocators.controls:RandomAllocator",
        "adalora": "sonotune.adapters.ranks.allocators.adalora:AdaLoraAllocator",
    }
)

OBJECTIVES = MappingProxyType(
    {
        "task": "sonotune.training.objectives.task:TaskObjective",
        "ctc_mix": "sonotune.training.objectives.ctc_mix:CtcMix",
        "star": "sonotune.training.objectives.star:Star",
        "distill": "sonotune.training.objectives.distill:Distill",
    }
)
FRONTENDS = MappingProxyType(
    {
        "log_mel": "sonotune.features.frontend:LogMel",
        "chunked_log_mel": "sonotune.features.chunked_mel:ChunkedLogMel",
        "filter_bank": "sonotune.features.frontend:FilterBank",
        "mfcc": "sonotune.features.frontend:Mfcc",
        "raw_waveform": "sonotune.features.frontend:RawWaveform",
        "normalized_log_mel": "sonotune.features.parakeet:NormalizedLogMel",
        "normalized": "sonotune.features.frontend:Normalized",
    }
)
ALIGNERS = MappingProxyType(
    {
        "ctc": "sonotune.alignment.ctc:CtcAligner",
        "whisper": "sonotune.alignment.whisper:WhisperAligner",
        "qwen3": "sonotune.alignment.qwen3:Qwen3Aligner",
    }
)
PANELS = MappingProxyType(
    {
        "manifest": "sonotune.evaluation.retention.manifest:MANIFEST",
        "nonspeech": "sonotune.evaluation.retention.nonspeech:NONSPEECH",
        "language": "sonotune.evaluation.retention.language:LANGUAGE",
        "long": "sonotune.evaluation.retention.long_form:LONG_FORM",
        "punctuation": "sonotune.evaluation.retention.punctuation:PUNCTUATION_PANEL",
        "timestamps": "sonotune.evaluation.retention.timestamps:TIMESTAMPS",
    }
)
SCORES = MappingProxyType(
    {
        "bleu": "sonotune.metrics.text:BLEU",
        "chrf": "sonotune.metrics.text:CHRF",
        "perplexity": "sonotune.metrics.text:PERPLEXITY",
        "token_accuracy": "sonotune.metrics.text:TOKEN_ACCURACY",
        "punctuation": "sonotune.metrics.formatting:PUNCTUATION",
        "wer_orthographic": "sonotune.metrics.formatting:ORTHOGRAPHIC_WER",
        "open_asr": "sonotune.metrics.compounds:OPEN_ASR",
    }
)
"""Scores of texts beside WER and CER (`evaluation.scores`)."""

TABLES: MappingProxyType[Kind, MappingProxyType[str, str]] = MappingProxyType(
    {
        "families": FAMILIES,
        "tasks": TASKS,
        "normalizers": NORMALIZERS,
        "importers": IMPORTERS,
        "adapters": ADAPTERS,
        "allocators": ALLOCATORS,
        "objectives": OBJECTIVES,
        "frontends": FRONTENDS,
        "aligners": ALIGNERS,
        "panels": PANELS,
        "scores": SCORES,
    }
)

ASSET_PREFIX = "assets:"
_SOURCE_PREFIX = re.compile(r"^(?P<importer>[a-z][a-z0-9_]*):(?P<rest>.*)$", re.DOTALL)


def names(kind: Kind) -> tuple[str, ...]:
    """Every name of a table, built in and from installed plug-ins, sorted."""
    return tuple(sorted(_table(kind)))


def in_order(kind: Kind) -> tuple[str, ...]:
    """Every name of a table: built in as they stand there, then those of plug-ins."""
    return tuple({**TABLES[kind], **_table(kind)})


def resolve(kind: Kind, name: str) -> Any:
    """Import what a name stands for.

    Args:
        kind: The table.
        name: The name in it.

    Returns:
        The class, function or value.

    Raises:
        ConfigError: No such name, or the plug-in behind it cannot be imported.
    """
    # Built-in names first: looking for plug-ins walks over all that is installed.
    table = TABLES[kind] if name in TABLES[kind] else _table(kind)
    if name not in table:
        raise ConfigError(
            f"{kind}: there is no {name!r}{suggest(name, table, '.')} Known: {', '.join(sorted(table))}. "
            f"Another package can add one with an entry point in the group 'sonotune.{kind}'."
        )
    module_name, _, attribute = table[name].partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        if module_name.startswith("sonotune."):
            raise  # a fault of this package must show its traceback
        raise ConfigError(
            f"{kind}: {name!r} names {table[name]!r}, which cannot be imported: {error}. "
            "Mend or uninstall the package that declares it."
        ) from error
    return found


def _table(kind: Kind) -> dict[str, str]:
    plugins = {point.name: point.value for point in metadata.entry_points(group=f"sonotune.{kind}")}
    return {**plugins, **TABLES[kind]}


def split_source(source: str) -> tuple[str, str]:
    """Take the importer off a source of clips.

    Args:
        source: `IMPORTER:SOURCE` such as `folder:clips`, `assets:NAME`, or a path.

    Returns:
        The importer's name, or `auto` where none is named, and the rest. The rest may be empty (`fsdd:`), which
        leaves the place to the importer.

    Raises:
        ConfigError: What stands before the first colon is no importer.
    """
    prefix = _SOURCE_PREFIX.match(source)
    if prefix is None or is_asset(source):
        return "auto", source
    name = prefix["importer"]
    if name not in IMPORTERS and name not in names("importers"):
        raise ConfigError(
            f"no importer called {name!r}{suggest(name, names('importers'), '.')} "
            f"Known: {', '.join(names('importers'))}. Write ./ before a path that has a colon in it"
        )
    return name, prefix["rest"]


def is_asset(name: str) -> bool:
    """Whether a checkpoint or a manifest is named as part of the package."""
    return name.startswith(ASSET_PREFIX)


def resolve_asset(name: str) -> Path:
    """Find a packaged file or folder.

    Args:
        name: `assets:<path>`, with `/` between parts, such as `assets:whisper-nano`.

    Raises:
        ConfigError: The package has no such file, or the path leaves the assets folder.
    """
    # Wheels are unpacked on installation, so a packaged file is a file; a zipped package is not supported.
    root = Path(str(resources.files("sonotune"))) / "assets"
    parts = Path(name.removeprefix(ASSET_PREFIX)).parts
    path = root.joinpath(*parts)
    if not parts or ".." in parts or Path(*parts).is_absolute():
        raise ConfigError(f"{name!r} does not name a packaged file. Write {ASSET_PREFIX}NAME; known: {_assets(root)}.")
    if not exists(path):
        raise ConfigError(f"the package has no {name!r}. Known: {_assets(root)}.")
    return path


def _assets(root: Path) -> str:
    found = sorted(path.name for path in root.iterdir() if path.name[0] not in "_.") if root.is_dir() else []
    return ", ".join(f"{ASSET_PREFIX}{name}" for name in found) or "none in this installation"
