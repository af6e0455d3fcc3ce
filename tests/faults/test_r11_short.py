"""R11: too little memory, workers killed, no shared memory: exit status 2 with advice, and nothing left.

Training has no data workers and uses no shared memory: images lie in memory and are augmented a batch at a
time. Sweeps have workers; test_r8_sweep.py and ../test_sweep_pool.py kill them and their parent.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import OPTIONS, Lab, outcome, saved_iteration

TRAIN = ("train", *OPTIONS, "--no-tensorboard", "--device", "cpu")


def processes() -> int:
    return sum(path.name.isdigit() for path in Path("/proc").iterdir())


def test_memory_that_is_too_small(
    lab: Lab, tmp_path: Path, chosen: Callable[..., list[int]], count: Any
) -> None:
    """The address space may grow by so many megabytes; the batch needs some hundred."""
    tried, bad = chosen(range(20, 120, 20)), {}
    for megabytes in tried:
        run = tmp_path / str(megabytes)
        words = ("--model", "preact_resnet110_cifar", "--subset", "1024", "--batch-size", "1024")
        ended = lab.run(*TRAIN, *words, "--out", str(run), LIMIT_AS=str(megabytes * 2**20))
        advice = "out of memory" in ended.err and "--batch-size" in ended.err
        config = run / "config.json"
        batch = json.loads(config.read_text())["recipe"]["batch_size"] if config.exists() else 1024
        left = list(tmp_path.rglob(".*.*.????????"))
        if ended.status != 2 or not advice or ended.err.count("\n") != 1 or batch != 1024 or left:
            bad[megabytes] = f"status {ended.status}: {ended.said}"
    print(bad)
    count("R11", tried=len(tried), held=len(tried) - len(bad), note="RLIMIT_AS")


def test_memory_that_ends_while_a_run_goes_on(lab: Lab, whole: Any, tmp_path: Path, count: Any) -> None:
    """The allocator's own words, raised at a step: with a real limit native code may crash first."""
    run, harm = tmp_path / "run", {"RANK": "0", "RANK_FAULT": "0:6:memory"}
    assert lab.bring_back(run, SIGNAL_AT_STEP="4:15").status == 143
    ended = lab.bring_back(run, FAULT_ONCE=str(tmp_path / "once"), **harm)
    print(ended)
    held = ended.status == 2 and "out of memory" in ended.err and saved_iteration(run) >= 4
    assert lab.bring_back(run).status == 0
    count("R11", tried=1, held=int(held and outcome(run) == whole), note="in a run that goes on")


def test_a_batch_larger_than_the_data(lab: Lab, tmp_path: Path, count: Any) -> None:
    ended = lab.run(*TRAIN, "--batch-size", "97", "--out", str(tmp_path / "run"))
    said = "kilolayer: batch size 97 is larger than the training set of 96 images; take at most 96\n"
    held = (ended.status, ended.err) == (2, said) and not (tmp_path / "run").exists()
    count("R11", tried=1, held=int(held), note="a batch larger than the data")


def test_shared_memory_that_is_full(lab: Lab, tmp_path: Path, count: Any) -> None:
    """Workers need semaphores, which lie in /dev/shm."""
    before = processes()
    words = ("--depths", "8", "--iterations", "8", "--out", str(tmp_path / "demo"))
    ended = lab.run("demo", *words, FAULT_NO_SEMAPHORES="1")
    held = ended.status == 2 and "shared memory" in ended.err and "Traceback" not in ended.err
    trained = lab.run(*TRAIN, "--out", str(tmp_path / "run"), FAULT_NO_SEMAPHORES="1")
    print(ended, trained, before, processes())
    count("R11", tried=2, held=int(held) + int(trained.status == 0), note="no room in /dev/shm")
