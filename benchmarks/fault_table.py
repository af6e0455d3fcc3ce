"""The whole table of faults, test by test, in as many sittings as it takes.

    python benchmarks/fault_table.py [--limit SECONDS] [--rows R19 S11] [--list] [--again]
    python benchmarks/fault_table.py --show        the tables of docs/results/faults.md and hostile-files.md

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
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from fault_counts import current_commit, is_current  # noqa: E402

ROWS = {
    "R1": "SIGKILL before a call that makes something last",
    "R2": "torn writes; power cuts that lose names, data or both",
    "R3": "SIGKILL at a random moment",
    "R4": "disk full from a call on; small file system; RLIMIT_FSIZE; full output; TensorBoard",
    "R5": "SIGTERM, SIGINT, SIGUSR1: after a step, while saving, at moments of the whole command",
    "R6": "stopped two, three and more times within an epoch, at its end, at the last step; done",
    "R7": "two processes on one folder",
    "R8": "runs of a sweep with workers killed",
    "R9": "two ranks: one killed, failing, short of memory, or silent",
    "R10": "NaN or infinity at step k: weight, gradient, momentum, BN average, logit, pixel, evaluation",
    "R11": "memory or shared memory too small; batch too large",
    "R12": "older formats resumed; newer ones refused",
    "R13": "the clock put forward or back by a day",
    "R14": "a state, or metrics, that cannot be read once; a changed byte",
    "R15": "the folder removed, moved or used anew under a run; its lock deleted",
    "R16": "the state of another run; an edited config.json",
    "R17": "SIGHUP, SIGXCPU and other signals that ask to stop",
    "R18": "file systems without locks or folder fsync; read-only in the middle",
    "R19": "an error, or SIGKILL, at the n-th system call of the command line",
    "R20": "the data moved; the command called from another folder",
    "seeded": "known faults planted: seen",
    "S1": "damaged states and weights of a run",
    "S2": "weights of others: foreign and mutated files",
    "S3": "archives",
    "S4": 'pickles of CIFAR\'s "python version"',
    "S5": "folders of images",
    "S6": "flags and configuration files",
    "S7": "text on pages and in tables",
    "S8": "the source itself",
    "S9": "a stranger's run folder: links, pipes, endless files, JSON of other types, control characters",
    "S10": "the cache of compiled kernels: planted, foreign, damaged, killed while compiling",
    "S11": "parquet and descriptions that grow when they are read",
    "S12": "odd environments: no home, closed streams, a part of a launch",
}
RESULTS = {"R": ROOT / "results" / "faults.json", "S": ROOT / "results" / "faults-security.json"}
PYTEST = (sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--limit", type=float, default=float("inf"), metavar="SECONDS")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="only these rows")
    parser.add_argument("--list", action="store_true", help="list what is left, and run nothing")
    parser.add_argument("--show", action="store_true", help="print the tables, and run nothing")
    parser.add_argument("--again", action="store_true", help="run what is there already once more")
    options = parser.parse_args()
    if options.show:
        for kind in RESULTS:
            print("\n".join(table_lines(kind)), end="\n\n")
        return 0
    deadline = time.monotonic() + options.limit
    commit, tests = current_commit(), list(collected())
    if commit.endswith("+"):
        parser.error("the sources have changes without a commit; no figure would say what was tried")
    if not options.list:
        note_collected(tests)
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
    write(path, table)


def note_collected(tests: Sequence[str]) -> None:
    """Records how many tests each row has: it has run as a whole when the results hold all of them."""
    for path in RESULTS.values():
        table = content(path)
        mine = Counter(row_of(test) for test in tests if results_of(test) == path)
        write(path, {**table, "collected": dict(sorted(mine.items()))})


def write(path: Path, table: dict[str, Any]) -> None:
    path.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def table_lines(kind: str) -> Iterator[str]:
    """The rows of a page's table, as its file has them."""
    table = content(RESULTS[kind])
    yield (
        "| row | the fault | tried | held | run |"
        if kind == "R"
        else "| row | the input | tried | held | run |"
    )
    yield "|---|---|---|---|---|"
    for row, fault in ROWS.items():
        if (kind == "S") == row.startswith("S"):
            counts = table["rows"].get(row)
            figures = f"{counts['tried']} | {counts['held']}" if counts else "– | –"
            yield f"| {row} | {fault} | {figures} | {extent(row, table)} |"


def extent(row: str, table: dict[str, Any]) -> str:
    """How much of a row has run, and of which commit."""
    tests = table["rows"].get(row, {"tests": {}})["tests"]
    if not tests:
        return "not run as a whole"
    strides = {test["stride"] for test in tests.values()}
    if max(strides) > 1:
        return f"not run as a whole: every {max(strides)}th"
    expected = table.get("collected", {}).get(row)
    names = {*tests, *(name for name in table.get("without_counts", {}) if row_of(name) == row)}
    if expected and row != "seeded" and len(names) < expected:
        return f"not run as a whole: {len(names)} of {expected} tests"
    # Before 2026-11-29 no commit was noted.
    commits = sorted({test.get("commit") or test["date"][:10] for test in tests.values()})
    return f"whole, {', '.join(commits)}"


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
