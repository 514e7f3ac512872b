"""Metrics of whole texts: BLEU and chrF for translation, perplexity for language models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sonotune.errors import TextError
from sonotune.metrics.intervals import block_bootstrap_ratio, percentile_interval
from sonotune.types import Score

_LARGEST_EXPONENT = 700.0  # exp of more overflows; a perplexity of 1e304 is as bad as one can be


def bleu(references: Sequence[str], hypotheses: Sequence[str], *, bootstrap: int = 1000, seed: int = 0) -> Score:
    """Corpus BLEU of sacrebleu (tokeniser 13a, exponential smoothing), 0 to 100 points.

    Args:
        references: One translation per clip, not tokenised.
        hypotheses: One text per clip; empty where nothing was said.
        bootstrap: Resamples of clips for the interval.
        seed: Seed of the resampling.

    Raises:
        TextError: Lengths differ, there are no clips, or all references are empty.

    Source: Papineni et al. 2002; Post 2018 for the signature, kept in `detail["signature"]`.
    """
    from sacrebleu.metrics import BLEU  # noqa: PLC0415  (0.1 s, needed only for translation)

    return _sacrebleu("bleu", BLEU(), references, hypotheses, bootstrap=bootstrap, seed=seed)


def chrf(references: Sequence[str], hypotheses: Sequence[str], *, bootstrap: int = 1000, seed: int = 0) -> Score:
    """Corpus chrF (character 6-grams, beta 2) of sacrebleu, 0 to 100 points; arguments and errors as in `bleu`.

    Source: Popović 2015.
    """
    from sacrebleu.metrics import CHRF  # noqa: PLC0415  (0.1 s, needed only for translation)

    return _sacrebleu("chrf", CHRF(), references, hypotheses, bootstrap=bootstrap, seed=seed)


def perplexity(sum_nll: Sequence[float], tokens: Sequence[int], *, bootstrap: int = 1000, seed: int = 0) -> Score:
    """Perplexity: the exponential of the mean negative log likelihood per token.

    Args:
        sum_nll: Negative log likelihood of each clip, summed over its tokens, in nats.
        tokens: Number of tokens of each clip.
        bootstrap: Resamples of clips for the interval.
        seed: Seed of the resampling.

    Raises:
        TextError: Lengths differ, there is no token, or a likelihood is not a finite number.
    """
    if len(sum_nll) != len(tokens) or sum(tokens) <= 0:
        raise TextError(
            "perplexity needs one likelihood and one token count per clip and at least one token; found "
            f"{len(sum_nll)} likelihoods and {len(tokens)} counts that sum to {sum(tokens)}."
        )
    if not all(math.isfinite(value) for value in sum_nll):
        bad = [index for index, value in enumerate(sum_nll) if not math.isfinite(value)]
        raise TextError(f"perplexity needs finite likelihoods; those of clips {bad[:10]} are not.")
    mean = math.fsum(sum_nll) / sum(tokens)
    low, high = mean, mean
    if bootstrap > 0:
        low, high, _ = block_bootstrap_ratio(sum_nll, tokens, None, resamples=bootstrap, seed=seed)
    value, low, high = (math.exp(min(x, _LARGEST_EXPONENT)) for x in (mean, min(low, mean), max(high, mean)))
    detail: dict[str, float | str] = {"tokens": sum(tokens), "resampled": "clip" if bootstrap > 0 else "none"}
    return Score(name="perplexity", value=value, low=low, high=high, count=len(tokens), unit="points", detail=detail)


def _sacrebleu(
    name: str, metric: Any, references: Sequence[str], hypotheses: Sequence[str], *, bootstrap: int, seed: int
) -> Score:
    if len(references) != len(hypotheses) or not any(text.strip() for text in references):
        raise TextError(
            f"{name} needs as many hypotheses as references and at least one reference that is not empty; found "
            f"{len(hypotheses)} hypotheses and {len(references)} references."
        )
    # sacrebleu's own bootstrap takes its seed from the environment and gives no percentiles; its statistics per
    # sentence, which its paired tests use the same way, give both (equality with corpus_score is tested).
    stats_NK = np.asarray(metric._extract_corpus_statistics(list(hypotheses), [list(references)]), dtype=np.float64)
    value = float(metric._compute_score_from_stats(stats_NK.sum(axis=0).astype(np.int64).tolist()).score)
    low, high = value, value
    if bootstrap > 0:
        generator = np.random.default_rng(seed)
        count = len(references)
        values = [
            float(metric._compute_score_from_stats(stats_NK[drawn].sum(axis=0).astype(np.int64).tolist()).score)
            for drawn in (generator.integers(0, count, size=count) for _ in range(bootstrap))
        ]
        low, high = percentile_interval(values)
    return Score(
        name=name,
        value=value,
        low=min(low, value),
        high=max(high, value),
        count=len(references),
        unit="points",
        better="higher",
        title=name.upper(),
        detail={"signature": str(metric.get_signature()), "resampled": "clip" if bootstrap > 0 else "none"},
    )
