"""A tuned model at a part of what it learned, on the way from the base model (0) to the tuned one (1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from sonotune.adapters.kinds.base import Scalable, kind_of
from sonotune.errors import AdapterError
from sonotune.models.base import LoadedModel


def at_scale(
    loaded: LoadedModel, scale: float, *, base: Mapping[str, Tensor] | None = None
) -> AbstractContextManager[None]:
    """The model computes at a part of what it learned, inside.

    Args:
        loaded: An adapted model, or a tuned one without adapters.
        scale: From 0 to 1.
        base: State of the base model, for one without adapters.

    Raises:
        AdapterError: Its kind of adapter cannot be scaled, or the base has other weights.
    """
    if loaded.adapter is None:
        if base is None:
            raise AdapterError(
                f"{loaded.checkpoint} carries no adapter, and no base model to interpolate with is known."
            )
        return _interpolated(loaded.module, base, scale)
    kind = kind_of(loaded)
    if not isinstance(kind, Scalable):
        raise AdapterError(
            f"adapters of the kind {kind.name!r} cannot be used at a part of their strength. "
            "Leave evaluation.adapter_scales out."
        )
    return kind.scaled(loaded, scale)


@contextmanager
def _interpolated(module: nn.Module, base: Mapping[str, Tensor], scale: float) -> Iterator[None]:
    """Weights between those of the base and the module's own, put back afterwards."""
    tuned = dict(module.named_parameters())
    if other := sorted(name for name in tuned if name not in base or base[name].shape != tuned[name].shape):
        raise AdapterError(
            f"{other[0]} is not in the base model, or has another shape there, so that the two cannot be interpolated; "
            f"this holds for {len(other)} of {len(tuned)} weights. Leave evaluation.adapter_scales out."
        )
    kept = {name: parameter.detach().clone() for name, parameter in tuned.items()}
    try:
        with torch.no_grad():
            for name, parameter in tuned.items():
                start = base[name].to(device=parameter.device, dtype=parameter.dtype)
                parameter.copy_(kept[name] if scale == 1 else torch.lerp(start, kept[name], scale))
        yield
    finally:
        with torch.no_grad():
            for name, parameter in tuned.items():
                parameter.copy_(kept[name])
