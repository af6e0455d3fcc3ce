"""R6: resumed twice and three times within an epoch, at its end, at the last step, and when already done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import calls
from harness import Lab, outcome, saved_iteration

Whole = tuple[str, bytes]
STOPS = [
    (4, 5), (1, 2), (1, 3), (2, 3), (4, 6), (5, 6), (7, 8), (1, 2, 3), (4, 5, 6),
    (3,), (6,), (3, 6), (8,), (2, 5, 7), (1, 2, 3, 4, 5, 6, 7, 8),
]  # fmt: skip
"""After which steps the run is stopped; epochs end after steps 3, 6 and 8."""


def stopped_after(lab: Lab, run: Path, steps: tuple[int, ...], whole: Whole) -> str:
    """What is wrong, or ""."""
    for step in steps:
        ended = lab.bring_back(run, "--save-every", "300", SIGNAL_AT_STEP=f"{step}:15")
        if ended.status != 143 or saved_iteration(run) != step:
            return f"step {step}: status {ended.status}, {ended.said}"
    ended = lab.bring_back(run, "--save-every", "300")
    return "" if ended.status == 0 and outcome(run) == whole else ended.said or "not identical"


def test_stopped_and_resumed(
    lab: Lab, whole: Whole, tmp_path: Path, chosen: Callable[..., list[tuple[int, ...]]], count: Any
) -> None:
    tried = chosen(STOPS)
    wrong = {steps: stopped_after(lab, tmp_path / "-".join(map(str, steps)), steps, whole) for steps in tried}
    bad = {steps: what for steps, what in wrong.items() if what}
    print(bad)
    count("R6", tried=len(tried), held=len(tried) - len(bad), note="sequences of stops")


def test_resuming_what_is_done_changes_nothing(lab: Lab, whole: Whole, tmp_path: Path, count: Any) -> None:
    run, trace = tmp_path / "run", tmp_path / "trace"
    assert lab.bring_back(run).status == 0
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    ended = lab.bring_back(run, FAULT_UNDER=str(tmp_path), FAULT_TRACE=str(trace))
    assert ended.status == 0
    assert "is done: test error" in ended.out
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    made = calls.read(trace) if trace.exists() else []
    count("R6", tried=1, held=int(outcome(run) == whole and made == []), note="already done")
