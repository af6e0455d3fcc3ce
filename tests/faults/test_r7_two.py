"""R7: two processes on one run's folder, 20 times: one is refused, the other does not notice."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crashes import Story
from harness import Lab, Started, outcome, wait_until

Whole = tuple[str, bytes]


def halted(started: Started) -> bool:
    return Path(f"/proc/{started.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def beside_one_that_is_halted(lab: Lab, run: Path, call: int, whole: Whole, **seeded: str) -> str:
    """The first is halted before that call; meanwhile the second tries. What is wrong, or ""."""
    run.parent.mkdir()
    first = lab.start_run(
        run, FAULT_UNDER=str(run.parent), FAULT=f"signal:{call}:{int(signal.SIGSTOP)}", **seeded
    )
    wait_until(lambda: halted(first))
    before = content(run)
    second = lab.bring_back(run, **seeded)
    changed = content(run) != before
    os.kill(first.pid, signal.SIGCONT)
    ended = first.end()
    if second.status != 2 or "in use by another process" not in second.err or changed:
        return f"the second: status {second.status}, {second.said}{', changed' * changed}"
    return (
        "" if ended.status == 0 and outcome(run) == whole else f"the first: {ended.said or 'not identical'}"
    )


def test_the_second_is_refused(
    lab: Lab, whole: Whole, tmp_path: Path, chosen: Callable[..., list[int]], count: Any
) -> None:
    """From the call behind the lock on; before it come the folder and the lock's file."""
    calls = len(Story(lab, tmp_path / "story", None, {}).calls)
    tried, bad = chosen(range(3, calls, calls // 14)), {}
    for call in tried:
        if wrong := beside_one_that_is_halted(lab, tmp_path / str(call) / "run", call, whole):
            bad[call] = wrong
    print(bad)
    count("R7", tried=len(tried), held=len(tried) - len(bad), note="the first is halted at a call")


def test_both_begin_at_once(
    lab: Lab, whole: Whole, tmp_path: Path, chosen: Callable[..., list[int]], count: Any
) -> None:
    tried, bad = chosen(range(6)), {}
    chance = random.Random(7)
    for number in tried:
        run = tmp_path / str(number)
        both = [lab.start_run(run)]
        time.sleep(chance.uniform(0, 0.2))
        both.append(lab.start("train", *both_options(run)))
        ended = [one.end() for one in both]
        if sorted(one.status for one in ended) != [0, 2] or outcome(run) != whole:
            bad[number] = [one.said for one in ended]
    print(bad)
    count("R7", tried=len(tried), held=len(tried) - len(bad), note="both begin at once")


def both_options(run: Path) -> tuple[str, ...]:
    from harness import OPTIONS

    return (*OPTIONS, "--save-every", "0", "--no-tensorboard", "--device", "cpu", "--out", str(run))
