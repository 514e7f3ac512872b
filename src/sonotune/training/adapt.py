"""Mark what trains: adapters with chosen weights beside them, or everything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sonotune.adapters import lora
from sonotune.adapters.allocation import RankPlan, unit_costs
from sonotune.adapters.targets import modules_of, resolve_targets
from sonotune.models.base import LoadedModel
from sonotune.models.precision import DTYPES, Precision
from sonotune.models.quantize import cast_frozen
from sonotune.registry import resolve


def adapt(
    loaded: LoadedModel,
    *,
    kind: Literal["lora", "none"],
    rank: int,
    alpha: float | Literal["auto"],
    dropout: float,
    targets: str | Sequence[str],
    stem: Literal["train", "lora", "frozen"],
    unfreeze: Sequence[str],
    allocator: str,
    budget: int | None,
    rslora: bool,
    precision: Precision,
    gradient_checkpointing: bool,
) -> tuple[LoadedModel, RankPlan | None]:
    """Attach adapters or unfreeze the model; see `adapters.lora.attach` for the arguments.

    What `unfreeze` trains in full precision carries no adapter.

    Returns:
        The model with its trainable parameters marked (fp32), and the ranks, None for full fine-tuning.
    """
    plan: RankPlan | None = None
    if kind == "none":
        loaded = lora.unfreeze_all(loaded)
    else:
        unfrozen = modules_of(loaded, unfreeze) if unfreeze else ()
        adapted = [name for name in resolve_targets(loaded, targets) if name not in unfrozen]
        costs = unit_costs(loaded, adapted)
        plan = resolve("allocators", allocator)().allocate(costs, rank=rank, budget=budget)
        loaded = lora.attach(
            loaded,
            plan,
            rank=rank,
            alpha=float(rank if alpha == "auto" else alpha),
            dropout=dropout,
            stem=stem,
            unfreeze=unfreeze,
            rslora=rslora,
        )
        if precision != "fp32":
            cast_frozen(loaded, DTYPES[precision])
    if gradient_checkpointing:
        # Non-reentrant checkpointing needs no input that requires a gradient, so frozen stems stay out of the graph.
        loaded.module.activation_checkpointing_enable({"use_reentrant": False})
    return loaded, plan
