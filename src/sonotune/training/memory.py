"""What the process does with memory while it trains."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Final

import torch

# <malloc.h>
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_LARGEST: Final = 2**31 - 1

_ALLOCATOR_VARIABLES: Final = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def keep_freed_memory() -> bool:
    """Tell glibc to use freed memory again instead of handing it back to the kernel.

    Activations of a step on the processor are freed and wanted again a moment later. Blocks above 32 MiB would come
    from the kernel each time, page by page and zeroed: a fifth of a step's time (`benchmarks/train_throughput`, row
    `ctc`). The process keeps at most what it has needed at once, and what lies between (5 to 15 % there).

    Returns:
        Whether it was done; not where the C library is another.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    # glibc before 2.35 takes no threshold above 32 MiB.
    mapped = mallopt(_M_MMAP_THRESHOLD, _LARGEST) or mallopt(_M_MMAP_THRESHOLD, 32 << 20)
    return bool(mapped and mallopt(_M_TRIM_THRESHOLD, _LARGEST))


def let_segments_grow() -> bool:
    """Tell CUDA's allocator to extend segments instead of taking new ones.

    Batches of clips differ in shape from step to step; without this, blocks that fit none of the next are given back
    and taken again, which costs time and leaves holes. To be called before anything is put on the card.

    Returns:
        Whether it was done; not without a card, nor where the environment has settings for the allocator.
    """
    if not torch.cuda.is_available() or any(os.environ.get(name) for name in _ALLOCATOR_VARIABLES):
        return False
    torch.cuda.memory._set_allocator_settings("expandable_segments:True")
    return True
