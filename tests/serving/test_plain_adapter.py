"""A tool that knows one rank and one scale computes from a plain export what PEFT computes with its patterns."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from sonotune.adapters.kinds import lora
from sonotune.adapters.kinds.base import kind_of
from sonotune.adapters.ranks.plan import RankPlan
from sonotune.adapters.schedule.adalora import AdaLora
from sonotune.errors import AdapterError, ConfigError
from sonotune.loading import open_model
from sonotune.models.base import LoadedModel
from sonotune.models.families.whisper import WhisperFamily
from sonotune.models.probe import probe_batch, probe_logits
from sonotune.models.quantize import quantize
from sonotune.registry import resolve_asset
from sonotune.serving.export import export

RANK, ALPHA = 4, 6.0


def tuned(ranks: str, *, stem: str = "frozen", unfreeze: tuple[str, ...] = (), bits: int = 16) -> LoadedModel:
    """Whisper-nano with an adapter that has been trained a little."""
    loaded = WhisperFamily().load("assets:whisper-nano", context="full")
    if bits != 16:
        loaded = quantize(loaded, bits=bits)  # type: ignore[arg-type]
    names = [name for name in loaded.linears if name.endswith(("q_proj", "v_proj", "fc2"))]
    own = {name: 1 + index % 7 if ranks == "entropy" else RANK for index, name in enumerate(names)}
    plan = RankPlan(ranks=own, allocator="test", parameters=0)
    loaded = lora.attach(loaded, plan, rank=RANK, alpha=ALPHA, stem=stem, unfreeze=unfreeze)  # type: ignore[arg-type]
    if ranks == "adalora":
        prune(loaded, own)
    else:
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in loaded.module.parameters():
                if parameter.requires_grad:
                    parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    loaded.module.eval()
    return loaded


def prune(loaded: LoadedModel, ranks: dict[str, int], steps: int = 20) -> None:
    """AdaLoRA from its first step to its last, by gradients that are drawn; half of its directions are left."""
    matrices = [value for name, value in loaded.module.named_parameters() if ".lora_" in name]
    callback = AdaLora(loaded, ranks.keys(), budget=sum(value.numel() for value in matrices) // 2, seed=3)
    trainable = [value for value in loaded.module.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-2)
    generator = torch.Generator().manual_seed(4)
    for step in range(steps):
        for index, parameter in enumerate(trainable):
            parameter.grad = (1 + index % 3) * torch.randn(parameter.shape, generator=generator)
        callback.on_gradients(step, steps)
        optimizer.step()
        callback.after_step(step + 1, steps, optimizer)
    left = callback.finalise()
    assert left is not None
    assert len(set(left.values())) > 1


def logits(model: Any, like: LoadedModel) -> Tensor:
    """Of plain `transformers`, over the whole window."""
    batch = probe_batch(like.with_(context="full"))
    with torch.no_grad():
        found: Tensor = model(
            input_features=batch.inputs.transpose(1, 2), decoder_input_ids=batch.targets[:, :-1]
        ).logits
    return found


def by_peft(folder: Path, like: LoadedModel) -> Tensor:
    """What PEFT makes of an adapter over the packaged base: patterns, saved modules and all."""
    base = WhisperForConditionalGeneration.from_pretrained(resolve_asset("assets:whisper-nano"), dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT 0.21 asks transformers 5 by an old name
        return logits(PeftModel.from_pretrained(base, folder).eval(), like)


def by_vllm(folder: Path, base: Path, like: LoadedModel) -> Tensor:
    """By the rule of vLLM's loader, as its source has it.

    `r` and `lora_alpha` hold for every module, and patterns are not looked at. Modules to save and DoRA are refused.
    Every tensor is A or B of a linear, and no rank is above `r`.
    """
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    if config.get("modules_to_save"):
        raise ValueError("vLLM only supports modules_to_save being None.")
    if config.get("use_dora") or config.get("bias", "none") != "none":
        raise ValueError("not supported")
    scale = config["lora_alpha"] / (config["r"] ** (0.5 if config.get("use_rslora") else 1.0))
    model = WhisperForConditionalGeneration.from_pretrained(base, dtype=torch.float32).eval()
    tensors = load_file(folder / "adapter_model.safetensors")
    for name in [name for name in tensors if name.endswith(".lora_A.weight")]:
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        a, b = tensors.pop(name), tensors.pop(name.replace(".lora_A.", ".lora_B."))
        if a.ndim != 2 or len(a) > config["r"]:
            raise ValueError(f"{module}: {tuple(a.shape)}")
        with torch.no_grad():
            model.get_submodule(module).weight += scale * (b @ a)
    if tensors:
        raise ValueError(f"unexpected {sorted(tensors)}")
    return logits(model, like)


def saved(loaded: LoadedModel, folder: Path, **extra: Any) -> Path:
    kind_of(loaded).save(loaded, folder, extra={"bits": 16, "language": "en", **extra})
    return folder


@pytest.mark.parametrize("ranks", ["equal", "entropy", "adalora"])
def test_a_tool_that_reads_one_rank_and_one_scale_computes_what_peft_does(ranks: str, tmp_path: Path):
    loaded = tuned(ranks)
    source, place = saved(loaded, tmp_path / "adapter"), tmp_path / "plain"
    result = export(str(source), place, adapter_only=True, plain=True)
    asset = resolve_asset("assets:whisper-nano")
    wanted = by_peft(source, loaded)
    torch.testing.assert_close(by_vllm(place, asset, loaded), wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(by_peft(place, loaded), wanted, atol=1e-4, rtol=0)
    with kind_of(loaded).disabled(loaded):
        assert float((probe_logits(loaded).reshape(wanted.shape) - wanted).abs().max()) > 1e-2
    if ranks == "entropy":  # to such a tool, the form that PEFT reads is another function
        assert float((by_vllm_without_limit(source, asset, loaded) - wanted).abs().max()) > 1e-2
    config = json.loads((place / "adapter_config.json").read_text("utf-8"))
    assert config["r"] == config["lora_alpha"] == result["plain"]["rank"]
    unused = ("rank_pattern", "alpha_pattern", "modules_to_save", "use_rslora", "use_dora")
    assert not any(config[name] for name in unused)
    assert config["target_modules"] == sorted(lora.lora_layers(loaded))
    assert result["plain"]["base"] is None
    assert not (place / "base").exists()


def by_vllm_without_limit(folder: Path, base: Path, like: LoadedModel) -> Tensor:
    """As `by_vllm`, of a server whose limit is above every rank."""
    copy = folder.with_name("unlimited")
    shutil.copytree(folder, copy)
    path = copy / "adapter_config.json"
    config = json.loads(path.read_text("utf-8"))
    config |= {"r": 64, "lora_alpha": 64 * config["lora_alpha"] / config["r"]}
    path.write_text(json.dumps(config), "utf-8")
    return by_vllm(copy, base, like)


@pytest.mark.parametrize(
    ("beside", "bits"),
    [({"stem": "train"}, 4), ({"stem": "lora"}, 16), ({"stem": "train", "unfreeze": ("encoder.norms",)}, 16)],
)
def test_what_trained_beside_the_adapter_is_in_a_copy_of_the_base(beside: Any, bits: int, tmp_path: Path):
    loaded = tuned("entropy", bits=bits, **beside)
    source, place = saved(loaded, tmp_path / "adapter", bits=bits), tmp_path / "plain"
    if beside["stem"] == "train":
        with pytest.raises(ValueError, match="modules_to_save"):
            by_vllm(source, resolve_asset("assets:whisper-nano"), loaded)
    result = export(str(source), place, adapter_only=True, plain=True, dtype="fp32")
    wanted = probe_logits(loaded).reshape(3, -1, loaded.module.config.vocab_size)
    torch.testing.assert_close(by_vllm(place, place / "base", loaded), wanted, atol=1e-4, rtol=0)
    assert result["plain"]["base"] == "base"
    assert any(name.startswith("model.encoder.conv1.") for name in result["plain"]["beside"])
    moved = place.rename(tmp_path / "elsewhere")
    opened = open_model(str(moved)).loaded
    torch.testing.assert_close(probe_logits(opened), probe_logits(loaded), atol=1e-3, rtol=0)


def test_an_adapter_over_4_bits_without_a_copy_is_the_same_over_them(tmp_path: Path):
    loaded = tuned("entropy", bits=4)
    source = saved(loaded, tmp_path / "adapter", bits=4)
    result = export(str(source), tmp_path / "plain", adapter_only=True, plain=True)
    assert (result["plain"]["base"], result["bits"]) == (None, 4)
    assert result["merge"]["largest"] < 1e-3
    opened = open_model(str(tmp_path / "plain")).loaded
    torch.testing.assert_close(probe_logits(opened), probe_logits(loaded), atol=1e-3, rtol=0)


def test_the_copy_of_the_base_takes_the_type_that_is_asked_for(tmp_path: Path):
    loaded = tuned("entropy", stem="train")
    source, place = saved(loaded, tmp_path / "adapter"), tmp_path / "plain"
    result = export(str(source), place, adapter_only=True, plain=True)
    assert result["dtype"] == "fp16"
    assert 0 < result["rounding"]["largest"] < 0.2
    assert {tensor.dtype for tensor in load_file(place / "base" / "model.safetensors").values()} == {torch.float16}
    assert {tensor.dtype for tensor in load_file(place / "adapter_model.safetensors").values()} == {torch.float32}


def test_an_output_layer_of_its_own_goes_into_the_copy_with_its_vocabulary(
    adapted: Callable[..., Path], tmp_path: Path
):
    from transformers import AutoModelForCTC, AutoTokenizer

    folder = adapted("ctc", outputs=tuple("efghinorstuvwxz"))
    export(str(folder), tmp_path / "plain", adapter_only=True, plain=True, dtype="fp32")
    base = AutoModelForCTC.from_pretrained(tmp_path / "plain" / "base")
    words = AutoTokenizer.from_pretrained(tmp_path / "plain" / "base")
    assert base.config.vocab_size == len(words)
    first, second = (open_model(str(place)).loaded for place in (folder, tmp_path / "plain"))
    torch.testing.assert_close(probe_logits(second), probe_logits(first), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_plain_export_is_exported_again_in_every_form(tmp_path: Path):
    loaded = tuned("entropy", stem="train")
    source = saved(loaded, tmp_path / "adapter")
    export(str(source), tmp_path / "one", adapter_only=True, plain=True, dtype="fp32")
    wanted = probe_logits(open_model(str(tmp_path / "one")).loaded)
    forms: dict[str, dict[str, Any]] = {
        "plain": {"adapter_only": True, "plain": True},
        "copied": {"adapter_only": True},
        "merged": {"dtype": "fp32"},
    }
    for name, form in forms.items():
        export(str(tmp_path / "one"), tmp_path / name, **form)
        torch.testing.assert_close(
            probe_logits(open_model(str(tmp_path / name)).loaded), wanted, atol=1e-3, rtol=0, msg=name
        )
    named = json.loads((tmp_path / "copied" / "adapter_config.json").read_text("utf-8"))["base_model_name_or_path"]
    assert named == str((tmp_path / "copied" / "base").resolve())


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"bias": "lora_only"}, "bias=lora_only"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
    ],
)
def test_what_cannot_be_folded_is_refused_by_name(setting: dict[str, Any], named: str, tmp_path: Path):
    folder = resolve_asset("assets:whisper-nano")
    base = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], **setting))
        module.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(folder)}))
    with pytest.raises(AdapterError, match=named):
        export(str(tmp_path / "adapter"), tmp_path / "plain", adapter_only=True, plain=True)
    assert not (tmp_path / "plain").exists()


def test_an_adalora_of_peft_itself_is_folded(tmp_path: Path):
    folder = resolve_asset("assets:whisper-nano")
    base = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = get_peft_model(base, AdaLoraConfig(target_modules=["q_proj", "fc1"], init_r=5, total_step=10))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if "lora_" in name and "ranknum" not in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator))
        module.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(folder)}))
    like = WhisperFamily().load("assets:whisper-nano", context="full")
    wanted = by_peft(tmp_path / "adapter", like)
    export(str(tmp_path / "adapter"), tmp_path / "plain", adapter_only=True, plain=True)
    torch.testing.assert_close(by_vllm(tmp_path / "plain", folder, like), wanted, atol=1e-4, rtol=0)
    export(str(tmp_path / "adapter"), tmp_path / "merged", dtype="fp32")
    merged = WhisperForConditionalGeneration.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    torch.testing.assert_close(logits(merged, like), wanted, atol=1e-4, rtol=0)


def test_without_adapters_of_linears_nothing_would_be_left(tmp_path: Path):
    loaded = WhisperFamily().load("assets:whisper-nano", context="full")
    loaded = lora.attach(loaded, RankPlan(ranks={}, allocator="test", parameters=0), rank=2, alpha=2.0, stem="lora")
    with pytest.raises(AdapterError, match="no linear of this model carries an adapter"):
        export(str(saved(loaded, tmp_path / "adapter")), tmp_path / "plain", adapter_only=True, plain=True)


def test_plain_is_a_form_of_an_adapter(tmp_path: Path):
    source = saved(tuned("equal"), tmp_path / "adapter")
    with pytest.raises(ConfigError, match="--adapter"):
        export(str(source), tmp_path / "plain", plain=True)
