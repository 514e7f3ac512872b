"""Settings that name modules resolve to exactly those, by full name, or are refused with a hint."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sonotune.adapters.ranks.allocators.uniform import UniformAllocator
from sonotune.adapters.ranks.plan import Budget, Importance, Target, unit_costs
from sonotune.adapters.targets import modules_of, resolve_targets
from sonotune.errors import AdapterError, ModelError
from sonotune.models.base import LoadedModel

Fresh = Callable[..., LoadedModel]
SITES = (
    Target(name="a", outputs=40, inputs=60, group="encoder", kind="a"),
    Target(name="b", outputs=150, inputs=50, group="encoder", kind="b"),
)


def test_all_linear_is_every_adaptable_linear_in_model_order(fresh: Fresh):
    loaded = fresh()
    assert resolve_targets(loaded, "all_linear") == loaded.linears
    assert resolve_targets(loaded, ["all_linear"][0]) == loaded.linears


@pytest.mark.parametrize(
    ("targets", "encoder", "decoder"),  # linears a layer of each
    [
        ("q_v", 2, 4),
        ("attention", 4, 8),
        (["fc1"], 1, 1),
        (["fc1", "fc2"], 2, 2),
        (["encoder"], 6, 0),
        (["decoder"], 0, 10),
        (["decoder.cross_attention"], 0, 4),
        (["encoder.feed_forward", "q_proj"], 3, 2),
        (["q_v", "out_proj"], 3, 6),
    ],
)
def test_targets_resolve_to_as_many_linears_as_there_are(fresh: Fresh, targets, encoder: int, decoder: int):
    loaded = fresh()
    config = loaded.module.config
    names = resolve_targets(loaded, targets)
    assert len(names) == encoder * config.encoder_layers + decoder * config.decoder_layers
    assert len(set(names)) == len(names)
    assert sum(".encoder." in name for name in names) == encoder * config.encoder_layers
    assert list(names) == [name for name in loaded.linears if name in names]  # model order


def test_layer_ranges(fresh: Fresh):
    loaded = fresh()
    last = loaded.module.config.encoder_layers - 1
    names = resolve_targets(loaded, ["encoder.layers[-1:]"])
    assert len(names) == 6
    assert all(name.startswith(f"model.encoder.layers.{last}.") for name in names)


@pytest.mark.parametrize(
    ("entry", "hint"), [("qproj", "q_proj"), ("fc_1", "fc1"), ("all_linears", "all_linear"), ("q_v_", "q_v")]
)
def test_a_typing_error_is_refused_with_a_suggestion(fresh: Fresh, entry: str, hint: str):
    with pytest.raises(AdapterError, match=f"'{entry}' matches none .*did you mean '{hint}'") as caught:
        resolve_targets(fresh(), ["fc1", entry])
    assert "fc1, fc2, k_proj, out_proj, q_proj, v_proj" in str(caught.value)


def test_nothing_close_still_lists_what_is_allowed(fresh: Fresh):
    with pytest.raises(AdapterError, match=r"adaptable linears\. Use all_linear") as caught:
        resolve_targets(fresh(), ["zzz"])
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize("entry", ["stem", "embeddings"])
def test_a_component_without_linears_is_refused(fresh: Fresh, entry: str):
    with pytest.raises(AdapterError, match="matches none"):
        resolve_targets(fresh(), [entry])


def test_an_unknown_part_is_refused_with_those_that_exist(fresh: Fresh):
    with pytest.raises(ModelError, match="cross_attention"):
        resolve_targets(fresh(), ["decoder.crossattention"])


def test_a_short_ending_never_reaches_a_longer_name(fresh: Fresh):
    with pytest.raises(AdapterError):
        resolve_targets(fresh(), ["proj"])


def test_modules_to_train_in_full(fresh: Fresh):
    loaded = fresh()
    layers = loaded.module.config.encoder_layers
    norms = modules_of(loaded, ["encoder.norms"])
    assert len(norms) == 2 * layers + 1
    assert all("layer_norm" in name for name in norms)
    assert modules_of(loaded, ["stem"]) == ("model.encoder.conv1", "model.encoder.conv2")  # sinusoids never train


def test_quantised_modules_cannot_be_unfrozen(fresh: Fresh):
    loaded = fresh(bits=4)
    with pytest.raises(AdapterError, match=r"quantised to 4 bits.*quantization\.skip"):
        modules_of(loaded, ["encoder.layers[0]"])
    assert modules_of(loaded, ["encoder.norms"])
    kept = {name for name in loaded.linears if ".encoder.layers.0." in name}
    assert set(modules_of(fresh(bits=4, keep=kept), ["encoder.layers[0]"])) > kept


def test_tied_embeddings_are_refused(fresh: Fresh):
    with pytest.raises(AdapterError, match="tied to the output head"):
        modules_of(fresh(), ["embeddings"])


def test_unit_costs_are_inputs_plus_outputs(fresh: Fresh):
    loaded = fresh()
    width, inner = loaded.module.config.d_model, loaded.module.config.encoder_ffn_dim
    costs = unit_costs(loaded, ["model.encoder.layers.0.fc1", "model.encoder.layers.0.self_attn.q_proj"])
    assert list(costs.values()) == [width + inner, 2 * width]
    with pytest.raises(AdapterError, match="Conv1d"):
        unit_costs(loaded, ["model.encoder.conv1"])


@pytest.mark.parametrize(("budget", "rank"), [(None, 8), (600, 2), (899, 2), (900, 3)])
def test_the_uniform_allocator_spends_no_more_than_its_budget(budget: int | None, rank: int):
    found = UniformAllocator().allocate(SITES, Budget(rank=8, parameters=budget), evidence=Importance(), seed=0)
    assert found.ranks == {"a": rank, "b": rank}
    assert found.parameters == 300 * rank


def test_a_budget_below_rank_one_is_refused_with_the_least():
    with pytest.raises(AdapterError, match="the least is 300"):
        UniformAllocator().allocate(SITES, Budget(rank=8, parameters=299), evidence=Importance(), seed=0)
