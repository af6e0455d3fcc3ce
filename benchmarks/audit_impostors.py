"""Audits generated impostors, rewrites and permuted networks; writes results/audit-impostors.json.

    python benchmarks/audit_impostors.py [--out results/audit-impostors.json] [--every 1]

`tests/impostors.py` makes them: every kind of layer × every perturbation of that kind, at two places, on four
networks. No impostor may be called identical, every one must have a reason or a finding, and every rewrite
must be certified. Each row is written as it ends; about ten minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kilolayer.audit import audit_model
from kilolayer.errors import InputError
from kilolayer.runs.start_environment import environment_record
from kilolayer.training import DistributedContext

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import impostors  # noqa: E402 - the tests' folder is on the path now

EXPECTED = {"rewrites": "identical", "permuted": "permuted"}


def audit_row(sort: str, name: str, make: Callable[[], nn.Module]) -> dict[str, Any]:
    """One network's audit in short. `right`: what it must say of its sort, with a reason."""
    start = time.perf_counter()
    try:
        report = audit_model(make(), "resnet")
    except InputError as error:
        words, reason, codes = "refused", str(error), ["refused"]
    else:
        nearest = report.nearest
        words = nearest.function if nearest else "no such network"
        reason = nearest.reason if nearest else "; ".join(each.what for each in report.findings)
        codes = [each.code for each in report.findings]
    expected = EXPECTED.get(sort)
    is_named = words not in ("identical", "permuted") and bool(reason) and bool(codes)
    return {
        "name": name,
        "function": words,
        "reason": reason,
        "findings": codes,
        "right": words == expected if expected else is_named,
        "false_certificate": expected is None and words in ("identical", "permuted"),
        "seconds": round(time.perf_counter() - start, 2),
    }


def summary(rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """How many networks of each sort, how many the audit told rightly, and what it said."""
    counts = {
        sort: {
            "networks": len(found),
            "right": sum(row["right"] for row in found),
            "functions": dict(Counter(row["function"] for row in found)),
        }
        for sort, found in rows.items()
    }
    every = [row for found in rows.values() for row in found]
    return {
        "counts": counts,
        "false_certificates": sum(row["false_certificate"] for row in every),
        "failures": [row["name"] for row in every if not row["right"]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "audit-impostors.json")
    parser.add_argument("--every", type=int, default=1, help="audit one network in so many")
    options = parser.parse_args()
    torch.set_num_threads(1)
    environment = environment_record(DistributedContext(torch.device("cpu")), "fp32")
    command = " ".join(["python", "benchmarks/audit_impostors.py", *sys.argv[1:]])
    rows: dict[str, list[dict[str, Any]]] = {"rewrites": [], "permuted": [], "impostors": []}
    for sort, found in rows.items():
        for name, make in list(getattr(impostors, sort)())[:: options.every]:
            found.append(audit_row(sort, name, make))
            if not found[-1]["right"]:
                print("WRONG", sort, name, found[-1]["function"], found[-1]["reason"], flush=True)
            record = {"command": command, "environment": environment, **summary(rows), "rows": rows}
            options.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(summary(rows), indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
