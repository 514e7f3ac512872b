"""What each allocator decides by, and what its controls share with it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonotune.adapters.ranks.allocators.controls import RandomAllocator, ShuffledAllocator
from sonotune.adapters.ranks.allocators.entropy import EntropyAllocator, InverseAllocator
from sonotune.adapters.ranks.allocators.eva import EvaAllocator, EvaRanksAllocator, UniformEvaAllocator
from sonotune.adapters.ranks.allocators.gradient import GradientAllocator, GradientEvaAllocator
from sonotune.adapters.ranks.allocators.uniform import UniformAllocator
from sonotune.adapters.ranks.plan import Budget, Importance, RankPlan, Target
from sonotune.errors import AdapterError

KINDS = {"q_proj": (256, 256), "k_proj": (256, 256), "fc1": (512, 256), "fc2": (256, 512)}
many = settings(max_examples=600, deadline=None)


def model(layers: int = 6, groups: tuple[str, ...] = ("encoder", "decoder")) -> list[Target]:
    return [
        Target(name=f"{group}.{layer}.{kind}", outputs=outputs, inputs=inputs, group=group, kind=kind)
        for group in groups
        for layer in range(layers)
        for kind, (outputs, inputs) in KINDS.items()
    ]


def evidence_for(sites: list[Target], seed: int = 0, directions: int = 48) -> Importance:
    rng = np.random.default_rng(seed)
    return Importance(
        effective_ranks={site.name: float(np.exp(rng.uniform(0, 5.5))) for site in sites},
        shares={site.name: np.sort(rng.dirichlet(np.full(directions, 0.3)))[::-1] for site in sites},
        directions={
            site.name: np.linalg.qr(rng.standard_normal((site.inputs, directions)))[0].T.astype(np.float32)
            for site in sites
        },
        gains={site.name: rng.exponential(size=directions) ** 3 for site in sites},
    )


def run(
    allocator: Callable[[], object],
    sites: list[Target],
    evidence: Importance,
    *,
    seed: int = 0,
    **given,
) -> RankPlan:
    return allocator().allocate(sites, Budget(**{"rank": 8, **given}), evidence=evidence, seed=seed)


def by_group(sites: list[Target], plan: RankPlan) -> dict[str, int]:
    found: dict[str, int] = {}
    for site in sites:
        found[site.group] = found.get(site.group, 0) + site.cost * plan.ranks[site.name]
    return found


def order(values: dict[str, float]) -> list[str]:
    return sorted(values, key=lambda name: values[name])


# --- uniform -------------------------------------------------------------------------------------


def test_uniform_ranks_keep_weights_floors_and_bounds_that_are_given():
    sites = model()
    assert set(run(UniformAllocator, sites, Importance(), rank=7).ranks.values()) == {7}
    for settings_, expected in (
        ({"weights": {"encoder": 3.0}, "step": 1}, {"encoder": 12, "decoder": 4}),
        ({"floors": {"decoder": 12}}, {"encoder": 4, "decoder": 12}),
        ({"most": 4}, {"encoder": 4, "decoder": 4}),
    ):
        plan = run(UniformAllocator, sites, Importance(), **settings_)
        assert plan.ranks == {site.name: expected[site.group] for site in sites}
        assert plan.budget == 8 * sum(site.cost for site in sites)


# --- entropy and its controls --------------------------------------------------------------------


def test_entropy_gives_more_to_higher_effective_ranks_and_inverse_gives_less():
    sites = [site for site in model() if site.kind == "q_proj"]
    evidence = evidence_for(sites)
    scores = {name: evidence.effective_ranks[name] for name in evidence.effective_ranks}
    plan, opposite = run(EntropyAllocator, sites, evidence, step=1), run(InverseAllocator, sites, evidence, step=1)
    for group in ("encoder", "decoder"):
        names = [name for name in order(scores) if name.startswith(group)]
        ranks = [plan.ranks[name] for name in names]
        assert ranks == sorted(ranks)
        assert ranks[0] < 8 < ranks[-1]
        backward = [opposite.ranks[name] for name in names]
        assert backward == sorted(backward, reverse=True)
        assert backward[0] > 8 > backward[-1]
    assert plan.evidence == evidence.effective_ranks
    assert opposite.evidence == pytest.approx({name: 1 / value for name, value in scores.items()})


def test_an_effective_rank_caps_what_lies_above_the_reference_rank():
    sites = [site for site in model(groups=("encoder",)) if site.kind == "q_proj"]
    scores = {site.name: value for site, value in zip(sites, (9.5, 9.0, 2.0, 2.0, 2.0, 2.0), strict=True)}
    free = run(
        EntropyAllocator,
        sites,
        Importance(effective_ranks={n: 100 * v for n, v in scores.items()}),
        gamma=2.0,
    )
    capped = run(EntropyAllocator, sites, Importance(effective_ranks=scores), gamma=2.0)
    assert list(free.ranks.values())[:2] == [21, 19]
    assert list(capped.ranks.values())[:2] == [10, 9]
    assert capped.parameters == free.parameters == free.budget


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("allocator", [EntropyAllocator, InverseAllocator])
def test_an_effective_rank_that_is_none_is_refused(allocator: Callable[[], object], value: float):
    sites = model(layers=1)
    evidence = evidence_for(sites)
    wrong = replace(evidence, effective_ranks={**evidence.effective_ranks, sites[2].name: value})
    least = 0.0 if allocator is EntropyAllocator else math.inf  # a score of 0
    if value == least:
        assert run(allocator, sites, wrong).ranks[sites[2].name] == 2
    else:
        with pytest.raises(AdapterError, match=r"score of encoder\.0\.fc1 is"):
            run(allocator, sites, wrong)


@given(seed=st.integers(0, 2**40), calibration=st.integers(0, 20), rank=st.sampled_from([4, 8, 16]))
@many
def test_random_ranks_are_those_of_entropy_in_other_places(seed: int, calibration: int, rank: int):
    sites = model(layers=3)
    evidence = Importance(effective_ranks=evidence_for(sites, calibration, directions=1).effective_ranks)
    plan = run(EntropyAllocator, sites, evidence, rank=rank)
    found = run(RandomAllocator, sites, evidence, rank=rank, seed=seed)
    assert Counter(found.ranks.values()) == Counter(plan.ranks.values())
    assert (found.parameters, found.budget) == (plan.parameters, plan.budget)
    assert by_group(sites, found) == by_group(sites, plan)
    for cost in (512, 768):
        here = [site.name for site in sites if site.cost == cost]
        assert Counter(found.ranks[name] for name in here) == Counter(plan.ranks[name] for name in here)


@pytest.mark.parametrize("allocator", [RandomAllocator, ShuffledAllocator])
def test_controls_are_drawn_anew_for_every_seed_and_alike_for_the_same(allocator: Callable[[], object]):
    sites = model()
    evidence = evidence_for(sites)
    drawn = {tuple(run(allocator, sites, evidence, seed=seed).ranks.values()) for seed in range(12)}
    assert len(drawn) == 12
    assert tuple(run(EntropyAllocator, sites, evidence).ranks.values()) not in drawn
    again = run(allocator, list(reversed(sites)), evidence, seed=3)
    assert again.ranks == run(allocator, sites, evidence, seed=3).ranks


@given(seed=st.integers(0, 2**40))
@many
def test_shuffled_scores_stay_within_their_kind(seed: int):
    sites = model(layers=4)
    evidence = evidence_for(sites, directions=1)
    plan = run(ShuffledAllocator, sites, evidence, seed=seed)
    for group in ("encoder", "decoder"):
        for kind in KINDS:
            names = [site.name for site in sites if (site.group, site.kind) == (group, kind)]
            assert sorted(plan.evidence[name] for name in names) == sorted(
                evidence.effective_ranks[name] for name in names
            )
    again = Importance(effective_ranks=plan.evidence)
    assert run(EntropyAllocator, sites, again).ranks == plan.ranks  # it spends as entropy does


# --- explained variance --------------------------------------------------------------------------


def test_eva_takes_the_components_with_the_largest_share_by_cost():
    sites = [replace(site, group="encoder") for site in model(layers=2)]
    evidence = replace(evidence_for(sites, directions=30), effective_ranks={})
    plan = run(EvaAllocator, sites, evidence, step=1, least=1, most=30)
    chosen, left = [], []
    for site in sites:
        value = evidence.shares[site.name] / site.cost
        chosen += list(value[1 : plan.ranks[site.name]])  # the first of each is its least rank
        left += list(value[plan.ranks[site.name] : 30])
    assert plan.budget - plan.parameters < 512
    assert len(set(plan.ranks.values())) > 3
    worse = [value for value in chosen if value < max(left)]
    assert len(worse) <= 1  # the last one may stand in for a dearer one that did not fit
    assert plan.evidence == pytest.approx(
        {site.name: evidence.shares[site.name][: plan.ranks[site.name]].sum() for site in sites}
    )


def test_eva_favours_steep_spectra_where_entropy_favours_flat_ones():
    sites = [site for site in model(groups=("encoder",)) if site.kind == "q_proj"]
    shares = {}
    for number, site in enumerate(sites):
        spectrum = np.exp(-np.arange(48) / (2.0 + 6 * number))
        shares[site.name] = spectrum / spectrum.sum()
    eranks = {name: float(np.exp(-(p * np.log(p)).sum())) for name, p in shares.items()}
    evidence = Importance(shares=shares, effective_ranks=eranks)
    by_variance = list(run(EvaRanksAllocator, sites, evidence, rank=4, most=16).ranks.values())
    by_entropy = list(run(EntropyAllocator, sites, evidence, rank=4, most=16).ranks.values())
    assert by_entropy == sorted(by_entropy)
    assert by_entropy[-1] > by_entropy[0]
    assert by_variance[-1] < max(by_variance)


def test_the_two_parts_of_eva():
    sites = model()
    evidence = evidence_for(sites)
    whole, ranks, start = (
        run(kind, sites, evidence) for kind in (EvaAllocator, EvaRanksAllocator, UniformEvaAllocator)
    )
    assert ranks.ranks == whole.ranks != start.ranks
    assert set(start.ranks.values()) == {8}
    assert not ranks.initial
    for plan in (whole, start):
        for site in sites:
            np.testing.assert_array_equal(
                plan.initial[site.name], evidence.directions[site.name][: plan.ranks[site.name]]
            )


def test_equal_spectra_of_equal_modules_are_uniform():
    sites = [site for site in model() if site.kind in ("q_proj", "k_proj")]
    for values in (np.full(48, 1 / 48), 0.9 ** np.arange(48)):
        evidence = Importance(shares=dict.fromkeys([site.name for site in sites], values))
        assert set(run(EvaRanksAllocator, sites, evidence).ranks.values()) == {8}


def test_directions_of_another_model_are_refused():
    sites = model(layers=1)
    evidence = evidence_for(sites)
    narrow = replace(evidence, directions={**evidence.directions, sites[0].name: np.eye(8, dtype=np.float32)})
    for kind in (EvaAllocator, UniformEvaAllocator, GradientEvaAllocator):
        with pytest.raises(AdapterError, match=r"directions of encoder\.0\.q_proj .*\(8, 8\).* 256 wide"):
            run(kind, sites, narrow)


# --- gradients -----------------------------------------------------------------------------------


def test_gradient_ranks_follow_the_sum_of_gains():
    sites = [site for site in model(groups=("encoder",)) if site.kind == "q_proj"][:3]
    gains = {site.name: np.full(10, value) for site, value in zip(sites, (1.0, 4.0, 9.0), strict=True)}
    plan = run(GradientAllocator, sites, Importance(gains=gains), rank=12, step=1)
    assert list(plan.ranks.values()) == [6, 12, 18]
    assert list(plan.evidence.values()) == pytest.approx([10.0, 40.0, 90.0])


def test_gradient_eva_starts_from_the_directions_with_the_largest_gains():
    sites = [replace(site, group="encoder") for site in model(layers=2)]
    evidence = replace(evidence_for(sites, directions=30), effective_ranks={})
    plan = run(GradientEvaAllocator, sites, evidence, step=1, least=1, most=30)
    chosen, left = [], []
    for site in sites:
        rank = plan.ranks[site.name]
        best = sorted(range(30), key=lambda number, gains=evidence.gains[site.name]: -gains[number])
        np.testing.assert_array_equal(plan.initial[site.name], evidence.directions[site.name][best[:rank]])
        falling = evidence.gains[site.name][best] / site.cost
        chosen += list(falling[1:rank])
        left += list(falling[rank:])
        assert plan.evidence[site.name] == pytest.approx(evidence.gains[site.name][best[:rank]].sum())
    assert sum(value < max(left) for value in chosen) <= 1


@pytest.mark.parametrize("kind", [GradientAllocator, GradientEvaAllocator])
@pytest.mark.parametrize(
    ("values", "message"),
    [([-1.0, 2.0], "negative or not finite"), ([math.nan, 1.0], "negative or not"), ([0.0, 0.0], "gradients are zero")],
)
def test_gains_that_say_nothing_are_refused(kind: Callable[[], object], values: list[float], message: str):
    sites = model(layers=1)
    evidence = evidence_for(sites)
    wrong = replace(evidence, gains=dict.fromkeys(evidence.gains, np.array(values)))
    with pytest.raises(AdapterError, match=message):
        run(kind, sites, wrong)
