"""A merge is base plus update, and the merged model is the adapted one."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sonotune.adapters.kinds import lora
from sonotune.adapters.merge import compare_logits, merge_into, merged_state
from sonotune.errors import AdapterError
from sonotune.models.base import LoadedModel
from sonotune.models.quantize import dequantized_weight

Fresh = Callable[..., LoadedModel]
Logits = Callable[[LoadedModel], Tensor]


def test_a_merged_linear_is_base_plus_scale_times_b_times_a(adapted: Fresh):
    loaded = adapted(ranks={"fc1": 9})
    name = "model.encoder.layers.1.fc1"
    layer = lora.lora_layers(loaded)[name]
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = layer.base_layer.weight + 2.0 * math.sqrt(4 / 9) * b @ a  # alpha / rank, and the rank is 9 of 4
    torch.testing.assert_close(merged_state(loaded)[f"{name}.weight"], expected)


def test_a_merged_convolution_is_base_plus_the_composed_kernel(adapted: Fresh):
    """Two convolutions in a row, the second 1 wide, are one whose kernel is their product over the rank channels."""
    loaded = adapted(stem="lora")
    name = "model.encoder.conv2"
    layer = lora.lora_layers(loaded)[name]
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = layer.base_layer.weight.clone()
    for tap in range(3):
        expected[:, :, tap] += 2.0 * b[:, :, 0] @ a[:, :, tap]
    torch.testing.assert_close(merged_state(loaded)[f"{name}.weight"], expected)


def test_weights_that_were_trained_in_full_replace_the_base(adapted: Fresh, fresh: Fresh):
    loaded = adapted(unfreeze=["encoder.norms"])
    state, base = merged_state(loaded), fresh().module.state_dict()
    for name in ("model.encoder.conv1.weight", "model.encoder.layers.0.final_layer_norm.bias"):
        inside = name.replace(".weight", "").replace(".bias", "")
        kept = loaded.module.get_submodule(inside).modules_to_save["default"]
        assert torch.equal(state[name], getattr(kept, name.rpartition(".")[2]))
        assert not torch.equal(state[name], base[name])


def test_what_was_not_touched_stays(adapted: Fresh, fresh: Fresh):
    state, base = merged_state(adapted(targets=["fc1"], stem="frozen")), fresh().module.state_dict()
    assert state.keys() == base.keys()
    changed = {name for name in base if not torch.equal(state[name], base[name])}
    assert changed == {name for name in base if name.endswith("fc1.weight")}


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize(
    "settings", [{}, {"stem": "lora", "ranks": {"fc2": 1}}, {"targets": "q_v", "unfreeze": ["decoder.norms"]}]
)
def test_the_merged_model_computes_what_the_adapted_one_does(
    adapted: Fresh, fresh: Fresh, logits: Logits, bits: int, settings: dict
):
    """Merging into the de-quantised weights is the function that was trained, for every storage."""
    loaded = adapted(bits=bits, **settings)
    merged = merge_into(loaded, fresh())
    proof = compare_logits(logits(loaded), logits(merged))
    # The 8-bit product also rounds the activations, which no weights can imitate.
    assert proof.largest < (0.2 if bits == 8 else 2e-4) * max(1.0, proof.scale)
    assert proof.agreement > (0.5 if bits == 8 else 0.99)
    assert merged.adapter is None
    assert not merged.quantized


def test_the_merged_model_is_a_plain_transformers_model(adapted: Fresh, fresh: Fresh):
    merged = merge_into(adapted(bits=4), fresh())
    assert {type(module).__module__.split(".")[0] for module in merged.module.modules()} <= {"torch", "transformers"}
    assert merged.module.state_dict().keys() == fresh().module.state_dict().keys()
    assert merged.module.proj_out.weight is merged.module.model.decoder.embed_tokens.weight


def test_merging_into_the_original_weights_is_another_function(adapted: Fresh, fresh: Fresh, logits: Logits):
    loaded = adapted(bits=4)
    into_original = merge_into(loaded, fresh(), target="original")
    assert {type(module).__module__.split(".")[0] for module in into_original.module.modules()} <= {
        "torch",
        "transformers",
    }
    name = "model.encoder.layers.0.fc1"
    layer = lora.lora_layers(loaded)[name]
    update = 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    original = fresh().module.state_dict()[f"{name}.weight"]
    torch.testing.assert_close(into_original.module.state_dict()[f"{name}.weight"], original + update)
    dequantized = dequantized_weight(layer.base_layer)
    assert float((dequantized - original).abs().max()) > 1e-3
    difference = compare_logits(logits(loaded), logits(into_original))
    same = compare_logits(logits(loaded), logits(merge_into(loaded, fresh())))
    assert difference.largest > 100 * same.largest
    # What was trained in full is taken from the run in either case.
    conv = "model.encoder.conv1.weight"
    kept = loaded.module.get_submodule("model.encoder.conv1").modules_to_save["default"].weight
    assert torch.equal(into_original.module.state_dict()[conv], kept)


def test_for_plain_weights_both_targets_are_the_same(adapted: Fresh, fresh: Fresh):
    loaded = adapted()
    one = merge_into(loaded, fresh(), target="dequantized").module.state_dict()
    other = merge_into(loaded, fresh(), target="original").module.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("bits", [4, 8])
def test_merging_into_a_quantised_model_is_refused(adapted: Fresh, fresh: Fresh, bits: int):
    with pytest.raises(AdapterError, match="without quantisation"):
        merge_into(adapted(bits=4), fresh(bits=bits))


def test_merging_into_an_adapted_model_is_refused(adapted: Fresh):
    with pytest.raises(AdapterError, match="plain 16- or 32-bit"):
        merge_into(adapted(), adapted())


def test_the_proof_sees_a_difference():
    logits = torch.tensor([[1.0, 2.0], [5.0, -3.0]])
    other = torch.tensor([[2.5, 2.0], [5.0, -3.0]])
    proof = compare_logits(logits, other)
    assert (proof.largest, proof.scale, proof.agreement) == (1.5, 5.0, 0.5)
