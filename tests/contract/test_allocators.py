"""What every rank allocator promises: all modules, whole ranks, never over the budget, the same answer each time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonotune.errors import AdapterError
from sonotune.registry import names, resolve

COSTS = st.dictionaries(st.from_regex(r"layer\.[0-9]{1,3}", fullmatch=True), st.integers(1, 5000), min_size=1)


@pytest.mark.parametrize("name", names("allocators"))
@given(costs=COSTS, rank=st.integers(1, 64), budget=st.none() | st.integers(1, 10**6))
def test_a_plan_covers_every_module_and_keeps_the_budget(
    name: str, costs: dict[str, int], rank: int, budget: int | None
):
    allocator = resolve("allocators", name)()
    least = sum(costs.values())
    if budget is not None and budget < least:
        with pytest.raises(AdapterError, match=str(least)):
            allocator.allocate(costs, rank=rank, budget=budget)
        return
    plan = allocator.allocate(costs, rank=rank, budget=budget)
    assert plan.ranks.keys() == costs.keys()
    assert all(isinstance(value, int) and value >= 1 for value in plan.ranks.values())
    assert plan.parameters == sum(costs[module] * value for module, value in plan.ranks.items())
    assert plan.parameters <= (rank * least if budget is None else budget)
    assert plan.allocator == name
    assert allocator.allocate(dict(reversed(costs.items())), rank=rank, budget=budget).ranks == plan.ranks
