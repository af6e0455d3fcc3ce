"""A network's stages as a table of counts, as in P1, Table 1."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from kilolayer.networks.description import Network
from kilolayer.units import ops as op
from kilolayer.units.ops import Ops


@dataclass(frozen=True)
class StageRow:
    """One row of the table: `units` as "[3×3, 64; 3×3, 64] × 3", and the counts of all of its layers."""

    stage: str
    output: str
    units: str
    parameters: int
    multiply_adds: int


def stage_table(network: Network) -> tuple[StageRow, ...]:
    """The network stage by stage, as in P1, Table 1. The counts of all rows add up to the network's.

    >>> from kilolayer.networks import describe
    >>> [row.units for row in stage_table(describe("resnet20_cifar"))][1]
    '[3×3, 16; 3×3, 16] × 3'
    """
    return (_stem_row(network), *_stage_rows(network), _classifier_row(network))


def _stem_row(network: Network) -> StageRow:
    ops, side = network.stem_ops, network.image_size
    counts = op.parameters(ops), op.multiply_adds(ops, side)
    return StageRow("stem", _square(op.output_side(ops, side)), _convs(ops), *counts)


def _stage_rows(network: Network) -> list[StageRow]:
    rows, placed = [], iter(network.units())
    for number, stage in enumerate(network.stages, 1):
        units = list(islice(placed, stage.units))
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
