"""Units drawn in characters, for a terminal."""

from __future__ import annotations

from kilolayer.report.unit_diagram import Diagram, DiagramStep, DiagramSteps, unit_diagram
from kilolayer.units.unit import Layout, Unit


def unit_text(unit: Unit | Layout) -> str:
    """The unit in characters, as in P2, Fig. 4: x at the top, the shortcut straight down, F beside it.

    A `Unit` is drawn without a change of shape; pass its `layout(...)` to draw one with a change of shape.

    >>> from kilolayer.units import ONE_LAYER
    >>> print(unit_text(ONE_LAYER))
      x
      │
      ├───────────╮
      │           │
      │     3×3, 64 → 64
      │           │
      │          BN
      │           │
      ⊕───────────╯
      │
    ReLU
      │
     x′
    """
    diagram = unit_diagram(unit)
    centres = _centres(diagram)
    first, *_, last = centres
    rows = [{first: "x"}, *_stack_rows(diagram.p, first), {first: "│"}]
    rows += [_rule(centres, "├", "╮"), *_parallel(diagram.columns, centres), _rule((first, last), "⊕", "╯")]
    rows += [*_stack_rows(diagram.f, first), {first: "│"}, {first: "x′"}]
    return "\n".join(map(_line, rows))


def _label(step: DiagramStep) -> str:
    frames = {"open": "┌ {} ┐", "close": "└ {} ┘"}
    return frames.get(step.kind, "{}").format(step.label)


def _centres(diagram: Diagram) -> tuple[int, ...]:
    """The character columns of the centres of all parts."""
    straight = (*diagram.p, *diagram.h, *diagram.f)
    start, centres = 0, []
    for steps in (straight, *diagram.columns[1:]):
        width = max((len(_label(step)) for step in steps), default=1) | 1
        centres.append(start + width // 2)
        start += width + 3
    return tuple(centres)


def _stack_rows(steps: DiagramSteps, centre: int) -> list[dict[int, str]]:
    return [row for step in steps for row in ({centre: "│"}, {centre: _label(step)})]


def _parallel(columns: tuple[DiagramSteps, ...], centres: tuple[int, ...]) -> list[dict[int, str]]:
    """The columns side by side, ending in one row; the gate's column, in the middle, ends there."""
    height = max(map(len, columns))
    padded = [("│",) * (height - len(steps)) + tuple(map(_label, steps)) for steps in columns]
    bars = dict.fromkeys(centres, "│")
    labelled = [dict(zip(centres, labels, strict=True)) for labels in zip(*padded, strict=True)]
    rows = [row for labels in labelled for row in (bars, labels)]
    return [*rows, {centres[0]: "│", centres[-1]: "│"}]


def _rule(centres: tuple[int, ...], start: str, end: str) -> dict[int, str]:
    first, *between, last = centres
    line = ["┬" if column in between else "─" for column in range(first + 1, last)]
    return dict(zip(range(first, last + 1), (start, *line, end), strict=True))


def _line(row: dict[int, str]) -> str:
    line = ""
    for centre, text in row.items():
        line = line.ljust(centre - len(text) // 2) + text
    return line
