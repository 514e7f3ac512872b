"""A confusion matrix as inline SVG in the colours of the page: legible with 40 classes, still readable with 60.

Drawn by hand: matplotlib would draw every empty cell, and could not give a cell the sentence that a pointer shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from sonotune.reports.canvas import count_letters

_WIDTH = 1000  # of the widest card of the page, in CSS pixels; on a telephone the figure scrolls
_CELL, _SMALLEST_CELL = 34.0, 12.0
_FONT, _COUNT_FONT, _SMALLEST_FONT = 10.5, 11.0, 8.0
_LETTER = 0.65  # mean width of a letter in font sizes, of the widest fonts the page may meet
_MAX_LETTERS = 26
_GAP = 6.0
_FAINTEST = 0.22  # a rare confusion must still be seen
_DARK = 0.7  # from this opacity on, numbers stand in the colour of the card


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """Counts of confusions (C, C).

    Attributes:
        labels: Names of the classes, of rows and columns alike.
        counts: Rows are what was so, columns what was decided.
        totals: Clips of each row, with those decided as a class that is not drawn.
    """

    labels: Sequence[str]
    counts: Sequence[Sequence[int]]
    totals: Sequence[int]


def draw_matrix(matrix: Matrix, *, title: str) -> str:
    """Draw it, with a sentence on every cell for the pointer.

    Args:
        matrix: What to draw; cells of 0 are left empty.
        title: What the figure says, for people who cannot see it.

    Returns:
        An `<svg>` element as wide as it should be shown, in CSS pixels; the same matrix gives the same bytes.
    """
    size = len(matrix.labels)
    names = [_short(label) for label in matrix.labels]
    margin = max(map(count_letters, names)) * _FONT * _LETTER + _GAP
    end = len(str(max(matrix.totals))) * _FONT * _LETTER + 2 * _GAP
    cell = max(_SMALLEST_CELL, min(_CELL, (_WIDTH - margin - end) // size))
    side = cell * size
    width, height = margin + side + end, margin + side + _GAP
    font = min(_FONT, cell * 0.85)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.1f} {height:.1f}" role="img" '
        f'aria-label="{escape(title)}" '
        f'style="width: {width:.0f}px; font-family: var(--font); font-size: {font:.1f}px">',
        _grid(size, cell, margin),
        *_names(matrix, names, cell, margin),
        *_cells(matrix, cell, margin),
        "</svg>",
    ]
    return "\n".join(parts)


def _grid(size: int, cell: float, margin: float) -> str:
    side = cell * size
    lines = "".join(
        f"M{margin:.1f} {margin + index * cell:.1f}h{side:.1f}M{margin + index * cell:.1f} {margin:.1f}v{side:.1f}"
        for index in range(size + 1)
    )
    return f'<path d="{lines}" style="stroke: var(--line); stroke-width: 0.6; fill: none"/>'


def _names(matrix: Matrix, names: Sequence[str], cell: float, margin: float) -> list[str]:
    parts = []
    for index, (label, name) in enumerate(zip(matrix.labels, names, strict=True)):
        middle = margin + (index + 0.5) * cell
        where, text = margin - _GAP, f"<title>{escape(label)}</title>{escape(name)}"
        style = 'dominant-baseline="central" style="fill: var(--ink-2)"'
        parts += [
            f'<text x="{where:.1f}" y="{middle:.1f}" text-anchor="end" {style}>{text}</text>',
            f'<text transform="translate({middle:.1f} {where:.1f}) rotate(-90)" {style}>{text}</text>',
            f'<text x="{margin + cell * len(names) + _GAP:.1f}" y="{middle:.1f}" {style}>{matrix.totals[index]}</text>',
        ]
    return parts


def _cells(matrix: Matrix, cell: float, margin: float) -> list[str]:
    parts = []
    for row, counts in enumerate(matrix.counts):
        for column, count in enumerate(counts):
            if not count:
                continue
            opacity = _FAINTEST + (1 - _FAINTEST) * count / max(1, matrix.totals[row])
            x, y = margin + column * cell, margin + row * cell
            truth, decided = escape(matrix.labels[row]), escape(matrix.labels[column])
            said = f"{truth} recognised" if row == column else f"{truth} heard as {decided}"
            colour = "--series-2" if row == column else "--series-3"
            parts.append(
                f'<g><title>{said}, {count} of {matrix.totals[row]}</title><rect x="{x + 0.5:.1f}" y="{y + 0.5:.1f}" '
                f'width="{cell - 1:.1f}" height="{cell - 1:.1f}" '
                f'style="fill: var({colour}); fill-opacity: {opacity:.2f}"/>{_number(count, x, y, cell, opacity)}</g>'
            )
    return parts


def _number(count: int, x: float, y: float, cell: float, opacity: float) -> str:
    """The count in its cell, or nothing where it has no room."""
    text = str(count)
    font = min(_COUNT_FONT, 0.5 * cell, (cell - 2) / (len(text) * _LETTER))
    if font < _SMALLEST_FONT:
        return ""
    ink = "--card" if opacity >= _DARK else "--ink"
    return (
        f'<text x="{x + cell / 2:.1f}" y="{y + cell / 2:.1f}" text-anchor="middle" dominant-baseline="central" '
        f'style="fill: var({ink}); font-size: {font:.1f}px">{text}</text>'
    )


def _short(label: str) -> str:
    return label if len(label) <= _MAX_LETTERS else f"{label[: _MAX_LETTERS - 1]}…"
