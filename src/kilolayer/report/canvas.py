"""What all figures share: size, type, palette, ticks and legend, and the way from a drawing to SVG text."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from kilolayer.report import svg_markup
from kilolayer.report.clean_text import shorten_line
from kilolayer.report.extra import report_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure as Drawing

INK = "#0a0b0c"
"""Stands for the text's colour while drawing; the page shows its own."""

OKABE_ITO = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#b8a800", INK)
"""Told apart with any colour vision. The yellow is darkened, black is the page's ink."""

COLOURS = {INK: "currentColor"} | {
    colour: f"var(--curve-{number}, {colour})" for number, colour in enumerate(OKABE_ITO[:-1], start=1)
}
MARKERS = ("o", "s", "^", "D", "v")
WIDTH, HEIGHT = 5.4, 3.2
"""In inches of 72 units."""

_LETTER, _HANDLE, _LINE = 5.4, 40.0, 14.5
"""A legend's measures in units: the mean letter, the sample before a label, the distance of lines."""

_LONGEST, _TALLEST = 64, 38
"""Characters of a label along the width and along the height."""

_KEY: dict[str, Any] = {"columnspacing": 1.6, "handlelength": 1.8, "borderaxespad": 0.2}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "kilolayer",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.linewidth": 0.7,
    "lines.linewidth": 1.4,
    "grid.alpha": 0.14,
    "grid.linewidth": 0.6,
    "axes.unicode_minus": True,
} | dict.fromkeys(
    ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"), INK
)


def draw_svg(title: str, paint: Callable[[Drawing], None], height: float = HEIGHT) -> str:
    """The SVG of what `paint` draws; the same drawing gives the same text, on any day."""
    with report_extra():
        from matplotlib import style
        from matplotlib.figure import Figure as Drawing
    out = io.StringIO()
    with style.context(["default", _STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has its own fonts
        warnings.filterwarnings("ignore", message="overflow")  # of a tick beyond the frame
        figure = Drawing(figsize=(WIDTH, height), layout="constrained")
        paint(figure)
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return svg_markup.tidy_svg(out.getvalue(), title, COLOURS)


def colour(number: int) -> str:
    """The colour of the n-th curve, from 0; after the last they begin again, with other markers."""
    return OKABE_ITO[number % len(OKABE_ITO)]


def marker(number: int) -> str:
    """The marker of the n-th curve, so that it is known without its colour too."""
    return MARKERS[number % len(MARKERS)]


def _columns(labels: Sequence[str]) -> int:
    widest = _HANDLE + _LETTER * max(map(len, labels), default=1)
    return max(1, min(4, len(labels), int(WIDTH * 72 / widest)))


def legend_height(labels: Sequence[str]) -> float:
    """The inches a figure must grow by for its legend."""
    texts = [shorten_line(label, _LONGEST) for label in labels]
    return math.ceil(len(texts) / _columns(texts)) * _LINE / 72


def add_legend(figure: Drawing, labels: Sequence[str], numbers: Sequence[int] | None = None) -> None:
    """A key below the figure, one sample per label in the order of the colours, or in those of `numbers`."""
    from matplotlib.lines import Line2D

    texts = [shorten_line(label, _LONGEST) for label in labels]
    samples = [
        Line2D([], [], color=colour(n), marker=marker(n), markersize=4) for n in numbers or range(len(texts))
    ]
    # matplotlib hides labels that begin with an underscore, so they are set afterwards.
    places = [str(number) for number in range(len(texts))]
    key = figure.legend(samples, places, loc="outside lower center", ncols=_columns(texts), **_KEY)
    for text, label in zip(key.get_texts(), texts, strict=True):
        text.set_text(label)


def set_up_axes(axes: Axes, x_label: str, y_label: str, grid: bool = True) -> None:
    """Labels, lines only where there is a scale, and a quiet grid behind the curves."""
    axes.set_xlabel(shorten_line(x_label, _LONGEST))
    axes.set_ylabel(shorten_line(y_label, _TALLEST))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(grid, axis="y")


def mark_stage(axes: Axes, start: float) -> None:
    """A thin upright line in front of the place at which the network's shape changes."""
    axes.axvline(start - 0.5, color=INK, alpha=0.3, lw=0.7, zorder=0).set_in_layout(False)


def plain_ticks(axis: Axis, scale: float = 1.0, powers: bool = False) -> None:
    """Ticks written as people write them: 0.02, 64, 10⁻⁷, or all in powers of ten, divided by the scale."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value / scale, powers)))
    axis.set_minor_formatter(NullFormatter())


def format_tick(value: float, powers: bool = False) -> str:
    """A tick's number, its power of ten in superscript where it is very small or large, or wherever asked."""
    if value == 0 or (1e-3 <= abs(value) < 1e5 and not powers):
        return f"{value:g}".replace("-", "−")
    if not math.isfinite(value):
        return ""
    mantissa, exponent = f"{value:.2e}".split("e")
    factor = mantissa.rstrip("0").rstrip(".").replace("-", "−")
    power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if factor == "1" else f"{factor}·{power}"


def mark_no_values(axes: Axes) -> None:
    """Says in an empty frame why it is empty."""
    axes.text(0.5, 0.5, "no finite value was recorded", transform=axes.transAxes, ha="center", va="center")
