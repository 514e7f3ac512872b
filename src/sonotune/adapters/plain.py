"""An adapter for tools that know one rank and one scale: vLLM and its like read `r` and `lora_alpha` alone.

PEFT gives modules ranks and scales of their own (`rank_pattern`, `alpha_pattern`) and keeps copies of weights that
trained in full (`modules_to_save`). vLLM drops the first two without a word and refuses the third
(`vllm/lora/peft_helper.py`); SGLang scales by `lora_alpha / r` as well. Here every scale is multiplied into B, every
module has the largest rank (rows and columns beyond its own are zero), and what is no adapter of a linear is left to a
copy of the base. PEFT computes the same function from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sonotune.adapters.kinds.base import kind_of
from sonotune.adapters.metadata import ADAPTER_WEIGHTS, PEFT_CONFIG
from sonotune.errors import AdapterError
from sonotune.models.base import LoadedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainAdapter:
    """Matrices of one rank for linears, and what has no place among them.

    Attributes:
        rank: Of every module; `lora_alpha` is the same, so the scale is 1.
        factors: Full module name -> A (R, I) and B (O, R) in fp32.
        beside: Trained parameters, or selectors, that belong into a copy of the base.
    """

    rank: int
    factors: Mapping[str, tuple[Tensor, Tensor]]
    beside: tuple[str, ...]


def plain_adapter(loaded: LoadedModel) -> PlainAdapter:
    """Bring the adapter of a model into the plain form; the model stays as it is.

    Raises:
        AdapterError: Its kind, or a feature that it uses, is no product of two matrices; no linear carries one; or a
            list of names cannot tell its modules from others.
    """
    kind = kind_of(loaded)
    factors = kind.low_rank(loaded)
    if factors is None:
        raise AdapterError(
            f"adapters of the kind {kind.name!r} are no products of two matrices, which is all that a plain adapter "
            "holds. Export it merged."
        )
    linear = {name: pair for name, pair in factors.items() if pair[0].ndim == 2}
    if not linear:
        raise AdapterError("no linear of this model carries an adapter, so that none would be left. Export it merged.")
    _check_names(loaded, linear)
    rank = max(len(a_RI) for a_RI, _ in linear.values())
    copies = {loaded.names.unwrapped(name) for name in loaded.module.state_dict() if loaded.names.is_copy(name)}
    convolutions = {f"{name}.weight" for name in factors if name not in linear}
    return PlainAdapter(
        rank=rank,
        factors={name: _padded(a_RI, b_OR, rank) for name, (a_RI, b_OR) in linear.items()},
        beside=(*sorted(copies | convolutions), *loaded.new_parts),
    )


def _padded(a_RI: Tensor, b_OR: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    missing = rank - len(a_RI)
    return nn.functional.pad(a_RI, (0, 0, 0, missing)), nn.functional.pad(b_OR, (0, missing))


def _check_names(loaded: LoadedModel, targets: Mapping[str, Any]) -> None:
    """PEFT matches a list of names by their endings too."""
    for module, _ in loaded.names.modules(loaded.module):
        if module not in targets and (name := next((one for one in targets if module.endswith(f".{one}")), None)):
            raise AdapterError(
                f"{name} carries an adapter and {module}, which ends in its name, does not: a plain list of names "
                "cannot tell them apart. Export it merged."
            )


@contextmanager
def applied(loaded: LoadedModel, plain: PlainAdapter) -> Iterator[None]:
    """The model computes with the plain adapter inside, as a tool does that adds B A x to the output of each linear."""
    hooks = []
    for name, pair in plain.factors.items():
        a_RI, b_OR = (part.to(loaded.device) for part in pair)

        def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, a: Tensor = a_RI, b: Tensor = b_OR) -> Tensor:
            return output + (inputs[0].float() @ a.T @ b.T).to(output.dtype)

        hooks.append(loaded.module.get_submodule(name).register_forward_hook(add))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def write_plain(plain: PlainAdapter, folder: Path, *, base: str) -> None:
    """Write `adapter_config.json` and the weights, as PEFT names them.

    Args:
        plain: What to write.
        folder: One that is there.
        base: Hub name or folder of the base, for tools that open an adapter by itself.
    """
    from peft import LoraConfig  # noqa: PLC0415
    from safetensors.torch import save_file  # noqa: PLC0415

    config = LoraConfig(
        r=plain.rank,
        lora_alpha=plain.rank,
        bias="none",
        target_modules=list(plain.factors),
        inference_mode=True,
        base_model_name_or_path=base,
    )
    config.save_pretrained(folder)
    path = folder / PEFT_CONFIG
    entries = json.loads(path.read_text("utf-8"))
    entries["target_modules"] = sorted(entries["target_modules"])  # a set: its order differs from run to run
    path.write_text(json.dumps(entries, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
    tensors: dict[str, Tensor] = {}
    for name, (a_RI, b_OR) in plain.factors.items():
        prefix = f"base_model.model.{name}"
        tensors[f"{prefix}.lora_A.weight"] = a_RI.cpu().contiguous()
        tensors[f"{prefix}.lora_B.weight"] = b_OR.cpu().contiguous()
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
