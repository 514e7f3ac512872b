"""Strata and draws."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonotune.audit.sampling import MAX_AUTO, SamplingSettings, StratumRule, draw, stratify
from sonotune.errors import ConfigError, ManifestError
from sonotune.types import Clip


def clip(name: str, duration_s: float = 5.0, domain: str | None = None, **more: object) -> Clip:
    return Clip(id=name, path=Path(f"/nowhere/{name}.wav"), duration_s=duration_s, domain=domain, **more)


def corpus(count: int, domains: int = 3) -> list[Clip]:
    return [clip(f"c{index}", 1.0 + index * 7 % 30, f"d{index * index % domains}") for index in range(count)]


def ids(sample) -> set[str]:
    return {one.id for one in sample.clips}


def test_the_strata_of_the_seed():
    clips = [
        clip("a", 3, "WhatsApp voice"),
        clip("b", 40, extra={"source": "whatsapp-2024"}),
        clip("c", 3, "kan"),
        clip("d", 3, "kannada"),  # no broadcaster
        clip("e", 30, extra={"source": "SASPEECH gold"}),
        clip("f", 20.1),
        clip("g", 19.9),
        clip("h", 8.0),
        Clip(id="i", path=Path("/data/broadcast/1.wav"), duration_s=2),
    ]
    found = {name: {one.id for one in members} for name, members in stratify(clips, "seed").items()}
    assert found == {"whatsapp_noisy": {"a", "b", "d", "h"}, "kan_clean": {"c", "e", "g", "i"}, "long_tail": {"f"}}


def test_the_shares_of_the_seed():
    clips = [
        clip(f"{kind}{index}", seconds, kind)
        for kind, seconds in (("whatsapp", 5), ("kan", 9), ("x", 30))
        for index in range(2000)
    ]
    sample = draw(clips, SamplingSettings(strata="seed", fraction=0.1))
    assert {one.name: len(one.clips) for one in sample.strata} == {
        "whatsapp_noisy": 240,
        "kan_clean": 240,
        "long_tail": 120,
    }
    assert all(one.population == 2000 for one in sample.strata)


def test_a_small_stratum_is_taken_whole_and_the_others_get_its_share():
    clips = [clip(f"w{index}", 5, "whatsapp") for index in range(5000)] + [clip("long", 30, "x")]
    sample = draw(clips, SamplingSettings(strata="seed", fraction=0.1))
    assert {one.name: len(one.clips) for one in sample.strata} == {"whatsapp_noisy": 500, "long_tail": 1}


def test_rules_hold_all_their_conditions_and_the_first_wins():
    rules = (
        StratumRule(name="long phone", match={"domain": "^phone$", "style": "free|read"}, min_duration_s=10, share=0.5),
        StratumRule(name="phone", match={"domain": "^phone$"}, share=0.25),
    )
    clips = [
        clip("a", 12, "phone", extra={"style": "Free talk"}),
        clip("b", 10, "phone", extra={"style": "free"}),  # not longer than 10 s
        clip("c", 12, "phone"),  # no style
        clip("d", 12, "headphones", extra={"style": "free"}),
    ]
    found = {name: {one.id for one in members} for name, members in stratify(clips, rules).items()}
    assert found == {"long phone": {"a"}, "phone": {"b", "c"}, "other": {"d"}}


def test_strata_without_a_share_get_what_is_left():
    rules = (StratumRule(name="a", match={"domain": "a"}, share=0.5), StratumRule(name="b", match={"domain": "b"}))
    clips = [
        clip(f"{kind}{index}", 5, kind)
        for kind, count in (("a", 1000), ("b", 3000), ("c", 1000))
        for index in range(count)
    ]
    sample = draw(clips, SamplingSettings(strata=rules, fraction=0.08))
    assert {one.name: len(one.clips) for one in sample.strata} == {"a": 200, "b": 150, "other": 50}


@pytest.mark.parametrize("domains", [1, 2, 3, 5, 8, 9, 40])
def test_auto_has_few_strata_and_loses_no_clip(domains):
    clips = corpus(3000, domains)
    found = stratify(clips, "auto")
    assert 1 <= len(found) <= MAX_AUTO
    assert sorted(one.id for members in found.values() for one in members) == sorted(one.id for one in clips)
    if domains <= 2:
        assert len(found) >= 4  # by duration as well


def test_auto_of_a_corpus_of_one_kind_is_one_stratum():
    assert list(stratify([clip(str(index), 3.0) for index in range(50)], "auto")) == ["all"]


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 120),
    strata=st.sampled_from(["auto", "seed", (StratumRule(name="d1", match={"domain": "1"}, share=0.9),)]),
    n_per_stratum=st.none() | st.integers(1, 60),
    bounds=st.lists(st.integers(1, 150), min_size=2, max_size=2).map(sorted),
    seed=st.integers(0, 99),
)
def test_draws_are_repeatable_nested_and_within_the_corpus(count, strata, n_per_stratum, bounds, seed):
    chosen = SamplingSettings(
        strata=strata,
        n_per_stratum=n_per_stratum,
        min_clips=bounds[0],
        max_clips=bounds[1],
        seed=seed,
    )
    clips = corpus(count)
    before: set[str] = set()
    for look in range(1, 5):
        sample = draw(clips, chosen, look=look)
        assert ids(sample) == ids(draw(clips[::-1], chosen, look=look))
        assert before <= ids(sample) <= {one.id for one in clips}
        assert len(ids(sample)) == len(sample.clips)
        assert sum(one.population for one in sample.strata) == count
        assert all(0 < len(one.clips) <= one.population for one in sample.strata)
        if n_per_stratum is None:
            assert len(sample.clips) <= max(bounds[1], len(sample.strata))
            assert len(sample.clips) >= min(count, bounds[0])
        if sample.exhausted:
            assert ids(draw(clips, chosen, look=look + 1)) == ids(sample)
        before = ids(sample)


def test_clips_that_join_displace_few():
    rules = (StratumRule(name="all"),)
    before = draw(corpus(2000), SamplingSettings(strata=rules))
    after = draw(corpus(2100), SamplingSettings(strata=rules))
    assert len(before.clips) == 200
    assert len(after.clips) == 210
    assert len(ids(before) - ids(after)) <= 15


def test_seeds_draw_different_clips():
    one, other = (ids(draw(corpus(2000), SamplingSettings(seed=seed))) for seed in (0, 1))
    assert len(one & other) < 60


def test_looks_double_up_to_the_limit():
    chosen = SamplingSettings(fraction=0.1, min_clips=50, max_clips=350)
    assert [len(draw(corpus(1000), chosen, look=look).clips) for look in (1, 2, 3, 4)] == [100, 200, 350, 350]
    assert [draw(corpus(1000), chosen, look=look).exhausted for look in (1, 2, 3)] == [False, False, True]


def test_a_sample_is_spread_evenly_over_its_stratum():
    taken = [int(one.id[1:]) for one in draw(corpus(5000, 1), SamplingSettings(strata=(StratumRule(name="x"),))).clips]
    assert 2300 < sum(taken) / len(taken) < 2700


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fraction": 0}, "fraction"),
        ({"n_per_stratum": 0}, "n_per_stratum"),
        ({"min_clips": 10, "max_clips": 5}, "min_clips"),
        ({"strata": "autos"}, "did you mean 'auto'"),
        ({"strata": ()}, "no rule"),
        ({"strata": (StratumRule(name="a", match={"domain": "("}),)}, "no regular expression"),
        ({"strata": (StratumRule(name="a", min_duration_s=5, max_duration_s=5),)}, "min_duration_s"),
        ({"strata": (StratumRule(name="a", share=0.7), StratumRule(name="b", share=0.7))}, r"add up to 1\.4"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        SamplingSettings(**wrong)


def test_an_empty_corpus_is_refused():
    with pytest.raises(ManifestError, match="at least one clip"):
        draw([], SamplingSettings())
