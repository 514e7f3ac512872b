"""Values of settings that are checked alike wherever they stand: names of the registry, sources, selectors, shares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator, Field

from sonotune import registry
from sonotune.errors import ConfigError


def _check_name(kind: registry.Kind, *others: str) -> Callable[[str], str]:
    def check(name: str) -> str:
        if name not in ("auto", *others, *registry.TABLES[kind]) and name not in registry.names(kind):
            raise ValueError(f"no such name; known: {', '.join((*others, *registry.names(kind)))}")
        return name

    return check


def _check_source(source: str) -> str:
    if not source.strip():
        raise ValueError("an empty name; write a manifest's path, IMPORTER:SOURCE or assets:NAME")
    if "://" in source:
        raise ValueError("an address is not read over the network; download it, or write hub:OWNER/NAME")
    try:
        registry.split_source(source)
    except ConfigError as error:
        raise ValueError(str(error)) from error
    return source


def _check_checkpoint(checkpoint: str) -> str:
    if not checkpoint.strip() or "://" in checkpoint:
        raise ValueError("write assets:NAME, a folder, or the OWNER/NAME of a hub model")
    return checkpoint


def _check_selectors(selectors: tuple[str, ...]) -> tuple[str, ...]:
    repeated = sorted(name for name, count in Counter(selectors).items() if count > 1)
    if repeated or not all(selectors):
        raise ValueError(f"{repeated[0]!r} stands twice" if repeated else "an empty name")
    return selectors


def _check_panel(named: str) -> str:
    name, _, source = named.partition(":")
    if name in registry.TABLES["panels"] or (source and name in registry.names("panels")):
        return named if not source else f"{name}:{_check_source(source)}"
    return _check_source(named)


ManifestSource = Annotated[str, AfterValidator(_check_source)]
"""A manifest's path, `assets:NAME`, or `IMPORTER:SOURCE` such as `folder:clips` or `common_voice:cv/train.tsv`."""
Checkpoint = Annotated[str, AfterValidator(_check_checkpoint)]
Selectors = Annotated[tuple[str, ...], AfterValidator(_check_selectors)]
FamilyName = Annotated[str, AfterValidator(_check_name("families"))]
TaskName = Annotated[str, AfterValidator(_check_name("tasks"))]
NormalizerName = Annotated[str, AfterValidator(_check_name("normalizers"))]
AdapterKindName = Annotated[str, AfterValidator(_check_name("adapters"))]
ObjectiveName = Annotated[str, AfterValidator(_check_name("objectives"))]
PanelNames = Annotated[tuple[Annotated[str, AfterValidator(_check_panel)], ...], AfterValidator(_check_selectors)]
"""Each is `nonspeech`, `KIND:SOURCE` such as `language:SOURCE`, or a source of clips."""
AlignerName = Annotated[str, AfterValidator(_check_name("aligners"))]
ScoreNames = Annotated[
    tuple[Annotated[str, AfterValidator(_check_name("scores", "wer", "cer"))], ...], AfterValidator(_check_selectors)
]
PrimaryName = Annotated[str, AfterValidator(_check_name("scores", "wer", "cer", "accuracy", "f1_macro", "map"))]
AllocatorName = Annotated[str, AfterValidator(_check_name("allocators"))]
Multiplier = Annotated[float, Field(gt=0, le=1000)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
