"""A confusion matrix of many classes as a map, with a square for every pair of classes that occurs."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from kilolayer.report.clean_text import replace_unprintable
from kilolayer.report.svg_markup import NAMESPACE

LEVELS = (0.01, 0.05, 0.2, 0.5)
"""A square is one step darker for each of these shares of its row that it exceeds."""
OPACITY = (0.15, 0.3, 0.5, 0.75, 1.0)
MARGIN = 0.09
RIGHT, WRONG = "var(--curve-3, #009e73)", "var(--curve-2, #d55e00)"
TICKS = 10


def confusion_map(
    counts: Sequence[Sequence[int]], rows: Sequence[int], columns: Sequence[int], title: str
) -> str:
    """The SVG of `counts[i][j]`, the pictures of class `rows[i]` that were taken for class `columns[j]`.

    The shade of a square is its share of the row. Right answers have one colour and wrong answers another.
    """
    height, width = len(rows), len(columns)
    unit = max(height, width)
    margin, top = MARGIN * unit, MARGIN * unit
    # With a thousand classes a square would be smaller than a pixel of the screen.
    squares = _squares(counts, rows, columns, max(1.0, unit / 400))
    paths = (
        f'<path d="{"".join(parts)}" style="fill: {colour}; fill-opacity: {OPACITY[level]}"/>'
        for (colour, level), parts in sorted(squares.items(), reverse=True)
    )
    texts = (*_ticks(columns, unit, across=True), *_ticks(rows, unit, across=False), *_names(unit))
    line = f"fill: none; stroke: currentColor; stroke-width: {unit / 400:.4g}"
    frame = f'<rect x="0" y="0" width="{width}" height="{height}" style="{line}"/>'
    box = f"{-margin:.4g} {-top:.4g} {width + margin + unit / 50:.6g} {height + top + unit / 50:.6g}"
    label = escape(replace_unprintable(title))
    return (
        f'<svg xmlns="{NAMESPACE}" viewBox="{box}" role="img" aria-label="{label}">'
        f"{''.join(paths)}{frame}{''.join(texts)}</svg>"
    )


def _squares(
    counts: Sequence[Sequence[int]], rows: Sequence[int], columns: Sequence[int], side: float
) -> dict[tuple[str, int], list[str]]:
    """The squares as SVG paths, by colour and shade."""
    squares: dict[tuple[str, int], list[str]] = {}
    shift = (1 - side) / 2
    for i, line in enumerate(counts):
        total = sum(line) or 1
        for j, count in enumerate(line):
            if count:
                level = sum(count / total > bound for bound in LEVELS)
                colour = RIGHT if rows[i] == columns[j] else WRONG
                squares.setdefault((colour, level), []).append(
                    f"M{j + shift:g} {i + shift:g}h{side:g}v{side:g}h-{side:g}z"
                )
    return squares


def _ticks(numbers: Sequence[int], unit: int, *, across: bool) -> list[str]:
    step = max(1, -(-len(numbers) // TICKS))
    texts = []
    for index in range(0, len(numbers), step):
        x, y = (index + 0.5, -0.012 * unit) if across else (-0.012 * unit, index + 0.5)
        texts.append(_text(x, y, str(numbers[index]), unit, "middle" if across else "end"))
    return texts


def _names(unit: int) -> list[str]:
    turned = f'transform="rotate(-90 {-0.072 * unit:.5g} {unit / 8:.5g})"'
    return [
        _text(0, -0.062 * unit, "taken for class →", unit, "start"),
        _text(-0.072 * unit, unit / 8, "← class", unit, "middle", turned),
    ]


def _text(x: float, y: float, text: str, unit: int, anchor: str, attributes: str = "") -> str:
    style = f"font-size: {0.024 * unit:.4g}px; fill: currentColor"
    return (
        f'<text x="{x:.5g}" y="{y:.5g}" text-anchor="{anchor}" dominant-baseline="middle" {attributes} '
        f'style="{style}">{escape(text)}</text>'
    )
