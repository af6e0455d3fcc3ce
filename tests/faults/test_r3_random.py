"""R3: 200 SIGKILLs at random moments: in training, in evaluation and while saving, several in an epoch."""

from __future__ import annotations

import random
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from harness import Lab, outcome, saved_iteration

from fault_counts import stride_of

KILLS = 200
IN_A_RUN = 8


def told(out: Path) -> int:
    """The last step of an epoch that was shown, and so was saved."""
    shown = out.read_text() if out.exists() else ""
    steps = re.findall(r"^epoch .*iteration (\d+) ", shown, re.MULTILINE)
    return int(steps[-1]) if steps else 0


@pytest.fixture(scope="module")
def length(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> float:
    """CPU seconds of a whole run."""
    started = lab.start_run(tmp_path_factory.mktemp("timed") / "run")
    seconds = 0.0
    while started.process.is_alive():
        try:
            seconds = started.cpu_seconds()
        except OSError:
            break
    assert started.end().status == 0
    return seconds


def test_killed_at_random_moments(
    lab: Lab, whole: Any, length: float, tmp_path: Path, request: pytest.FixtureRequest, count: Any
) -> None:
    kills = max(4, KILLS // stride_of(request.config))
    chance, killed, bad = random.Random(20261121), 0, list[str]()
    while killed < kills:
        run, promised = tmp_path / f"run-{killed}", 0
        for _ in range(min(IN_A_RUN, kills - killed)):
            started = lab.start_run(run)
            hit = started.at(chance.uniform(0, length), signal.SIGKILL)
            ended = started.end()
            if not hit or ended.status == 0:
                break
            killed += 1
            promised = max(promised, told(started.out))
            if saved_iteration(run) < promised:
                bad.append(f"kill {killed}: step {promised} was shown as saved")
            promised = saved_iteration(run)
        ended = lab.bring_back(run)
        if ended.status != 0 or outcome(run) != whole:
            bad.append(f"{run.name}: {ended.said or 'not identical'}")
    print(bad)
    count("R3", tried=killed, held=killed - len(bad))
