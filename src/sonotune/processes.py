"""The processes that train together, started by `torchrun`; one where nobody started more.

Each has the whole model, or its part of the layers (`training.sharding`), and takes its share of the micro-batches of a
step, of the clips of an evaluation and of those of calibration. What they have to tell each other goes through here.
Gradients are summed when a step has all of them, for exactly those parameters that train now: nothing is registered
beforehand, so nothing can fall out of step when a stage begins, when ranks move, or when one process has to cut a
micro-batch that did not fit. With adapters there is little to send, and sending it while the backward pass still runs
would gain little.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import torch.distributed
from torch import Tensor

from sonotune.errors import ConfigError, ProcessError

Value = TypeVar("Value")

BUCKET_BYTES = 64 * 2**20
"""Tensors are sent together up to this size."""


class Processes:
    """This process among those that train together.

    Args:
        rank: Its number, from 0.
        world_size: How many there are.

    Attributes:
        rank: Its number; 0 writes what is kept.
        world_size: How many there are.
    """

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size

    @classmethod
    def from_env(cls, count: int) -> Processes:
        """Those that a launcher started and the accelerator joined.

        Args:
            count: As many as the accelerator knows of.

        Raises:
            ConfigError: The launcher speaks of another number, so that they would train apart.
        """
        if count != started():
            raise ConfigError(
                f"the launcher started {started()} processes and {count} found each other. Start them with torchrun "
                "--nproc-per-node=N -m sonotune train ..."
            )
        return cls(torch.distributed.get_rank(), count) if count > 1 else cls()

    @property
    def main(self) -> bool:
        """Whether this is the one that writes what is kept."""
        return self.rank == 0

    def shard(self, items: Sequence[Value]) -> Sequence[Value]:
        """What falls to this process: every `world_size`-th, from its own number on."""
        return items[self.rank :: self.world_size]

    def all_gather(self, value: Value) -> list[Value]:
        """The value of every process, in order of their numbers, in every process."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        with exchanging():
            torch.distributed.all_gather_object(values, value)
        return cast("list[Value]", values)

    def broadcast(self, value: Value) -> Value:
        """The value of process 0, in every process."""
        if self.world_size == 1:
            return value
        values = [value]
        with exchanging():
            torch.distributed.broadcast_object_list(values, src=0)
        return values[0]

    def assert_equal(self, facts: Mapping[str, str]) -> None:
        """See that all processes were started with the same.

        Args:
            facts: What has to be alike -> its digest.

        Raises:
            ConfigError: Something differs.
        """
        for rank, theirs in enumerate(self.all_gather(dict(facts))):
            if other := [name for name, value in facts.items() if theirs.get(name) != value]:
                raise ConfigError(
                    f"process {rank} was started with other {', '.join(other)} than process {self.rank}. All need the "
                    "same settings, the same clips and the same model."
                )

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over all processes; the sums have the same bits in each."""
        if self.world_size == 1:
            return
        for bucket in _buckets(tensors):
            joined = torch.cat([tensor.reshape(-1) for tensor in bucket])
            with exchanging():
                torch.distributed.all_reduce(joined)
            totals = torch.split(joined, [tensor.numel() for tensor in bucket])
            for tensor, total in zip(bucket, totals, strict=True):
                tensor.copy_(total.view_as(tensor))

    def barrier(self) -> None:
        """Go on when all have come here."""
        if self.world_size > 1:
            with exchanging():
                torch.distributed.barrier()

    def destroy(self) -> None:
        """Let the others go; nothing can be shared afterwards."""
        if self.world_size > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


SINGLE_PROCESS = Processes()
"""One process."""

_OF_A_LAUNCHER = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def started() -> int:
    """How many processes the launcher started, by what it wrote into the environment.

    Raises:
        ConfigError: It speaks of several and does not say which this is or where the others are.
    """
    count = os.environ.get("WORLD_SIZE", "1")
    missing = [name for name in _OF_A_LAUNCHER if name not in os.environ]
    if not count.isdecimal() or (int(count) > 1 and missing):
        raise ConfigError(
            f"the environment has WORLD_SIZE={count}" + (f" but no {', '.join(missing)}" if missing else "") + ". "
            "Unset it for one process; several are started with torchrun --nproc-per-node=N -m sonotune train ..."
        )
    return max(1, int(count))


def is_main() -> bool:
    """Whether this process writes what is kept, before any have found each other."""
    return started() == 1 or os.environ.get("RANK", "0") == "0"


@contextmanager
def exchanging() -> Iterator[None]:
    """Say in our words that the others are gone, where an exchange between them failed.

    Raises:
        ProcessError: It failed; errors of another kind are left alone.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        if not isinstance(error, torch.distributed.DistError) and not any(word in text for word in _OF_AN_EXCHANGE):
            raise
        reason = str(error).strip().splitlines()[0].split(" This is typically")[0]
        raise ProcessError(
            f"another process is gone: {reason} Its own message says why. The last checkpoint is intact; the same line "
            "goes on from it."
        ) from error


_OF_AN_EXCHANGE = ("gloo", "nccl", "connection")


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one type on one device, up to the size of a bucket."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        nbytes = tensor.numel() * tensor.element_size()
        unlike = bucket and (tensor.dtype, tensor.device) != (bucket[0].dtype, bucket[0].device)
        if bucket and (unlike or size + nbytes > BUCKET_BYTES):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += nbytes
    if bucket:
        yield bucket
