"""R5: SIGTERM, SIGINT and SIGUSR1 at 30 moments: import, warm-up, training, evaluation, saving."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import OPTIONS, SIGNALS, Ended, Lab, Started, caught, outcome, saved_iteration, wait_until

Whole = tuple[str, bytes]
STEPS = 8


def wrong_with(ended: Ended, run: Path, at_least: int = 0) -> str:
    """What is wrong, or "": 143, and the state of the step that it says is there; or all was done already."""
    if ended.status == 0 and (run / "result.json").exists():
        return ""
    if ended.status != 143:
        return f"status {ended.status}: {ended.said}"
    said = re.search(
        r"stopped at iteration (\d+), state saved; to continue:\n  kilolayer train --resume", ended.err
    )
    if said is None:
        return "" if not run.exists() else f"it says nothing: {ended.err}"
    kept = saved_iteration(run)
    return "" if kept == int(said[1]) >= at_least else f"it says step {said[1]}, step {kept} is saved"


def goes_on(lab: Lab, run: Path, whole: Whole) -> str:
    ended = lab.bring_back(run)
    return "" if ended.status == 0 and outcome(run) == whole else ended.said or "not identical"


@pytest.mark.parametrize("number", SIGNALS)
def test_at_every_step(
    number: int, lab: Lab, whole: Whole, tmp_path: Path, chosen: Callable[..., list[int]], count: Any
) -> None:
    """As soon as step k is done, before its epoch is evaluated or anything is saved: no step is lost."""
    tried, bad = chosen(range(1, STEPS + 1)), {}
    for step in tried:
        run = tmp_path / str(step)
        ended = lab.bring_back(run, "--save-every", "300", SIGNAL_AT_STEP=f"{step}:{int(number)}")
        if wrong := wrong_with(ended, run, at_least=step) or goes_on(lab, run, whole):
            bad[step] = wrong
    print(bad)
    count("R5", tried=len(tried), held=len(tried) - len(bad), note=f"{number.name} after a step")


@pytest.mark.parametrize("number", SIGNALS)
def test_at_calls_that_save(
    number: int, lab: Lab, whole: Whole, tmp_path: Path, chosen: Callable[..., list[int]], count: Any
) -> None:
    tried, bad = chosen(range(2, 180, 16)), {}
    for call in tried:
        run = tmp_path / str(call) / "run"
        run.parent.mkdir()
        ended = lab.bring_back(run, FAULT_UNDER=str(run.parent), FAULT=f"signal:{call}:{int(number)}")
        if wrong := wrong_with(ended, run) or goes_on(lab, run, whole):
            bad[call] = wrong
    print(bad)
    count("R5", tried=len(tried), held=len(tried) - len(bad), note=f"{number.name} while saving")


@pytest.mark.parametrize("number", SIGNALS)
def test_at_moments_of_the_whole_command(
    number: int, lab: Lab, whole: Whole, tmp_path: Path, chosen: Callable[..., list[int]], count: Any
) -> None:
    """In an interpreter of its own, from its import of PyTorch on; before that there is nothing of ours."""
    tried, bad = chosen([*range(0, 240, 24)]), {}
    for hundredths in tried:
        run = tmp_path / str(hundredths)
        ended = sent(lab, run, number, hundredths / 100)
        if wrong := wrong_with(ended, run) or goes_on(lab, run, whole):
            bad[hundredths] = wrong
    print(bad)
    count("R5", tried=len(tried), held=len(tried) - len(bad), note=f"{number.name} after CPU time")


def sent(lab: Lab, run: Path, number: int, seconds: float) -> Ended:
    """A run that gets the signal so much CPU time after it has a handler."""
    words = [*lab.program, "train", *OPTIONS, "--no-tensorboard", "--device", "cpu", "--out", str(run)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: process.poll() is not None or caught(process.pid))
        begun = Started.clock(process.pid)
        wait_until(lambda: process.poll() is not None or Started.clock(process.pid) - begun >= seconds)
        process.send_signal(number)
        out, err = process.communicate(timeout=200)
    return Ended(process.returncode, out, err)


def test_a_second_ctrl_c_ends_at_once_and_a_second_sigterm_does_not(
    lab: Lab, whole: Whole, tmp_path: Path, count: Any
) -> None:
    """A person who insists; and a batch system that sends its signal to every process of a job, and again."""
    stopping = "import os, signal; from kilolayer.system.stopping import stoppable\n"
    twice = "with stoppable() as stop:\n  for _ in '12': os.kill(os.getpid(), signal.{})\n  print(stop())"
    answers = [
        subprocess.run([sys.executable, "-c", stopping + twice.format(name)], capture_output=True, text=True)
        for name in ("SIGTERM", "SIGUSR1", "SIGINT")
    ]
    held = [one.stdout for one in answers] == ["True\n", "True\n", ""] and answers[2].returncode != 0
    assert signal.SIGINT in SIGNALS
    assert os.getpid()
    count("R5", tried=1, held=int(held), note="twice")
