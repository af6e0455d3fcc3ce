"""The whole table of faults, test by test, in as many sittings as it takes.

    python benchmarks/fault_table.py [--limit SECONDS] [--rows R19 S11] [--list] [--again]

Every test of tests/faults runs with --every-fault in a process of its own, and its counts go to
results/faults.json, or to results/faults-security.json for the rows S1 to S12. A test whose counts are there
already, of the same sources, is passed over, so the same command goes on after a stop. At the limit the test
that runs is broken off, and the next sitting begins it again. The status is 1 where a case did not hold.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from fault_counts import current_commit, is_current  # noqa: E402

RESULTS = {"R": ROOT / "results" / "faults.json", "S": ROOT / "results" / "faults-security.json"}
PYTEST = (sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--limit", type=float, default=float("inf"), metavar="SECONDS")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="only these rows")
    parser.add_argument("--list", action="store_true", help="list what is left, and run nothing")
    parser.add_argument("--again", action="store_true", help="run what is there already once more")
    options = parser.parse_args()
    deadline = time.monotonic() + options.limit
    commit, tests = current_commit(), list(collected())
    if commit.endswith("+"):
        parser.error("the sources have changes without a commit; no figure would say what was tried")
    left = [test for test in tests if options.rows is None or row_of(test) in options.rows]
    left = [test for test in left if options.again or not recorded(test)]
    print(f"{commit}: {len(left)} of {len(tests)} tests to run", flush=True)
    # R19 alone takes longer than all other rows.
    for test in sorted(left, key=lambda test: row_of(test) == "R19"):
        if options.list:
            print(test)
        elif time.monotonic() < deadline:
            run(test, deadline)
    failed = [name for path in RESULTS.values() for name in not_held(path)]
    print(*failed, sep="\n")
    return int(bool(failed))


def collected() -> Iterator[str]:
    """The names of all tests of faults, as pytest takes them."""
    words = [*PYTEST, "--collect-only", "--every-fault", "tests/faults"]
    done = subprocess.run(  # noqa: S603 - our own program
        words, cwd=ROOT, capture_output=True, text=True, encoding="utf-8"
    )
    yield from (line for line in done.stdout.splitlines() if "::" in line)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)


def row_of(test: str) -> str:
    """The row that a test belongs to, by its file: `R19`; `seeded` without one."""
    match = re.search(r"test_([rs]\d+)_", test)
    return match[1].upper() if match else "seeded"


def run(test: str, deadline: float) -> None:
    """Runs one test, which writes its own counts; breaks it off at the deadline."""
    path, started = results_of(test), time.monotonic()
    words = [*PYTEST, "--every-fault", "--counts", str(path), test]
    process = subprocess.Popen(  # noqa: S603 - our own program
        words, cwd=ROOT, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    )
    try:
        said, _ = process.communicate(timeout=max(1.0, min(deadline - started, 10**6)))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.communicate()
        print(f"broken off at the limit: {test}", flush=True)
        return
    if not recorded(test):
        note(test, path, process.returncode)
    last = said.rstrip().rpartition("\n")[2]
    print(f"{test}: {last} ({time.monotonic() - started:.0f} s)", flush=True)


def results_of(test: str) -> Path:
    return RESULTS["S" if row_of(test).startswith("S") else "R"]


def content(path: Path) -> dict[str, Any]:
    table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": {}}
    return table


def recorded(test: str) -> bool:
    """Whether the results hold this test, whole and of the same sources."""
    table, name = content(results_of(test)), test.rpartition("/")[2]
    counted = [row["tests"][name] for row in table["rows"].values() if name in row["tests"]]
    counted += [table[key][name] for key in ("without_counts",) if name in table.get(key, {})]
    return any(one.get("stride") == 1 and is_current(one.get("commit", "")) for one in counted)


def note(test: str, path: Path, status: int) -> None:
    """Records a test that counts nothing, or that was skipped or failed before it counted."""
    table = content(path)
    entry = {"stride": 1, "commit": current_commit(), "status": status}
    table.setdefault("without_counts", {})[test.rpartition("/")[2]] = entry
    path.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def not_held(path: Path) -> Iterator[str]:
    """The tests in which something did not hold."""
    table = content(path)
    for row, counts in table["rows"].items():
        for name, test in counts["tests"].items():
            if test["held"] != test["tried"]:
                yield f"{row}: {name}: {test['held']} of {test['tried']} held"
    for name, entry in table.get("without_counts", {}).items():
        if entry["status"]:
            yield f"{name}: status {entry['status']}"


if __name__ == "__main__":
    sys.exit(main())
