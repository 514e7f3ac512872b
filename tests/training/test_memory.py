"""Freed memory is used again."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sonotune.training.memory import keep_freed_memory

PROGRAM = """
import resource, sys
import numpy as np
from sonotune.training.memory import keep_freed_memory
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
