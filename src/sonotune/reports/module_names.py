"""Where a module stands in a model, read from its full name: the stack it is in, the layer, and what it is there."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

OUTSIDE = "outside the layers"
"""Title of the panel of modules that have no parent, or share it with no other."""

# Nine digits at most: longer pieces are hashes, and no model has a thousand million layers.
_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
_CONTAINERS = frozenset({"layers", "layer", "blocks", "block", "h"})
_WRAPPERS = ("base_model.model.", "model.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a full module name says.

    Attributes:
        stack: What comes before the first number, or before the last piece where there is no number.
        layer: The first number; None where there is none.
        kind: What comes after it.
    """

    stack: str
    layer: int | None
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """The modules of one stack.

    Attributes:
        title: Short name of the stack; no two panels share one.
        kinds: Rows, in the order of the model.
        cells: (layer or None, kind) -> full module name.
    """

    title: str
    kinds: tuple[str, ...]
    cells: Mapping[tuple[int | None, str], str]

    @property
    def layers(self) -> tuple[int, ...]:
        """Numbers of the layers that have a module here, rising; empty where modules are not numbered."""
        return tuple(sorted({layer for layer, _ in self.cells if layer is not None}))


def place(name: str) -> Place:
    """Read a full module name, such as `model.encoder.layers.3.self_attn.q_proj`."""
    pieces = name.split(".")
    for index, piece in enumerate(pieces):
        if _NUMBER.fullmatch(piece):
            return Place(stack=".".join(pieces[:index]), layer=int(piece), kind=".".join(pieces[index + 1 :]))
    stack, _, kind = name.rpartition(".")
    return Place(stack=stack, layer=None, kind=kind)


def arrange(names: Iterable[str]) -> tuple[Panel, ...]:
    """Give every module exactly one cell.

    Stacks of numbered layers come in the order of the names, as do modules without a number that share a parent, such
    as those of a projector. One that has no parent, or shares it with no other, stands in the panel `OUTSIDE`.
    """
    stacks: dict[tuple[str, bool], dict[tuple[int | None, str], str]] = {}
    outside: dict[tuple[int | None, str], str] = {}
    for name in dict.fromkeys(names):
        found = place(name)
        cells = stacks.setdefault((found.stack, found.layer is not None), {})
        key = (found.layer, found.kind)
        if key in cells:  # `.0.fc` and `0.fc` read alike
            outside[None, name] = name
        else:
            cells[key] = name
    for (stack, numbered), cells in list(stacks.items()):
        if not numbered and (not stack or len(cells) == 1):
            outside |= {(None, name): name for name in cells.values()}
            del stacks[stack, numbered]
    titles = _titles(list(stacks))
    panels = [_panel(title, cells) for title, cells in zip(titles, stacks.values(), strict=True)]
    return (*panels, _panel(OUTSIDE, outside)) if outside else tuple(panels)


def group_titles(names: Iterable[str]) -> dict[str, str]:
    """Full module name -> title of the panel that it stands in."""
    return {name: panel.title for panel in arrange(names) for name in panel.cells.values()}


def _panel(title: str, cells: Mapping[tuple[int | None, str], str]) -> Panel:
    return Panel(title=title, kinds=tuple(dict.fromkeys(kind for _, kind in cells)), cells=cells)


def _titles(stacks: Sequence[tuple[str, bool]]) -> list[str]:
    """Short names where they tell the stacks apart, else what is before the number in full."""
    short = [_short(stack, numbered=numbered) for stack, numbered in stacks]
    times = Counter([*short, OUTSIDE])
    full = [
        title if times[title] == 1 else (stack if numbered and stack else f"{stack or title}, {OUTSIDE}")
        for title, (stack, numbered) in zip(short, stacks, strict=True)
    ]
    repeated = Counter([*full, OUTSIDE])
    return [title if repeated[title] == 1 else f"{title} ({index})" for index, title in enumerate(full, start=1)]


def _short(stack: str, *, numbered: bool) -> str:
    head, _, last = stack.rpartition(".")
    if numbered and last in _CONTAINERS:
        stack = head
    for wrapper in _WRAPPERS:
        stack = stack.removeprefix(wrapper)
    return stack or "layers"
