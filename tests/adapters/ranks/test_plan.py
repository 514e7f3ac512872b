"""A budget of adapter parameters becomes ranks: never more than there is, never a step left over, and no paradox."""

from __future__ import annotations

import itertools
import json
import math
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sonotune.adapters.ranks.allocators.entropy import EntropyAllocator
from sonotune.adapters.ranks.budget import apportion, bounds_of, divide, make_plan, shares_of, total_of
from sonotune.adapters.ranks.plan import (
    Budget,
    Importance,
    RankPlan,
    Target,
    alphas,
    plan_from_json,
    plan_to_json,
    targets_in,
)
from sonotune.errors import AdapterError
from sonotune.models.base import LoadedModel

Fresh = Callable[..., LoadedModel]
SHAPES = [(16, 16), (64, 16), (6, 6), (4, 64), (128, 128), (512, 128), (1280, 1280), (5120, 1280), (1280, 5120)]
WIDE = [shape for shape in SHAPES if min(shape) >= 128]
many = settings(max_examples=500, deadline=None)


def site(number: int, shape: tuple[int, int], group: str = "encoder") -> Target:
    return Target(name=f"{group}.layers.{number}.fc", outputs=shape[0], inputs=shape[1], group=group, kind="fc")


def site_lists(shapes: list[tuple[int, int]] = SHAPES, groups: str = "abc") -> st.SearchStrategy[list[Target]]:
    row = st.tuples(st.sampled_from(shapes), st.sampled_from(groups))
    return st.lists(row, min_size=1, max_size=12).map(
        lambda rows: [site(number, shape, group) for number, (shape, group) in enumerate(rows)]
    )


def scores_for(sites: list[Target]) -> st.SearchStrategy[dict[str, float]]:
    """No two alike."""
    numbers = st.lists(st.integers(1, 10**6), min_size=len(sites), max_size=len(sites), unique=True)
    return numbers.map(lambda found: {one.name: value / 997 for one, value in zip(sites, found, strict=True)})


@st.composite
def cases(draw: st.DrawFn, shapes: list[tuple[int, int]] = SHAPES) -> tuple[list[Target], dict[str, float], Budget]:
    """Sites, scores and a budget that suffices, with bounds and step given or left to the defaults."""
    sites = draw(site_lists(shapes))
    groups = sorted({one.group for one in sites})
    budget = Budget(
        rank=draw(st.integers(1, 40)),
        gamma=draw(st.sampled_from([0.0, 0.5, 1.0, 2.0])),
        weights=draw(st.dictionaries(st.sampled_from(groups), st.sampled_from([0.0, 0.5, 1.0, 3.0, 7.3]))),
        cross_modality=draw(st.booleans()),
    )
    if draw(st.booleans()):
        step, least = draw(st.sampled_from([1, 2, 4, 8])), draw(st.integers(1, 8))
        budget = replace(budget, step=step, least=least, most=draw(st.integers(max(8, least), 64)))
        floors = draw(st.dictionaries(st.sampled_from(groups), st.integers(1, 32)))
        most = draw(st.integers(0, 200_000)) + least_cost(sites, replace(budget, floors=floors))
        budget = replace(budget, floors=floors, parameters=most)
    elif draw(st.booleans()):
        budget = replace(budget, parameters=cost(sites) + draw(st.integers(0, 500_000)))
    return sites, draw(scores_for(sites)), budget


def cost(sites: list[Target]) -> int:
    return sum(one.outputs + one.inputs for one in sites)


def least_cost(sites: list[Target], budget: Budget) -> int:
    """What the least ranks cost where step and least rank are given."""
    return sum(
        math.ceil(max(budget.least, budget.floors.get(one.group, 0)) / budget.step) * budget.step * one.cost
        for one in sites
    )


def used(sites: list[Target], ranks: dict[str, int], group: str | None = None) -> int:
    return sum((one.outputs + one.inputs) * ranks[one.name] for one in sites if group in (None, one.group))


# --- the invariants ------------------------------------------------------------------------------


@given(case=cases(), caps=st.none() | st.integers(1, 300))
@many
def test_the_budget_is_kept_within_the_bounds_and_no_step_that_fits_is_left(case: Any, caps: int | None):
    sites, scores, budget = case
    limits = None if caps is None else dict.fromkeys(scores, caps)
    ranks = apportion(scores, sites, budget, caps=limits)
    bounds = bounds_of(sites, budget, caps=limits)
    shares = shares_of(sites, budget, bounds)
    left = total_of(sites, budget) - used(sites, ranks)
    assert left >= 0
    for one in sites:
        rank = ranks[one.name]
        assert rank % bounds.step == 0
        assert bounds.least[one.name] <= rank <= bounds.most[one.name]
        price = bounds.step * one.cost
        room = 2 * shares[one.group] - used(sites, ranks, one.group) if budget.cross_modality else math.inf
        assert rank == bounds.most[one.name] or price > left or price > room
    assert sum(shares.values()) <= total_of(sites, budget)


@given(data=st.data(), case=cases(WIDE), more=st.integers(0, 100_000))
@many
def test_more_budget_never_costs_a_module_rank(data: st.DataObject, case: Any, more: int):
    sites, scores, budget = case
    budget = replace(budget, step=4, least=2, most=28, cross_modality=False, floors={})
    budget = replace(budget, parameters=least_cost(sites, budget) + data.draw(st.integers(0, 200_000)))
    before = apportion(scores, sites, budget, fill="prefix")
    after = apportion(scores, sites, replace(budget, parameters=budget.parameters + more), fill="prefix")
    assert all(before[name] <= after[name] for name in before)
    assert used(sites, before) <= budget.parameters


def test_a_group_that_has_spent_its_share_does_not_stop_the_others():
    """The best step of `text` exceeds its share, and by that what is left of all; `audio` has room for one more."""
    audio = [site(number, (128, 128), "audio") for number in range(4)]
    text = [site(9, (1280, 1280), "text")]
    scores = {one.name: value for one, value in zip((*audio, *text), (1.0, 2.0, 3.0, 5.0, 4.0), strict=True)}
    budget = Budget(rank=8, parameters=12 * 3584 - 1, step=4, least=2, most=28)
    for parameters, spent in ((12 * 3584 - 1, 44), (12 * 3584, 48)):  # shares of `audio`: just under 12 288, and that
        ranks = apportion(scores, [*audio, *text], replace(budget, parameters=parameters), fill="prefix")
        assert sum(ranks[one.name] for one in audio) == spent


@given(data=st.data(), case=cases(), factor=st.integers(2, 50))
@many
def test_a_higher_score_never_costs_a_module_rank(data: st.DataObject, case: Any, factor: int):
    sites, scores, budget = case
    budget = replace(budget, cross_modality=False)
    name = data.draw(st.sampled_from(sorted(scores)))
    before = apportion(scores, sites, budget, fill="prefix")
    after = apportion({**scores, name: factor * scores[name]}, sites, budget, fill="prefix")
    assert after[name] >= before[name]


@given(data=st.data(), case=cases())
@many
def test_the_order_of_modules_does_not_matter(data: st.DataObject, case: Any):
    sites, scores, budget = case
    budget = replace(budget, gamma=budget.gamma or 0.5)  # at 0 all scores are equal, and the order decides
    ranks = apportion(scores, sites, budget)
    assert apportion(scores, data.draw(st.permutations(sites)), budget) == ranks


@given(case=cases(), factor=st.floats(1e-3, 1e3))
@many
def test_only_proportions_of_scores_count(case: Any, factor: float):
    sites, scores, budget = case
    scaled = {name: factor * value for name, value in scores.items()}
    assert apportion(scaled, sites, budget) == apportion(scores, sites, budget)


@given(
    sites=site_lists(),
    rank=st.integers(1, 64),
    score=st.floats(0, 1e6),
    caps=st.none() | st.floats(1, 100),
    competing=st.booleans(),
    counted=st.booleans(),
)
@many
def test_equal_scores_give_the_reference_rank_everywhere(
    sites: list[Target], rank: int, score: float, caps: float | None, competing: bool, counted: bool
):
    names = [one.name for one in sites]
    budget = Budget(rank=rank, cross_modality=competing)
    if counted:
        budget = replace(budget, rank=8, parameters=rank * cost(sites))
    limits = None if caps is None else dict.fromkeys(names, caps)
    assert apportion(dict.fromkeys(names, score), sites, budget, caps=limits) == dict.fromkeys(names, rank)


@given(sites=site_lists([(128, 128)], groups="a"), budget=st.integers(1, 12_000), score=st.floats(1, 100))
@many
def test_equal_scores_differ_by_no_more_than_what_the_budget_could_not_split(
    sites: list[Target], budget: int, score: float
):
    asked = Budget(rank=8, parameters=budget + cost(sites), step=2, least=1)
    asked = replace(asked, parameters=max(asked.parameters, 2 * cost(sites)))
    ranks = list(apportion({one.name: score for one in sites}, sites, asked).values())
    assert max(ranks) - min(ranks) in (0, 2)
    assert ranks == sorted(ranks, reverse=True)


@given(case=cases(), short=st.integers(1, 10**6))
@many
def test_too_small_a_budget_is_refused_with_the_least_that_suffices(case: Any, short: int):
    sites, scores, budget = case
    floors = {one.group: 20 for one in sites[:1]}
    budget = replace(budget, floors=floors, parameters=0, most=64)
    with pytest.raises(AdapterError, match=r"adapter\.budget=0 cannot .* least budget is \d+ parameters") as caught:
        apportion(scores, sites, budget)
    least = int(re.search(r"least budget is (\d+)", str(caught.value))[1])
    ranks = apportion(scores, sites, replace(budget, parameters=least))
    assert used(sites, ranks) <= least
    if budget.step and budget.least:
        assert least == least_cost(sites, budget)
        with pytest.raises(AdapterError, match=f"least budget is {least} parameters"):
            apportion(scores, sites, replace(budget, parameters=max(0, least - short)))


@given(data=st.data(), budget=st.integers(3, 20), gamma=st.sampled_from([0.5, 1.0]))
@settings(max_examples=150, deadline=None)
def test_no_other_ranks_serve_the_scores_better(data: st.DataObject, budget: int, gamma: float):
    """All plans of three modules, tried one by one."""
    sites = [site(number, (128, 128)) for number in range(3)]
    scores = data.draw(scores_for(sites))
    asked = Budget(rank=8, parameters=256 * budget, step=1, least=1, most=12, gamma=gamma)

    def value(ranks: tuple[int, ...]) -> float:
        return sum(scores[one.name] ** gamma * math.log(rank) for one, rank in zip(sites, ranks, strict=True))

    best = max(value(ranks) for ranks in itertools.product(range(1, 13), repeat=3) if sum(ranks) <= budget)
    assert value(tuple(apportion(scores, sites, asked).values())) == pytest.approx(best, abs=1e-9)


def test_ranks_follow_the_square_root_of_scores_where_bounds_do_not_bind():
    sites = [site(number, (1280, 1280)) for number in range(3)]
    scores = {one.name: value for one, value in zip(sites, (100.0, 400.0, 900.0), strict=True)}
    assert list(apportion(scores, sites, Budget(rank=24, step=1)).values()) == [12, 24, 36]
    assert list(apportion(scores, sites, Budget(rank=14, step=1, gamma=1.0)).values()) == [4, 12, 26]
    assert list(apportion(scores, sites, Budget(rank=14, gamma=0.0)).values()) == [14, 14, 14]


@pytest.mark.parametrize(
    ("shape", "settings", "cap", "expected"),  # step, least, most
    [
        ((1280, 1280), {"rank": 16}, None, (4, 4, 64)),
        ((1280, 1280), {"rank": 32}, None, (8, 8, 128)),
        ((1280, 1280), {"rank": 8}, None, (1, 2, 32)),
        ((1280, 1280), {"rank": 4}, None, (1, 1, 16)),
        ((1280, 1280), {"rank": 7}, None, (1, 2, 28)),
        ((1280, 1280), {"rank": 18}, None, (2, 6, 72)),
        ((1280, 1280), {"rank": 33}, None, (1, 9, 132)),
        ((1280, 1280), {"rank": 16}, 33.1, (4, 4, 36)),
        ((1280, 1280), {"rank": 16}, 3.0, (4, 4, 16)),  # a cap is never below the reference rank
        ((160, 160), {"rank": 16}, None, (4, 4, 40)),
        ((16, 16), {"rank": 2}, None, (1, 1, 4)),
        ((16, 16), {"rank": 8}, None, (1, 2, 8)),  # nor is a quarter of a small matrix
        ((6, 640), {"rank": 8}, None, (1, 2, 8)),
        ((1280, 1280), {"rank": 16, "step": 1, "least": 3, "most": 20}, None, (1, 3, 20)),
        ((1280, 1280), {"rank": 16, "step": 4, "least": 3, "most": 23}, None, (4, 4, 20)),
        ((1280, 1280), {"rank": 16, "floors": {"encoder": 70}, "parameters": 80 * 2560}, None, (8, 72, 320)),
        ((1280, 1280), {"rank": 8, "parameters": 32 * 2560}, None, (8, 8, 128)),  # what a budget buys counts
    ],
)
def test_bounds(shape: tuple[int, int], settings: dict[str, Any], cap: float | None, expected: tuple[int, int, int]):
    one = site(0, shape)
    bounds = bounds_of([one], Budget(**settings), caps=None if cap is None else {one.name: cap})
    assert (bounds.step, bounds.least[one.name], bounds.most[one.name]) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": {"decoder": 2.0}}, r"group_weights has 'decoder', .* The groups are encoder\."),
        ({"floors": {"projector": 64}}, r"group_floors has 'projector'"),
        ({"weights": {"encoder": -1.0}}, r"encoder -1\.0; finite numbers from 0"),
        ({"weights": {"encoder": math.nan}}, r"encoder nan; finite numbers from 0"),
        ({"gamma": -0.5}, r"gamma is -0\.5"),
        ({"step": 0}, r"allocation\.rank_step is 0"),
        ({"least": 9, "most": 8}, r"min_rank is 9, above allocation\.max_rank, which is 8"),
        ({"least": 9}, r"adapter\.rank=8, 2048 parameters, cannot give .* least budget is 2304 parameters"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str):
    one = site(0, (128, 128))
    if "least" in settings:
        settings = {"step": 1, **settings}
    with pytest.raises(AdapterError, match=message):
        apportion({one.name: 1.0}, [one], Budget(**{"rank": 8, **settings}))


@pytest.mark.parametrize("scores", [{}, {"encoder.layers.0.fc": -1.0}, {"encoder.layers.0.fc": math.nan}])
def test_scores_that_are_no_numbers_are_refused(scores: dict[str, float]):
    with pytest.raises(AdapterError, match=r"score of encoder\.layers\.0\.fc is .*finite numbers from 0"):
        apportion(scores, [site(0, (128, 128))], Budget(rank=8))


def whisper_large() -> list[Target]:
    sites = []
    for group, layers, kinds in (("encoder", 32, 4), ("decoder", 32, 4), ("decoder.cross_attention", 32, 4)):
        sites += [site(number, (1280, 1280), group) for number in range(layers * kinds)]
    for group in ("encoder", "decoder"):
        shapes = [(5120, 1280), (1280, 5120)] * 32
        sites += [site(1000 + number, shape, group) for number, shape in enumerate(shapes)]
    return sites


@pytest.mark.parametrize("settings", [{"rank": 16}, {"rank": 64}, {"rank": 16, "step": 1, "cross_modality": True}])
def test_whisper_large_is_allocated_in_no_time_and_to_the_last_parameter(settings: dict[str, Any]):
    """512 modules. One busy core takes 5 to 15 ms; the bound is for a slow machine."""
    sites = whisper_large()
    assert len(sites) == 512
    generator = torch.Generator().manual_seed(0)
    scores = {one.name: math.exp(4 + float(torch.randn((), generator=generator))) for one in sites}
    budget = Budget(**settings)
    start = time.perf_counter()
    ranks = apportion(scores, sites, budget, caps=scores)
    assert time.perf_counter() - start < 1
    assert budget.rank * cost(sites) - used(sites, ranks) < bounds_of(sites, budget).step * 2560
    assert len(set(ranks.values())) > 5


# --- groups --------------------------------------------------------------------------------------


@given(case=cases())
@many
def test_a_group_has_its_share_up_to_a_step_and_what_others_could_not_spend(case: Any):
    sites, scores, budget = case
    budget = replace(budget, cross_modality=False)
    ranks = apportion(scores, sites, budget)
    bounds = bounds_of(sites, budget)
    shares = shares_of(sites, budget, bounds)
    over = 0
    for group, share in shares.items():
        spent = used(sites, ranks, group)
        steps = [
            bounds.step * one.cost for one in sites if one.group == group and ranks[one.name] < bounds.most[one.name]
        ]
        assert not steps or share - spent < min(steps)
        over += max(0, spent - share)
    # Only what whole steps leave of the shares moves between groups, and what weights of 0 leave over.
    rest = sum(bounds.step * max(one.cost for one in sites if one.group == group) for group in shares)
    assert over <= rest + total_of(sites, budget) - sum(shares.values())


@given(case=cases())
@many
def test_groups_that_compete_spend_between_half_and_double_of_their_share(case: Any):
    sites, scores, budget = case
    budget = replace(budget, cross_modality=True)
    ranks = apportion(scores, sites, budget)
    bounds = bounds_of(sites, budget)
    for group, share in shares_of(sites, budget, bounds).items():
        step = bounds.step * max(one.cost for one in sites if one.group == group)
        least = used(sites, dict(bounds.least), group)
        assert share / 2 - step < used(sites, ranks, group) <= max(2 * share, least)


def test_scores_move_ranks_within_groups_and_budget_between_those_that_compete():
    sites = [site(number, (1280, 1280), group) for group in ("audio", "text") for number in range(8)]
    scores = {one.name: (1000.0 if one.group == "audio" else 10.0) + number for number, one in enumerate(sites)}
    alone = apportion(scores, sites, Budget(rank=16))
    assert used(sites, alone, "audio") == used(sites, alone, "text") == 16 * 8 * 2560
    competing = apportion(scores, sites, Budget(rank=16, cross_modality=True))
    assert used(sites, competing, "text") == 8 * 8 * 2560
    assert used(sites, competing, "audio") == 24 * 8 * 2560


@pytest.mark.parametrize(
    ("weights", "ranks"),
    [
        ({}, (16, 16)),
        ({"audio": 3.0}, (24, 8)),
        ({"text": 3.0}, (8, 24)),
        ({"audio": 2.5, "text": 2.5}, (16, 16)),
        ({"text": 0.0}, (28, 4)),
    ],
)
def test_weights_multiply_the_share_of_a_group(weights: dict[str, float], ranks: tuple[int, int]):
    sites = [site(number, (1280, 1280), group) for group in ("audio", "text") for number in range(4)]
    found = apportion({one.name: 5.0 for one in sites}, sites, Budget(rank=16, weights=weights))
    assert list(found.values()) == [ranks[0]] * 4 + [ranks[1]] * 4


def test_a_floor_raises_a_cheap_group_and_the_others_pay():
    encoder = [site(number, (1280, 1280)) for number in range(16)]
    projector = [site(20, (2048, 1280), "projector")]
    budget = Budget(rank=16, floors={"projector": 64})
    ranks = apportion({one.name: 5.0 for one in (*encoder, *projector)}, [*encoder, *projector], budget)
    assert ranks[projector[0].name] == 64
    assert total_of([*encoder, *projector], budget) - used([*encoder, *projector], ranks) < 4 * 2560
    assert {ranks[one.name] for one in encoder} == {12}  # 193 units of rank are left for 16 modules


@given(
    wants=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 40), st.integers(0, 60)), min_size=1, max_size=5),
    share=st.fractions(0, 1),
)
@many
def test_parts_are_in_proportion_within_their_limits_and_sum_up(wants: list[tuple[int, int, int]], share: Fraction):
    names = [str(number) for number in range(len(wants))]
    want = {name: Fraction(row[0]) for name, row in zip(names, wants, strict=True)}
    low = {name: Fraction(row[1]) for name, row in zip(names, wants, strict=True)}
    high = {name: Fraction(row[1] + row[2]) for name, row in zip(names, wants, strict=True)}
    reach = sum(high[name] if want[name] else low[name] for name in names)
    total = sum(low.values()) + share * (reach - sum(low.values()))
    parts = divide(total, want, low, high)
    assert sum(parts.values()) == total
    assert all(low[name] <= parts[name] <= high[name] for name in names)
    free = [name for name in names if low[name] < parts[name] < high[name]]
    levels = {parts[name] / want[name] for name in free}
    assert len(levels) <= 1
    for name in names if levels else []:
        level = next(iter(levels))
        assert parts[name] == min(max(level * want[name], low[name]), high[name])


def test_sites_say_their_group_and_what_they_are_in_their_layer(fresh: Fresh):
    loaded = fresh()
    found = {one.name: one for one in targets_in(loaded, loaded.linears)}
    width, inner = loaded.module.config.d_model, loaded.module.config.encoder_ffn_dim
    first = found["model.encoder.layers.0.fc1"]
    assert (first.outputs, first.inputs, first.cost) == (inner, width, inner + width)
    rows = {(one.group, one.kind) for one in found.values()}
    attention = {f"self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "out_proj")}
    crossing = {f"encoder_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "out_proj")}
    both = {("encoder", kind) for kind in attention | {"fc1", "fc2"}}
    assert rows == both | {("decoder", kind) for _, kind in both} | {
        ("decoder.cross_attention", kind) for kind in crossing
    }


# --- scales --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scaling", "scale"),
    [
        ("balanced", lambda rank: 2.0 * math.sqrt(16 / rank)),
        ("constant", lambda rank: 2.0),
        ("rslora", lambda rank: 32.0 / math.sqrt(rank)),
    ],
)
def test_scales_at_every_rank(scaling: Any, scale: Callable[[int], float]):
    ranks = {f"m{rank}": rank for rank in (1, 4, 16, 64)}
    found = alphas(ranks, rank=16, alpha=32.0, scaling=scaling)
    assert {name: found[name] / rank for name, rank in ranks.items()} == pytest.approx(
        {name: scale(rank) for name, rank in ranks.items()}
    )
    assert scaling == "rslora" or found["m16"] == 32.0  # exactly: PEFT's default then needs no pattern


def change_after_ten_steps(rank: int, scale: float) -> float:
    """How far AdamW moves the outputs of an adapter that fits a random update of a linear."""
    torch.manual_seed(0)
    width = 256
    spectrum = torch.arange(1, width + 1).float().pow(-0.7)
    inputs_scale = (spectrum / spectrum.mean()).sqrt()
    update = 0.1 * torch.randn(width, width) / math.sqrt(width)
    down = torch.nn.init.kaiming_uniform_(torch.empty(rank, width), a=math.sqrt(5)).requires_grad_()
    up = torch.zeros(width, rank, requires_grad=True)
    optimizer = torch.optim.AdamW([down, up], lr=2e-4, weight_decay=0)
    for _ in range(10):
        inputs = torch.randn(64, width) * inputs_scale
        loss = (scale * inputs @ down.T @ up.T - inputs @ update.T).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        inputs = torch.randn(512, width, generator=torch.Generator().manual_seed(1)) * inputs_scale
        return float((scale * inputs @ down.T @ up.T).pow(2).mean().sqrt())


def test_balanced_scales_let_modules_of_all_ranks_change_alike():
    def ratio(scaling: Any) -> float:
        found = alphas({"small": 4, "large": 64}, rank=16, alpha=16.0, scaling=scaling)
        return change_after_ten_steps(64, found["large"] / 64) / change_after_ten_steps(4, found["small"] / 4)

    assert 0.8 < ratio("balanced") < 1.6
    assert ratio("rslora") == pytest.approx(ratio("balanced"), rel=0.25)  # four times the scale at either rank
    assert ratio("constant") > 3.5
    assert change_after_ten_steps(64, 16 / 64) / change_after_ten_steps(4, 16 / 4) < 0.6  # alpha / own rank


def uneven(loaded: LoadedModel) -> tuple[list[Target], RankPlan]:
    sites = list(targets_in(loaded, loaded.linears))
    eranks = {one.name: 2.0 + 7 * (number % 11) ** 2 for number, one in enumerate(sites)}
    return sites, EntropyAllocator().allocate(
        sites, Budget(rank=8), evidence=Importance(effective_ranks=eranks), seed=0
    )


def test_peft_gives_every_module_the_rank_and_the_scale_of_the_plan(fresh: Fresh, tmp_path: Path):
    from peft import LoraConfig, PeftModel, get_peft_model
    from peft.tuners.lora import LoraLayer

    loaded = fresh()
    _, plan = uneven(loaded)
    assert len(set(plan.ranks.values())) > 3
    numerators = alphas(plan.ranks, rank=8, alpha=16.0)
    config = LoraConfig(
        r=8,
        lora_alpha=16.0,
        target_modules=list(plan.ranks),
        rank_pattern={re.escape(name): rank for name, rank in plan.ranks.items()},
        alpha_pattern={re.escape(name): value for name, value in numerators.items()},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = get_peft_model(loaded.module, config)
        made.save_pretrained(tmp_path)
        read = PeftModel.from_pretrained(fresh().module, tmp_path)
    for model in (made, read):
        parameters = sum(value.numel() for name, value in model.named_parameters() if ".lora_" in name)
        assert parameters == plan.parameters <= plan.budget
        layers = {
            name.removeprefix("base_model.model."): layer
            for name, layer in model.named_modules()
            if isinstance(layer, LoraLayer)
        }
        assert {name: layer.r["default"] for name, layer in layers.items()} == plan.ranks
        for name, layer in layers.items():
            assert layer.scaling["default"] == pytest.approx(2.0 * math.sqrt(8 / plan.ranks[name]))


# --- plans in files ------------------------------------------------------------------------------


def test_a_plan_comes_back_from_its_file(fresh: Fresh):
    sites, plan = uneven(fresh())
    entries = json.loads(json.dumps(plan_to_json(plan, sites)))
    assert plan_from_json(entries, sites) == plan
    pruned = replace(plan, pruned_to=1000)
    assert plan_from_json(plan_to_json(pruned, sites), sites) == pruned != plan
    assert sum(entries["groups"].values()) == entries["parameters"] == plan.parameters
    assert set(entries["groups"]) == {"encoder", "decoder", "decoder.cross_attention"}
    assert entries["groups"]["encoder"] == used(sites, dict(plan.ranks), "encoder")


FC = "encoder.layers.0.fc"


def test_an_edited_plan_counts_anew():
    sites = [site(0, (128, 128)), site(1, (128, 128))]
    plan = make_plan("test", {one.name: 8 for one in sites}, sites, Budget(rank=8))
    entries = plan_to_json(replace(plan, reference=8), sites)
    found = plan_from_json({**entries, "ranks": {**entries["ranks"], FC: 2}}, sites)
    assert (found.ranks[FC], found.parameters, found.reference) == (2, plan.parameters - 6 * 256, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: [], "it is a list, and it must be an object"),
        (lambda e: {**e, "schema": 9}, "schema is 9, and it must be 1"),
        (lambda e: {**e, "ranks": {**e["ranks"], "x.y": 4}}, r"has x\.y and 0 more that are not among the 2"),
        (lambda e: {**e, "evidence": {"x.y": 4}}, r"has x\.y and 0 more"),
        (lambda e: {**e, "ranks": {FC: 8}}, r"nothing of encoder\.layers\.1\.fc and 0 more of 2"),
        (
            lambda e: {**e, "ranks": {**e["ranks"], FC: 8.0}},
            "the rank plan: ranks.* is 8.0, and it must be a whole number",
        ),
        (lambda e: {**e, "ranks": {**e["ranks"], FC: True}}, "is True"),
        (lambda e: {**e, "ranks": {**e["ranks"], FC: 0}}, "is 0, and it must be greater"),
        (lambda e: {**e, "ranks": [8, 8]}, "ranks is a list"),
        (lambda e: {**e, "evidence": {FC: "high"}}, "evidence.* is 'high', and it must be a number"),
        (lambda e: {**e, "evidence": {FC: math.nan}}, "is nan, and it must be a finite number"),
        (lambda e: {**e, "costs": {**e["costs"], FC: 17}}, "costs 256 parameters in this model and 17 there"),
        (
            lambda e: {name: value for name, value in e.items() if name != "costs"},
            "costs is missing",
        ),
        (lambda e: {**e, "reference": 0.5}, "reference is 0.5"),
        (lambda e: {**e, "allocator": 3}, "allocator is 3"),
        (lambda e: {**e, "budget": "1000"}, "budget is '1000'"),
        (lambda e: {**e, "pruned_to": 1.5}, "pruned_to is 1.5"),
    ],
)
def test_a_plan_that_is_of_another_model_or_damaged_is_refused(change: Callable[[Any], Any], message: str):
    sites = [site(0, (128, 128)), site(1, (128, 128))]
    plan = make_plan("test", {one.name: 8 for one in sites}, sites, Budget(rank=8), evidence={s.name: 3 for s in sites})
    assert plan_from_json(plan_to_json(plan, sites), sites) == plan
    with pytest.raises(AdapterError, match=message):
        plan_from_json(change(plan_to_json(plan, sites)), sites)
