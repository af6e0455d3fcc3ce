"""Snapshots: weights over a run's training, the same ones whether or not it was stopped on its way."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from kilolayer.errors import InputError
from kilolayer.networks import build
from kilolayer.runs import Run, read_weights, train_run
from kilolayer.runs.snapshots import _is_due, check_snapshot_count
from test_runs_kill import Killer
from tiny_runs import Poll, files_in, outcome, tiny, train, training_of

EXPERIMENT = tiny()


def begin(folder: Path, snapshots: int) -> None:
    with Run.open_or_create(folder, EXPERIMENT, snapshots=snapshots):
        pass


def kept(folder: Path, count: int = 3) -> dict[str, bytes]:
    begin(folder, count)
    train(folder, EXPERIMENT)
    return files_in(folder / "snapshots")


def test_they_are_spread_over_the_epochs_from_the_initialisation_on(tmp_path: Path) -> None:
    """Seven steps are three epochs, the last a part: with three snapshots after 0, 2 and 3 of them."""
    kept(tmp_path / "run")
    found = Run.open(tmp_path / "run").snapshots()
    assert [at for at, _ in found] == [0, 6, 7]
    torch.manual_seed(EXPERIMENT.seed)
    fresh, first = build(EXPERIMENT.network).state_dict(), read_weights(found[0][1]).model.state_dict()
    assert all(torch.equal(first[key], value) for key, value in fresh.items())
    assert found[-1][1].read_bytes() == (tmp_path / "run" / "weights.safetensors").read_bytes()


def test_they_are_no_part_of_the_experiment(tmp_path: Path) -> None:
    kept(tmp_path / "with")
    train(tmp_path / "without", EXPERIMENT)
    assert outcome(tmp_path / "with") == outcome(tmp_path / "without")
    assert Run.open(tmp_path / "without").snapshots() == ()
    assert not (tmp_path / "without" / "snapshots").exists()


@pytest.mark.parametrize("after", [0, 1, 4, 6])
def test_a_stopped_run_has_the_same(tmp_path: Path, after: int) -> None:
    begin(tmp_path / "run", 3)
    train(tmp_path / "run", EXPERIMENT, stop=Poll(after))
    train(tmp_path / "run", EXPERIMENT)
    assert files_in(tmp_path / "run" / "snapshots") == kept(tmp_path / "whole")


@pytest.mark.slow
def test_a_run_killed_before_any_lasting_call_has_the_same(tmp_path: Path) -> None:
    whole, at, killed = kept(tmp_path / "whole"), 0, True
    while killed:
        folder = tmp_path / f"run{at}"
        killed = _killed(folder, at)
        begin(folder, 3)
        train(folder, EXPERIMENT)
        assert files_in(folder / "snapshots") == whole, at
        at += 5
    assert at > 50


def _killed(folder: Path, at: int) -> bool:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            Killer(at).install()
            with Run.open_or_create(folder, EXPERIMENT, snapshots=3) as run:
                for _ in train_run(run, training_of(EXPERIMENT), save_seconds=-1.0):
                    pass
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_another_start_plans_anew(tmp_path: Path) -> None:
    """Killed before its config.json was there, a run is begun by whoever comes next, as they ask."""
    begin(tmp_path / "run", 3)
    (tmp_path / "run" / "config.json").unlink()
    train(tmp_path / "run", EXPERIMENT)
    assert Run.open(tmp_path / "run").snapshots() == ()


@pytest.mark.parametrize(("count", "epochs"), [(1, 3), (5, 3), (-1, 3)])
def test_impossible_numbers_are_refused(count: int, epochs: int) -> None:
    with pytest.raises(InputError, match=rf"--snapshots is {count}; .* allowed: 2 to 4, or 0"):
        check_snapshot_count(count, epochs)


@pytest.mark.parametrize("count", [1, 5, 10**9, 2**64])
def test_an_impossible_plan_is_told_before_the_first_step(tmp_path: Path, count: int) -> None:
    begin(tmp_path / "run", 3)
    train(tmp_path / "run", EXPERIMENT, stop=Poll(1))
    (tmp_path / "run" / "snapshots" / "plan.json").write_text(json.dumps({"count": count}))
    asked = Poll()
    with pytest.raises(InputError, match=rf"plan\.json: count is {count}; .* allowed: 2 to 4, or 0"):
        train(tmp_path / "run", EXPERIMENT, stop=asked)
    assert asked.asked == 0


def test_as_many_as_planned_are_due() -> None:
    for epochs in range(1, 40):
        for count in range(2, epochs + 2):
            spread = [round(index * epochs / (count - 1)) for index in range(count)]
            assert [closed for closed in range(epochs + 1) if _is_due(closed, count, epochs)] == spread


def test_a_damaged_plan_is_told(tmp_path: Path) -> None:
    begin(tmp_path / "run", 3)
    (tmp_path / "run" / "snapshots" / "plan.json").write_text("{")
    with pytest.raises(InputError, match=r"plan\.json, line 1: not JSON"):
        train(tmp_path / "run", EXPERIMENT)
