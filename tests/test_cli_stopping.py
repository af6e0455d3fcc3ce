"""Runs that are stopped and go on, and runs in several processes, as a person starts them."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = (sys.executable, "-m", "kilolayer")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
OPTIONS = ("--threads", "1", "--precision", "fp32", "--no-tensorboard", "--subset", "256", "--epochs", "6")
ALONE = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ALONE)


def finish(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, env=ALONE, timeout=200)


def outcome(run: Path) -> tuple[str, list[str]]:
    """The weights' hash, and the figures without what the clock decides."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    figures = [re.sub(r', "images_per_second".*', "", line) for line in lines]
    return hashlib.sha256((run / "weights.safetensors").read_bytes()).hexdigest(), figures


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    number: signal.Signals, status: int, tmp_path: Path
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert finish(*PROGRAM, "train", *OPTIONS, "--out", str(whole)).returncode == 0
    process = start(*PROGRAM, "train", *OPTIONS, "--out", str(stopped))
    deadline = time.monotonic() + 60
    while not (stopped / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == status, said
    assert f"kilolayer train --resume {stopped}" in said
    assert not (stopped / "result.json").exists()
    done = finish(*PROGRAM, "train", "--resume", str(stopped))
    assert done.returncode == 0, done.stderr
    assert outcome(stopped) == outcome(whole)


@pytest.mark.slow
def test_two_processes_train_one_run_and_repeat_it(tmp_path: Path) -> None:
    for name in ("first", "second"):
        done = finish(*TORCHRUN, "-m", "kilolayer", "train", *OPTIONS, "--out", str(tmp_path / name))
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("test error") == 1
        assert "2 processes" in done.stdout
    assert outcome(tmp_path / "first") == outcome(tmp_path / "second")


@pytest.mark.slow
def test_two_processes_are_refused_as_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    began = time.monotonic()
    out = str(tmp_path / "file" / "run")
    done = finish(*TORCHRUN, "-m", "kilolayer", "train", *OPTIONS, "--out", out)
    assert done.returncode != 0
    assert done.stderr.count("kilolayer: ") == 1
    assert time.monotonic() - began < 60
