"""Splits that never share a speaker, and the check that two sets do not leak into each other.

`split_by_speaker` is what a run makes of its training clips when no evaluation clips are named, and what a finished run
makes again when it is compared or exported: for a seed it always gives the same clips. `sonotune data split`
has more ways and more to keep even (`sonotune.data.split_corpus`).
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sonotune.data.lines import show
from sonotune.data.text import BASIC
from sonotune.errors import ManifestError, suggest
from sonotune.runs import digest_file, generator
from sonotune.types import Clip, Finding, Severity
from sonotune.wording import counted, plural

DEFAULT_FRACTIONS: Final[Mapping[str, float]] = MappingProxyType({"train": 0.9, "eval": 0.1})

# Spans that touch are no leak, and manifests round to milliseconds.
OVERLAP_S: Final = 0.01
_TRIALS: Final = 32

_USUAL: Final = "That is usual for commands and digits; --by text of `sonotune data split` keeps sentences apart."
_RENAMED: Final = ("recording under another name", "recordings under other names")
_AGAIN: Final = "Split again: `sonotune data split` keeps recordings together."


def split_by_speaker(
    clips: Sequence[Clip],
    *,
    fractions: Mapping[str, float] | None = None,
    eval_speakers: Sequence[str] = (),
    seed: int = 0,
) -> dict[str, list[Clip]]:
    """Divide clips so that no speaker is in two parts. Clips without a speaker go by their file.

    Args:
        clips: The clips; `duration_s` must be known.
        fractions: Part -> share of the total duration; shares above 0 that add up to 1. Approximated as closely as
            whole speakers allow. 0.9 `train` and 0.1 `eval` where None.
        eval_speakers: These speakers make `eval`, all others `train`. Not together with `fractions`.
        seed: Decides which of the equally good divisions is taken.

    Returns:
        Part -> its clips in their old order.

    Raises:
        ManifestError: A part would be empty, a speaker is unknown, or the shares are wrong.
    """
    if eval_speakers:
        if fractions is not None:
            raise ManifestError(
                "a split has both eval_speakers and fractions: found both; allowed is one of them. Remove one."
            )
        return _split_named(clips, eval_speakers)
    shares = dict(DEFAULT_FRACTIONS if fractions is None else fractions)
    if not shares or not all(0 < share <= 1 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
        raise ManifestError(
            f"the shares of a split are wrong: found {shares}; allowed are numbers above 0 that add up to 1. Mend them."
        )
    groups: dict[str, list[int]] = defaultdict(list)
    for index, clip in enumerate(clips):
        groups[_group(clip)].append(index)
    if len(groups) < len(shares):
        raise ManifestError(
            f"{counted(len(clips), 'clip')} cannot be split into {', '.join(shares)}: found "
            f"{counted(len(groups), 'speaker')}; allowed are at least {len(shares)}, because a speaker may be in one "
            "part only. Add speakers or ask for fewer parts."
        )
    part_of = _assign(clips, groups, shares, seed)
    return {part: [clip for clip in clips if part_of[_group(clip)] == part] for part in shares}


def _group(clip: Clip) -> str:
    return f"speaker {clip.speaker}" if clip.speaker is not None else f"file {clip.path}"


def _split_named(clips: Sequence[Clip], eval_speakers: Sequence[str]) -> dict[str, list[Clip]]:
    known = sorted({clip.speaker for clip in clips if clip.speaker is not None})
    for name in eval_speakers:
        if name not in known:
            listed = ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
            raise ManifestError(
                f"eval_speakers names {name!r}: found no clip of that speaker; allowed are {listed or 'none here'}. "
                f"Mend the name{suggest(name, known)}".rstrip(".?")
                + "."
            )
    chosen = set(eval_speakers)
    parts = {
        "train": [clip for clip in clips if clip.speaker not in chosen],
        "eval": [clip for clip in clips if clip.speaker in chosen],
    }
    if not parts["train"]:
        raise ManifestError(
            f"eval_speakers leaves nothing to train on: found all {len(clips)} clips in eval; allowed is at least one "
            "speaker outside. Name fewer speakers."
        )
    return parts


def _assign(
    clips: Sequence[Clip], groups: Mapping[str, Sequence[int]], shares: Mapping[str, float], seed: int
) -> dict[str, str]:
    """Try seeded orders of the speakers and keep the division nearest to the shares."""
    names = sorted(groups)
    seconds = np.array([math.fsum(clips[index].duration_s for index in groups[name]) for name in names])
    targets = np.array(list(shares.values())) * max(float(seconds.sum()), 1e-9)
    rng = generator(seed, "split")
    best, best_miss = np.zeros(len(names), dtype=np.int64), math.inf
    for _ in range(_TRIALS):
        assigned = _fill(rng.permutation(len(names)), seconds, targets)
        totals = np.bincount(assigned, weights=seconds, minlength=len(targets))
        # Relative to each part, or a tenth for evaluation would be approximated no better than nine tenths.
        miss = float(np.abs(totals / targets - 1).sum())
        if miss < best_miss - 1e-12:
            best, best_miss = assigned, miss
    parts = list(shares)
    return {name: parts[part] for name, part in zip(names, best.tolist(), strict=True)}


def _fill(order: NDArray[np.int64], seconds: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.int64]:
    """Give each speaker, in this order, to the part that lacks most; the last ones to parts that are still empty."""
    assigned = np.zeros(len(order), dtype=np.int64)
    lack = targets.astype(np.float64)
    empty = set(range(len(targets)))
    for position, index in enumerate(order):
        candidates = sorted(empty) if len(order) - position <= len(empty) else range(len(targets))
        part = max(candidates, key=lambda candidate: (lack[candidate], -candidate))
        assigned[index] = part
        lack[part] -= seconds[index]
        empty.discard(part)
    return assigned


# --- leaks ---------------------------------------------------------------------------------------


def check_leaks(train: Sequence[Clip], scored: Mapping[str, Sequence[Clip]]) -> dict[str, list[Finding]]:
    """Find what sets share with the training set, so that a score on them would flatter a model trained on it.

    Args:
        train: Clips trained on.
        scored: Split -> its clips.

    Returns:
        For each split one finding a kind, each naming the clips of both sides. Errors: `leak.speaker`, `leak.id`,
        `leak.span` (the same seconds of the same file), `leak.audio` (other names, same bytes). A note: `leak.sentence`
        (the same transcripts, usual for commands and digits). What holds for all splits stands with the first: a
        warning `leak.speaker` where there is one speaker in all, and a note `leak.unchecked` on clips without one.
    """
    all_clips = {"train": train, **scored}
    speakers = {clip.speaker for clips in all_clips.values() for clip in clips if clip.speaker is not None}
    found: dict[str, list[Finding]] = {}
    for split, clips in scored.items():
        leaks = [
            None if len(speakers) == 1 else _shared_speakers(split, train, clips),
            _common("id", "error", split, ("id",), _by(train, _id), _by(clips, _id), "Give each clip its own id."),
            _spans(split, train, clips),
            _same_bytes(split, train, clips),
            _common("sentence", "note", split, ("transcript",), _by(train, _sentence), _by(clips, _sentence), _USUAL),
        ]
        found[split] = [leak for leak in leaks if leak is not None]
    if found:
        first = next(iter(found))
        found[first] = [*_one_speaker(all_clips), *found[first], *_unnamed(all_clips)]
    return found


def _one_speaker(splits: Mapping[str, Sequence[Clip]]) -> list[Finding]:
    """That there is one speaker in all, so that none can be kept for the scores."""
    named = {split: [clip for clip in clips if clip.speaker is not None] for split, clips in splits.items()}
    named = {split: clips for split, clips in named.items() if clips}
    speakers = {clip.speaker for clips in named.values() for clip in clips}
    if len(speakers) != 1 or "train" not in named or len(named) == 1:
        return []
    *most, last = named
    return [
        Finding(
            check="leak.speaker",
            severity="warning",
            message=f"{', '.join(most)} and {last} share their only speaker ({show(speakers.pop())}): the scores hold "
            "for this voice only.",
            clip_ids=tuple(dict.fromkeys(clip.id for clips in named.values() for clip in clips)),
            measured=1.0,
            limit=0.0,
            unit="speakers",
        )
    ]


def _unnamed(splits: Mapping[str, Sequence[Clip]]) -> list[Finding]:
    """Clips without a speaker, of all splits together."""
    without = {split: [clip.id for clip in clips if clip.speaker is None] for split, clips in splits.items()}
    number = sum(map(len, without.values()))
    if not number:
        return []
    names = "names" if number == 1 else "name"
    of_each = ", ".join(f"{split} {len(ids)}" for split, ids in without.items() if ids)
    return [
        Finding(
            check="leak.unchecked",
            severity="note",
            message=f"{counted(number, 'clip')} {names} no speaker ({of_each}): whether speakers are shared could not "
            "be checked, and splitting goes by file. Fill the column 'speaker' to be sure.",
            clip_ids=tuple(dict.fromkeys(name for ids in without.values() for name in ids)),
            measured=float(number),
            limit=0.0,
            unit="clips",
        )
    ]


def _shared_speakers(split: str, train: Sequence[Clip], clips: Sequence[Clip]) -> Finding | None:
    return _common(
        "speaker", "error", split, ("speaker",), _by(train, _speaker), _by(clips, _speaker), "Split again by speaker."
    )


def _speaker(clip: Clip) -> str | None:
    return clip.speaker


def _id(clip: Clip) -> str | None:
    return clip.id


def _sentence(clip: Clip) -> str | None:
    return BASIC.scoring(clip.text) or None if clip.text else None


def _by(clips: Iterable[Clip], key: Callable[[Clip], str | None]) -> dict[str, list[Clip]]:
    table: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        if (value := key(clip)) is not None:
            table[value].append(clip)
    return table


def _common(
    kind: str,
    severity: Severity,
    split: str,
    things: tuple[str] | tuple[str, str],
    train: Mapping[str, Sequence[Clip]],
    scored: Mapping[str, Sequence[Clip]],
    advice: str,
) -> Finding | None:
    shared = sorted(train.keys() & scored.keys())
    if not shared:
        return None
    examples = ", ".join(map(show, shared[:5])) + (", ..." if len(shared) > 5 else "")
    clips = [clip for name in shared for clip in (*train[name], *scored[name])]
    what = f"{counted(len(shared), *things)} ({examples})"
    return _leak(kind, severity, split, what, clips, len(shared), plural(*things), advice)


def _leak(
    kind: str, severity: Severity, split: str, what: str, clips: Iterable[Clip], count: int, unit: str, advice: str
) -> Finding:
    wrong = "" if severity == "note" else ", and nothing may be shared where a score shall hold"
    return Finding(
        check=f"leak.{kind}",
        severity=severity,
        message=f"train and {split} share {what}{wrong}. {advice}",
        clip_ids=tuple(dict.fromkeys(clip.id for clip in clips)),
        measured=float(count),
        limit=0.0,
        unit=unit,
    )


def _spans(split: str, train: Sequence[Clip], evaluation: Sequence[Clip]) -> Finding | None:
    real = real_paths(clip.path for clip in (*train, *evaluation))
    by_file = _by(train, lambda clip: real[clip.path])
    pairs = [
        (one, other)
        for other in evaluation
        for one in by_file.get(real[other.path], ())
        if (one.channel is None or other.channel is None or one.channel == other.channel)
        and min(one.start_s + one.duration_s, other.start_s + other.duration_s) - max(one.start_s, other.start_s)
        > OVERLAP_S
    ]
    if not pairs:
        return None
    what = f"seconds of the same file in {counted(len(pairs), 'pair')} of clips, first {show(str(pairs[0][1].path))}"
    return _leak("span", "error", split, what, (clip for pair in pairs for clip in pair), len(pairs), "pairs", _AGAIN)


def _same_bytes(split: str, train: Sequence[Clip], evaluation: Sequence[Clip]) -> Finding | None:
    """Files of other names with the same content. Only files of a size that both sides have are read."""
    sides = [_by_size(train), _by_size(evaluation)]
    sizes = sides[0].keys() & sides[1].keys()
    tables: list[dict[str, list[Clip]]] = []
    for side in sides:
        table: dict[str, list[Clip]] = defaultdict(list)
        for size in sorted(sizes):
            for path, clips in side[size].items():
                table[digest_file(path)] += clips
        tables.append(table)
    real = real_paths(clip.path for table in tables for clips in table.values() for clip in clips)
    places = [{real[clip.path] for clips in table.values() for clip in clips} for table in tables]
    same_path = places[0] & places[1]
    for table in tables:  # one file in both sets is a matter of spans, reported above
        for name, clips in list(table.items()):
            table[name] = [clip for clip in clips if real[clip.path] not in same_path]
            if not table[name]:
                del table[name]
    return _common("audio", "error", split, _RENAMED, tables[0], tables[1], _AGAIN)


def real_paths(paths: Iterable[Path]) -> dict[Path, str]:
    """Where files really are, links followed. A folder is asked once, or a large corpus would take minutes."""
    folders: dict[Path, str] = {}
    real: dict[Path, str] = {}
    for path in set(paths):
        folder = path.parent
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        real[path] = os.path.realpath(path) if path.is_symlink() else f"{folders[folder]}{os.sep}{path.name}"
    return real


def _by_size(clips: Iterable[Clip]) -> dict[int, dict[Path, list[Clip]]]:
    table: dict[int, dict[Path, list[Clip]]] = defaultdict(lambda: defaultdict(list))
    for clip in clips:
        try:
            size_bytes = clip.path.stat().st_size
        except OSError:
            continue  # missing files are found by check_audio
        table[size_bytes][clip.path].append(clip)
    return table
