"""Cards by name: what they are sold as, what of it can be used, and what of that a run needs beside its tensors.

Memory is what `nvidia-smi` reports as the total on such a card (public listings, November 2026), in MiB. Cards are sold
in GB that are GiB; the driver keeps a little, and ECC memory of data-centre cards a sixteenth.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sonotune.errors import ConfigError, suggest

_SOURCE: Final = "as nvidia-smi reports it there"
_MOST_GB: Final = 1_000
CONTEXT_BYTES: Final = 700 * 2**20
"""Assumed for the CUDA context with the kernels of torch and bitsandbytes; a few hundred MiB on any card."""
FRAGMENTATION: Final = 0.10
"""Assumed share of the tensors that the allocator holds beside them, because batches differ in shape."""

# Name -> GB as sold -> MiB that can be used.
CARDS: Final[Mapping[str, Mapping[int, int]]] = {
    "RTX 3060": {12: 12_288},
    "RTX 3070": {8: 8_192},
    "RTX 3080": {10: 10_240},
    "RTX 3090": {24: 24_576},
    "RTX 4060": {8: 8_188},
    "RTX 4060 Ti": {8: 8_188, 16: 16_380},
    "RTX 4070": {12: 12_282},
    "RTX 4070 Ti Super": {16: 16_376},
    "RTX 4080": {16: 16_376},
    "RTX 4090": {24: 24_564},
    "RTX 5090": {32: 32_607},
    "RTX A4000": {16: 16_376},
    "RTX A6000": {48: 49_140},
    "T4": {16: 15_360},
    "V100": {16: 16_384, 32: 32_768},
    "L4": {24: 23_034},
    "A10": {24: 23_028},
    "A10G": {24: 23_028},
    "A40": {48: 46_068},
    "L40S": {48: 46_068},
    "A100": {40: 40_960, 80: 81_920},
    "H100": {80: 81_559},
    "H200": {141: 143_771},
}
_ECC_SHARE: Final = 15 / 16
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(GB|GIB|G)?$", re.IGNORECASE)
_MAKERS: Final = re.compile(r"nvidia|geforce|tesla|sxm\d?|pcie|hbm\d?e?|nvl|[\s_-]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A card that a run shall fit.

    Attributes:
        name: As it is told.
        sold_gb: Its memory as it is sold.
        memory_bytes: What of it can be used.
        source: Where that is from.
    """

    name: str
    sold_gb: float
    memory_bytes: int
    source: str

    def told(self) -> str:
        """One line on its size, in every unit that a seller or a tool may have used."""
        return (
            f"{self.name}, sold as {self.sold_gb:g} GB: {self.memory_bytes / 2**20:,.0f} MiB "
            f"({self.memory_bytes / 1e9:.2f} decimal GB), {self.source}"
        )


def find_card(text: str) -> Card:
    """The card that a name (`RTX 4090`, `A100 80GB`) or a size as sold (`8GB`) means.

    A size alone is taken for the card of that size, of those known, with the least memory that can be used.

    Raises:
        ConfigError: No such card is known, or it is sold in several sizes.
    """
    known = {_plain(name): name for name in CARDS}
    sold = re.search(r"(\d+)\s*G(?:i?B)?\b", text, re.IGNORECASE)
    plain = _plain(text.replace(sold[0], " ") if sold else text)
    if name := known.get(plain) or known.get(f"rtx{plain}"):
        return _of_name(text, name, int(sold[1]) if sold else None)
    size = _SIZE.fullmatch(text.strip())
    if size and 0 < float(size[1]) <= _MOST_GB:
        return _of_size(float(size[1]), binary=(size[2] or "").upper() == "GIB")
    largest, name = max((max(sizes), name) for name, sizes in CARDS.items())
    if size and float(size[1]) > _MOST_GB:
        raise ConfigError(
            f"--gpu {text!r} is larger than any card: the largest that is known here is the {name} with {largest} GB. "
            "For several cards give the size of one, and their number with --devices."
        )
    raise ConfigError(
        f"--gpu {text!r} is no card that is known here{suggest(text, CARDS, '.')} Known are {', '.join(CARDS)}. For "
        "another, give its size as sold (--gpu 24GB), or exactly what may be used (--device cuda --memory 23GiB)."
    )


def _of_name(text: str, name: str, sold_gb: int | None) -> Card:
    sizes = CARDS[name]
    if sold_gb is None and len(sizes) == 1:
        sold_gb = next(iter(sizes))
    if sold_gb is not None and sold_gb not in sizes:  # another edition of it
        return _of_size(sold_gb, binary=False)
    if sold_gb is None:
        choices = " or ".join(f"--gpu '{name} {each}GB'" for each in sizes)
        raise ConfigError(f"--gpu {text!r}: the {name} is sold with {' or '.join(map(str, sizes))} GB. Say {choices}.")
    return Card(name=f"the {name}", sold_gb=sold_gb, memory_bytes=sizes[sold_gb] * 2**20, source=_SOURCE)


def _of_size(size: float, *, binary: bool) -> Card:
    if binary:
        return Card(name="a card", sold_gb=size, memory_bytes=int(size * 2**30), source="as given")
    of_size = [(mib, name) for name, sizes in CARDS.items() for gb, mib in sizes.items() if gb == size]
    if of_size:
        least, name = min(of_size)
        source = f"as the {name} has, the least of those known of that size"
        return Card(name="a card", sold_gb=size, memory_bytes=least * 2**20, source=source)
    source = "less a sixteenth, which ECC takes where there is ECC"
    return Card(name="a card", sold_gb=size, memory_bytes=int(size * 2**30 * _ECC_SHARE), source=source)


def _plain(name: str) -> str:
    return _MAKERS.sub("", name.lower())


def needed_bytes(tensor_bytes: float, device: str) -> int:
    """What a run takes of a card beside others: its tensors, what the allocator loses, and the context.

    On a CPU tensors alone are counted, for a process there is not so regular.
    """
    return round(tensor_bytes * (1 + FRAGMENTATION)) + CONTEXT_BYTES if device == "cuda" else round(tensor_bytes)


def left_for_tensors(memory_bytes: int, device: str) -> int:
    """The reverse: how large tensors may be for a run to fit."""
    return int((memory_bytes - CONTEXT_BYTES) / (1 + FRAGMENTATION)) if device == "cuda" else memory_bytes
