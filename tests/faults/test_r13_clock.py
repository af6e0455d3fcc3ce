"""R13: the clock of the day is put forward or back by a day while a run goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import Lab, outcome

DAY = 24 * 3600


def test_the_clock_is_moved(
    lab: Lab, whole: Any, tmp_path: Path, chosen: Callable[..., list[Any]], count: Any
) -> None:
    """After some of its calls, and once more where it goes on."""
    tried, bad = chosen([(call, by) for call in (3, 30, 60, 90, 150) for by in (DAY, -DAY)]), {}
    for call, by in tried:
        run = tmp_path / f"{call}-{by}" / "run"
        run.parent.mkdir()
        under = {"FAULT_UNDER": str(run.parent), "FAULT_CLOCK": f"{call}:{by}"}
        stopped = lab.bring_back(run, SIGNAL_AT_STEP="5:15", **under)
        ended = lab.bring_back(run, **under | {"FAULT_CLOCK": f"10:{-by}"})
        if stopped.status != 143 or ended.status != 0 or outcome(run) != whole:
            bad[call, by] = ended.said or "not identical"
    print(bad)
    count("R13", tried=len(tried), held=len(tried) - len(bad))
