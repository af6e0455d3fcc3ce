"""Units drawn in characters, for a terminal."""

from __future__ import annotations

from dataclasses import dataclass

from kilolayer.networks.description import Network
from kilolayer.report.unit_diagram import Diagram, DiagramStep, DiagramSteps, unit_diagram
from kilolayer.report.unit_svg import unit_svg
from kilolayer.units import ops as op
from kilolayer.units.ops import Ops
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
    rows = [{first: "x"}, *_stacked(diagram.p, first), {first: "│"}]
    rows += [_rule(centres, "├", "╮"), *_parallel(diagram.columns, centres), _rule((first, last), "⊕", "╯")]
    rows += [*_stacked(diagram.f, first), {first: "│"}, {first: "x′"}]
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


def _stacked(steps: DiagramSteps, centre: int) -> list[dict[int, str]]:
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


@dataclass(frozen=True)
class StageRow:
    """One row of P1, Table 1: `units` as "[3×3, 64; 3×3, 64] × 3", the counts of all its layers."""

    stage: str
    output: str
    units: str
    parameters: int
    multiply_adds: int


def stage_table(network: Network) -> tuple[StageRow, ...]:
    """The network stage by stage as in P1, Table 1; its counts add up to the network's."""
    return (_stem_row(network), *_stage_rows(network), _classifier_row(network))


def _stem_row(network: Network) -> StageRow:
    ops, side = network.stem_ops, network.image_size
    counts = op.parameters(ops), op.multiply_adds(ops, side)
    return StageRow("stem", _square(op.output_side(ops, side)), _convs(ops), *counts)


def _stage_rows(network: Network) -> list[StageRow]:
    rows = []
    for number, stage in enumerate(network.stages, 1):
        units = [unit for unit in network.units() if unit.name.startswith(f"stage{number}.")]
        counts = (
            sum(unit.layout.parameters for unit in units),
            sum(unit.layout.multiply_adds(unit.side) for unit in units),
        )
        text = f"[{_convs(units[-1].layout.F)}] × {stage.units}"
        side = units[-1].layout.output_side(units[-1].side)
        rows.append(StageRow(f"stage{number}", _square(side), text, *counts))
    return rows


def _classifier_row(network: Network) -> StageRow:
    weights = network.channels * network.num_classes
    parameters = op.parameters(network.final_ops) + weights + network.num_classes
    text = f"average pool, {network.num_classes} classes"
    return StageRow("classifier", _square(1), text, parameters, weights)


def _square(side: int) -> str:
    return f"{side}×{side}"


def _convs(ops: Ops) -> str:
    texts = []
    for spec in ops:
        match spec:
            case op.Conv(kernel=kernel, out_channels=out, stride=stride, groups=groups):
                marks = (f", /{stride}" if stride > 1 else "") + (f", C={groups}" if groups > 1 else "")
                texts.append(f"{kernel}×{kernel}, {out}{marks}")
            case op.ParallelPaths(paths):
                texts.append(f"{len(paths)} paths of ({_convs(paths[0])})")
            case op.MaxPool():
                texts.append(spec.label)
    return "; ".join(texts)


__all__ = ["StageRow", "stage_table", "unit_svg", "unit_text"]
