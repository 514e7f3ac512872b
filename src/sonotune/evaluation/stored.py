"""Combine predictions that are on disk: of runs, or of files that `sonotune evaluate --out` wrote.

Nothing is decoded, so members may be models of any tool whose transcripts were brought into that form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Required

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from sonotune.data.lines import show
from sonotune.data.text import Normalizer
from sonotune.errors import ConfigError, ManifestError
from sonotune.evaluation.combination import CombinationSettings, combine_predictions
from sonotune.evaluation.compare import Rows, same_clips
from sonotune.evaluation.prediction_rows import hypothesis_of, reference_of
from sonotune.json_files import Number
from sonotune.metrics.error_rate import error_rate
from sonotune.metrics.text_pairs import compare_texts
from sonotune.runs import digest_file, read_record
from sonotune.types import Prediction, RecognizedWord, Score

_SAME_S = 0.01
"""Durations of the same clip differ by no more, whoever read it."""
_OF_CLIP = ("id", "reference", "duration_s", "domain", "speaker", "session", "language", "signal_to_noise")


class _Word(TypedDict, total=False):
    """What is read of `types.RecognizedWord`."""

    text: Required[str]
    confidence: Annotated[Number, Field(ge=0, le=1)] | None


_WORDS: Final = TypeAdapter(list[_Word])


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMembers:
    """Predictions of several systems about the same clips.

    Attributes:
        files: Of each member.
        rows: Of each member, a mapping a clip, in the order of the first.
        warnings: Members that are the same.
    """

    files: tuple[Path, ...]
    rows: tuple[Rows, ...]
    warnings: tuple[str, ...]


def read_members(places: Sequence[Path], *, moment: str | None = None) -> StoredMembers:
    """Read the predictions of several runs or files, and refuse those that are not of the same clips.

    Args:
        places: Run directories or files of predictions.
        moment: Predictions of a run to take (`test`, `after`, `before`); None takes the first that all runs have.

    Raises:
        ConfigError: They are classes.
        ManifestError: The clips, their references or their lengths are not the same.
        RunDirectoryError: A run or file has no predictions, or cannot be read.
    """
    files, rows = same_clips(places, moment=moment)
    for file, found in zip(files, rows, strict=True):
        if found and "decided" in found[0]:
            raise ConfigError(
                f"{file} has classes, and transcripts are combined here. Name the classifiers: "
                "sonotune evaluate 'model=[a,b]' data.test=MANIFEST."
            )
        for first, other in zip(rows[0], found, strict=True):
            one_s, other_s = first.get("duration_s"), other.get("duration_s")
            if one_s is not None and other_s is not None and abs(one_s - other_s) > _SAME_S:
                raise ManifestError(
                    f"clip {show(first['id'])} is {one_s:.2f} s long in {files[0]} and {other_s:.2f} s in "
                    f"{file}: these are not the same recordings. Evaluate all members on one manifest."
                )
    _check_digests(files)
    return StoredMembers(files=files, rows=tuple(rows), warnings=tuple(_twice(files)))


def _check_digests(files: Sequence[Path]) -> None:
    """Raise ManifestError where two runs were scored on other data: manifest lines and sizes of the audio."""
    digests: dict[str, Path] = {}
    for file in files:
        run = file.parent.parent
        if file.parent.name == "predictions" and (run / "run.json").is_file():
            split = "test" if file.stem == "test" else "eval"
            if digest := read_record(run).data_digest.get(split):
                digests.setdefault(digest, file)
    if len(digests) > 1:
        told = " and ".join(f"{digest[:12]} in {file}" for digest, file in digests.items())
        raise ManifestError(
            f"the runs were not scored on the same data, though their clips have the same ids: its digest is {told}. "
            "Evaluate all members on one manifest with `sonotune evaluate ... --out FILE`."
        )


def _twice(files: Sequence[Path]) -> list[str]:
    told, seen = list[str](), dict[str, Path]()
    for file in files:
        digest = digest_file(file)
        if digest in seen:
            told.append(f"{file} has the predictions of {seen[digest]}: they have two votes.")
        seen.setdefault(digest, file)
    return told


def combine_stored(
    members: StoredMembers, normalizer: Normalizer, settings: CombinationSettings
) -> list[dict[str, Any]]:
    """One row a clip, in the form of `predictions/*.jsonl`.

    Args:
        members: What is combined.
        normalizer: That they were scored with (`data.text_scoring`).
        settings: How.

    Raises:
        ConfigError: There are too few members, they were scored with another normaliser, or words have no confidences.
    """
    settings.check_members(len(members.files), texts=True)
    _check_normalizer(members, normalizer)
    combined = combine_predictions(
        [list(map(_prediction, rows)) for rows in members.rows], normalizer.scoring, settings
    )
    return [_row(first, made.text or "", normalizer) for first, made in zip(members.rows[0], combined, strict=True)]


def _check_normalizer(members: StoredMembers, normalizer: Normalizer) -> None:
    for file, rows in zip(members.files, members.rows, strict=True):
        for row in rows:
            stored = row.get("scored_hypothesis")
            if stored is not None and stored != normalizer.scoring(str(row.get("hypothesis") or "")):
                raise ConfigError(
                    f"{file} was not scored with the normaliser {normalizer.name!r}: of {show(row.get('hypothesis'))} "
                    f"it has {show(stored)}. Name the one it was scored with: --text-scoring NAME (data.text_scoring)."
                )


def _prediction(row: Mapping[str, Any]) -> Prediction:
    return Prediction(
        clip_id=row["id"],
        text=str(row.get("hypothesis") or ""),
        no_signal=bool(row.get("no_signal")),
        words=_rated_words(row.get("words")),
    )


def _rated_words(words: object) -> tuple[RecognizedWord, ...] | None:
    """Words with their confidences; None where there are none, or those of another tool."""
    try:
        found = _WORDS.validate_python(words, strict=True)
    except ValidationError:
        return None
    return tuple(RecognizedWord(text=one["text"], logprobs=(), confidence=one.get("confidence")) for one in found)


def _row(first: Mapping[str, Any], text: str, normalizer: Normalizer) -> dict[str, Any]:
    row: dict[str, Any] = {name: first[name] for name in _OF_CLIP if name in first}
    scored, reference = normalizer.scoring(text), reference_of(first)
    row |= {"hypothesis": text, "scored_reference": reference, "scored_hypothesis": None, "edits": None}
    if reference is not None:
        edits = compare_texts(str(reference), scored).words
        row |= {"scored_hypothesis": scored, "edits": edits.to_json()}
    return row


def rates_of(rows: Rows, *, resamples: int, seed: int) -> dict[str, Score]:
    """Word and character error rate of the rows that have a reference; empty where none has."""
    told = [row for row in rows if reference_of(row) is not None]
    if not told:
        return {}
    pairs = [compare_texts(str(reference_of(row)), hypothesis_of(row)) for row in told]
    speakers = [row.get("speaker") for row in told]
    counts = {"wer": [pair.words for pair in pairs], "cer": [pair.characters for pair in pairs]}
    return {
        name: error_rate(name, edits, speakers=speakers, bootstrap=resamples, seed=seed)
        for name, edits in counts.items()
    }


def text_of(rows: Rows) -> str:
    """The rows as lines of JSON."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
