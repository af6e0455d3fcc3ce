"""The faults suite's options, and its counts: how many cases of each row of the table were tried, and held.

A pytest plugin, so that the counts also come together from the processes of pytest-xdist.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

QUICK = 40
"""Every run of CI tries every 40th case."""

Row = dict[str, Any]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults", "the faults suite, tests/faults")
    group.addoption("--stride", type=int, default=QUICK, metavar="N", help="try every N-th case")
    group.addoption("--every-fault", action="store_true", help="try every case: takes hours")
    group.addoption("--counts", type=Path, metavar="FILE", help="write what was tried and held as JSON")


def stride_of(config: pytest.Config) -> int:
    stride: int = 1 if config.getoption("--every-fault") else config.getoption("--stride")
    return max(1, stride)


def pytest_configure(config: pytest.Config) -> None:
    path: Path | None = config.getoption("--counts")
    # Under xdist the reports of all processes come to the one that has no worker's input.
    if path is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Counts(path.absolute(), stride_of(config)), "fault-counts")


class Counts:
    """Collects what the tests counted, and writes it at the end; the counts of other tests stay."""

    def __init__(self, path: Path, stride: int) -> None:
        self.path, self.stride, self.commit = path, stride, current_commit()
        self.tests: dict[str, dict[str, Row]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call":
            return
        counted = [value for name, value in report.user_properties if name == "fault"]
        for one in counted:
            self.tests.setdefault(one["row"], {})[report.nodeid.rpartition("/")[2]] = {
                "tried": one["tried"],
                "held": one["held"],
                "seconds": round(report.duration / len(counted), 1),
                "stride": one["stride"] or self.stride,
                "note": one["note"],
                "date": _today(),
                "commit": self.commit,
            }

    def pytest_sessionfinish(self) -> None:
        before = json.loads(self.path.read_text()) if self.path.exists() else {"rows": {}}
        tests = {name: row["tests"] for name, row in before["rows"].items()}
        for name, mine in self.tests.items():
            tests[name] = tests.get(name, {}) | mine
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = {name: _row(tests[name]) for name in sorted(tests, key=_place)}
        written = {**before, **_surroundings(), "rows": rows}
        self.path.write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n")


def _row(tests: dict[str, Row]) -> Row:
    """A row's sums, and its tests; of the tests of 2026-11-21 some have no seconds."""
    keys = ("tried", "held", "seconds")
    sums = {key: round(sum(test.get(key, 0) for test in tests.values()), 1) for key in keys}
    return {**sums, "tests": tests}


def _place(name: str) -> tuple[str, int, str]:
    digits = name[1:]
    return name[:1], int(digits) if digits.isdigit() else 0, name


TRIED = ("src", "tests/faults", "tests/fault_counts.py")
"""What decides the counts: they stand as long as none of it changes."""


def current_commit() -> str:
    """The commit that is checked out; it ends with "+" where what is tried was changed since."""
    root = Path(__file__).resolve().parent.parent
    commit = _git(root, "rev-parse", "--short=12", "HEAD")
    return commit + "+" if _git(root, "status", "--porcelain", "--", *TRIED) else commit


def is_current(commit: str) -> bool:
    """Whether what is tried is the same now as at this commit."""
    root = Path(__file__).resolve().parent.parent
    if not commit or commit.endswith("+"):
        return False
    compared = ["git", "-C", str(root), "diff", "--quiet", commit, "--", *TRIED]
    return subprocess.run(compared, capture_output=True).returncode == 0


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, encoding="utf-8")
    return done.stdout.strip()


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _surroundings() -> dict[str, Any]:
    from kilolayer.runs.start_environment import processor_name

    packages = ("kilolayer", "torch", "numpy", "safetensors", "filelock", "pytest")
    return {
        "command": " ".join(["pytest", *sys.argv[1:]]),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "date": _today(),
    }
