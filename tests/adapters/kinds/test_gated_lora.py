"""Gates on Whisper: merging and baking, quantised bases, checkpointing, beams, and what other tools are told."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from sonotune.adapters.kinds.base import AdapterSettings, kind_named, kind_of
from sonotune.adapters.kinds.bottleneck import between_of
from sonotune.adapters.kinds.gate_baking import bake, metered, needs_baking
from sonotune.adapters.kinds.gates import HEAD, Gates
from sonotune.adapters.merge import merge_into
from sonotune.adapters.plain import plain_adapter
from sonotune.adapters.ranks.plan import RankPlan
from sonotune.adapters.trainable import recompute_activations
from sonotune.errors import AdapterError
from sonotune.loading import open_model
from sonotune.models.base import LoadedModel
from sonotune.models.frame_merging.settings import FrameMerging
from sonotune.models.probe import probe_batch, probe_logits
from sonotune.types import DecodingSettings

FRAME, CLIP, SHUFFLED, CONV = "gated_lora", "clip_gated_lora", "shuffled_gated_lora", "conv_lora"
Build = Callable[..., LoadedModel]


@pytest.fixture
def build(fresh: Callable[..., LoadedModel], plan: Callable[..., RankPlan]) -> Build:
    """A model with a kind of adapter whose B is far from 0, the same for every kind."""

    def make(
        kind: str = FRAME, *, bits: int = 16, heads: float = 0.0, rank: int = 4, targets: Any = "all_linear", **own: Any
    ):
        torch.manual_seed(0)
        loaded = fresh(bits=bits, context=own.pop("context", "thinned"))
        settings = AdapterSettings(rank=rank, stem="frozen", **own)
        made = kind_named(kind).attach(loaded, (), settings, plan(loaded, targets, rank=rank))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, value in made.module.named_parameters():
                if ".lora_B" in name:
                    value.copy_(0.2 * torch.randn(value.shape, generator=generator))
            for name, value in made.module.named_parameters():
                if f".{HEAD}" in name or ".lora_conv_" in name:
                    value.copy_(heads * torch.randn(value.shape, generator=generator))
        made.module.eval()
        return made

    return make


def gates_of(loaded: LoadedModel) -> Gates:
    found = between_of(loaded)
    assert isinstance(found, Gates)
    return found


def test_gates_stand_in_the_encoder_and_at_its_keys_and_values_and_nowhere_else(build: Build):
    names = set(gates_of(build()).layers)
    assert {name.rpartition(".")[2] for name in names if ".encoder." in name} == {
        "q_proj",
        "k_proj",
        "v_proj",
        "out_proj",
        "fc1",
        "fc2",
    }
    crossing = {name for name in names if ".decoder." in name}
    assert crossing
    assert all(".encoder_attn." in name and name.endswith(("k_proj", "v_proj")) for name in crossing)
    assert all(".encoder." in name for name in between_of(build(CONV)).layers)


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("kind", [FRAME, CONV])
def test_over_any_base_it_starts_as_lora_and_then_does_something(build: Build, kind: str, bits: int):
    plain, gated = probe_logits(build("lora", bits=bits)), probe_logits(build(kind, bits=bits))
    assert torch.equal(plain, gated)
    assert float((probe_logits(build(kind, bits=bits, heads=0.7)) - plain).abs().max()) > 0.05


@pytest.mark.parametrize("kind", [FRAME, CLIP, SHUFFLED])
def test_under_mixed_precision_gates_of_one_are_lora_to_the_bit(build: Build, kind: str):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(probe_logits(build("lora")), probe_logits(build(kind)))


@pytest.mark.parametrize(("rank", "groups"), [(4, 4), (5, 4), (2, 4), (8, 1)])
def test_groups_share_the_ranks_whatever_their_number(build: Build, rank: int, groups: int):
    loaded = build(rank=rank, gate_groups=groups, heads=0.7)
    probe_logits(loaded)
    gates = gates_of(loaded)
    assert {gates.of(name).shape[-1] for name in gates.layers} == {min(rank, groups)}


def test_gates_follow_the_frames_of_thinned_full_and_cut_windows_alike(build: Build):
    """What the gates of a clip's own positions are does not depend on how much of the window is computed."""
    loaded = build(heads=0.7)
    found = {}
    for context in ("thinned", "full", "cut"):
        changed = loaded.with_(context=context)
        batch = probe_batch(changed)
        loaded.family.logits(changed, batch)
        name = next(iter(gates_of(loaded).layers))
        found[context] = gates_of(loaded).of(name)[0, : int((batch.input_lengths[0] + 1) // 2)].detach()
    torch.testing.assert_close(found["thinned"], found["full"])
    torch.testing.assert_close(found["cut"], found["full"])


@pytest.mark.parametrize("mixed", [False, True])
def test_gradients_with_and_without_checkpointing_are_equal(build: Build, mixed: bool):
    found = []
    for checkpointed in (False, True):
        loaded = build(heads=0.5)
        loaded.module.train()
        for module in loaded.module.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if checkpointed:
            recompute_activations(loaded)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            logits = loaded.family.logits(loaded, probe_batch(loaded))
        logits.float().square().mean().backward()
        found.append({name: value.grad for name, value in loaded.module.named_parameters() if value.requires_grad})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-4, atol=1e-6, msg=name)
    assert all(float(value.abs().max()) > 0 for name, value in found[0].items() if ".lora_gate" in name)


@pytest.mark.parametrize("kind", [FRAME, CLIP])
def test_beams_and_single_rows_are_decoded_by_the_gates_of_their_own_clips(build: Build, kind: str):
    loaded = build(kind, heads=0.9, targets=["decoder.cross_attention", "encoder"])
    batch = probe_batch(loaded)
    batch = replace(batch, clips=tuple(replace(clip, language="en", duration_s=1.0) for clip in batch.clips))
    for settings in (DecodingSettings(beam_size=3), DecodingSettings(temperatures=(0.0, 0.2), logprob_threshold=-0.01)):
        short = replace(settings, max_new_tokens=6)
        together = [one.text for one in loaded.family.transcribe(loaded, batch, short)]
        alone = [loaded.family.transcribe(loaded, batch.rows([row]), short)[0].text for row in range(3)]
        assert together == alone
        assert any(together)
    states = loaded.family.decoder_states(loaded, batch.rows([2, 0, 2]), [0, 1, 0])  # type: ignore[attr-defined]
    torch.testing.assert_close(states[0], states[2] * 0 + states[0])
    one = loaded.family.decoder_states(loaded, batch.rows([0]), [0])  # type: ignore[attr-defined]
    torch.testing.assert_close(states[1], one[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", [FRAME, CLIP])
def test_constant_gates_merge_and_have_no_error_of_baking(build: Build, fresh: Any, kind: str):
    loaded = build(kind, heads=0.7)
    with torch.no_grad():
        for layer in gates_of(loaded).layers.values():
            getattr(layer, HEAD).weight[:, :-1].zero_()
    before = probe_logits(loaded)
    assert not needs_baking(loaded)
    torch.testing.assert_close(probe_logits(merge_into(loaded, fresh(context="thinned"))), before, rtol=1e-4, atol=1e-4)
    assert plain_adapter(loaded).rank == 4
    with metered(loaded) as meter:
        probe_logits(loaded)
    found = bake(loaded, meter, tolerance=1e-9)
    assert found.error < 1e-9
    torch.testing.assert_close(probe_logits(loaded), before, rtol=1e-4, atol=1e-4)


def test_the_error_of_baking_is_the_energy_that_it_changes(build: Build):
    loaded = build(heads=0.5)
    name = next(name for name in gates_of(loaded).layers if name.endswith("fc1"))
    layer: Any = loaded.module.get_submodule(name)
    rows: list[torch.Tensor] = []
    with metered(loaded) as meter:
        hook = layer.lora_A["default"].register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].detach()))
        probe_logits(loaded)
        hook.remove()
    gates_BPK = gates_of(loaded).of(name).detach()
    own_BP = gates_of(loaded).rows.own(torch.device("cpu"))
    factors = gates_BPK.repeat_interleave(layer.r["default"] // gates_BPK.shape[-1], dim=-1)[own_BP].double()
    plain = (rows[0] @ layer.lora_A["default"].weight.T).detach()[own_BP].double()
    up = layer.lora_B["default"].weight.detach().double().T
    added, changed = (factors * plain) @ up, ((factors - factors.mean(dim=0)) * plain) @ up
    found = meter.result({name: layer})
    assert found.error == pytest.approx(float(changed.square().sum() / added.square().sum()), rel=1e-5)
    assert 1e-4 < found.error < 1


def test_what_depends_on_the_frames_is_not_merged_unless_it_is_baked(build: Build, fresh: Any):
    loaded = build(heads=0.7)
    before = probe_logits(loaded)
    assert needs_baking(loaded)
    assert kind_of(loaded).merge(loaded) is None
    with pytest.raises(AdapterError, match="fold into no plain weights"):
        merge_into(loaded, fresh(context="thinned"))
    with pytest.raises(AdapterError, match="no products of two matrices"):
        plain_adapter(loaded)
    with metered(loaded) as meter:
        probe_logits(loaded)
    with pytest.raises(AdapterError, match="is allowed"):
        bake(loaded, meter, tolerance=1e-6)
    assert torch.equal(probe_logits(loaded), before)
    bake(loaded, meter, tolerance=1.0)
    baked = probe_logits(loaded)
    assert not torch.equal(baked, before)
    torch.testing.assert_close(probe_logits(merge_into(loaded, fresh(context="thinned"))), baked, rtol=1e-4, atol=1e-4)


def test_peft_does_not_leave_gates_out_silently(build: Build, tmp_path: Path):
    loaded = build(heads=0.7)
    kind_of(loaded).save(loaded, tmp_path / "adapter", extra={"bits": 16})
    plain = open_model("assets:whisper-nano").loaded
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=r"adapter_config\.json"):
            PeftModel.from_pretrained(plain.module, tmp_path / "adapter")
        with pytest.raises(AdapterError, match="sonotune export"):
            loaded.adapter.merge_and_unload()  # type: ignore[union-attr]
    with pytest.raises(AdapterError, match="lora"):
        open_model(str(tmp_path / "adapter" / "lora"))


@pytest.mark.parametrize("harm", ["no low rank", "other module", "a gate less"])
def test_a_folder_with_a_part_missing_is_refused(build: Build, tmp_path: Path, harm: str):
    import shutil

    from safetensors.torch import load_file, save_file

    loaded = build(heads=0.7)
    folder = tmp_path / "adapter"
    kind_of(loaded).save(loaded, folder, extra={"bits": 16})
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    first = min(name for name in tensors if name.endswith(f"{HEAD}.weight"))
    if harm == "no low rank":
        shutil.rmtree(folder / "lora")
    else:
        value = tensors.pop(first)
        save_file(tensors | ({f"model.other.{HEAD}.weight": value} if harm == "other module" else {}), file)
    with pytest.raises(AdapterError, match=r"lora/|no adapter that|does not have"):
        open_model(str(folder))


def test_outside_sonotune_it_says_that_frames_are_not_known(build: Build):
    loaded = build(heads=0.7)
    features = torch.zeros(1, 80, 2 * loaded.module.config.max_source_positions)
    with pytest.raises(AdapterError, match="through sonotune"):
        loaded.module(input_features=features, decoder_input_ids=torch.tensor([[1, 2]]))
    probe_logits(loaded)
    with pytest.raises(AdapterError, match="through sonotune"):  # another batch than the one that was announced
        loaded.module(input_features=features, decoder_input_ids=torch.tensor([[1, 2]]))


def test_targets_without_an_encoder_are_refused(build: Build):
    with pytest.raises(AdapterError, match="Add encoder"):
        build(CONV, targets=["decoder"])


@pytest.mark.parametrize("kind", [FRAME, CLIP, SHUFFLED, CONV])
def test_merged_frames_have_no_gates_of_their_own(fresh: Any, plan: Any, kind: str):
    loaded = fresh().with_(merging=FrameMerging(ratio=0.25))
    with pytest.raises(AdapterError, match=r"frame_merging\.ratio=0"):
        kind_named(kind).attach(loaded, (), AdapterSettings(rank=4), plan(loaded, "all_linear", rank=4))


def test_filters_of_any_length_and_only_over_the_clip(build: Build):
    for kernel in (1, 5):
        loaded = build(CONV, heads=0.5, conv_kernel=kernel)
        batch = probe_batch(loaded)
        with torch.no_grad():
            thinned = loaded.family.logits(loaded, batch)
            full = loaded.with_(context="full")
            whole = loaded.family.logits(full, probe_batch(full))
        assert kind_of(loaded).merge(loaded) is None
        assert thinned.shape == whole.shape
