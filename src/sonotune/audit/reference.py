"""What clips are held against: trusted clips, the same with corrupted transcripts, and thresholds between the two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from sonotune.alignment.base import DetectedLanguage, takes
from sonotune.audit.calibration import DEFAULT_STATISTICS, SEED_THRESHOLDS, Calibration, calibrate, check_trusted, fixed
from sonotune.audit.corruption import DEFAULT_CORRUPTIONS, Corruptor
from sonotune.audit.measure import Measurer
from sonotune.audit.scores import ClipScores, Rates, fit_rates, with_rates
from sonotune.runs import generator
from sonotune.types import Clip


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Trusted clips as an aligner sees them.

    Attributes:
        calibration: Thresholds with their error rates.
        rates: How fast people speak.
        right: Scores of trusted clips; None of one that could not be aligned.
        corrupted: Corruption -> scores of trusted clips with their transcripts corrupted by it.
        languages: Of each trusted clip, the language that it names and the one that the model detects.
    """

    calibration: Calibration
    rates: Rates
    right: tuple[ClipScores | None, ...] = field(repr=False)
    corrupted: Mapping[str, tuple[ClipScores | None, ...]] = field(repr=False)
    languages: tuple[tuple[str | None, DetectedLanguage | None], ...] = field(default=(), repr=False)


def refer(
    trusted: Sequence[Clip],
    measurer: Measurer,
    *,
    known: bool = True,
    thresholds: Literal["calibrated", "seed"] = "calibrated",
    false_positive_rate: float = 0.05,
    most: int = 200,
    seed: int = 0,
) -> Reference:
    """Measure trusted clips, right and corrupted, and set thresholds.

    Args:
        trusted: Clips with right transcripts; those that are too long for the aligner have no part.
        measurer: With the aligner.
        known: Whether somebody knows that the transcripts are right. Where the clips are those that are judged, fixed
            thresholds have no error rates, and clips that cannot be aligned tell nothing of right ones.
        thresholds: `calibrated` on the clips, or the `seed`'s fixed ones.
        false_positive_rate: Part of good clips that calibrated thresholds flag.
        most: Clips to use at most.
        seed: Of the choice of clips and of the corruptions.

    Raises:
        ManifestError: There are too few clips to calibrate thresholds.
    """
    trusted = [clip for clip in trusted if takes(measurer.aligner, clip)]
    chosen = _chosen(trusted, most, seed)
    proven = known or thresholds == "calibrated"
    if thresholds == "calibrated":
        check_trusted(len(chosen))
    corruptor = Corruptor(trusted, seed=seed, normalizer=measurer.normalizer)
    forms: dict[str, list[Clip]] = {"": chosen}
    mark = _mark({clip.id for clip in chosen})
    for corruption in DEFAULT_CORRUPTIONS if proven else ():
        texts = ((clip, corruptor.corrupt(clip, corruption).text) for clip in chosen)
        forms[corruption.name] = [
            replace(clip, id=f"{clip.id}{mark}{corruption.name}", text=text) for clip, text in texts if text is not None
        ]
    # All transcripts of a recording in a row, so that it is computed once.
    together = sorted((clip for form in forms.values() for clip in form), key=lambda clip: clip.id)
    doing = "aligning trusted clips, right and corrupted" if known else "aligning clips for thresholds"
    measured = measurer.measure(together, doing=doing)
    scores = {clip.id: row.scores for clip, row in zip(together, measured, strict=True)}
    detected = {clip.id: row.language for clip, row in zip(together, measured, strict=True)}
    right = [scores[clip.id] for clip in forms.pop("")]
    rates = fit_rates([one for one in right if one is not None])
    right = rated(right, rates)
    corrupted = {name: rated([scores[clip.id] for clip in form], rates) for name, form in forms.items() if form}
    if thresholds == "seed":
        found = fixed(SEED_THRESHOLDS, trusted=right if proven else (), corrupted=corrupted)
    else:
        right = right if known else [one for one in right if one is not None]
        found = calibrate(right, corrupted, statistics=DEFAULT_STATISTICS, false_positive_rate=false_positive_rate)
    return Reference(
        calibration=found,
        rates=rates,
        right=tuple(right),
        corrupted={name: tuple(scores) for name, scores in corrupted.items()},
        languages=tuple((measurer.language_of(clip), detected[clip.id]) for clip in chosen),
    )


def _mark(ids: set[str]) -> str:
    """What stands between an id and the name of a corruption: no clip has the id of another's corrupted form."""
    mark = " "
    while any(mark in name for name in ids):
        mark += " "
    return mark


def rated(scores: Sequence[ClipScores | None], rates: Rates) -> list[ClipScores | None]:
    """The scores with each speaking rate held against those of trusted clips."""
    made = iter(with_rates([one for one in scores if one is not None], rates))
    return [None if one is None else next(made) for one in scores]


def _chosen(trusted: Sequence[Clip], most: int, seed: int) -> list[Clip]:
    """Trusted clips to use, by the seed and their ids, in the order of the manifest."""
    if len(trusted) <= most:
        return list(trusted)
    numbers = {clip.id: float(generator(seed, "trusted", clip.id).random()) for clip in trusted}
    last = sorted(numbers.values())[most - 1]
    return [clip for clip in trusted if numbers[clip.id] <= last]
