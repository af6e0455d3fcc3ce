"""Full-length cells of P2 on one GPU, the most telling first, for as long as it is lent.

    python benchmarks/full_cells.py --data DIR --out runs/full --results full-cells.json --minutes 8

Called again with the same --out it goes on where it was; a run in the middle continues from its checkpoint.
Every cell is written to RESULTS at once, with its error, images/s, wall time and machine, and with its curve
so far where the time is over. A cell that cannot be run says why, and the next one follows. Needs neither
tyro nor rich, only the Python API (with cattrs). What docs/internals/gpu.md has for speed: --kernels
fused, --graph on and --compile units. `--iterations 20` tries it out on a CPU; such runs bear "proxy" in
their recipe's name.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from collect import collected

from kilolayer.data import Data
from kilolayer.errors import InputError
from kilolayer.papers import Cell, Scale, find_table
from kilolayer.papers import cell_experiment as experiment_of
from kilolayer.runs import Run
from kilolayer.sweep.reproduction import run_name
from kilolayer.sweep.worker import execute_run
from kilolayer.training import choose_device, choose_graph, choose_kernels, choose_precision
from kilolayer.training.experiment import memory_format_for
from kilolayer.units import Dropout
from kilolayer.values import to_json


def cells() -> Iterator[Cell]:
    """Table 2's original and full pre-activation at 110 and 164, Table 1's other rows, ResNet-1001."""
    table_2, table_1, table_3 = find_table("p2-table-2"), find_table("p2-table-1"), find_table("p2-table-3")
    for column in ("ResNet-110", "ResNet-164"):
        for row in ("original", "full pre-activation"):
            yield table_2.cell(row, column)
    yield from (cell for cell in table_1.cells if cell.row != "original")
    for column in ("full pre-activation", "original"):
        yield table_3.cell("CIFAR-10, ResNet-1001", column)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True, help="CIFAR-10, in any form that kilolayer reads")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--results", type=Path, help="otherwise OUT/full-cells.json")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kernels", choices=("plain", "fused"), default="plain", help="fused: Triton's")
    parser.add_argument("--compile", choices=("off", "units", "model"), default="off")
    parser.add_argument("--graph", choices=("off", "on"), default="off", help="each step as one CUDA graph")
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes
    device = choose_device()
    precision = choose_precision("auto", device)
    last = precision == "bf16"
    kernels = choose_kernels(
        options.kernels, device, precision, channels_last=last, is_compiled=options.compile != "off"
    )
    ways = {"kernels": kernels, "compile": options.compile, "graph": choose_graph(options.graph, device)}
    scale = Scale("trial" if options.iterations else "full", iterations=options.iterations)
    for cell in cells():
        made = experiment_of(
            cell,
            options.seed,
            data=Data(options.data),
            scale=scale,
            precision=precision,
            memory_format=memory_format_for(precision),
        )
        made = replace(made, **ways)
        if isinstance(made.network.unit.h, Dropout):
            made = replace(made, graph=False)  # what a graph would hold fixed
        folder = options.out / run_name(made)
        try:
            outcome = execute_run(str(folder), to_json(made), stop=lambda: time.monotonic() > deadline)
        except InputError as error:
            print(f"{cell.table}, {cell.row}, {cell.column}: not run: {error}", flush=True)
            continue
        print(f"{cell.table}, {cell.row}, {cell.column}: {outcome}", flush=True)
        note(options.results or options.out / "full-cells.json", cell, folder, outcome)
        if outcome == "stopped":
            return


def note(path: Path, cell: Cell, folder: Path, outcome: str) -> None:
    """Adds a cell, with everything that says where its figure comes from."""
    noted = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    reported = "fail" if cell.failed else cell.reported
    # A cell that ended in its first epoch has no curve.
    curve = (folder / "metrics.jsonl").exists()
    found = collected(folder) if curve else {"result": Run(folder).result()}
    head = {"row": cell.row, "column": cell.column, "reported": reported, "outcome": outcome}
    noted[cell.slug] = head | found
    path.write_text(json.dumps(noted, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
