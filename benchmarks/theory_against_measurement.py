"""Mean-field theory against networks of 110 layers: gradients at x_0, over widths, batches and seeds.

    python benchmarks/theory_against_measurement.py measure PART SEEDS
    python benchmarks/theory_against_measurement.py before PART     with PYTHONPATH at an older source tree
    python benchmarks/theory_against_measurement.py after PART
    python benchmarks/theory_against_measurement.py table

PART is "gates" (exclusive gates and BN after addition: three widths by three batch sizes) or "neighbours"
(the other shortcuts and arrangements). Images are noise of 16×16 pixels. Everything goes into
results/theory-gates.json, cell by cell, so that an interrupted run continues. `before` holds the predictions
of theory with one norm for all images (commit 6b67afc), which knew no batch size; `after` those of DRAWS
populations. About 25 minutes of one core for 7 and 3 seeds, and 5 minutes for the predictions.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from kilolayer.measure.initialisation import measure_propagation
from kilolayer.networks import Network, build, cifar
from kilolayer.runs import environment_record
from kilolayer.system import durable
from kilolayer.theory.mean_field import predict_propagation
from kilolayer.training import DistributedContext
from kilolayer.units import (
    ARRANGEMENTS,
    BASIC,
    FULL_PREACT,
    Dropout,
    ExclusiveGate,
    Projection,
    Scaled,
    ShortcutGate,
    Unit,
    Zero,
)

PATH = Path("results/theory-gates.json")
DRAWS, SIDE = 5, 16


def preact(unit: Unit) -> Unit:
    return replace(unit, arrangement=FULL_PREACT)


GATES = {f"exclusive {bias}": replace(BASIC, h=ExclusiveGate(float(bias))) for bias in range(0, -7, -1)}
GATES["bn after"] = replace(BASIC, arrangement=ARRANGEMENTS["bn_after_addition"])
NEIGHBOURS = {
    **{
        name: replace(BASIC, arrangement=arrangement)
        for name, arrangement in ARRANGEMENTS.items()
        if name != "bn_after_addition"
    },
    **{f"shortcut gate {bias}": replace(BASIC, h=ShortcutGate(float(bias))) for bias in (0, -2, -6)},
    "1x1": replace(BASIC, h=Projection()),
    "dropout 0.5": replace(BASIC, h=Dropout(0.5)),
    "dropout 0.1": replace(BASIC, h=Dropout(0.1)),
    "0.5/1": replace(BASIC, h=Scaled(0.5)),
    "0.9": replace(BASIC, h=Scaled(0.9)),
    "0.5/0.5": replace(BASIC, h=Scaled(0.5, 0.5)),
    "plain": replace(BASIC, h=Zero()),
    "preact exclusive -2": preact(replace(BASIC, h=ExclusiveGate(-2.0))),
    "preact shortcut gate -2": preact(replace(BASIC, h=ShortcutGate(-2.0))),
    "preact 0.9": preact(replace(BASIC, h=Scaled(0.9))),
}
GRID = [(width, batch) for width in (16, 8, 32) for batch in (32, 16, 128)]
PARTS = {"gates": (GATES, GRID), "neighbours": (NEIGHBOURS, [(16, 32), (8, 32), (16, 16)])}


def network_of(unit: Unit, width: int) -> Network:
    """110 layers with `width` channels in the first stage."""
    network = replace(cifar(110, unit), image_size=SIDE)
    stages = tuple(replace(stage, width=stage.width * width // 16) for stage in network.stages)
    return replace(network, stem=replace(network.stem, channels=width), stages=stages)


def measured(network: Network, batch: int, seed: int) -> float:
    """‖∂ε/∂x_0‖ / ‖∂ε/∂x_L‖ of one initialisation."""
    generator = torch.Generator().manual_seed(seed + 1000)
    x = torch.randn(batch, 3, SIDE, SIDE, generator=generator)
    labels = torch.randint(10, (batch,), generator=generator)
    torch.manual_seed(seed)
    return measure_propagation(build(network), x, labels).gradient[0]


def predictions(network: Network, batch: int, column: str) -> list[float]:
    """The gradient at x_0 of every draw."""
    if column == "before":
        return [predict_propagation(network, seed=seed).gradient[0] for seed in range(3)]
    return [
        predict_propagation(network, batch_size=batch, draws=1, seed=seed).gradient[0]
        for seed in range(DRAWS)
    ]


def run(column: str, part: str, seeds: int = 0) -> None:
    """Fills one column of every cell of `part`."""
    units, grid = PARTS[part]
    for width, batch in grid:
        for name, unit in units.items():
            network = network_of(unit, width)
            key = f"{name}, width {width}, batch {batch}"
            cell = read()["cells"].get(key, {})
            if column == "measure":
                values = cell.get("measured", [])
                values = values + [measured(network, batch, seed) for seed in range(len(values), seeds)]
                save(key, "measured", values)
            elif column not in cell:
                save(key, column, predictions(network, batch, column))


def read() -> dict:
    return json.loads(PATH.read_text(encoding="utf-8")) if PATH.exists() else {"cells": {}}


def save(key: str, column: str, values: list[float]) -> None:
    record = read()
    record["cells"].setdefault(key, {})[column] = [float(f"{value:.6g}") for value in values]
    write(record)


def write(record: dict) -> None:
    durable.write_file(PATH, json.dumps(record, indent=1, ensure_ascii=False).encode())


def table() -> None:
    """Adds the medians and their ratios, and prints a line a cell."""
    record = read()
    summary = {}
    for key, cell in record["cells"].items():
        middle = median(cell["measured"])
        line = {
            "measured": middle,
            "measured_range": [min(cell["measured"]), max(cell["measured"])],
            **{column: median(cell[column]) for column in ("before", "after") if column in cell},
        }
        for column in ("before", "after"):
            if column in cell:
                line[f"{column}_over_measured"] = float(f"{line[column] / middle:.3g}")
        if "after" in cell:
            line["after_range"] = [min(cell["after"]), max(cell["after"])]
        summary[key] = line
        print(key, line)
    record["summary"] = summary
    record["counts"] = {
        column: {
            "cells": len(ratios := [line[name] for line in summary.values() if name in line]),
            "within a factor of 2": sum(abs(math.log2(ratio)) <= 1 for ratio in ratios),
        }
        for column, name in (("before", "before_over_measured"), ("after", "after_over_measured"))
    }
    record["network"] = f"110 layers, {SIDE}×{SIDE} pixels of noise; gradient at x_0 over that at x_L"
    record["command"] = "python benchmarks/theory_against_measurement.py (measure, before, after, table)"
    record["environment"] = environment_record(DistributedContext(torch.device("cpu")), "fp32")
    write(record)
    print(record["counts"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    command, *rest = sys.argv[1:]
    if command == "table":
        table()
    else:
        run(command, rest[0], *map(int, rest[1:]))
