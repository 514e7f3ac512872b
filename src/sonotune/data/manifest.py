"""The manifest: one clip a line, as JSON. Reading, writing, filtering, checking, digesting, describing.

    {"id": "a1", "path": "wav/a1.wav", "text": "one two", "speaker": "ann", "duration_s": 2.4}

`id` and `path` are required; `path` is relative to the manifest's folder unless another root is given. `start_s`,
`duration_s`, `sample_rate_hz`, `channel`, `text`, `label`, `words`, `language`, `domain`, `speaker` and `weight` are
known; every other column is kept as text in `Clip.extra`. Without `duration_s` the file's header is asked.
"""

from __future__ import annotations

import dataclasses
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from sonotune.audio.io import probe
from sonotune.data.audio_root import AudioRoot
from sonotune.data.lines import MAX_LINE_BYTES, Problems, RefusedError, check_record, json_objects, show
from sonotune.data.records import COLUMNS, ClipParser
from sonotune.errors import AudioError, ManifestError
from sonotune.runs import atomic_write_text, digest_json
from sonotune.runs.file_sets import check_whole
from sonotune.types import Clip, Finding
from sonotune.wording import long_time

SPLIT_MARK: Final = "sonotune_split.json"
"""Beside the manifests of a split corpus; says which belong together."""
TEACHER_COLUMN: Final = "label_teacher"
"""Column with the digest of the model that wrote the text (`sonotune data label`)."""
_MOST_NAMED: Final = 50


# --- reading -------------------------------------------------------------------------------------


def read_manifest(
    path: Path,
    *,
    root: Path | None = None,
    allow_outside_root: bool = False,
    require: Sequence[str] = (),
    language: str | None = None,
    domain: str | None = None,
) -> list[Clip]:
    """Read a manifest. All its problems are reported together.

    A missing or broken audio file is not a problem of the manifest: `check_audio` makes a finding of it, so that one
    bad file never hides the others.

    Args:
        path: JSON Lines file. A byte order mark and CRLF are accepted, blank lines skipped.
        root: Folder that paths are relative to and may not leave. None: relative ones may not leave the manifest's
            folder, and absolute ones are read as they are.
        allow_outside_root: Whether paths may leave the root.
        require: Columns each line must have beside `id` and `path`, such as `("text",)`.
        language: Language of the clips that name none.
        domain: Domain of the clips that name none.

    Returns:
        The clips in the order of the lines. `duration_s` is 0 where the line has none and the file cannot be opened.

    Raises:
        ManifestError: Lists up to 20 problems by file and line, and the count of the rest.
    """
    path = Path(path)
    check_whole(path, mark=SPLIT_MARK, again="sonotune data split", error=ManifestError)
    problems = Problems(path)
    parser = ClipParser(
        AudioRoot(root or path.parent, absolute=root is None, allow_outside=allow_outside_root),
        problems,
        require=require,
        language=language,
        domain=domain,
    )
    clips = [clip for number, record in json_objects(path, problems) if (clip := parser.parse(number, record))]
    problems.check()
    if not clips:
        raise ManifestError(
            f"{path} has no clips: found an empty file; allowed is one JSON object a line, at least one. "
            "Check that the file was written to its end."
        )
    return fill_durations(clips)


def fill_durations(clips: Sequence[Clip], *, workers: int = 8) -> list[Clip]:
    """Ask the files of clips without a duration how long they are.

    Args:
        clips: Clips; those with `duration_s` 0 are completed to the end of their file.
        workers: Threads that open files.

    Returns:
        The clips in the same order. Those whose file cannot be opened keep 0, which `check_audio` explains.
    """
    unknown = [index for index, clip in enumerate(clips) if clip.duration_s == 0]
    filled = list(clips)
    if unknown:
        with ThreadPoolExecutor(max_workers=workers) as pool:
            for index, clip in zip(unknown, pool.map(_with_duration, [clips[i] for i in unknown]), strict=True):
                filled[index] = clip
    return filled


def _with_duration(clip: Clip) -> Clip:
    try:
        info = probe(clip.path)
    except AudioError:
        return clip  # check_audio opens it again and says why it cannot be used
    rest_s = max(0.0, info.duration_s - clip.start_s)
    return replace(clip, duration_s=rest_s, sample_rate_hz=clip.sample_rate_hz or info.sample_rate_hz)


# --- writing -------------------------------------------------------------------------------------


def write_manifest(path: Path, clips: Iterable[Clip]) -> None:
    """Write clips as a manifest, replacing an old one whole.

    Args:
        path: The file to write.
        clips: The clips; ids must be unique.

    Raises:
        ManifestError: A clip cannot be written; see `manifest_text`.
        ResourceError: The disk is full; an old manifest is untouched.
    """
    atomic_write_text(Path(path), manifest_text(path, clips))


def manifest_text(path: Path, clips: Iterable[Clip]) -> str:
    """What a manifest of some clips says.

    Paths below the manifest's folder are relative to it, so that the folder can move; others stay absolute.

    Args:
        path: Where the manifest will be.
        clips: The clips; ids must be unique.

    Raises:
        ManifestError: A clip cannot be written: its id is there twice, its text is no Unicode, an extra column has the
            name of a known one, or its line would be too long to be read back.
    """
    folder = Path(path).absolute().parent
    seen: set[str] = set()
    lines = []
    for clip in clips:
        if clip.id in seen:
            raise ManifestError(
                f"clip {show(clip.id)} cannot be written to {path}: found the id twice; allowed is once. "
                "Give each clip its own id."
            )
        seen.add(clip.id)
        try:
            record = _to_record(clip, folder)
            line = json.dumps(record, ensure_ascii=False, allow_nan=False)
            size = len(line.encode(errors="backslashreplace")) + 1
            check_record(record)
        except (ValueError, RefusedError) as error:  # includes UnicodeEncodeError
            found = f"{error}, {error.found}" if isinstance(error, RefusedError) else error
            raise ManifestError(
                f"clip {show(clip.id)} cannot be written to {path}: found {found}; allowed are finite numbers, Unicode "
                f"text, and extra columns other than {', '.join(COLUMNS)}. Mend the clip's source."
            ) from error
        if size > MAX_LINE_BYTES:
            raise ManifestError(
                f"clip {show(clip.id)} cannot be written to {path}: found a line of {size:,} bytes; allowed are "
                f"{MAX_LINE_BYTES:,}, and a longer one could not be read back. Shorten its text or its extra columns."
            )
        lines.append(line + "\n")
    return "".join(lines)


def _to_record(clip: Clip, folder: Path) -> dict[str, Any]:
    taken = sorted(set(clip.extra) & set(COLUMNS))
    if taken:
        raise ValueError(f"the extra column {taken[0]!r}")
    place = clip.path.absolute()  # a folder may have been named from the working directory
    if place in (folder, Path(place.anchor)):  # which no reader takes for audio
        raise ValueError(f"a folder, {place}, in place of its audio")
    record: dict[str, Any] = {
        "id": clip.id,
        "path": (place.relative_to(folder) if place.is_relative_to(folder) else place).as_posix(),
    }
    if clip.start_s:
        record["start_s"] = clip.start_s
    if clip.duration_s:
        record["duration_s"] = clip.duration_s
    for name in ("sample_rate_hz", "channel", "text"):
        if (value := getattr(clip, name)) is not None:
            record[name] = value
    if clip.label:
        record["label"] = list(clip.label)
    if clip.words:
        record["words"] = [
            {key: value for key, value in dataclasses.asdict(word).items() if value is not None} for word in clip.words
        ]
    for name in ("language", "domain", "speaker"):
        if (value := getattr(clip, name)) is not None:
            record[name] = value
    if not 0 <= clip.weight <= 1:
        raise ValueError(f"a weight of {clip.weight}, which is not from 0 to 1")
    if clip.weight != 1:
        record["weight"] = clip.weight
    return record | dict(clip.extra)


# --- filtering ----------------------------------------------------------------------


def filter_clips(
    clips: Sequence[Clip],
    *,
    min_duration_s: float = 0.5,
    max_duration_s: float | None = None,
    require: Literal["text", "label"] | None = "text",
    empty_texts: bool = False,
) -> tuple[list[Clip], list[Finding]]:
    """Leave out clips that are too short, too long or do not say what they are. Every drop is named and counted.

    Args:
        clips: The clips.
        min_duration_s: Shortest clip kept, in seconds.
        max_duration_s: Longest clip kept, in seconds; None sets no limit.
        require: `text` drops clips without a transcript, `label` those without a class, None neither.
        empty_texts: Whether an empty transcript is one, which says that nothing is said.

    Returns:
        The clips kept, in order, and one finding for each reason: `data.duration_unknown`, `data.too_short`,
        `data.too_long`, `data.no_text`, `data.empty_text`, `data.no_label`. They are warnings (asked for by settings),
        except an unknown duration, which means that the file cannot be opened. A clip is counted under its first
        reason.
    """
    kept: list[Clip] = []
    dropped: dict[str, list[Clip]] = {}
    for clip in clips:
        if clip.duration_s <= 0:
            dropped.setdefault("duration_unknown", []).append(clip)
        elif clip.duration_s < min_duration_s:
            dropped.setdefault("too_short", []).append(clip)
        elif max_duration_s is not None and clip.duration_s > max_duration_s:
            dropped.setdefault("too_long", []).append(clip)
        elif require == "text" and clip.text is None:
            dropped.setdefault("no_text", []).append(clip)
        elif require == "text" and not empty_texts and not has_words(clip):
            dropped.setdefault("empty_text", []).append(clip)
        elif require == "label" and not clip.label:
            dropped.setdefault("no_label", []).append(clip)
        else:
            kept.append(clip)
    wording = {
        "duration_unknown": ("have no duration, because their file cannot be opened", None),
        "too_short": (f"are shorter than data.min_duration_s={min_duration_s:g}", min_duration_s),
        "too_long": (f"are longer than data.max_duration_s={max_duration_s or 0:g}", max_duration_s),
        "no_text": ("have no transcript", None),
        "empty_text": ("have an empty transcript (data.empty_texts=learn trains on them)", None),
        "no_label": ("have no class", None),
    }
    findings = [
        Finding(
            check=f"data.{reason}",
            severity="error" if reason == "duration_unknown" else "warning",
            message=f"{len(dropped[reason])} of {len(clips)} clips {what} and are left out "
            f"({long_time(sum(clip.duration_s for clip in dropped[reason]))}).",
            clip_ids=tuple(clip.id for clip in dropped[reason]),
            measured=float(len(dropped[reason])) if limit is None else _extreme(dropped[reason], reason),
            limit=limit,
            unit="clips" if limit is None else "s",
        )
        for reason, (what, limit) in wording.items()
        if reason in dropped
    ]
    return kept, findings


def has_words(clip: Clip) -> bool:
    """Whether the transcript of a clip has anything but white space."""
    return bool((clip.text or "").strip())


def _extreme(clips: Sequence[Clip], reason: str) -> float:
    durations_s = [clip.duration_s for clip in clips]
    return min(durations_s) if reason == "too_short" else max(durations_s)


# --- describing ----------------------------------------------------------------------------------


def digest(clips: Sequence[Clip]) -> str:
    """SHA-256 over what the clips say and how large their files are, in order.

    File names count relative to the folder that holds all of them, so that a data set that was moved keeps its
    digest; any change to an id, a transcript, a label, a span or the size of a file changes it.
    """
    if not clips:
        return digest_json([])
    absolute = {path: path.absolute() for path in {clip.path for clip in clips}}
    root = Path(os.path.commonpath({path.parent for path in absolute.values()}))
    place = {path: (path_now.relative_to(root).as_posix(), _size_bytes(path)) for path, path_now in absolute.items()}
    others = [field.name for field in dataclasses.fields(Clip) if field.name not in ("path", "weight")]
    rows = [[place[clip.path], *(getattr(clip, name) for name in others)] for clip in clips]
    # A weight came later than the digests of older runs, and counts where it says something.
    return digest_json(
        [[*row, clip.weight] if clip.weight != 1 else row for row, clip in zip(rows, clips, strict=True)]
    )


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1  # a missing file is a state of the data set too


def statistics(clips: Sequence[Clip]) -> dict[str, Any]:
    """Describe a set of clips, ready for JSON.

    Returns:
        `clips`, `hours`, `duration_s` (min, p5, p50, p95, max, mean; seconds), clips by `speakers`, `languages`,
        `domains` and `labels`, `words` and `characters` in all transcripts, `without_text`, `without_duration`
        (clips whose file cannot be opened; they count for nothing in `hours` and `duration_s`), and `alphabet`: each
        character (NFC) with its count, most frequent first.
    """
    durations_s = np.array([clip.duration_s for clip in clips if clip.duration_s > 0], dtype=np.float64)
    texts = [clip.text for clip in clips if clip.text and clip.text.strip()]
    alphabet = Counter(character for text in texts for character in unicodedata.normalize("NFC", text))
    percentiles: dict[str, float] = {}
    if durations_s.size:
        names = ("min", "p5", "p50", "p95", "max")
        percentiles = dict(zip(names, np.percentile(durations_s, (0, 5, 50, 95, 100)).tolist(), strict=True))
        percentiles["mean"] = float(durations_s.mean())
    return {
        "clips": len(clips),
        "hours": float(durations_s.sum() / 3600),
        "duration_s": percentiles,
        "speakers": _counts(clip.speaker for clip in clips),
        "languages": _counts(clip.language for clip in clips),
        "domains": _counts(clip.domain for clip in clips),
        "labels": _counts(label for clip in clips for label in clip.label),
        "words": sum(len(text.split()) for text in texts),
        "characters": sum(map(len, texts)),
        "without_text": len(clips) - len(texts),
        "without_duration": len(clips) - int(durations_s.size),
        "alphabet": dict(sorted(alphabet.items(), key=lambda item: (-item[1], item[0]))),
    }


def summary(clips: Sequence[Clip]) -> dict[str, Any]:
    """What a person wants to know of a split, for the record of a run.

    Returns:
        `clips`, `hours`, `duration_s` (min, p50, max; seconds), how many `speakers` and `labels` there are, and clips
        by `domains` and `languages`, the most frequent first.
    """
    found = statistics(clips)
    durations_s = {name: found["duration_s"][name] for name in ("min", "p50", "max") if name in found["duration_s"]}
    named = {
        kind: dict(sorted(found[kind].items(), key=lambda item: -item[1])[:_MOST_NAMED])
        for kind in ("domains", "languages")
    }
    counts = {kind: len(found[kind]) for kind in ("speakers", "labels")}
    return {"clips": found["clips"], "hours": found["hours"], "duration_s": durations_s, **counts, **named}


def _counts(names: Iterable[str | None]) -> dict[str, int]:
    return dict(sorted(Counter(name for name in names if name is not None).items()))
