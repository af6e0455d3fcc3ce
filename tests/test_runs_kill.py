"""Killed at some moments, a run goes on to the same bytes; tests/faults kills it at every one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kilolayer.runs import Run, train_run
from kilolayer.training import Trainer
from tiny_runs import HERE, outcome, splits_of, tiny, train

EXPERIMENT = tiny(validation=20)

DURABLE = ("fsync", "replace", "unlink", "mkdir")
"""The system calls that change what lasts; a kill before each of them leaves every state there can be."""


class Killer:
    """Ends the process, as SIGKILL does, right before the durable system call number `at`."""

    def __init__(self, at: float) -> None:
        self.at, self.calls = at, 0

    def before(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            if self.calls == self.at:
                os._exit(9)
            self.calls += 1
            return call(*args, **options)

        return counted

    def install(self) -> None:
        for name in DURABLE:
            setattr(os, name, self.before(getattr(os, name)))


def acknowledging(run: Run, training: Trainer) -> None:
    """Trains and notes in a file of its own, outside the run, every state that was reported as saved."""
    for step in train_run(run, training, save_seconds=-1.0):
        with run.path.with_suffix(".saved").open("w") as file:
            file.write(str(step.iteration))


def in_a_child(folder: Path, killer: Killer) -> int:
    """The exit status of a process that trains in `folder` until it is killed or done; 9 when killed."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            killer.install()
            with Run.open_or_create(folder, EXPERIMENT) as run:
                acknowledging(run, Trainer(EXPERIMENT, splits_of(EXPERIMENT), HERE))
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def acknowledged(folder: Path) -> int:
    saved = folder.with_suffix(".saved")
    return int(saved.read_text() or 0) if saved.exists() else 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(folder, EXPERIMENT)
    return outcome(folder)


def killed_at_every(stride: int, folder: Path, whole: dict[str, Any]) -> int:
    """How many kills there were: each in a run of its own, which is then brought to its end."""
    for kills, at in enumerate(range(0, 10_000, stride)):
        path = folder / str(at)
        status = in_a_child(path, Killer(at))
        assert status in (0, 9)
        if path.exists():
            found = Run(path).latest_checkpoint()
            assert (found.counters["iteration"] if found else 0) >= acknowledged(path), f"call {at}"
        train(path, EXPERIMENT)
        assert outcome(path) == whole, f"call {at}"
        if status == 0:
            return kills
    raise AssertionError("the run makes too many calls")


def test_killed_before_some_durable_calls(tmp_path: Path, whole: dict[str, Any]) -> None:
    assert killed_at_every(13, tmp_path, whole) > 4
