"""The probability that a clip is good rises with its scores, and is what it says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonotune.audit.scores import ClipScores
from sonotune.audit.weights import combined_p_values, fit_good_probability
from sonotune.errors import ManifestError

STATISTICS = ("min_window_llr", "longest_unaligned_s")
values = st.floats(-20, 0).map(lambda value: round(value, 1)) | st.none()
lengths = st.floats(0, 5).map(lambda value: round(value, 1))
aligned = st.builds(
    ClipScores,
    clip_id=st.just("c"),
    duration_s=st.just(5.0),
    speech_s=st.just(4.0),
    min_window_llr=values,
    longest_unaligned_s=lengths,
)
scores = st.none() | aligned


def clip(llr: float | None, unaligned_s: float = 0.0) -> ClipScores:
    return ClipScores(clip_id="c", duration_s=5.0, speech_s=4.0, min_window_llr=llr, longest_unaligned_s=unaligned_s)


def better(one: ClipScores, llr: float, seconds: float) -> ClipScores:
    higher = None if one.min_window_llr is None else one.min_window_llr + llr
    return clip(higher, max(0.0, one.longest_unaligned_s - seconds))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(scores, min_size=2, max_size=12),
    st.dictionaries(st.sampled_from("abc"), st.lists(scores, min_size=1, max_size=8), min_size=1),
    st.floats(0, 1),
    st.lists(aligned, min_size=1, max_size=8),
    st.floats(0, 9),
    st.floats(0, 9),
)
def test_a_clip_that_is_better_in_a_score_is_no_less_probable(
    right: list[ClipScores | None],
    corrupted: dict[str, list[ClipScores | None]],
    share: float,
    clips: list[ClipScores],
    llr: float,
    seconds: float,
) -> None:
    fitted = fit_good_probability(right, corrupted, statistics=STATISTICS, bad_share=share)
    worse, higher = fitted.of(clips), fitted.of([better(one, llr, seconds) for one in clips])
    assert ((worse >= 0) & (worse <= 1)).all()
    assert (higher >= worse - 1e-12).all()
    assert fitted.of([None])[0] <= worse.min() + 1e-12


def test_probabilities_are_those_of_the_corpus() -> None:
    rng = np.random.default_rng(0)

    def drawn(mean: float, count: int) -> list[ClipScores]:
        return [clip(float(value)) for value in rng.normal(mean, 1.0, count)]

    fitted = fit_good_probability(
        drawn(0, 300), {"a": drawn(-3, 300), "b": drawn(-1.5, 300)}, statistics=STATISTICS[:1], bad_share=0.2
    )
    corpus = [(one, True) for one in drawn(0, 8000)] + [(one, False) for one in drawn(-3, 1000) + drawn(-1.5, 1000)]
    good = np.array([truth for _, truth in corpus])
    found = fitted.of([one for one, _ in corpus])
    assert found.mean() == pytest.approx(0.8, abs=0.02)
    for low, high in ((0.0, 0.2), (0.2, 0.8), (0.8, 1.0)):
        inside = (found >= low) & (found <= high)
        assert inside.sum() > 200
        assert good[inside].mean() == pytest.approx(found[inside].mean(), abs=0.08)
    assert found[good].mean() > 0.9 > 0.4 > found[~good].mean()


def test_worse_than_all_trusted_clips_is_not_all_the_same() -> None:
    right = [clip(-float(value)) for value in np.linspace(0.5, 2, 30)]
    p = combined_p_values(right, [clip(-1.0), clip(-2.0), clip(-2.5), clip(-4.0), None, clip(None)], STATISTICS[:1])
    assert list(p[:5]) == sorted(p[:5], reverse=True)
    assert len(set(p[:5])) == 5
    assert p[1] == pytest.approx(2 / 31)
    assert p[4] == 0.0
    assert p[5] == 1.0
    assert not math.isnan(p.sum())


def test_without_bad_clips_all_weigh_alike_and_without_good_ones_none() -> None:
    right, wrong = [clip(-1.0 - at / 10) for at in range(20)], {"a": [clip(-5.0 - at / 10) for at in range(20)]}
    clean = fit_good_probability(right, wrong, statistics=STATISTICS, bad_share=0.0)
    assert list(clean.of([*right, *wrong["a"], None])) == [1.0] * 41
    rotten = fit_good_probability(right, wrong, statistics=STATISTICS, bad_share=1.0)
    assert list(rotten.of([*right, *wrong["a"]])) == [0.0] * 40


def test_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(ManifestError, match="found 1 and 1"):
        fit_good_probability([clip(-1.0)], {"a": [clip(-2.0)]}, statistics=STATISTICS, bad_share=0.1)
    with pytest.raises(ManifestError, match="found 2 and 0"):
        fit_good_probability([clip(-1.0)] * 2, {"a": []}, statistics=STATISTICS, bad_share=0.1)
