"""A unit as a self-contained SVG, with colours that are readable on light and on dark pages."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from kilolayer.report.unit_diagram import Diagram, DiagramStep, DiagramSteps, unit_diagram
from kilolayer.units.unit import Layout, Unit

# This grey has a contrast of 4.5 on white and on black; boxes have a background of their own for dark text.
INK, BOX_TEXT = "#767676", "#1c1c1c"
FILLS = {
    "conv": "#cfe0f5",
    "norm": "#fbe9b7",
    "activation": "#f8d0c4",
    "gate": "#ddd0f0",
    "other": "#d5ead2",
    "open": "#e6e6e6",
    "close": "#e6e6e6",
}
BOX, ROW, MARGIN, SPACE = 28, 48, 32, 34


def unit_svg(unit: Unit | Layout, title: str | None = None) -> str:
    """The unit as SVG, as in P2, Fig. 4: the shortcut straight from x to x′, F beside it, ⊕ at their sum.

    `title` is the text for assistive technology, by default the layers in words. A `Unit` is drawn without a
    change of shape; pass its `layout(...)` to draw one with a change of shape.
    """
    diagram = unit_diagram(unit)
    width, height, shapes = _UnitSheet(diagram).draw()
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="system-ui, sans-serif" font-size="13">\n'
        f"<title>{escape(title or diagram.caption)}</title>\n" + "\n".join(shapes) + "\n</svg>\n"
    )


class _UnitSheet:
    """The positions of all parts: columns from the shortcut to F, with one step in each row."""

    def __init__(self, diagram: Diagram) -> None:
        self.diagram = diagram
        self.widths = [_width((*diagram.p, *diagram.h, *diagram.f)), *map(_width, diagram.columns[1:])]
        self.xs = [MARGIN + sum(self.widths[:i]) + SPACE * i + w // 2 for i, w in enumerate(self.widths)]
        self.split = ROW * (len(diagram.p) + 1)
        # The columns end in one row, so that a gate stands beside its factor.
        self.last = self.split + ROW * max(map(len, diagram.columns))
        self.join = self.last + ROW
        self.end = self.join + ROW * (len(diagram.f) + 1)

    def draw(self) -> tuple[int, int, list[str]]:
        width = MARGIN * 2 + sum(self.widths) + SPACE * (len(self.widths) - 1)
        # Lines come first, so that boxes cover them.
        shapes = [*self._frames(), *self._lines(), *self._boxes(), *self._ends()]
        return width, self.end + 24, shapes

    def _rows(self) -> Iterator[tuple[int, int, int, DiagramStep]]:
        """Every step, with its column, the y of its centre, and the width of its column."""
        placed = [(0, self.diagram.p, ROW), (0, self.diagram.f, self.join + ROW)]
        for column, steps in enumerate(self.diagram.columns):
            placed.append((column, steps, self.last - ROW * (len(steps) - 1)))
        for column, steps, top in placed:
            for row, step in enumerate(steps):
                yield column, top + ROW * row, self.widths[column], step

    def _lines(self) -> Iterator[str]:
        first, *between, last = self.xs
        yield _line((first, 22), (first, self.join - 11))
        yield _line((first, self.join + 11), (first, self.end - 8), head=True)
        branch = (first, self.split), (last, self.split), (last, self.join), (first + 12, self.join)
        yield _line(*branch, head=True)
        for x in between:
            yield _line((x, self.split), (x, self.last))
            yield _line((x, self.last), (first + self.widths[0] // 2, self.last), head=True)
            if self.diagram.F[-1].kind == "gate":
                yield _line((x, self.last), (last - self.widths[-1] // 2, self.last), head=True)

    def _boxes(self) -> Iterator[str]:
        for column, y, width, step in self._rows():
            x = self.xs[column]
            yield _head((x, y - BOX // 2), (0, 1))
            yield _box(x, y, width, step)

    def _frames(self) -> Iterator[str]:
        """A dashed frame, with two more behind it, around the layers of parallel paths."""
        opened = 0
        for column, y, width, step in self._rows():
            if step.kind == "open":
                opened = y
            elif step.kind == "close":
                for shift in (10, 5, 0):
                    yield _frame(self.xs[column] + shift, opened, y, width + 40)

    def _ends(self) -> Iterator[str]:
        x = self.xs[0]
        yield _text(x, 16, "x", italic=True)
        yield _text(x, self.end + 10, "x′", italic=True)
        yield _head((x, self.join - 11), (0, 1))
        yield f'<circle cx="{x}" cy="{self.join}" r="11" fill="none" stroke="{INK}" stroke-width="1.5"/>'
        yield _line((x - 6, self.join), (x + 6, self.join))
        yield _line((x, self.join - 6), (x, self.join + 6))


def _width(steps: DiagramSteps) -> int:
    longest = max((len(step.label) for step in steps), default=0)
    return max(64, 20 + 2 * round(3.7 * longest))


def _line(*points: tuple[int, int], head: bool = False) -> str:
    path = " ".join(f"{x},{y}" for x, y in points)
    line = f'<polyline points="{path}" fill="none" stroke="{INK}" stroke-width="1.5"/>'
    (x0, y0), (x1, y1) = points[-2:]
    return line + _head((x1, y1), (_sign(x1 - x0), _sign(y1 - y0))) if head else line


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)


def _head(tip: tuple[int, int], towards: tuple[int, int]) -> str:
    """An arrowhead as a polygon: an SVG marker has an id, which would clash on a page of several drawings."""
    (x, y), (dx, dy) = tip, towards
    back = (x - 8 * dx, y - 8 * dy)
    corners = ((x, y), (back[0] - 4 * dy, back[1] - 4 * dx), (back[0] + 4 * dy, back[1] + 4 * dx))
    return f'<polygon points="{" ".join(f"{a},{b}" for a, b in corners)}" fill="{INK}"/>'


def _box(x: int, y: int, width: int, step: DiagramStep) -> str:
    x_min, top = x - width // 2, y - BOX // 2
    radius = BOX // 2 if step.kind in ("open", "close") else 6
    return (
        f'<g class="{step.kind}"><rect x="{x_min}" y="{top}" width="{width}" height="{BOX}" rx="{radius}" '
        f'fill="{FILLS[step.kind]}" stroke="{INK}"/>{_text(x, y + 5, step.label, BOX_TEXT)}</g>'
    )


def _frame(x: int, top: int, bottom: int, width: int) -> str:
    return (
        f'<rect x="{x - width // 2}" y="{top}" width="{width}" height="{bottom - top}" rx="8" '
        f'fill="none" stroke="{INK}" stroke-dasharray="4 3"/>'
    )


def _text(x: int, y: int, text: str, fill: str = INK, *, italic: bool = False) -> str:
    style = ' font-style="italic" font-size="15"' if italic else ""
    return f'<text x="{x}" y="{y}" text-anchor="middle" fill="{fill}"{style}>{escape(text)}</text>'
