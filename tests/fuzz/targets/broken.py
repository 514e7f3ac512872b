"""Readers with a fault, by which the fuzzer itself is tested: they are found by name only, and are in no run of all."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path
from typing import Final

from harness import Target
from mutations import damage_bytes

_SEED: Final = ({"file": b"0123456789"},)


def _number(folder: Path) -> int:
    """The same for a case whenever it is run: 0 for the seed, else a sum of its bytes."""
    data = (folder / "file").read_bytes()
    return 0 if data == _SEED[0]["file"] else 1 + sum(data) % 5


def _raise(folder: Path) -> None:
    if _number(folder) == 3:
        raise ZeroDivisionError("a foreign exception")


def _refuse(folder: Path) -> None:
    from sonotune.errors import ConfigError

    if _number(folder):
        raise ConfigError("refused, as it should be")


def _bad_message(folder: Path) -> None:
    from sonotune.errors import ConfigError

    if _number(folder) == 2:
        raise ConfigError("x" * 10**6)


def _hang(folder: Path) -> None:
    if _number(folder) == 3:
        time.sleep(3600)


def _busy(folder: Path) -> None:
    damaged = _number(folder) == 3
    while damaged:
        pass


def _hang_outside_python(folder: Path) -> None:
    if _number(folder) == 3:
        ctypes.PyDLL(None).sleep(3600)  # holds the interpreter's lock


def _hog(folder: Path) -> None:
    if _number(folder) == 3:
        assert len(bytearray(b"\1") * 2 * 10**8) == 2 * 10**8


def _crash(folder: Path) -> None:
    if _number(folder) == 3:
        os.abort()


TARGETS: Final = tuple(
    Target(
        name=f"broken-{check.__name__.strip('_').replace('_', '-')}",
        seeds=lambda: _SEED,
        mutate=lambda rng, files: {"file": damage_bytes(rng, bytes(files["file"]))},
        check=check,
    )
    for check in (_raise, _refuse, _bad_message, _hang, _busy, _hang_outside_python, _hog, _crash)
)
