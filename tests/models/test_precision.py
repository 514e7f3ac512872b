"""What is computed with, and what oneDNN keeps of it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from sonotune.models.precision import bound_kernel_cache

PROGRAM = """
import sys
import psutil
import torch
from sonotune.models.precision import bound_kernel_cache

if sys.argv[1] == "bound":
    assert bound_kernel_cache()
torch.set_num_threads(1)
layer = torch.nn.Conv1d(80, 64, 3, padding=1)
for step, length in enumerate(range(101, 401)):
    layer(torch.ones(2, 80, length)).sum().backward()
    if step == 19:
        before = psutil.Process().memory_info().rss
print(psutil.Process().memory_info().rss - before)
"""


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="oneDNN only")
def test_memory_does_not_grow_with_every_new_length_of_a_batch():
    environment = {name: value for name, value in os.environ.items() if not name.endswith("PRIMITIVE_CACHE_CAPACITY")}
    bound, free = (
        int(
            subprocess.run(
                [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True, env=environment
            ).stdout
        )
        for how in ("bound", "free")
    )
    assert bound < free / 2


def test_a_size_that_the_user_gave_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    monkeypatch.setenv("DNNL_PRIMITIVE_CACHE_CAPACITY", "7")
    assert not bound_kernel_cache()
    assert "ONEDNN_PRIMITIVE_CACHE_CAPACITY" not in os.environ
    monkeypatch.delenv("DNNL_PRIMITIVE_CACHE_CAPACITY")
    assert bound_kernel_cache()
    assert not bound_kernel_cache()
