"""Other people's designs: which of them every analysis reads exactly, and which it refuses, by name.

    python benchmarks/foreign_designs.py     → results/foreign-designs.json

The designs stand in tests/foreign_designs.py, in float64, with what their authors mean by h and F; the truth
is autograd's. An outcome is "exact" (every figure of every unit agrees to 1e-6), "refused" with the line that
a user reads, or "wrong" with what differs: the third thing, which must not be. Three minutes of one core.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from foreign_designs import DESIGNS  # noqa: E402 - the tests' folder is no package
from kilolayer.errors import InputError  # noqa: E402
from kilolayer.measure import ANALYSES  # noqa: E402
from kilolayer.runs import environment_record  # noqa: E402
from kilolayer.system import durable  # noqa: E402
from kilolayer.training import DistributedContext  # noqa: E402
from test_foreign_designs import CHECKS, CLOSE, Told, subject  # noqa: E402


def outcome(design: str, analysis: str) -> dict[str, str]:
    """What an analysis makes of a design."""
    check = CHECKS[analysis]
    assert check is not None  # noqa: S101 - only those that look at units
    given = subject(design)
    try:
        result = ANALYSES[analysis].run(given)
    except InputError as error:
        line = str(error)
        named = "'blocks." in line
        return {"outcome": "refused" if named else "wrong", "line": line}
    truth = Told(given)
    if not truth.sums:  # the author names no h and F
        return {"outcome": "read" if DESIGNS[design].read is not False else "wrong"}
    try:
        check(result, truth, given)
    except AssertionError as error:
        return {"outcome": "wrong", "line": str(error).splitlines()[0]}
    return {"outcome": "exact"}


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    analyses = [name for name in ANALYSES if CHECKS[name]]
    rows: dict[str, dict[str, Any]] = {}
    for design in DESIGNS:
        outcomes = {analysis: outcome(design, analysis) for analysis in analyses}
        words = sorted({each["outcome"] for each in outcomes.values()})
        lines = sorted({each["line"] for each in outcomes.values() if "line" in each})
        row: dict[str, Any] = {"outcome": words[0] if len(words) == 1 else outcomes}
        rows[design] = row | ({"lines": lines} if lines else {})
        print(design, words, lines[:1], flush=True)
    counts = Counter(row["outcome"] if isinstance(row["outcome"], str) else "mixed" for row in rows.values())
    record = {
        "environment": environment_record(DistributedContext(torch.device("cpu")), "fp32"),
        "analyses": analyses,
        "agreement": CLOSE,
        "designs": len(rows),
        "counts": dict(sorted(counts.items())),
        "rows": rows,
    }
    content = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    durable.write_file(ROOT / "results" / "foreign-designs.json", content.encode())
    print(dict(counts))


if __name__ == "__main__":
    main()
