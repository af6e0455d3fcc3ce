"""Audits generated impostors, rewrites and permuted networks; writes results/audit-impostors.json.

    python benchmarks/audit_impostors.py [--out results/audit-impostors.json] [--every 1] [--limit 3600]

`tests/impostors.py` makes them: every kind of layer × every perturbation of that kind, at two places, on four
networks. No impostor may be called identical, every one must have a reason or a finding, and every rewrite
must be certified. Each row is written as it ends. A run that was cut goes on where it stopped, as long as
the auditor's code and the generator are the same; `--limit` ends it after so many seconds.
"""

from __future__ import annotations

import argparse
import hashlib
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

CODE = (*sorted((ROOT / "src" / "kilolayer" / "audit").glob("*.py")), ROOT / "tests" / "impostors.py")
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


def code_hash() -> str:
    """The hash of the auditor's code and of the generator's."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in CODE)).hexdigest()[:16]


def kept_rows(out: Path, code: str) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of an earlier run of the same code, by sort and name."""
    if not out.exists():
        return {}
    record = json.loads(out.read_text(encoding="utf-8"))
    if record.get("code") != code:
        return {}
    return {(sort, row["name"]): row for sort, rows in record["rows"].items() for row in rows}


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
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    environment = environment_record(DistributedContext(torch.device("cpu")), "fp32")
    command = " ".join(["python", "benchmarks/audit_impostors.py", *sys.argv[1:]])
    rows: dict[str, list[dict[str, Any]]] = {"rewrites": [], "permuted": [], "impostors": []}
    code, start, planned = code_hash(), time.monotonic(), 0
    kept = kept_rows(options.out, code)
    for sort, found in rows.items():
        for name, make in list(getattr(impostors, sort)())[:: options.every]:
            planned += 1
            if (sort, name) not in kept and time.monotonic() - start > options.limit:
                continue
            found.append(kept.get((sort, name)) or audit_row(sort, name, make))
            if not found[-1]["right"]:
                print("WRONG", sort, name, found[-1]["function"], found[-1]["reason"], flush=True)
            if (sort, name) not in kept:
                write(options.out, command, code, environment, rows)
    write(options.out, command, code, environment, rows)
    print(json.dumps(summary(rows), indent=1, ensure_ascii=False))
    print(f"{sum(map(len, rows.values()))} of {planned}")


def write(
    out: Path, command: str, code: str, environment: Any, rows: dict[str, list[dict[str, Any]]]
) -> None:
    record = {"command": command, "code": code, "environment": environment, **summary(rows), "rows": rows}
    out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
