"""What every rank allocator promises: all modules, whole ranks, never over the budget, the same answer each time."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonotune.adapters.ranks.plan import Budget, Importance, Target
from sonotune.errors import AdapterError
from sonotune.registry import names, resolve

KNOWN = 40
"""Directions that calibration finds of an input that has as many."""


@st.composite
def site_lists(draw: st.DrawFn, least: int = 1) -> list[Target]:
    sides, groups = st.integers(least, 96), st.sampled_from(["encoder", "decoder"])
    shapes = draw(st.lists(st.tuples(sides, sides, groups), min_size=1, max_size=10))
    return [
        Target(name=f"{group}.layers.{number}.fc", outputs=outputs, inputs=inputs, group=group, kind="fc")
        for number, (outputs, inputs, group) in enumerate(shapes)
    ]


def evidence_of(sites: list[Target]) -> Importance:
    """All that calibration finds, another for every name, whatever the order of the sites."""
    eranks, shares, directions, gains = {}, {}, {}, {}
    for site in sites:
        rng = np.random.default_rng(zlib.crc32(site.name.encode()))
        count = min(site.inputs, KNOWN)
        eranks[site.name] = 1 + (site.inputs - 1) * rng.random()
        shares[site.name] = np.sort(rng.dirichlet(np.ones(count)))[::-1]
        directions[site.name] = np.linalg.qr(rng.standard_normal((site.inputs, count)))[0].T.astype(np.float32)
        gains[site.name] = rng.exponential(size=count)
    return Importance(effective_ranks=eranks, shares=shares, directions=directions, gains=gains)


@pytest.mark.parametrize("name", names("allocators"))
@given(
    sites=site_lists(), rank=st.integers(1, 64), parameters=st.none() | st.integers(0, 10**5), seed=st.integers(0, 9)
)
@settings(deadline=None)
def test_a_plan_covers_every_module_and_keeps_the_budget(
    name: str, sites: list[Target], rank: int, parameters: int | None, seed: int
):
    allocator = resolve("allocators", name)()
    evidence, budget = evidence_of(sites), Budget(rank=rank, parameters=parameters)
    costs = {site.name: site.outputs + site.inputs for site in sites}
    least = sum(costs.values())
    if parameters is not None and parameters < least:
        with pytest.raises(AdapterError, match=rf"adapter\.budget={parameters} .* the least .*{least} parameters"):
            allocator.allocate(sites, budget, evidence=evidence, seed=seed)
        return
    plan = allocator.allocate(sites, budget, evidence=evidence, seed=seed)
    assert list(plan.ranks) == [site.name for site in sites]
    assert all(type(value) is int and value >= 1 for value in plan.ranks.values())
    assert plan.parameters == sum(costs[module] * value for module, value in plan.ranks.items())
    assert plan.budget == (rank * least if parameters is None else parameters)
    assert plan.parameters <= plan.budget or plan.pruned_to <= plan.budget  # pruned while it trains
    assert plan.allocator == name
    assert allocator.allocate(sites, budget, evidence=evidence, seed=seed).ranks == plan.ranks
    for site in sites:
        if plan.initial:
            rows = plan.initial[site.name]
            assert rows.dtype == np.float32
            assert rows.shape == (min(plan.ranks[site.name], len(evidence.directions[site.name])), site.inputs)
            np.testing.assert_allclose(rows @ rows.T, np.eye(len(rows)), atol=1e-5)


@pytest.mark.parametrize("name", names("allocators"))
@given(sites=site_lists(least=40), rank=st.integers(1, 10), competing=st.booleans(), seed=st.integers(0, 9))
@settings(deadline=None)
def test_the_order_of_modules_does_not_matter(name: str, sites: list[Target], rank: int, competing: bool, seed: int):
    """As long as there is evidence on all that is spent, which there is up to rank 40."""
    allocator, evidence = resolve("allocators", name)(), evidence_of(sites)
    budget = Budget(rank=rank, cross_modality=competing)
    plan = allocator.allocate(sites, budget, evidence=evidence, seed=seed)
    assert max(plan.ranks.values()) <= KNOWN
    assert allocator.allocate(list(reversed(sites)), budget, evidence=evidence, seed=seed).ranks == plan.ranks


@pytest.mark.parametrize("name", names("allocators"))
def test_no_module_no_rank_and_no_evidence_no_plan(name: str):
    allocator = resolve("allocators", name)()
    for parameters in (None, 1000):
        plan = allocator.allocate([], Budget(rank=8, parameters=parameters), evidence=Importance(), seed=0)
        assert (plan.ranks, plan.parameters) == ({}, 0)
    sites = [Target(name="a.fc", outputs=64, inputs=64, group="a", kind="fc")]
    if allocator.needs == "nothing":
        assert allocator.allocate(sites, Budget(rank=8), evidence=Importance(), seed=0).ranks["a.fc"] >= 8
        return
    assert allocator.needs in ("activations", "directions", "gradients")
    with pytest.raises(AdapterError, match=rf"allocator={name} decides by .* not known of a\.fc .*sonotune allocate"):
        allocator.allocate(sites, Budget(rank=8), evidence=Importance(), seed=0)
