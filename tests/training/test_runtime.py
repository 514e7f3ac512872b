"""Freed memory is used again."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from sonotune.training.runtime import keep_freed_memory, let_segments_grow

PROGRAM = """
import resource, sys
import numpy as np
from sonotune.training.runtime import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
np.ones(20_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(20_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_large_blocks_do_not_come_from_the_kernel_again_and_again():
    keep, leave = (
        int(subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True).stdout)
        for how in ("keep", "leave")
    )
    assert leave > 1000 + 5 * keep


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()


def test_segments_grow_on_a_card_unless_the_user_has_said_something(monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda.memory, "_set_allocator_settings", asked.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    assert not let_segments_grow()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert let_segments_grow()
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:512")
    assert not let_segments_grow()
    assert asked == ["expandable_segments:True"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_segments_do_grow():
    program = """
import torch
from sonotune.training.runtime import let_segments_grow
assert let_segments_grow()
torch.empty(2**20, device="cuda")
assert any(segment["is_expandable"] for segment in torch.cuda.memory_snapshot())
"""
    subprocess.run([sys.executable, "-c", program], check=True)
