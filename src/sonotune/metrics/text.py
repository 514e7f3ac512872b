"""Scores of whole texts: BLEU and chrF for translation; perplexity and label-token accuracy, teacher-forced.

`metrics.text_scores` says what each must bring along.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np

from sonotune.metrics.text_scores import Floats, RateScore, ScoredText, divide
from sonotune.types import Unit

_LARGEST_EXPONENT: Final = 700.0  # exp of more overflows; a perplexity of 1e304 is as bad as one can be
_TOKENS: Final = ("nll", "tokens", "right")


@dataclass(frozen=True)  # without slots, for the cached metric
class SacrebleuScore:
    """A corpus score of sacrebleu, 0 to 100 points; its signature stands in `detail["signature"]`.

    Texts are compared as a reader sees them, with case and punctuation. Clips with an empty reference take part: what
    is written on them lowers the precision.

    Attributes:
        name: See `TextScore`.
        title: What people call it.
        metric: Name of the class in `sacrebleu.metrics`.

    Source: Papineni et al. 2002 (BLEU, tokeniser 13a, exponential smoothing); Popović 2015 (chrF, character 6-grams,
    beta 2); Post 2018 for the signature.
    """

    name: str
    title: str
    metric: str
    unit: Unit = "points"
    better: Literal["lower", "higher"] = "higher"
    limits: tuple[float, float] = (0.0, 100.0)
    of_labels: bool = False

    def check(self) -> None:
        """Nothing is missing."""

    @cached_property
    def _library(self) -> Any:
        import sacrebleu.metrics  # noqa: PLC0415  (0.1 s, needed only for translation)

        return getattr(sacrebleu.metrics, self.metric)()

    def statistics(self, texts: Sequence[ScoredText]) -> Floats:
        """The counts of n-grams that sacrebleu adds up over sentences."""
        hypotheses, references = [text.hypothesis for text in texts], [text.reference for text in texts]
        if not texts:
            return np.zeros((0, 0))
        # sacrebleu's own bootstrap takes its seed from the environment and gives no percentiles; these statistics,
        # which its paired tests use the same way, give both (equality with corpus_score is tested).
        return np.asarray(self._library._extract_corpus_statistics(hypotheses, [references]), dtype=np.float64)

    def values(self, sums_RK: Floats) -> Floats:
        """See `TextScore`; undefined where no reference has a word."""
        rows = sums_RK.astype(np.int64).tolist()
        found = [
            self._library._compute_score_from_stats(row).score if self._has_reference(row) else np.nan for row in rows
        ]
        return np.array(found, dtype=np.float64)

    def _has_reference(self, row: Sequence[int]) -> bool:
        """BLEU keeps the lengths of hypothesis and reference first; chrF the n-grams of both, and of their overlap."""
        return row[1] > 0

    def detail(self, sums_K: Floats) -> Mapping[str, float | str]:
        """See `TextScore`."""
        return {"signature": str(self._library.get_signature())}


BLEU: Final = SacrebleuScore("bleu", "BLEU", "BLEU")
CHRF: Final = SacrebleuScore("chrf", "chrF", "CHRF")


def _token_statistics(texts: Sequence[ScoredText]) -> Floats:
    """Negative log-likelihood, number, and number of right ones of each clip's label tokens (N, 3)."""
    found = [text.label_tokens for text in texts]
    rows = [(0.0, 0, 0) if one is None else (one.nll, one.count, one.right) for one in found]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(_TOKENS))


@dataclass(frozen=True, slots=True, kw_only=True)
class _TokenAccuracy(RateScore):
    @property
    def limits(self) -> tuple[float, float]:
        """A share of the tokens."""
        return 0.0, 1.0

    def statistics(self, texts: Sequence[ScoredText]) -> Floats:
        """See `TextScore`."""
        return _token_statistics(texts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Perplexity(RateScore):
    @property
    def limits(self) -> tuple[float, float]:
        """A certain model has 1."""
        return 1.0, np.inf

    def statistics(self, texts: Sequence[ScoredText]) -> Floats:
        """See `TextScore`."""
        return _token_statistics(texts)

    def values(self, sums_RK: Floats) -> Floats:
        """See `TextScore`."""
        means_R = divide(self.of(sums_RK, self.counted), self.of(sums_RK, self.total))
        found: Floats = np.exp(np.minimum(means_R, _LARGEST_EXPONENT))
        return found


PERPLEXITY: Final = _Perplexity(
    name="perplexity",
    title="Perplexity",
    columns=_TOKENS,
    counted=("nll",),
    total=("tokens",),
    unit="",
    of_labels=True,
)
"""The exponential of the mean negative log-likelihood of a label token, given the audio and the tokens before it."""

TOKEN_ACCURACY: Final = _TokenAccuracy(
    name="token_accuracy",
    title="Label-token accuracy",
    columns=_TOKENS,
    counted=("right",),
    total=("tokens",),
    better="higher",
    of_labels=True,
)
"""Share of the label tokens that the model finds most likely, given the audio and the tokens before them."""
