"""Copies what runs measured into results/: `python benchmarks/collect.py RUNS results/NAME.json`.

A run's folder holds weights and checkpoints; its figures, with the command, versions, machine and date
that made them, fit into one file. RUNS is a run or a folder of runs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def collected(run: Path) -> dict[str, object]:
    """Everything in a run's folder that is a figure or says where it comes from; no result before its end."""
    result = run / "result.json"
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "environment": json.loads((run / "environment.json").read_text(encoding="utf-8")),
        "experiment": json.loads((run / "config.json").read_text(encoding="utf-8")),
        "result": json.loads(result.read_text(encoding="utf-8")) if result.exists() else None,
        "metrics": [json.loads(line) for line in lines],
    }


def runs(folder: Path) -> list[Path]:
    """The run that the folder is, or those below it."""
    return sorted(config.parent for config in folder.glob("**/config.json"))


if __name__ == "__main__":
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    figures = {run.name: collected(run) for run in runs(source)}
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(target)
