"""Score panels before and after tuning, and compare them clip by clip."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from sonotune.data import manifest
from sonotune.errors import ConfigError
from sonotune.evaluation.retention.base import Measured, PanelKind, PanelRequest, PanelScore, Predict
from sonotune.metrics.retention import outcome_of
from sonotune.progress import about
from sonotune.registry import ASSET_PREFIX, TABLES, is_asset, names, resolve, split_source
from sonotune.runs import digest_json
from sonotune.types import Clip, Finding

logger = logging.getLogger(__name__)

_MANIFEST: Final = "manifest"
_EXAMPLES: Final = 3
_SHOWN_TEXT: Final = 200
_SLICED_BY: Final = {"nonspeech": "domain", "language": "language"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Clips that are scored before and after tuning.

    Attributes:
        kind: What it is, and how it is counted.
        name: In tables.
        source: As the setting names it.
        clips: The same before and after.
        digest: Of the clips.
    """

    kind: PanelKind
    name: str
    source: str
    clips: tuple[Clip, ...]
    digest: str


def split_panel(named: str) -> tuple[str, str]:
    """Registry name and source of an entry of `evaluation.keep`: `nonspeech`, `language:SOURCE`, or a manifest."""
    name, _, rest = named.partition(":")
    known = name in TABLES["panels"] or (bool(rest) and name in names("panels"))
    return (name, rest) if known else (_MANIFEST, named)


@contextmanager
def open_panels(
    keep: Sequence[str],
    task: Any,
    loaded: Any,
    *,
    read: Callable[..., tuple[list[Clip], list[Finding]]],
    clips: int,
    seed: int,
    language: str | None = None,
) -> Iterator[tuple[list[Panel], list[Finding]]]:
    """The panels that are asked for, while their audio is there, and what was found in their clips.

    Args:
        keep: Entries of `evaluation.keep`.
        task: The task of the model.
        loaded: The model that is asked; which one is of no matter.
        read: See `PanelRequest`.
        clips: Of each panel at most.
        seed: Of generated clips, and of the draw where a manifest has more.
        language: Of clips that name none.

    Raises:
        ConfigError: A panel cannot be asked of this model, or lacks a source, or has one too many.
        ManifestError: A source cannot be read.
    """
    with TemporaryDirectory(prefix="sonotune-panels-") as folder:
        opened, findings = [], list[Finding]()
        titles = _titles(keep)
        for index, named in enumerate(keep):
            name, source = split_panel(named)
            kind: PanelKind = resolve("panels", name)
            _check(kind, source, named, task, loaded)
            place = Path(folder) / str(index)
            place.mkdir()
            request = PanelRequest(read=read, clips=clips, seed=seed, folder=place, language=language)
            found, noted = kind.clips(source, task, loaded, request)
            findings += noted
            panel = Panel(
                kind=kind, name=titles[index], source=named, clips=tuple(found), digest=manifest.digest(found)
            )
            opened.append(panel)
        yield opened, findings


def _check(kind: PanelKind, source: str, named: str, task: Any, loaded: Any) -> None:
    if kind.takes_source and not source:
        raise ConfigError(
            f"evaluation.keep={named}: the panel {kind.name} needs a manifest. Write {kind.name}:MANIFEST."
        )
    if source and not kind.takes_source:
        raise ConfigError(
            f"evaluation.keep={named}: the panel {kind.name} makes its own clips. Write {kind.name} alone."
        )
    if (why := kind.refusal(task, loaded)) is not None:
        raise ConfigError(f"evaluation.keep={named}: {loaded.checkpoint} cannot be asked, for {why}. Leave it out.")


def _titles(keep: Sequence[str]) -> list[str]:
    """Short names: the last two parts of a path without its ending, where that tells all of them apart."""
    short = []
    for named in keep:
        name, source = split_panel(named)
        _, place = split_source(source) if source and not is_asset(source) else ("", source.removeprefix(ASSET_PREFIX))
        parts = Path(place).with_suffix("").parts[-2:] if place else (source.rstrip(":"),)
        of = "/".join(part for part in parts if part not in ("/", ".", ".."))
        short.append(of if name == _MANIFEST else f"{name} of {of}" if of else name)
    return short if len(set(short)) == len(short) else list(keep)


def measure(panel: Panel, task: Any, loaded: Any, predict: Predict, *, where: str) -> Measured:
    """Ask a model about the clips of a panel.

    Args:
        panel: What is asked.
        task: The task of the model.
        loaded: The model as it is to be asked.
        predict: See `base.Predict`.
        where: For the progress bar, such as `before tuning`.
    """
    with about(f"{panel.name}, {where}"):
        found = panel.kind.measure(task, loaded, panel.clips, predict)
    # A tokenizer can write half a surrogate pair, which is no text and cannot be kept.
    return found._replace(texts=tuple(text.encode("utf-8", "replace").decode("utf-8") for text in found.texts))


def compare_panel(panel: Panel, before: Measured, after: Measured, *, resamples: int, seed: int) -> dict[str, Any]:
    """One entry of `retention`, ready for JSON.

    Args:
        panel: What was asked.
        before: Of the base model.
        after: Of the tuned model.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        `panel`, `kind`, `source`, `clips`, `digest`, `score` (the name of the one that decides), `before` and `after`
        (name -> score), `difference` (name -> after minus before, paired by clip, None for too few clips), `outcome`,
        `slices` and `examples` (clips that changed most, with both texts).
    """
    draws = {"resamples": resamples, "seed": seed}
    found: dict[str, Any] = {}
    for was, now in zip(before.scores, after.scores, strict=True):
        difference = was.difference(now, panel.clips, **draws)
        told = None if difference is None else difference.to_json()
        found[was.name] = told and told | ({"unit": "words/min"} if was.counting == "rate" else {})
    first = before.scores[0].name
    return {
        "panel": panel.name,
        "kind": panel.kind.name,
        "source": panel.source,
        "clips": len(panel.clips),
        "digest": panel.digest,
        "score": first,
        "before": scores_of(panel, before, **draws),
        "after": scores_of(panel, after, **draws),
        "difference": found,
        "outcome": outcome_of(found[first]),
        "slices": _slices(panel, before.scores[0], after.scores[0]),
        "examples": _examples(panel, before, after),
    }


def scores_of(panel: Panel, measured: Measured, *, resamples: int, seed: int) -> dict[str, Any]:
    """Name -> score in JSON form."""
    return {one.name: one.score(panel.clips, resamples=resamples, seed=seed).to_json() for one in measured.scores}


def _slices(panel: Panel, before: PanelScore, after: PanelScore) -> list[dict[str, Any]]:
    """The score that decides by kind of sound, or by language."""
    by = _SLICED_BY.get(panel.kind.name)
    if by is None:
        return []
    members: dict[str, list[int]] = {}
    for index, clip in enumerate(panel.clips):
        members.setdefault(str(getattr(clip, by)), []).append(index)
    return [
        {
            "value": value,
            "clips": len(places),
            "before": sum(before.counts[index] for index in places) / sum(before.totals[index] for index in places),
            "after": sum(after.counts[index] for index in places) / sum(after.totals[index] for index in places),
        }
        for value, places in members.items()
    ]


def _examples(panel: Panel, before: Measured, after: Measured) -> list[dict[str, Any]]:
    """The clips whose score became worse by most, with what was written on them."""
    was, now = before.scores[-1], after.scores[-1]
    sign = -1 if now.better == "higher" else 1
    harm = [
        sign * (new - old) / max(total, 1e-9)
        for old, new, total in zip(was.counts, now.counts, was.totals, strict=True)
    ]
    worst = sorted((index for index, one in enumerate(harm) if one > 0), key=lambda index: (-harm[index], index))
    return [
        {
            "id": panel.clips[index].id,
            "reference": (panel.clips[index].text or "")[:_SHOWN_TEXT],
            "before": before.texts[index][:_SHOWN_TEXT],
            "after": after.texts[index][:_SHOWN_TEXT],
        }
        for index in worst[:_EXAMPLES]
    ]


# --- kept between the start and the end of a run ------------------------------------------------------------------

_SCORES = TypeAdapter(list[PanelScore])
_TEXTS = TypeAdapter(list[str])


def key_of(panel: Panel, conditions: Mapping[str, Any]) -> str:
    """Digest of what decides a measurement: the clips, and the model and settings that they are asked with."""
    return digest_json([panel.kind.name, panel.digest, dict(conditions)])


def to_json(measured: Measured, key: str) -> dict[str, Any]:
    """A measurement as it is kept in a run directory."""
    return {"key": key, "scores": [asdict(one) for one in measured.scores], "texts": list(measured.texts)}


def from_json(kept: Mapping[str, Any], key: str, clips: int) -> Measured | None:
    """A measurement that was kept; None where it is damaged, or was made of something else."""
    try:
        scores, texts = _SCORES.validate_python(kept.get("scores")), _TEXTS.validate_python(kept.get("texts"))
    except ValidationError:
        return None
    whole = all(len(one.counts) == len(one.totals) == clips for one in scores) and len(texts) == clips
    return Measured(tuple(scores), tuple(texts)) if kept.get("key") == key and scores and whole else None
