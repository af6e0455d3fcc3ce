"""R19: an error, or SIGKILL, at every system call of the real command line, by strace."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from injection import planted
from injection.durability import not_lasting
from injection.scenarios import SCENARIOS
from injection.strace import FAULTS
from injection.trial import Bench, Trial, counted

from fault_counts import QUICK, stride_of

PARTS = 40
"""A whole scenario takes hours; each part is a test, so that the table can be made in many sittings."""
RARER = 120
"""A trial starts Python twice; with a stride, so many times fewer of them are tried."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "part" in metafunc.fixturenames:
        stride = stride_of(metafunc.config)
        names = ["train"] if stride >= QUICK else list(SCENARIOS)
        parts = range(PARTS if stride == 1 else 1)
        metafunc.parametrize(
            ("scenario", "part"), [pytest.param(n, k, id=f"{n}-{k}") for n in names for k in parts]
        )
    if "planted_fault" in metafunc.fixturenames:
        every = list(planted.PLANTED)
        quick = stride_of(metafunc.config) >= QUICK
        metafunc.parametrize("planted_fault", ["no_folder_fsync", "error_swallowed"] if quick else every)


@pytest.fixture(scope="session")
def strace() -> None:
    """Skips where no process can be traced."""
    tried = shutil.which("strace") and subprocess.run(
        ["strace", "--seccomp-bpf", "-f", "-o", "/dev/null", "-e", "inject=mkdir:error=EIO:when=1", "true"],
        capture_output=True,
    )
    if not tried or tried.returncode != 0:
        pytest.skip("faults at system calls need Linux, strace 5.3 or newer and the right to trace a process")


@pytest.fixture(scope="session")
def bench(strace: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bench]:
    made: dict[str, Bench] = {}

    def of(name: str) -> Bench:
        if missing := SCENARIOS[name].missing:
            pytest.skip(f"{name} needs {missing}")
        if name not in made:
            made[name] = Bench(SCENARIOS[name], tmp_path_factory.mktemp(name).resolve())
        return made[name]

    return of


def test_a_fault_at_every_call(
    scenario: str, part: int, bench: Callable[[str], Bench], request: pytest.FixtureRequest, count: Any
) -> None:
    lab, stride = bench(scenario), stride_of(request.config)
    rarer = 1 if stride == 1 else stride * RARER
    assert not_lasting(lab.ended.points) == []
    chosen = lab.trials[part::PARTS] if stride == 1 else lab.trials[::rarer]
    verdicts = [lab.try_one(trial) for trial in chosen]
    came = [verdict for verdict in verdicts if not verdict.missed]
    wrong = [f"{verdict.trial}: {verdict.wrong}" for verdict in came if verdict.wrong]
    print(*wrong, sep="\n")
    note = f"{len(lab.ended.points)} calls, {len(lab.trials)} trials; {counted(verdicts)}"
    count("R19", tried=len(came), held=len(came) - len(wrong), note=note, stride=rarer)


# Seeded: a harness that finds nothing proves nothing

SEEN_AT = {
    "in_place": ("ENOSPC", "write", "run/report.html"),
    "error_swallowed": ("EIO", "fsync", "run/.report.html"),
    "traceback": ("EIO", "rename", "report.html"),
    "left_behind": ("EIO", "fsync", "run/.report.html"),
}


def seen(lab: Bench) -> str:
    """What the tool says of a command without a fault in it; empty where all is right."""
    return "; ".join(not_lasting(lab.ended.points))


def seen_at(lab: Bench, fault: str, call: str, path: str) -> str:
    point = next(p for p in lab.ended.points if p.call.startswith(call) and path in p.path)
    verdict = lab.try_one(Trial(point, fault))
    return f"not reached: {verdict.said}" if verdict.missed else verdict.wrong


def test_a_known_fault_is_seen(planted_fault: str, bench: Callable[[str], Bench], count: Any) -> None:
    program = (sys.executable, "-P", str(Path(planted.__file__)), planted_fault)
    lab = bench("report").planted(program)
    what = seen_at(lab, *SEEN_AT[planted_fault]) if planted_fault in SEEN_AT else seen(lab)
    print(what)
    count("seeded", tried=1, held=int(bool(what) and not what.startswith("not reached")), note=what)


def test_what_sees_them_sees_nothing_where_nothing_is(bench: Callable[[str], Bench]) -> None:
    lab = bench("report")
    assert seen(lab) == ""
    assert seen_at(lab, *SEEN_AT["error_swallowed"]) == ""


def test_every_fault_of_the_row_is_injected() -> None:
    assert {"EIO", "ENOSPC", "EDQUOT", "EROFS", "EACCES", "EINTR", "EINVAL", "SIGKILL"} <= {*FAULTS}
