"""Corpora made better by an aligner: words placed in time, and clips judged one by one.

An audit looks at a sample, and says whether a corpus is good. A filter is a census: it looks at every clip that has a
transcript, by the thresholds of the audit, and says which clips are bad.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from sonotune.alignment.base import takes
from sonotune.audit.calibration import Calibration
from sonotune.audit.gate import Detector
from sonotune.audit.measure import Measured, Measurer
from sonotune.audit.reference import Reference, rated
from sonotune.audit.scores import Rates, fit_rates, reasons
from sonotune.audit.verdict import REASONS_COLUMN, VERDICT_COLUMN
from sonotune.audit.weights import fit_good_probability
from sonotune.data.manifest import has_words
from sonotune.errors import ManifestError
from sonotune.types import Clip, Finding, Word
from sonotune.wording import counted

MIN_SENSITIVITY: Final = 0.5
"""Of thresholds; with less, more bad clips pass a filter than it finds."""
Mode = Literal["drop", "flag", "weight", "star"]
MODES: Final[tuple[Mode, ...]] = ("drop", "flag", "weight", "star")


@dataclass(frozen=True, slots=True, kw_only=True)
class Realigned:
    """Clips with their words placed in time.

    Attributes:
        clips: All of them, in order.
        aligned: How many were aligned.
        findings: Which were not, and why.
    """

    clips: tuple[Clip, ...]
    aligned: int
    findings: tuple[Finding, ...]


def realign(clips: Sequence[Clip], measurer: Measurer) -> Realigned:
    """Place the words of each transcript in time; a clip that cannot be aligned keeps what it has.

    Args:
        clips: Of any kind; those whose transcript has no words are left as they are.
        measurer: With the aligner.

    Raises:
        ManifestError: No clip has a transcript, or none could be aligned.
    """
    measured = _measured(clips, measurer, doing="aligning")
    made = tuple(
        replace(clip, words=_rounded(measured[clip.id].words, clip.duration_s))
        if clip.id in measured and not measured[clip.id].problem
        else clip
        for clip in clips
    )
    failed = [clip for clip in clips if clip.id in measured and measured[clip.id].problem]
    findings = [_without_transcript(clips, measured, "and keep what they had"), *_unaligned(failed, measured)]
    if len(failed) == len(measured):
        raise ManifestError(
            f"none of {counted(len(failed), 'clip')} could be aligned: {measured[failed[0].id].problem}"
        )
    return Realigned(
        clips=made,
        aligned=len(measured) - len(failed),
        findings=tuple(finding for finding in findings if finding is not None),
    )


def _rounded(words: Sequence[Word], duration_s: float) -> tuple[Word, ...]:
    """Words to the millisecond, far below a frame: other batches change no more than the digits behind that."""
    return tuple(
        replace(
            word,
            start_s=min(round(word.start_s, 3), duration_s),
            end_s=min(round(word.end_s, 3), duration_s),
            score=None if word.score is None else round(word.score, 4),
        )
        for word in words
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Filtered:
    """A corpus whose clips were judged.

    Attributes:
        clips: Those that are kept, in order.
        dropped: Those that are not.
        judged: Clips with a transcript that the aligner takes, which were looked at.
        flagged: Those of them that are bad by the thresholds.
        bad_share: Share of the judged clips that are bad, the detector's errors taken out of the flagged ones; None
            where these are not known, or the detector is too weak.
        reasons: Code -> flagged clips that have it.
        findings: What could not be judged.
    """

    clips: tuple[Clip, ...] = field(repr=False)
    dropped: tuple[Clip, ...] = field(repr=False)
    judged: int
    flagged: int
    bad_share: float | None
    reasons: Mapping[str, int]
    findings: tuple[Finding, ...]


def filter_clips(
    clips: Sequence[Clip],
    *,
    mode: Mode,
    measurer: Measurer,
    calibration: Calibration,
    reference: Reference | None = None,
) -> Filtered:
    """Judge every clip that has a transcript, and treat the bad ones.

    `drop` leaves them out. `flag` and `star` keep all, with `audit` and `audit_reasons`; the objective `star` of
    training treats all clips alike, for those that are not flagged are not all right either. `weight` does the same,
    and multiplies the weight of each clip with the probability that it is good (`audit.weights`).

    Args:
        clips: Of the corpus.
        mode: What is done.
        measurer: With the aligner that the thresholds were calibrated for.
        calibration: The thresholds.
        reference: Trusted clips by the same aligner; needed for weights. Without them speaking rates are held against
            those of the corpus itself.

    Raises:
        ManifestError: No clip has a transcript, none is left, or weights have nothing to go by.
    """
    short = [clip for clip in clips if takes(measurer.aligner, clip)]
    measured = _measured(short, measurer, doing="aligning every clip")
    found = [measured[clip.id].scores for clip in clips if clip.id in measured]
    rates = _rates(reference, measured.values())
    scores = dict(zip(measured, rated(found, rates), strict=True))
    flags = {name: calibration.flags(one) for name, one in scores.items()}
    codes = {
        name: tuple(dict.fromkeys(reason.code for reason in reasons(scores[name], flags[name]))) for name in scores
    }
    flagged = sum(map(bool, flags.values()))
    detector = calibration.detector
    bad_share = None
    if detector is not None and detector.usable:
        bad_share = min(max(detector.corrected(flagged / len(flags)), 0.0), 1.0)
    judged = [
        replace(clip, extra=_with_verdict(clip.extra, codes[clip.id])) if clip.id in scores else clip for clip in clips
    ]
    if mode == "weight":
        if reference is None or bad_share is None:
            raise ManifestError(
                "weights need clips that are known to be right, and thresholds that tell right from wrong: found "
                + ("no trusted clips" if reference is None else "thresholds that flag both nearly alike")
                + ". Name trusted clips of the same kind with --trusted, or take another mode."
            )
        probability = fit_good_probability(
            reference.right, reference.corrupted, statistics=tuple(calibration.thresholds), bad_share=bad_share
        )
        good = dict(zip(scores, probability.of(list(scores.values())).tolist(), strict=True))
        judged = [replace(clip, weight=round(clip.weight * good.get(clip.id, 1.0), 6)) for clip in judged]
    kept = [clip for clip in judged if mode != "drop" or not flags.get(clip.id)]
    if not kept:
        raise ManifestError(
            f"all {len(clips)} clips are bad, and nothing would be left. Look at them with --mode flag; thresholds of "
            "clips of another kind flag every clip."
        )
    failed = [clip for clip in clips if clip.id in measured and measured[clip.id].problem]
    findings = [
        _without_transcript(short, measured, "and are not judged"),
        _too_long(len(clips) - len(short), measurer),
        _overlooked(detector),
        *_unaligned(failed, measured),
    ]
    return Filtered(
        clips=tuple(kept),
        dropped=tuple(clip for clip in judged if mode == "drop" and flags.get(clip.id)),
        judged=len(flags),
        flagged=flagged,
        bad_share=bad_share,
        reasons=dict(Counter(code for found in codes.values() for code in found).most_common()),
        findings=tuple(finding for finding in findings if finding is not None),
    )


def _measured(clips: Sequence[Clip], measurer: Measurer, *, doing: str) -> dict[str, Measured]:
    """What is known of each clip that has a transcript with words."""
    worded = [clip for clip in clips if has_words(clip)]
    if not worded:
        raise ManifestError(
            f"there is no transcript with words among {counted(len(clips), 'clip')}, and nothing to place in time. "
            "Give clips a `text`."
        )
    rows = measurer.measure(worded, doing=doing)
    return {clip.id: row for clip, row in zip(worded, rows, strict=True)}


def _rates(reference: Reference | None, rows: Iterable[Measured]) -> Rates:
    """How fast people speak: in trusted clips, else in the corpus, most of which is taken to be right."""
    if reference is not None:
        return reference.rates
    return fit_rates([row.scores for row in rows if row.scores is not None])


def _with_verdict(extra: Mapping[str, str], codes: Sequence[str]) -> dict[str, str]:
    rest = {name: value for name, value in extra.items() if name not in (VERDICT_COLUMN, REASONS_COLUMN)}
    return rest | ({VERDICT_COLUMN: "bad", REASONS_COLUMN: " ".join(codes)} if codes else {VERDICT_COLUMN: "good"})


def _without_transcript(clips: Sequence[Clip], measured: Mapping[str, Measured], outcome: str) -> Finding | None:
    without = [clip for clip in clips if clip.id not in measured]
    if not without:
        return None
    return Finding(
        check="repair.no_text",
        severity="note",
        message=f"{len(without)} of {len(clips)} clips have no transcript with words {outcome}.",
        clip_ids=tuple(clip.id for clip in without),
        measured=float(len(without)),
        unit="clips",
    )


def _overlooked(detector: Detector | None) -> Finding | None:
    """A warning where most of the bad clips pass."""
    if detector is not None and detector.sensitivity >= MIN_SENSITIVITY:
        return None
    finds = "nobody knows how many bad clips the thresholds find"
    if detector is not None:
        finds = f"the thresholds find {100 * detector.sensitivity:.0f} % of transcripts that are made wrong on purpose"
    return Finding(
        check="repair.overlooked",
        severity="warning",
        message=f"{finds}, so most bad clips may be kept. Take a model that knows this speech, and more trusted clips.",
        measured=None if detector is None else detector.sensitivity,
        limit=MIN_SENSITIVITY,
        unit="fraction",
    )


def _too_long(count: int, measurer: Measurer) -> Finding | None:
    if not count:
        return None
    return Finding(
        check="repair.too_long",
        severity="warning",
        message=f"{counted(count, 'clip')} {'is' if count == 1 else 'are'} longer than "
        f"{measurer.aligner.max_duration_s:g} s, which is what the model aligns: not judged, and kept. A CTC model "
        "judges clips of any length.",
        measured=float(count),
        unit="clips",
    )


def _unaligned(failed: Sequence[Clip], measured: Mapping[str, Measured]) -> list[Finding]:
    return [
        Finding(
            check=measured[clip.id].check,
            severity="warning",
            message=f"could not be aligned: {measured[clip.id].problem}",
            clip_ids=(clip.id,),
            path=str(clip.path),
        )
        for clip in failed
    ]
