"""What an alignment says of a clip's transcript, in numbers, and where it looks wrong.

Each number is higher for better clips, except where `STATISTICS` says otherwise. Those that compare the transcript with
the best the model knows (`min_window_llr`, `mean_llr`) do not fall with the noise of a channel as plain probabilities
do, and the smallest mean over a window is not diluted by the rest of a long clip.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from sonotune.data import text as text_module
from sonotune.errors import ManifestError, SonotuneError
from sonotune.json_files import Number, check_json
from sonotune.metrics.error_rate import char_edits

if TYPE_CHECKING:  # the seam of aligners imports torch
    from sonotune.alignment.base import Alignment, Evidence

WORD_MARGIN_S: Final = 0.3
"""Speech so near to an aligned word belongs to it: a CTC model marks a token by a frame or two inside its sound, and
an energy detector holds pauses inside a phrase for speech."""
LOW_POSTERIOR: Final = 0.3
"""A token with a lower probability at its place counts in `low_token_share`."""
MIN_RATES: Final = 10
"""Clips of a language from which its speaking rate is known; of fewer, that of all languages together is taken."""

_FLOOR: Final = -50.0  # log-probabilities and their differences; what is impossible must stay a number
_MIN_DEVIATION: Final = 0.05  # of the logarithm of a rate, where nearly all clips have the same
_NORMAL: Final = 1.4826  # median absolute deviation -> standard deviation of a normal distribution

Better = Literal["higher", "lower"]
STATISTICS: Final[Mapping[str, Better]] = {
    "min_window_llr": "higher",
    "mean_llr": "higher",
    "mean_log_probability": "higher",
    "min_window_log_probability": "higher",
    "token_posterior": "higher",
    "low_token_share": "lower",
    "coverage": "higher",
    "longest_unaligned_s": "lower",
    "total_unaligned_s": "lower",
    "rate_deviation": "lower",
    "cer": "lower",
    "unknown_share": "lower",
}
"""What clips can be flagged by, and which direction is better."""

CODES: Final[Mapping[str, str]] = {
    "unaligned": "unaligned",
    "min_window_llr": "local_mismatch",
    "mean_llr": "mismatch",
    "mean_log_probability": "improbable",
    "min_window_log_probability": "locally_improbable",
    "token_posterior": "low_confidence",
    "low_token_share": "improbable_tokens",
    "coverage": "low_coverage",
    "longest_unaligned_s": "untranscribed_speech",
    "total_unaligned_s": "untranscribed_speech",
    "rate_deviation": "speaking_rate",
    "cer": "recognised_otherwise",
    "unknown_share": "unknown_characters",
}
"""Statistic (or `unaligned`) -> stable code of the reason."""
_LIKELIHOODS: Final = frozenset(
    {"min_window_llr", "mean_llr", "mean_log_probability", "min_window_log_probability", "token_posterior", "cer"}
)
_COVERAGES: Final = frozenset({"coverage", "longest_unaligned_s", "total_unaligned_s"})

Span = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipScores:
    """The numbers of one clip; None where there is nothing to compute one from.

    Attributes:
        clip_id: The clip.
        language: Of the clip.
        duration_s: Length in seconds.
        speech_s: Speech by the voice activity detector, in seconds.
        min_window_llr: Smallest mean over a window of rows of log p(transcript) - log p(best), in nats.
        mean_llr: Sum of the same over the clip, per token, in nats.
        mean_log_probability: Mean of log p(transcript) over rows, in nats.
        min_window_log_probability: Smallest mean of it over a window, in nats.
        token_posterior: Mean probability of the tokens at their places.
        low_token_share: Part of the tokens below `LOW_POSTERIOR`.
        coverage: Part of the speech that lies under a word, widened by `WORD_MARGIN_S`.
        longest_unaligned_s: Longest run of speech under no widened word, in seconds.
        total_unaligned_s: All speech under none, in seconds.
        characters_per_second: Letters, marks and digits of the transcript per second of speech.
        rate_z: How far the logarithm of it lies from the median of its language, in robust standard deviations; set by
            `with_rates`.
        cer: Character error rate of the model's own transcript against the given one.
        unknown_share: Part of the transcript's characters that the model has no symbol for.
        worst_window: Where the smallest mean of the ratio lies (start, end), in seconds.
        longest_unaligned: Where the longest unaligned speech lies (start, end), in seconds.
    """

    clip_id: str
    language: str | None = None
    duration_s: float
    speech_s: float
    min_window_llr: float | None = None
    mean_llr: float | None = None
    mean_log_probability: float | None = None
    min_window_log_probability: float | None = None
    token_posterior: float | None = None
    low_token_share: float | None = None
    coverage: float | None = None
    longest_unaligned_s: float = 0.0
    total_unaligned_s: float = 0.0
    characters_per_second: float | None = None
    rate_z: float | None = None
    cer: float | None = None
    unknown_share: float = 0.0
    worst_window: Span | None = None
    longest_unaligned: Span | None = None

    def statistic(self, name: str) -> float | None:
        """A number by its name in `STATISTICS`."""
        if name == "rate_deviation":
            return None if self.rate_z is None else abs(self.rate_z)
        value: float | None = getattr(self, name)
        return value

    def to_json(self) -> dict[str, Any]:
        """The form that `scores_from_json` reads; what is None is left out."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
            if value is not None
        }


class Reason(NamedTuple):
    """Why a clip was flagged.

    Attributes:
        code: Stable name, of `CODES`.
        statistic: By what.
        value: What was found; None for a clip that could not be aligned.
        threshold: What was allowed.
        spans: Where, in seconds (start, end); empty where it is about the whole clip.
    """

    code: str
    statistic: str
    value: float | None
    threshold: float | None
    spans: tuple[Span, ...]

    def to_json(self) -> dict[str, Any]:
        """The form of the per-clip file."""
        return {**self._asdict(), "spans": [list(span) for span in self.spans]}


def score_alignment(
    alignment: Alignment,
    *,
    text: str,
    duration_s: float,
    speech: Sequence[Span],
    language: str | None = None,
    normalizer: str = "basic",
    margin_s: float = WORD_MARGIN_S,
) -> ClipScores:
    """Score a clip.

    Args:
        alignment: Of the clip.
        text: Its transcript.
        duration_s: Its length in seconds.
        speech: Where somebody speaks (start, end), in seconds, rising and apart (`audio.activity.speech_spans`).
        language: Of the clip.
        normalizer: Texts are compared in its scoring form (registry name).
        margin_s: Words are widened by so much on either side, in seconds.
    """
    scoring = text_module.get(normalizer).scoring
    reference = scoring(text)
    speech_s = sum(end - start for start, end in speech)
    bare = [
        span
        for span in _without(speech, [(word.start_s - margin_s, word.end_s + margin_s) for word in alignment.words])
        if span[1] - span[0] > 1e-6
    ]
    bare_s = sum(end - start for start, end in bare)
    longest = max(bare, key=lambda span: span[1] - span[0], default=None)
    letters = sum(not character.isspace() for character in reference)
    posteriors = alignment.token_posteriors
    return ClipScores(
        clip_id=alignment.clip_id,
        language=language,
        duration_s=duration_s,
        speech_s=speech_s,
        **_likelihoods(alignment, duration_s),
        token_posterior=float(posteriors.mean(dtype=np.float64)) if posteriors.size else None,
        low_token_share=float((posteriors < LOW_POSTERIOR).mean()) if posteriors.size else None,
        coverage=min(max(1.0 - bare_s / speech_s, 0.0), 1.0) if speech_s > 0 else None,
        longest_unaligned_s=0.0 if longest is None else longest[1] - longest[0],
        total_unaligned_s=bare_s,
        characters_per_second=letters / speech_s if speech_s > 0 and letters else None,
        cer=_cer(reference, None if alignment.transcript is None else scoring(alignment.transcript)),
        unknown_share=alignment.unknown_share,
        longest_unaligned=longest,
    )


class Rates(NamedTuple):
    """How fast people speak: language -> (median, deviation) of the logarithm of characters per second."""

    languages: Mapping[str, tuple[float, float]]
    everything: tuple[float, float] | None


def fit_rates(scores: Sequence[ClipScores]) -> Rates:
    """Median and median absolute deviation of the speaking rate, by language and over all.

    Args:
        scores: Clips most of which are right.
    """
    groups: dict[str, list[float]] = {}
    for one in scores:
        if one.characters_per_second:
            groups.setdefault(one.language or "", []).append(math.log(one.characters_per_second))
    everything = [rate for rates in groups.values() for rate in rates]
    return Rates(
        languages={language: _centre(rates) for language, rates in groups.items() if len(rates) >= MIN_RATES},
        everything=_centre(everything) if len(everything) >= MIN_RATES else None,
    )


def with_rates(scores: Sequence[ClipScores], rates: Rates) -> list[ClipScores]:
    """The same scores with `rate_z`, None where too few clips tell how fast people speak."""
    made = []
    for one in scores:
        known = rates.languages.get(one.language or "", rates.everything)
        if known is None or not one.characters_per_second:
            made.append(replace(one, rate_z=None))
        else:
            made.append(replace(one, rate_z=(math.log(one.characters_per_second) - known[0]) / known[1]))
    return made


def reasons(
    scores: ClipScores | None, flags: Sequence[str], thresholds: Mapping[str, float] | None = None
) -> tuple[Reason, ...]:
    """Why a clip was flagged, and where it looks wrong.

    Args:
        scores: Of the clip; None where it could not be aligned.
        flags: What `Calibration.flags` gave.
        thresholds: What was allowed.
    """
    made = []
    for name in flags:
        spans: tuple[Span, ...] = ()
        if scores is not None and name in _LIKELIHOODS and scores.worst_window is not None:
            spans = (scores.worst_window,)
        elif scores is not None and name in _COVERAGES and scores.longest_unaligned is not None:
            spans = (scores.longest_unaligned,)
        value = None if scores is None or name not in STATISTICS else scores.statistic(name)
        made.append(Reason(CODES.get(name, name), name, value, (thresholds or {}).get(name), spans))
    return tuple(made)


# --- the parts -----------------------------------------------------------------------------------


def _likelihoods(alignment: Alignment, duration_s: float) -> dict[str, Any]:
    evidence = alignment.evidence
    if evidence is None or not evidence.given.size:
        return {}
    given = np.maximum(evidence.given.astype(np.float64), _FLOOR)
    best = np.maximum(evidence.best.astype(np.float64), _FLOOR)
    ratio = np.clip(given - best, _FLOOR, 0.0)
    lowest, row = _lowest_window(ratio, evidence.window)
    return {
        "min_window_llr": lowest,
        "mean_llr": float(ratio.sum() / max(1, alignment.token_posteriors.size)),
        "mean_log_probability": float(given.mean()),
        "min_window_log_probability": _lowest_window(given, evidence.window)[0],
        "worst_window": _window_span(alignment, evidence, row, duration_s),
    }


def _lowest_window(rows_N: NDArray[np.float64], window: int) -> tuple[float, int]:
    """The smallest mean over a window, and its first row; the whole where there are fewer rows."""
    size = max(1, min(window, rows_N.size))
    total = np.concatenate(([0.0], np.cumsum(rows_N)))
    means = (total[size:] - total[:-size]) / size
    row = int(means.argmin())
    return float(rows_N[row : row + size].mean()), row


def _window_span(alignment: Alignment, evidence: Evidence, row: int, duration_s: float) -> Span:
    rows = evidence.given.size
    last = min(row + max(1, evidence.window), rows) - 1
    if rows == alignment.token_starts_s.size:  # a row a token
        return float(alignment.token_starts_s[row]), float(alignment.token_ends_s[last])
    return row * duration_s / rows, (last + 1) * duration_s / rows


def _without(spans: Sequence[Span], covers: Sequence[Span]) -> list[Span]:
    """What is left of spans (rising, apart) outside of covers."""
    left: list[Span] = []
    ordered = sorted(covers)
    first = 0
    for start, end in spans:
        while first < len(ordered) and ordered[first][1] <= start:
            first += 1
        at = start
        for low, high in ordered[first:]:
            if low >= end:
                break
            if low > at:
                left.append((at, low))
            at = max(at, high)
            if at >= end:
                break
        if at < end:
            left.append((at, end))
    return left


def _cer(reference: str, hypothesis: str | None) -> float | None:
    if hypothesis is None:
        return None
    edits = char_edits(reference, hypothesis)
    return edits.errors / edits.reference if edits.reference else None


def _centre(rates: Sequence[float]) -> tuple[float, float]:
    median = float(np.median(rates))
    return median, max(_NORMAL * float(np.median(np.abs(np.asarray(rates) - median))), _MIN_DEVIATION)


# --- JSON ----------------------------------------------------------------------------------------

_Seconds = Annotated[Number, Field(ge=0)]
_Part = Annotated[Number, Field(ge=0, le=1)]
_SpanEntries = Annotated[list[Number], Field(min_length=2, max_length=2)]


class _Required(TypedDict):
    clip_id: str
    duration_s: _Seconds
    speech_s: _Seconds


class ScoresEntries(_Required, total=False):
    """The scores of a clip in JSON form."""

    language: str
    min_window_llr: Number
    mean_llr: Number
    mean_log_probability: Number
    min_window_log_probability: Number
    token_posterior: _Part
    low_token_share: _Part
    coverage: _Part
    longest_unaligned_s: _Seconds
    total_unaligned_s: _Seconds
    characters_per_second: _Seconds
    rate_z: Number
    cer: _Seconds
    unknown_share: _Part
    worst_window: _SpanEntries
    longest_unaligned: _SpanEntries


_SCORES: Final = TypeAdapter(ScoresEntries)


def scores_from_json(
    value: object, *, where: str = "the scores", error: type[SonotuneError] = ManifestError
) -> ClipScores:
    """Read what `ClipScores.to_json` made; keys that are not known are left out.

    Raises:
        SonotuneError: Of the class `error`: something is missing or of another type.
    """
    entries = check_json(value, _SCORES, where=where, error=error, do="Audit again.")
    known: dict[str, Any] = {name: entries[name] for name in ScoresEntries.__annotations__ if name in entries}  # type: ignore[literal-required]
    for name in ("worst_window", "longest_unaligned"):
        if name in known:
            known[name] = (known[name][0], known[name][1])
    return ClipScores(**known)
