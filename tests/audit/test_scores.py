"""Scores of clips, by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonotune.alignment.base import Alignment, Evidence
from sonotune.audit.scores import (
    CODES,
    STATISTICS,
    ClipScores,
    _without,
    fit_rates,
    reasons,
    score_alignment,
    scores_from_json,
    with_rates,
)
from sonotune.errors import ManifestError
from sonotune.types import Word


def aligned(
    words: list[tuple[str, float, float]],
    *,
    given_: list[float] | None = None,
    best: list[float] | None = None,
    window: int = 3,
    posteriors: list[float] | None = None,
    transcript: str | None = None,
) -> Alignment:
    given_ = [-0.1] * 10 if given_ is None else given_
    return Alignment(
        clip_id="c",
        words=tuple(Word(text=text, start_s=start, end_s=end) for text, start, end in words),
        token_words=np.arange(len(words)),
        token_starts_s=np.array([start for _, start, _ in words], dtype=np.float64),
        token_ends_s=np.array([end for _, _, end in words], dtype=np.float64),
        token_posteriors=np.array([0.9] * len(words) if posteriors is None else posteriors, dtype=np.float32),
        evidence=Evidence(
            given=np.array(given_, dtype=np.float32),
            best=np.array(best if best is not None else [0.0] * len(given_), dtype=np.float32),
            window=window,
        ),
        transcript=transcript,
    )


TWO = [("one", 1.0, 1.5), ("two", 2.0, 2.5)]


def score(alignment: Alignment, **more: object) -> ClipScores:
    settings = {"text": "One, two.", "duration_s": 10.0, "speech": [(1.0, 2.5)], **more}
    return score_alignment(alignment, **settings)


def test_the_lowest_window_and_where_it_lies():
    rows = [-0.1, -0.1, -0.1, -0.1, -4.0, -5.0, -6.0, -0.1, -0.1, -0.1]
    found = score(aligned(TWO, given_=rows, best=[-0.1] * 10))
    assert found.min_window_llr == pytest.approx(-(3.9 + 4.9 + 5.9) / 3, rel=1e-6)
    assert found.min_window_log_probability == pytest.approx(-5.0)
    assert found.mean_llr == pytest.approx(-(3.9 + 4.9 + 5.9) / 2, rel=1e-6)  # two tokens
    assert found.mean_log_probability == pytest.approx(np.mean(rows))
    assert found.worst_window == pytest.approx((4.0, 7.0))  # ten rows over ten seconds


def test_fewer_rows_than_a_window_are_one_window():
    found = score(aligned(TWO, given_=[-1.0, -3.0, -0.5], window=30))
    assert found.min_window_llr == pytest.approx(-1.5)
    assert found.worst_window == (0.0, 10.0)


def test_rows_of_tokens_lie_where_their_tokens_do():
    three = [*TWO, ("three", 6.0, 7.0)]
    found = score(aligned(three, given_=[-0.1, -2.0, -3.0], window=2))
    assert found.worst_window == (2.0, 7.0)


def test_what_a_model_would_have_written_itself_has_no_ratio():
    found = score(aligned(TWO, given_=[-2.0] * 10, best=[-2.0] * 10))
    assert found.min_window_llr == 0.0
    assert found.mean_llr == 0.0
    assert found.mean_log_probability == -2.0


def test_the_impossible_stays_a_number():
    found = score(aligned(TWO, given_=[-np.inf, -1.0, -np.inf], best=[0.0, 0.0, -np.inf]))
    assert all(math.isfinite(found.statistic(name) or 0.0) for name in STATISTICS)
    assert found.min_window_llr < -10
    json.dumps(found.to_json(), allow_nan=False)


def test_tokens():
    found = score(aligned(TWO, posteriors=[0.9, 0.1]))
    assert found.token_posterior == pytest.approx(0.5)
    assert found.low_token_share == 0.5


def test_speech_that_no_word_covers():
    found = score(aligned(TWO), speech=[(0.5, 2.6), (4.0, 5.5), (8.0, 8.5)])
    # Words widened by 0.3 s cover 0.7 to 2.8.
    assert found.total_unaligned_s == pytest.approx(0.2 + 1.5 + 0.5)
    assert found.longest_unaligned_s == pytest.approx(1.5)
    assert found.longest_unaligned == (4.0, 5.5)
    assert found.coverage == pytest.approx(1 - 2.2 / 4.1)
    assert found.speech_s == pytest.approx(4.1)


def test_a_gap_inside_speech_is_found():
    found = score(aligned([("one", 0.0, 1.0), ("two", 4.0, 5.0)]), speech=[(0.0, 5.0)])
    assert found.longest_unaligned == pytest.approx((1.3, 3.7))


def test_no_speech_has_no_coverage():
    found = score(aligned(TWO), speech=[])
    assert found.coverage is None
    assert found.characters_per_second is None
    assert found.longest_unaligned is None
    assert found.total_unaligned_s == 0.0


def test_texts_are_compared_in_scoring_form():
    assert score(aligned(TWO, transcript="ONE TWO!")).cer == 0.0
    assert score(aligned(TWO, transcript="one")).cer == pytest.approx(4 / 7)
    assert score(aligned(TWO)).cer is None
    assert score(aligned(TWO), speech=[(0.0, 3.0)]).characters_per_second == 2.0


def test_an_aligner_without_probabilities_leaves_the_rest():
    found = score(replace(aligned(TWO), evidence=None, token_posteriors=np.zeros(0, np.float32)))
    assert found.min_window_llr is None
    assert found.token_posterior is None
    assert found.coverage == 1.0


def rated(rate: float | None, language: str | None) -> ClipScores:
    return ClipScores(clip_id="c", language=language, duration_s=1, speech_s=1, characters_per_second=rate)


def test_rates_are_compared_within_a_language():
    fast, slow = (
        [rated(base * math.exp(0.2 * step), name) for step in range(-5, 6)]
        for name, base in (("es", 20.0), ("th", 8.0))
    )
    rates = fit_rates([*fast, *slow, rated(99.0, "xx")])
    assert set(rates.languages) == {"es", "th"}
    found = with_rates(
        [rated(20.0, "es"), rated(8.0, "th"), rated(8.0, "es"), rated(40.0, "th"), rated(None, "es")], rates
    )
    assert [one.rate_z for one in found[:2]] == pytest.approx([0, 0])
    deviation = 1.4826 * 0.2 * 3
    assert found[2].rate_z == pytest.approx(math.log(8 / 20) / deviation)
    assert found[3].statistic("rate_deviation") == pytest.approx(math.log(5) / deviation)
    assert found[4].rate_z is None


def test_a_few_odd_clips_do_not_move_the_rate():
    good = [rated(10.0 + 0.1 * index, "sw") for index in range(30)]
    clean, dirty = fit_rates(good), fit_rates([*good, *[rated(0.5, "sw")] * 4])
    odd = rated(0.5, "sw")
    assert with_rates([odd], dirty)[0].rate_z < -5
    assert clean.languages["sw"][0] == pytest.approx(dirty.languages["sw"][0], abs=0.05)


def test_too_few_clips_have_no_rate():
    assert with_rates([rated(5.0, "sw")], fit_rates([rated(5.0, "sw")] * 9))[0].rate_z is None


def test_reasons_say_where():
    found = score(aligned(TWO, given_=[-0.1] * 7 + [-9.0] * 3), speech=[(1.0, 2.5), (6.0, 8.0)])
    made = reasons(found, ("min_window_llr", "coverage", "rate_deviation"), {"coverage": 0.6})
    assert [one.code for one in made] == ["local_mismatch", "low_coverage", "speaking_rate"]
    assert made[0].spans == (pytest.approx((7.0, 10.0)),)
    assert made[1].spans == ((6.0, 8.0),)
    assert (made[1].value, made[1].threshold) == (found.coverage, 0.6)
    assert made[2].spans == ()
    assert reasons(None, ("unaligned",))[0].to_json() == {
        "code": "unaligned",
        "statistic": "unaligned",
        "value": None,
        "threshold": None,
        "spans": [],
    }
    assert set(CODES) == {*STATISTICS, "unaligned"}


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 5)), max_size=6),
    st.lists(st.tuples(st.integers(-3, 40), st.integers(0, 9)), max_size=6),
)
def test_what_is_left_of_spans_agrees_with_a_grid(gaps, covers):
    spans, at = [], 0
    for gap, length in gaps:
        spans.append((at + gap, at + gap + length))
        at += gap + length + 1
    covered = [(start, start + length) for start, length in covers]
    left = _without(spans, covered)
    cells = {cell for start, end in spans for cell in range(start, end)}
    cells -= {cell for start, end in covered for cell in range(start, end)}
    assert [cell for start, end in left for cell in range(int(start), int(end))] == sorted(cells)


def test_scores_survive_json():
    found = replace(score(aligned(TWO, transcript="one"), speech=[(0.0, 9.0)], language="en"), rate_z=-1.5)
    assert scores_from_json(json.loads(json.dumps(found.to_json()))) == found
    bare = ClipScores(clip_id="x", duration_s=1.0, speech_s=0.0)
    assert scores_from_json({**bare.to_json(), "of a newer version": 1}) == bare


@pytest.mark.parametrize("wrong", [{"coverage": 2.0}, {"cer": "much"}, {"worst_window": [1.0]}, {"duration_s": None}])
def test_damaged_scores_are_refused(wrong):
    good = ClipScores(clip_id="x", duration_s=1.0, speech_s=0.0).to_json()
    with pytest.raises(ManifestError, match=next(iter(wrong))):
        scores_from_json({**good, **wrong}, where="clips.jsonl:3")
