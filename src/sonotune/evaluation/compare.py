"""Compare two finished runs, or two files of predictions, on the same clips.

Nothing is decoded: everything comes from `predictions/*.jsonl`, so a comparison needs no model and no audio. A system
may bring several runs (seeds), whose spread is then a part of the interval.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sonotune.data.lines import show
from sonotune.data.scripts import deciding_rate
from sonotune.errors import ConfigError, ManifestError, RunDirectoryError, TextError, suggest
from sonotune.evaluation.compare_confidence import PairedWords
from sonotune.evaluation.prediction_rows import clip_of, hypothesis_of, is_right, reference_of, scored_text
from sonotune.metrics.error_rate import edit_counts
from sonotune.metrics.intervals import MIN_BLOCKS
from sonotune.metrics.paired import Blocks, PairedDifference, choose_blocks, holm, paired_difference
from sonotune.metrics.scores import primary_score
from sonotune.metrics.slices import DURATION_EDGES_S, slice_clips
from sonotune.metrics.text_scores import FurtherScores, pseudo_values
from sonotune.metrics.word_outcomes import (
    MatchedPairs,
    WordOutcomes,
    discordant_words,
    mapsswe,
    segment_differences,
    word_outcomes,
)
from sonotune.paths import exists, is_folder
from sonotune.registry import SCORES
from sonotune.registry import names as registered
from sonotune.runs import read_predictions, read_record
from sonotune.types import Clip, Unit

MOMENTS = ("test", "after")
"""Which predictions of a run are compared: the first of these that all runs have."""

_SLICE_RESAMPLES = 2000  # at most; a slice is a place to look, not a result

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What two systems did differently.

    Attributes:
        differences: Score -> second system minus first; the score that decides comes first. Those of word
            confidences (`metrics.paired_confidence`) stand last, where the predictions of one run each have them.
        slices: One JSON-ready mapping per slice: `by`, `value`, `clips` and `difference` (score -> difference with
            `p_holm`, adjusted over the slices of that property), without what too few clips cannot say.
        matched_pairs: The segment test on words, for one run each of two recognisers; else None.
        clips: Number of clips.
        files: The files of both systems.
        warnings: What the runs' own scores differ in besides the systems.
    """

    differences: Mapping[str, PairedDifference]
    slices: list[dict[str, Any]]
    matched_pairs: MatchedPairs | None
    clips: int
    files: tuple[tuple[Path, ...], tuple[Path, ...]]
    warnings: tuple[str, ...] = ()

    @property
    def primary(self) -> PairedDifference:
        """The difference of the score that decides."""
        return next(iter(self.differences.values()))

    def to_json(self) -> dict[str, Any]:
        """The keys that `sonotune compare --json` promises, and more beside them."""
        pairs = self.matched_pairs
        return {
            "difference": {name: found.to_json() for name, found in self.differences.items()},
            "slices": self.slices,
            "minimum_detectable": self.primary.minimum_detectable,
            "matched_pairs": None if pairs is None else pairs._asdict(),
            "clips": self.clips,
            "first": [str(path) for path in self.files[0]],
            "second": [str(path) for path in self.files[1]],
            "warnings": list(self.warnings),
        }


def compare(
    first: Sequence[Path],
    second: Sequence[Path],
    *,
    moment: str | None = None,
    primary: str | None = None,
    scores: Sequence[str] | None = None,
    same_seeds: bool = False,
    resamples: int = 10_000,
    seed: int = 0,
    slices: bool = True,
    duration_edges_s: Sequence[float] = DURATION_EDGES_S,
) -> Comparison:
    """Compare two systems.

    Args:
        first: Run directories or files of predictions, one a training run of the first system.
        second: Of the second system.
        moment: Predictions of a run to take (`test`, `after`, `before`); None takes the first of `MOMENTS` that all
            runs have.
        primary: Score that decides; None takes the one that the runs were scored by, and for files the one that fits
            the references (`data.scripts.deciding_rate`).
        scores: Further scores of texts (`registry.SCORES`); None and none take those that all runs were scored by.
        same_seeds: The runs of both stand in the same order of seeds, so they are resampled as pairs.
        resamples: Bootstrap resamples; of slices and word confidences at most 2,000.
        seed: Of the resampling.
        slices: Compare by domain, duration, speaker and language as well.
        duration_edges_s: Borders of the duration slices, in seconds.

    Raises:
        RunDirectoryError: A run or file has no predictions, or cannot be read.
        ManifestError: The clips are not the same, their truths differ, or they are too few.
        TextError: No clip has a reference.
        ConfigError: `primary` is no score of such clips.
    """
    files = _files(first, second, moment)
    systems = [[read_predictions(path) for path in side] for side in files]
    rows = _aligned(systems, files)
    further = [name for name in scores or _scored_by(files) if name not in ("wer", "cer")]
    further += [primary] if primary in registered("scores") else []
    outcomes = _outcomes(rows)
    counted = _count(rows, outcomes, primary or _decided(files), further)
    if primary is not None and primary not in counted:
        raise ConfigError(f"the score {primary!r} is not compared here; known for these clips: {', '.join(counted)}.")
    clips = [clip_of(row) for row in rows[0][0]]
    sessions = [row.get("session") for row in rows[0][0]]
    blocks = choose_blocks([clip.speaker for clip in clips], sessions)
    if len(clips) < MIN_BLOCKS:
        raise ManifestError(
            f"a comparison needs at least {MIN_BLOCKS} clips with a reference; found {len(clips)} in {files[0][0]}. "
            "Evaluate both systems on more clips."
        )
    differences = {
        name: _difference(
            name, counts, np.arange(len(clips)), blocks, same_seeds=same_seeds, resamples=resamples, seed=seed
        )
        for name, counts in counted.items()
    }
    words = PairedWords.of(rows)
    if words is not None:
        differences |= words.compare(blocks, resamples=resamples, seed=seed)
    return Comparison(
        differences=differences,
        slices=_slices(
            counted, words, clips, sessions, duration_edges_s, same_seeds, min(resamples, _SLICE_RESAMPLES), seed
        )
        if slices
        else [],
        matched_pairs=_matched_pairs(outcomes),
        clips=len(clips),
        files=files,
        warnings=_unlike_normalizers(files),
    )


def same_clips(places: Sequence[Path], *, moment: str | None = None) -> tuple[tuple[Path, ...], list[Rows]]:
    """The predictions of several systems, a row a clip, in the order of the first; clips without a reference too.

    Args:
        places: Run directories or files of predictions.
        moment: Predictions of a run to take, as in `compare`.

    Returns:
        The files, and the rows of each.

    Raises:
        RunDirectoryError: A run or file has no predictions, or cannot be read.
        ManifestError: The clips are not the same, or their references differ.
    """
    files = _files(places, (), moment)[0]
    read = [read_predictions(path) for path in files]
    ids = [row["id"] for row in read[0]]
    return files, [_in_order(rows, read[0], ids, path, files[0]) for rows, path in zip(read, files, strict=True)]


# --- files -------------------------------------------------------------------------------------------


def prediction_file(place: Path, moment: str) -> Path:
    """Where a run keeps its predictions of a moment."""
    return place / "predictions" / f"{moment}.jsonl"


def _files(
    first: Sequence[Path], second: Sequence[Path], moment: str | None
) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    for place in (*first, *second):
        if not exists(place):
            near = [other.name for other in place.parent.glob("*")]
            raise RunDirectoryError(
                f"{place} does not exist{suggest(place.name, near, '.')} Give a run directory, or a file that "
                "`sonotune evaluate --out FILE` wrote."
            )
    runs = [place for place in (*first, *second) if is_folder(place)]
    wanted = MOMENTS if moment is None else (moment,)
    taken = next((name for name in wanted if all(prediction_file(run, name).is_file() for run in runs)), None)
    if taken is None:
        kept = {run: sorted(path.stem for path in (run / "predictions").glob("*.jsonl")) for run in runs}
        without = [run for run, names in kept.items() if not set(wanted) & set(names)] or runs
        told = "; ".join(f"{run} has {', '.join(kept[run]) or 'none'}" for run in without)
        raise RunDirectoryError(
            f"the runs have no predictions of {' or '.join(wanted)} in common: {told}. A finished run scores data.eval "
            "(`after`) and data.test (`test`); or write them with `sonotune evaluate --out FILE` and compare the files."
        )

    def resolve(places: Sequence[Path]) -> tuple[Path, ...]:
        return tuple(prediction_file(place, taken) if is_folder(place) else place for place in places)

    return resolve(first), resolve(second)


# --- the same clips ----------------------------------------------------------------------------------


def _aligned(systems: Sequence[Sequence[Rows]], files: Sequence[Sequence[Path]]) -> list[list[Rows]]:
    """The rows of every run in the order of the first, those with a reference; refuses unlike clips."""
    reference, where = systems[0][0], files[0][0]
    ids = [row["id"] for row in reference]
    aligned = []
    for side, paths in zip(systems, files, strict=True):
        aligned.append([_in_order(rows, reference, ids, path, where) for rows, path in zip(side, paths, strict=True)])
    kept = [index for index, row in enumerate(reference) if reference_of(row) is not None]
    if not kept:
        raise TextError(f"no clip of {where} has a transcript or a class, so there is nothing to compare.")
    return [[[rows[index] for index in kept] for rows in side] for side in aligned]


def _in_order(rows: Rows, reference: Rows, ids: Sequence[str], path: Path, where: Path) -> Rows:
    by_id = {row["id"]: row for row in rows}
    twice = [clip_id for clip_id, times in Counter(row["id"] for row in rows).items() if times > 1]
    if twice:
        raise ManifestError(f"{path} has the clip {twice[0]!r} more than once; ids must be unique.")
    missing, added = [name for name in ids if name not in by_id], sorted(by_id.keys() - set(ids))
    if missing or added:
        parts = [f"{len(missing)} only in {where} ({', '.join(missing[:3])})"] if missing else []
        parts += [f"{len(added)} only in {path} ({', '.join(added[:3])})"] if added else []
        raise ManifestError(
            f"both systems must be scored on the same clips; found {' and '.join(parts)}. "
            "Evaluate both on one manifest with `sonotune evaluate ... --out FILE`."
        )
    ordered = [by_id[name] for name in ids]
    unlike = [
        (one["id"], reference_of(one), reference_of(other))
        for one, other in zip(reference, ordered, strict=True)
        if reference_of(one) != reference_of(other)
    ]
    if unlike:
        name, one, other = unlike[0]
        raise ManifestError(
            f"{len(unlike)} of {len(ids)} clips have another reference in {path} than in {where}; clip {show(name)} "
            f"has {show(other)} and {show(one)}. Score both with the same manifest and the same data.text_scoring."
        )
    return ordered


# --- counting ----------------------------------------------------------------------------------------


class _Counts(NamedTuple):
    """Of one score: what is counted for each run and clip (S, N), what it is a share of and what is in dispute (N,)."""

    first: NDArray[np.float64]
    second: NDArray[np.float64]
    totals: NDArray[np.float64]
    discordant: NDArray[np.float64] | None
    better: Literal["lower", "higher"]
    unit: Unit = "fraction"
    title: str = ""


def _decided(files: Sequence[Sequence[Path]]) -> str | None:
    """The score by which all runs were scored that these predictions are of; None where there is no such."""
    found = {_decided_in(path) for side in files for path in side}
    return found.pop() if len(found) == 1 else None


def _decided_in(predictions: Path) -> str | None:
    """The score that decided in the run of a file of predictions; None for a file of its own, or a damaged record."""
    return primary_score(_scores_in(predictions))


def _scores_in(predictions: Path) -> Mapping[str, Mapping[str, Any]]:
    """The scores that a run's record has of a file of predictions; none for a file of its own, or a damaged record."""
    run = predictions.parent.parent
    if predictions.parent.name != "predictions" or not (run / "run.json").is_file():
        return {}
    try:
        return read_record(run).scores.get(predictions.stem, {})
    except RunDirectoryError:  # predictions are compared without it
        return {}


def _scored_by(files: Sequence[Sequence[Path]]) -> list[str]:
    """The further scores that all runs have, in the order of the first; none where one of the files is no run's."""
    found = [_scores_in(path) for side in files for path in side]
    return [name for name in found[0] if name in SCORES and all(name in scores for scores in found)]


def _unlike_normalizers(files: Sequence[Sequence[Path]]) -> tuple[str, ...]:
    """A warning where runs say that their texts were normalised by different rules; older records do not say."""
    found = {
        str(scores["wer"]["detail"]["normalizer"]): path.parent.parent
        for side in files
        for path in side
        if "normalizer" in (scores := _scores_in(path)).get("wer", {}).get("detail", {})
    }
    if len(found) < 2:
        return ()
    told = " and ".join(f"{name} in {run}" for name, run in found.items())
    return (
        f"the texts were normalised by different rules, {told}: a difference may be one of rules. Evaluate both again "
        "with one version of the package and the same data.text_scoring.",
    )


def _count(
    rows: Sequence[Sequence[Rows]],
    outcomes: Sequence[Sequence[WordOutcomes]],
    primary: str | None,
    further: Sequence[str],
) -> dict[str, _Counts]:
    """What is counted for each score, the one that decides first."""
    if "labels" in rows[0][0][0]:
        right = [np.array([[is_right(row) for row in run] for run in side], dtype=np.float64) for side in rows]
        apart_N = np.abs(right[0].mean(axis=0) - right[1].mean(axis=0))
        ones_N = np.ones(right[0].shape[1])
        return {"accuracy": _Counts(right[0], right[1], ones_N, apart_N, "higher")}
    references = _references(rows)
    words = [np.stack([run.by_clip() for run in side]) for side in outcomes]
    words_N = np.array([len(text.split()) for text in references], dtype=np.float64)
    letters = [
        [edit_counts(references, [hypothesis_of(row) for row in run], unit="character") for run in side]
        for side in rows
    ]
    errors = [np.array([[edit.errors for edit in run] for run in side], dtype=np.float64) for side in letters]
    letters_N = np.array([edit.reference for edit in letters[0][0]], dtype=np.float64)
    found = {
        "wer": _Counts(words[0], words[1], words_N, _disputed(outcomes), "lower"),
        "cer": _Counts(errors[0], errors[1], letters_N, None, "lower"),
    }
    found |= _count_further(rows, further)
    decides = primary if primary in found else deciding_rate(references)[0]
    return {name: found[name] for name in sorted(found, key=lambda name: name != decides)}


def _count_further(rows: Sequence[Sequence[Rows]], names: Sequence[str]) -> dict[str, _Counts]:
    """What each clip adds to further scores, so that their mean is the score (`text_scores.pseudo_values`).

    A score that some run has nothing of, such as a perplexity that was not measured, is left out.
    """
    further = FurtherScores(names)
    found = {}
    for name, score in further.scores.items():
        sides = [[further.statistics(name, list(map(scored_text, run))) for run in side] for side in rows]
        sums_RK = np.stack([statistics_NK.sum(axis=0) for side in sides for statistics_NK in side])
        if np.isfinite(score.values(sums_RK)).all() and len(rows[0][0]) > 1:
            added = [np.stack([pseudo_values(score, statistics_NK) for statistics_NK in side]) for side in sides]
            ones_N = np.ones(added[0].shape[1])
            found[name] = _Counts(added[0], added[1], ones_N, None, score.better, score.unit, score.title)
    return found


def _references(rows: Sequence[Sequence[Rows]]) -> list[str]:
    return [str(reference_of(row)) for row in rows[0][0]]


def _outcomes(rows: Sequence[Sequence[Rows]]) -> list[list[WordOutcomes]]:
    """What each run did at every word; nothing of classes."""
    if "labels" in rows[0][0][0]:
        return [[], []]
    references = _references(rows)
    return [[word_outcomes(references, [hypothesis_of(row) for row in run]) for run in side] for side in rows]


def _disputed(outcomes: Sequence[Sequence[WordOutcomes]]) -> NDArray[np.float64]:
    """Words of each clip that exactly one system has right, mean over the runs as they stand beside each other (N,)."""
    words = [discordant_words(one, other) for one, other in zip(outcomes[0], outcomes[1], strict=False)]
    return np.asarray(np.mean(words, axis=0), dtype=np.float64)


def _matched_pairs(outcomes: Sequence[Sequence[WordOutcomes]]) -> MatchedPairs | None:
    if any(len(side) != 1 for side in outcomes):
        return None
    return mapsswe(segment_differences(outcomes[0][0], outcomes[1][0]))


def _difference(
    name: str,
    counts: _Counts,
    members: NDArray[np.int64],
    blocks: Blocks,
    *,
    resamples: int,
    same_seeds: bool,
    seed: int,
) -> PairedDifference:
    totals_N = counts.totals[members]
    return paired_difference(
        name,
        counts.first[:, members],
        counts.second[:, members],
        totals_N if totals_N.any() else np.ones_like(totals_N),  # silence alone: what was written on each clip
        blocks=blocks,
        same_seeds=same_seeds,
        discordant=None if counts.discordant is None else float(counts.discordant[members].sum()),
        better=counts.better,
        unit=counts.unit,
        title=counts.title,
        resamples=resamples,
        seed=seed,
    )


def _slices(
    counted: Mapping[str, _Counts],
    words: PairedWords | None,
    clips: Sequence[Clip],
    sessions: Sequence[Any],
    edges_s: Sequence[float],
    same_seeds: bool,
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for part in slice_clips(clips, duration_edges_s=edges_s):
        members = np.array(part.members)
        blocks = choose_blocks([clips[i].speaker for i in part.members], [sessions[i] for i in part.members])
        difference = {}
        if len(members) >= MIN_BLOCKS:
            difference = {
                name: _difference(
                    name, counts, members, blocks, resamples=resamples, same_seeds=same_seeds, seed=seed
                ).to_json()
                for name, counts in counted.items()
            }
        if difference and words is not None:
            found = words.compare(blocks, members=members, resamples=resamples, seed=seed)
            difference |= {name: one.to_json() for name, one in found.items()}
        rows.append({"by": part.by, "value": part.value, "clips": len(members), "difference": difference})
    for by in {row["by"] for row in rows}:
        of_one = [row["difference"] for row in rows if row["by"] == by]
        for name in {name for difference in of_one for name in difference}:
            entries = [difference[name] for difference in of_one if name in difference]
            for entry, adjusted in zip(entries, holm([entry["p"] for entry in entries]), strict=True):
                entry["p_holm"] = adjusted
    return rows
