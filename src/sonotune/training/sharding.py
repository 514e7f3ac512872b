"""The weights of the layers, cut into as many parts as there are processes: each holds one (FSDP2).

A layer has all of its weights only while it computes; its gradients are summed where its parts lie, and the moments of
the optimiser exist for those parts alone. What is put together has the type of the products, so that autocast makes no
copy of it that the backward pass would keep. With adapters, what is cut is what stays frozen, and what trains is in
every process as ever: it is small, and ranks that move replace its tensors. Without, all matrices of layers are cut.
Vectors, embeddings, stem and head are in every process.

All processes have to go through the layers equally often, for each time they exchange parts. Outside a step the model
is `unsharded`, so that each may evaluate other clips.

Source: Zhao et al. 2023 for the idea; `torch.distributed.fsdp.fully_shard`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from sonotune.models.base import LoadedModel
from sonotune.models.precision import DTYPES, Precision
from sonotune.processes import Processes, exchanging


def shard_layers(loaded: LoadedModel, processes: Processes, *, precision: Precision) -> None:
    """Cut the weights of the layers in place; gradients of the parts will be summed over the processes.

    Args:
        loaded: The model with all that any stage trains marked trainable, the same in every process.
        processes: Each takes a part.
        precision: Arithmetic of the forward pass.
    """
    mesh = init_device_mesh(loaded.device.type, (processes.world_size,))
    adapters = loaded.adapter is not None
    whole = {value for value in loaded.module.parameters() if value.ndim < 2 or (adapters and value.requires_grad)}
    policy = MixedPrecisionPolicy(param_dtype=DTYPES[precision], reduce_dtype=torch.float32, cast_forward_inputs=False)
    layers = {name for component in loaded.components for name in component.layers}
    for name, module in loaded.module.named_modules():
        if loaded.names.unwrapped(name) in layers:
            fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=policy, ignored_params=whole)
    for layer in _sharded(loaded.module):
        layer.set_gradient_divide_factor(1.0)
        layer.set_force_sum_reduction_for_comms(True)  # gloo can do no other


def is_sharded(module: nn.Module) -> bool:
    """Whether any weight is in parts."""
    return bool(_sharded(module))


def _sharded(module: nn.Module) -> list[FSDPModule]:
    return [layer for layer in module.modules() if isinstance(layer, FSDPModule)]


@contextmanager
def unsharded(module: nn.Module) -> Iterator[None]:
    """All weights in every process, inside; passes through the model exchange nothing there.

    Every process has to enter. A module without parts is as it was.
    """
    layers = _sharded(module)
    with exchanging():
        for layer in layers:
            layer.set_reshard_after_forward(False, recurse=False)
            layer.unshard()
    try:
        yield
    finally:
        for layer in layers:
            layer.set_reshard_after_forward(True, recurse=False)
            layer.reshard()


def full_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in one piece each, on the CPU where they had to be put together; every process has to ask for them."""
    with exchanging():
        return {
            name: value.full_tensor().cpu() if isinstance(value, DTensor) else value for name, value in tensors.items()
        }


def fill(target: Tensor, value: Tensor) -> None:
    """Copy a tensor in one piece into one that may be in parts."""
    with torch.no_grad():
        target.copy_(like(target, value))


def like(target: Tensor, value: Tensor) -> Tensor:
    """A tensor in one piece on the device of another, in the same parts as it."""
    value = value.to(target.device)
    if not isinstance(target, DTensor):
        return value
    return distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)


def is_shard(tensor: Tensor) -> bool:
    """Whether a tensor is in parts."""
    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """The part of this process; all of a tensor that has no parts."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def clip_gradients(parameters: Sequence[nn.Parameter], most: float) -> float:
    """Scale gradients down to a norm over all of them, whether in parts or not.

    Returns:
        The norm as it was; the same in every process.
    """
    kinds = [[one for one in parameters if is_shard(one) is parts] for parts in (False, True)]
    norms = [nn.utils.get_total_norm([one.grad for one in kind if one.grad is not None]) for kind in kinds if kind]
    with exchanging():
        whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    total = torch.linalg.vector_norm(torch.stack(whole)) if len(whole) > 1 else whole[0]
    for kind in kinds:
        nn.utils.clip_grads_with_norm_(kind, most, total)
    return float(total)
