"""Average what several LoRA adapters add to the same base: the products, not the factors.

The trick: the average of s B A over members is one product of their factors side by side,
`[w1 s1 B1, w2 s2 B2] [A1; A2]`, exactly, with the sum of their ranks. Averages of A and of B by themselves are another
function (their product has the cross terms B1 A2 and B2 A1, and depends on the basis that each training happened to
choose). A shorter form is the truncated SVD of that product, the best of its rank in the Frobenius norm (Eckart and
Young 1936), found from two QR decompositions, so that no matrix of the size of the weight is made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sonotune.adapters.kinds.lora import exactly, peft_targets
from sonotune.adapters.metadata import ADAPTER_WEIGHTS, PEFT_CONFIG, name_for_peft
from sonotune.models.base import LoadedModel

Factors = Mapping[str, tuple[Tensor, Tensor]]
"""Full module name -> A (R, I, ...) and B (O, R), with the scale in B."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortening:
    """What an SVD of fewer ranks leaves out, as parts of the Frobenius norm of the update.

    Attributes:
        whole: Of all modules together.
        worst: Of the module that loses the largest part of its own.
        module: That module.
    """

    whole: float
    worst: float
    module: str


def average_factors(members: Sequence[Factors], shares: Sequence[float]) -> dict[str, tuple[Tensor, Tensor]]:
    """Factors whose products are the weighted average of the members' products; a module that is absent adds nothing.

    Args:
        members: Factors of each.
        shares: Of each, in the sum 1.
    """
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name in dict.fromkeys(name for factors in members for name in factors):
        pairs = [(factors[name], share) for factors, share in zip(members, shares, strict=True) if name in factors]
        downs = torch.cat([a for (a, _), _ in pairs])
        ups = torch.cat([share * b_OR for (_, b_OR), share in pairs], dim=1)
        found[name] = (downs, ups)
    return found


def shorten(factors: Factors, rank: int) -> tuple[dict[str, tuple[Tensor, Tensor]], Shortening]:
    """The nearest factors of at most a rank, and how far they are."""
    short: dict[str, tuple[Tensor, Tensor]] = {}
    lost, norms = dict[str, float](), dict[str, float]()
    for name, (a, b_OR) in factors.items():
        short[name], lost[name] = _truncated(a, b_OR, rank)
        norms[name] = product_norm(a, b_OR)
    parts = {name: lost[name] / norms[name] if norms[name] else 0.0 for name in factors}
    worst = max(parts, key=lambda name: parts[name])
    whole = torch.tensor(list(norms.values())).norm().item()
    error = torch.tensor(list(lost.values())).norm().item()
    return short, Shortening(whole=error / whole if whole else 0.0, worst=parts[worst], module=worst)


def _truncated(a: Tensor, b_OR: Tensor, rank: int) -> tuple[tuple[Tensor, Tensor], float]:
    """The best factors of a rank, and the norm of what they leave out; those that are no longer stay as they are."""
    if len(a) <= rank:
        return (a, b_OR), 0.0
    left_OK, right_IK, values_K = _singular(a, b_OR)
    roots_K = values_K[:rank].sqrt()
    down = (roots_K[:, None] * right_IK[:, :rank].T).to(a.dtype).reshape(-1, *a.shape[1:])
    up_OR = (left_OK[:, :rank] * roots_K).to(b_OR.dtype)
    return (down, up_OR), float(values_K[rank:].norm())


def _singular(a: Tensor, b_OR: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Singular vectors (O, K) and (I, K), and values (K,), of the product, in 64 bits."""
    basis_OK, part_KR = torch.linalg.qr(b_OR.double())
    basis_IL, part_LR = torch.linalg.qr(a.double().flatten(1).T)
    u_KM, values_M, v_ML = torch.linalg.svd(part_KR @ part_LR.T, full_matrices=False)
    return basis_OK @ u_KM, basis_IL @ v_ML.T, values_M


def product_norm(a: Tensor, b_OR: Tensor) -> float:
    """Frobenius norm of B A, without making it."""
    part_KR = torch.linalg.qr(b_OR.double(), mode="r")[1]
    part_LR = torch.linalg.qr(a.double().flatten(1).T, mode="r")[1]
    return float((part_KR @ part_LR.T).norm())


def difference_of(first: Factors, second: Factors) -> float:
    """Largest distance of two products over the modules, as a part of the norm of the first; 0 where both are zero."""
    largest = 0.0
    for name, (a, b_OR) in first.items():
        other_a, other_b_OR = second[name]
        apart = product_norm(torch.cat([a, other_a]), torch.cat([b_OR, -other_b_OR], dim=1))
        largest = max(largest, apart / max(product_norm(a, b_OR), 1e-12))
    return largest


def add_share(total: Mapping[str, Tensor], tensors: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """A running weighted sum of tensors by name, fp32; what is no floating-point number stays that of the first."""
    if not total:
        return {
            name: share * tensor.float() if tensor.is_floating_point() else tensor.clone()
            for name, tensor in tensors.items()
        }
    return {
        name: value.add_(tensors[name].float(), alpha=share) if value.is_floating_point() else value
        for name, value in total.items()
    }


def write_average(
    loaded: LoadedModel, folder: Path, factors: Factors, beside: Mapping[str, Tensor], trained_in_full: Sequence[str]
) -> None:
    """Write `adapter_config.json` and the weights as PEFT names them: every scale is 1.

    Args:
        loaded: The base, with or without adapters.
        folder: One that is there.
        factors: Of every module.
        beside: What trained in full, by the names in the file of an adapter.
        trained_in_full: Modules that these belong to, as `modules_to_save` names them.
    """
    from peft import LoraConfig  # noqa: PLC0415
    from safetensors.torch import save_file  # noqa: PLC0415

    ranks = {name: len(a) for name, (a, _) in factors.items()}
    usual = max(ranks.values())
    others = {exactly(name): rank for name, rank in ranks.items() if rank != usual}
    config = LoraConfig(
        r=usual,
        lora_alpha=usual,
        bias="none",
        target_modules=peft_targets(loaded, ranks),
        rank_pattern=others,
        alpha_pattern=others,
        modules_to_save=list(trained_in_full) or None,
        inference_mode=True,
        base_model_name_or_path=name_for_peft(loaded.checkpoint),
    )
    config.save_pretrained(folder)
    path = folder / PEFT_CONFIG
    entries: dict[str, Any] = json.loads(path.read_text("utf-8"))
    if not isinstance(entries["target_modules"], str):
        entries["target_modules"] = sorted(entries["target_modules"])  # a set: its order differs from run to run
    path.write_text(json.dumps(entries, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
    tensors = {name: tensor.cpu().contiguous() for name, tensor in beside.items()}
    for name, (a, b_OR) in factors.items():
        prefix = f"base_model.model.{name}"
        tensors[f"{prefix}.lora_A.weight"] = a.cpu().contiguous()
        up = b_OR.reshape(*b_OR.shape, *(1 for _ in a.shape[2:]))  # of a convolution, B mixes the channels
        tensors[f"{prefix}.lora_B.weight"] = up.cpu().contiguous()
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
