"""How often a 95 % interval holds the truth, on simulated data sets whose speakers differ."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sonotune.metrics.error_rate import EditCounts, error_rate
from sonotune.metrics.intervals import block_bootstrap_ratio, expansion
from sonotune.metrics.text import PERPLEXITY
from sonotune.metrics.text_scores import score_texts

DATA_SETS = 1000
SPREAD = 0.6  # of speakers, in logits of their error rate; a rate of 13 % is then 4 to 31 % for 95 % of the speakers
CENTRE = -2.0


def logistic(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-values))


TRUTH = float(logistic(np.random.default_rng(1).normal(CENTRE, SPREAD, 2_000_000)).mean())


def data_set(speakers: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Errors, words and speaker of ten clips a speaker."""
    rng = np.random.default_rng(1000 + seed)
    rates = logistic(rng.normal(CENTRE, SPREAD, speakers))
    words = rng.integers(3, 15, size=(speakers, 10))
    return rng.binomial(words, rates[:, None]).ravel(), words.ravel(), np.repeat(np.arange(speakers), 10)


def covered(speakers: int, data_sets: int) -> float:
    hits = 0
    for seed in range(data_sets):
        errors, words, owners = data_set(speakers, seed)
        low, high, resampled = block_bootstrap_ratio(errors, words, list(owners), resamples=1000, seed=seed)
        assert resampled == "block"
        hits += low <= TRUTH <= high
    return hits / data_sets


@pytest.mark.slow
@pytest.mark.parametrize("speakers", [5, 8, 10, 20, 40])
def test_the_interval_of_an_error_rate_holds_the_truth(speakers: int) -> None:
    assert covered(speakers, DATA_SETS) == pytest.approx(0.95, abs=0.02)


@pytest.mark.slow
def test_the_interval_of_a_perplexity_holds_the_truth() -> None:
    hits = 0
    for seed in range(DATA_SETS):
        rng = np.random.default_rng(seed)
        means = rng.normal(1.0, 0.2, 20)
        tokens = rng.integers(5, 40, size=(20, 10))
        nll = rng.gamma(tokens, means[:, None])
        rows = np.stack([nll.ravel(), tokens.ravel(), np.zeros(200)], axis=1)
        score = score_texts(PERPLEXITY, rows, speakers=list(np.repeat(np.arange(20), 10)), seed=seed)
        assert score is not None
        hits += score.low <= np.e <= score.high
    assert hits / DATA_SETS == pytest.approx(0.95, abs=0.02)


def test_few_speakers_would_be_believed_too_much_without_the_expansion() -> None:
    hits = plain = 0
    for seed in range(200):
        errors, words, owners = data_set(6, seed)
        low, high, _ = block_bootstrap_ratio(errors, words, list(owners), resamples=500, seed=seed)
        value, factor = errors.sum() / words.sum(), expansion(6)
        hits += low <= TRUTH <= high
        plain += value + (low - value) / factor <= TRUTH <= value + (high - value) / factor
    assert hits / 200 > 0.90
    assert plain / 200 < 0.89


def test_the_expansion_vanishes_where_there_are_many() -> None:
    assert expansion(1) == 1.0
    assert expansion(5) == pytest.approx(2.776 / 1.96 * (5 / 4) ** 0.5, rel=1e-3)
    assert expansion(10_000) == pytest.approx(1.0, abs=1e-3)


def test_an_interval_has_no_end_that_cannot_be() -> None:
    counts = [EditCounts(deletions=errors, hits=10 - errors, reference=10) for errors in (0, 0, 0, 0, 9, 10)]
    score = error_rate("wer", counts)
    assert 0.0 == score.low < score.value < score.high <= 1.0
