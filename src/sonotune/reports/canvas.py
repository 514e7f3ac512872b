"""A figure in each form it is needed in: within the page, and as PNG and SVG files to put into a paper or a chat.

Within the page, colours are CSS variables (`--ink-2`, `--series-1`, ...), so one figure serves light and dark pages;
in a file they are those of the light page. Text stays text but in the PNG. The same data give the same bytes.
matplotlib is imported when the first figure is drawn: it costs half a second.
"""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sonotune.runs.files import atomic_write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PIXELS_PER_INCH = 100.0
_PNG_DPI = 200
TITLE_INCHES = 0.36
"""What a file is higher than its picture, for the title, which is a caption in the page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Palette:
    """The colours that a figure is drawn in.

    Attributes:
        ink: Of text.
        faint: Of text that stands back, such as labels of axes.
        line: Of grids and frames.
        card: Of what lies behind; text on dark fields has it.
        series: Six to tell things apart; the first is grey, for what stands before.
    """

    ink: str
    faint: str
    line: str
    card: str
    series: tuple[str, str, str, str, str, str]


PAGE: Final = Palette(
    ink="#010204",
    faint="#010203",
    line="#040506",
    card="#070809",
    series=("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05", "#0a0b06"),
)
"""Stand-ins, which become the CSS variables of the page."""

PAPER: Final = Palette(
    ink="#1b1c21",
    faint="#5d616d",
    line="#e2e3e7",
    card="#ffffff",
    series=("#8a8fa0", "#3355cc", "#c2641a", "#1d7a46", "#8a3fa8", "#0f7f93"),
)
"""The light colours of the page."""

_VARIABLES = {PAGE.ink: "--ink", PAGE.faint: "--ink-2", PAGE.line: "--line", PAGE.card: "--card"} | {
    colour: f"--series-{index}" for index, colour in enumerate(PAGE.series, start=1)
}

Draw = Callable[["Figure", Palette], Mapping[str, str]]
"""Draws on an empty figure; returns the sentences that a pointer shows, by `gid` of the artist."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A figure that is drawn when one of its forms is asked for.

    Attributes:
        name: Unique in the page, and the name of its files.
        title: What it says, for people who cannot see it, and its caption.
        size: Width and height in inches; a hundred CSS pixels each.
        draw: Draws it.
        exact: Shown at its size, and scrolled where it is wider than the page, rather than fitted to its place.
    """

    name: str
    title: str
    size: tuple[float, float]
    draw: Draw
    exact: bool = False

    def page(self) -> str:
        """An `<svg>` element in the colours and fonts of the page, without a size of its own unless it is exact."""
        svg, notes = self._svg(PAGE)
        return self._inline(_with_notes(svg, notes))

    def svg(self) -> bytes:
        """A stand-alone SVG document."""
        svg, notes = self._svg(PAPER)
        return _with_notes(svg, notes).encode("utf-8")

    def png(self) -> bytes:
        """A PNG at 200 dots per inch."""
        buffer = io.BytesIO()
        with self._drawn(PAPER) as (figure, _):
            figure.savefig(buffer, format="png", dpi=_PNG_DPI, metadata={"Software": None})
        return buffer.getvalue()

    def _svg(self, palette: Palette) -> tuple[str, Mapping[str, str]]:
        buffer = io.StringIO()
        with self._drawn(palette) as (figure, notes):
            nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
            figure.savefig(buffer, format="svg", metadata=nothing)
        return buffer.getvalue(), notes

    @contextmanager
    def _drawn(self, palette: Palette) -> Iterator[tuple[Figure, Mapping[str, str]]]:
        import matplotlib  # noqa: PLC0415  (half a second, only when a report is made)
        from matplotlib.figure import Figure  # noqa: PLC0415

        # A figure of its own, not pyplot's: no global state, and nothing to close. The user's matplotlibrc must not
        # show.
        with matplotlib.rc_context(), warnings.catch_warnings():
            # The browser draws the text with its own fonts; that matplotlib's font lacks a letter does not matter.
            warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_style(palette, f"sonotune.{self.name}"))
            in_page, (width, height) = palette is PAGE, self.size
            figure = Figure(figsize=self.size if in_page else (width, height + TITLE_INCHES))
            if in_page:
                figure.patch.set_alpha(0.0)
            else:
                title = elide(shown(self.title), int(width * 11))  # as many letters as an inch holds
                figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, weight="bold", color=palette.ink)
            yield figure, self.draw(figure, palette)

    def _inline(self, svg: str) -> str:
        """Make a stand-alone SVG fit for a page: no prologue, unique ids, page colours, a title, no fixed size."""
        svg = svg[svg.index("<svg") :]
        # A style would leak out into the page.
        svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
        used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg))
        svg = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", svg)
        for element_id in used:
            for before, after in (('id="', '"'), ("url(#", ")"), ('href="#', '"')):
                svg = svg.replace(f"{before}{element_id}{after}", f"{before}{self.name}-{element_id}{after}")
        for colour, variable in _VARIABLES.items():
            svg = svg.replace(colour, f"var({variable})")
        svg = re.sub(r"font-family: [^;\"]*", "font-family: var(--font)", svg)
        head, rest = svg.split(">", 1)
        head = re.sub(r' (?:width|height)="[\d.]+pt"', "", head)
        label = self.title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
        width = f' style="width: {self.size[0] * _PIXELS_PER_INCH:.0f}px"' if self.exact else ""
        return f'{head} role="img" aria-label="{label}"{width}>{rest}'.strip()


def save(pictures: Iterable[Picture], folder: Path) -> list[Path]:
    """Write each as `<name>.png` and `<name>.svg`; a file appears whole or not at all.

    Args:
        pictures: What to draw; names differ.
        folder: Made where missing.

    Returns:
        The files.

    Raises:
        ResourceError: The disk is full.
        RunDirectoryError: The folder cannot be written.
    """
    written = []
    for picture in pictures:
        for ending, data in (("png", picture.png()), ("svg", picture.svg())):
            path = folder / f"{picture.name}.{ending}"
            atomic_write_bytes(path, data)
            written.append(path)
    return written


def canvas(figure: Figure, size: tuple[float, float]) -> Axes:
    """Bare axes over all of a picture, in CSS pixels from its upper left corner.

    Args:
        figure: The figure, which may be higher than the picture.
        size: Width and height of the picture in inches.
    """
    width, height = size
    axes = figure.add_axes((0.0, 0.0, 1.0, height / float(figure.get_size_inches()[1])))
    axes.set_axis_off()
    axes.set_xlim(0, width * _PIXELS_PER_INCH)
    axes.set_ylim(height * _PIXELS_PER_INCH, 0)
    return axes


def points(pixels: float) -> float:
    """A font size in CSS pixels as matplotlib takes it."""
    return pixels * 72.0 / _PIXELS_PER_INCH


def plain_axes(figure: Figure) -> Axes:
    """Axes of a figure without background and tick marks, laid out so that all text has room."""
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    axes.patch.set_alpha(0.0)
    axes.tick_params(length=0)
    return axes


def log_scale(axes: Axes) -> None:
    """Give axes a logarithmic horizontal axis with plain numbers: the page sets no formulas."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter  # noqa: PLC0415

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def shown(text: str) -> str:
    """A name fit to be drawn: what cannot be printed, and what XML forbids, becomes a replacement sign."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def elide(text: str, letters: int) -> str:
    """A name of at most so many letters: the middle goes, because names differ at their ends."""
    if len(text) <= letters:
        return text
    tail = (letters - 1) * 2 // 3
    return f"{text[: letters - 1 - tail]}…{text[-tail:]}"


def count_letters(text: str) -> int:
    """Letters of a text, wide ones of East Asia twice."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _with_notes(svg: str, notes: Mapping[str, str]) -> str:
    def title(found: re.Match[str]) -> str:
        note = notes.get(found[1])
        return found[0] if note is None else f"<g><title>{escape(note)}</title>"

    return re.sub(r'<g id="([^"]+)">', title, svg) if notes else svg


def _style(palette: Palette, salt: str) -> dict[Any, Any]:
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "font.family": ["sans-serif"],
        "font.size": 9.0,
        "text.parse_math": False,  # a name with dollar signs is a name
        "text.usetex": False,
        "axes.edgecolor": palette.line,
        "axes.labelcolor": palette.faint,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.unicode_minus": True,
        "axes.formatter.useoffset": False,
        "figure.facecolor": palette.card,
        "grid.color": palette.line,
        "grid.linewidth": 0.7,
        "xtick.color": palette.line,
        "ytick.color": palette.line,
        "xtick.labelcolor": palette.faint,
        "ytick.labelcolor": palette.faint,
        "text.color": palette.faint,
        "legend.frameon": False,
        "lines.linewidth": 1.6,
    }
