"""Laws of a sweep: every run ends exactly once, whatever becomes of the workers."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kilolayer.data.config import Data
from kilolayer.errors import InputError
from kilolayer.networks.families import cifar
from kilolayer.runs import Run
from kilolayer.sweep import Outcome, RunSpec, SweepStopped, engine, read_progress, run_all, worker
from kilolayer.sweep.engine import ATTEMPTS_WITHOUT_PROGRESS, AttemptCounter, Tick, mark_failed
from kilolayer.training import Experiment, recipe_by_name, recipe_for_data
from kilolayer.units import BASIC
from kilolayer.values import to_json

TIMING = ("images_per_second", "seconds", "train_seconds", "peak_memory_bytes")


def tiny(folder: Path, seed: int = 0, iterations: int = 4, rate: float | None = None) -> RunSpec:
    """An epoch, and so a checkpoint, is two iterations."""
    data = Data("digits", subset=64)
    chosen = replace(
        recipe_for_data(recipe_by_name("short", 64), data).with_iterations(iterations), batch_size=32
    )
    if rate is not None:
        chosen = replace(chosen, rate=type(recipe_by_name("paper", 64).rate.then)(rate, ()))  # type: ignore[union-attr]
    network = cifar(8, BASIC, in_chans=1, image_size=8)
    return RunSpec(folder / f"run-{seed}", Experiment(network, data, chosen, seed=seed))


def figures(one: RunSpec) -> tuple[str, list[dict[str, Any]]]:
    """The weights' hash and the metrics, without what the clock decides."""
    lines = (one.path / "metrics.jsonl").read_text().splitlines()
    rows = [{k: v for k, v in json.loads(line).items() if k not in TIMING} for line in lines]
    return hashlib.sha256((one.path / "weights.safetensors").read_bytes()).hexdigest(), rows


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def starts(one: RunSpec) -> int:
    return len(json.loads((one.path / "environment.json").read_text()))


class Here:
    """An engine in this process: what the laws say of run_all needs no other."""

    def __init__(self) -> None:
        self.executed: list[str] = []
        self.closed = 0

    def execute(self, planned: Sequence[RunSpec], tick: Tick) -> Iterator[tuple[RunSpec, Outcome]]:
        for one in planned:
            tick()
            self.executed.append(one.key)
            yield one, execute(one)

    def close(self) -> None:
        self.closed += 1


def execute(one: RunSpec, stop: Callable[[], bool] = lambda: False) -> Outcome:
    return worker.execute_run(str(one.path), to_json(one.experiment), "cpu", 60.0, stop)


def test_every_run_ends_once_and_is_kept_byte_for_byte(tmp_path: Path) -> None:
    planned = [tiny(tmp_path, seed) for seed in range(2)]
    first, second = Here(), Here()
    assert run_all(planned, first) == {"run-0": "done", "run-1": "done"}
    before = content(tmp_path)
    assert run_all(planned, second) == {"run-0": "done", "run-1": "done"}
    assert content(tmp_path) == before
    assert (second.executed, second.closed) == ([], 1)
    assert [starts(one) for one in planned] == [1, 1]


def test_an_interrupted_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    whole, cut = tiny(tmp_path / "whole"), tiny(tmp_path / "cut")
    assert execute(whole) == "done"
    calls = iter(range(100))
    assert execute(cut, stop=lambda: next(calls) > 3) == "stopped"
    assert not read_progress(cut).is_finished
    assert list(cut.path.glob("checkpoints/*.json"))
    assert execute(cut) == "done"
    assert starts(cut) == 2
    assert figures(cut) == figures(whole)


def test_a_run_that_another_process_holds_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SECONDS_UNTIL_BUSY_IS_TRIED_AGAIN", 0.0)
    planned = [tiny(tmp_path, seed) for seed in range(2)]
    ours = Here()
    with Run.open_or_create(planned[0].path, planned[0].experiment) as held:
        rounds = ours.execute(planned, lambda: None)
        assert next(rounds)[1] == "busy"
        assert held.result() is None
    assert set(run_all(planned, ours).values()) == {"done"}
    assert [starts(one) for one in planned] == [1, 1]


def test_a_busy_run_does_not_keep_others_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "SECONDS_UNTIL_BUSY_IS_TRIED_AGAIN", 0.0)
    planned = [tiny(tmp_path, seed) for seed in range(2)]
    ours = Here()
    with Run.open_or_create(planned[0].path, planned[0].experiment), pytest.raises(SweepStopped):
        run_all(planned, ours, stop=lambda: ours.executed.count("run-0") == 3)
    assert read_progress(planned[1]).is_finished
    assert ours.executed.count("run-1") == 1
    assert ours.closed == 1


def test_a_run_that_diverges_is_a_result_with_its_reason(tmp_path: Path) -> None:
    one = tiny(tmp_path, rate=1e30)
    assert run_all([one], Here()) == {"run-0": "diverged"}
    result = read_progress(one).result
    assert result is not None
    assert "not finite" in result["reason"]
    assert read_progress(one).figure("test_error") is None


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("tried to allocate 9 GiB")])
def test_out_of_memory_is_a_result_with_its_reason(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = tiny(tmp_path)
    monkeypatch.setattr(worker, "Trainer", raising(error))
    assert run_all([one], Here()) == {"run-0": "failed"}
    result = read_progress(one).result
    assert result is not None
    assert result["reason"].startswith("out of memory")


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*arguments: object) -> None:
        raise error

    return fail


def test_a_bug_keeps_its_traceback_and_other_runs_their_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = [tiny(tmp_path, seed) for seed in range(2)]
    ours = Here()
    assert execute(planned[0]) == "done"
    before = content(planned[0].path)
    monkeypatch.setattr(worker, "Trainer", raising(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError):
        run_all(planned, ours)
    assert content(planned[0].path) == before
    assert read_progress(planned[1]).result is None
    assert ours.closed == 1


def test_another_experiment_in_a_folder_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    first, other = tiny(tmp_path), tiny(tmp_path, iterations=6)
    assert execute(first) == "done"
    before = content(tmp_path)
    with pytest.raises(InputError, match="another experiment"):
        run_all([tiny(tmp_path, seed=1), other], Here())
    assert content(tmp_path) == before


def test_other_files_in_a_runs_folder_are_refused(tmp_path: Path) -> None:
    one = tiny(tmp_path)
    one.path.mkdir()
    (one.path / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="other files"):
        run_all([one], Here())
    assert [path.name for path in one.path.iterdir()] == ["letter.txt"]


def test_what_a_kill_at_the_very_beginning_leaves_is_no_obstacle(tmp_path: Path) -> None:
    one = tiny(tmp_path)
    (one.path / "checkpoints").mkdir(parents=True)
    (one.path / ".lock").touch()
    (one.path / ".config.json.0a1b2c3d").touch()
    assert run_all([one], Here()) == {"run-0": "done"}


def test_a_run_is_given_up_after_five_deaths_without_progress(tmp_path: Path) -> None:
    one, attempts = tiny(tmp_path), AttemptCounter()
    assert [attempts.try_again(one) for _ in range(ATTEMPTS_WITHOUT_PROGRESS)] == [True] * 4 + [False]
    assert mark_failed(one) == "failed"
    result = read_progress(one).result
    assert result is not None
    assert "died 5 times" in result["reason"]


def test_progress_gives_new_attempts(tmp_path: Path) -> None:
    one, attempts = tiny(tmp_path), AttemptCounter()
    assert all(attempts.try_again(one) for _ in range(ATTEMPTS_WITHOUT_PROGRESS - 1))
    calls = iter(range(100))
    assert execute(one, stop=lambda: next(calls) > 3) == "stopped"
    assert attempts.try_again(one)


def test_what_another_process_has_or_has_ended_is_not_given_up(tmp_path: Path) -> None:
    one = tiny(tmp_path)
    with Run.open_or_create(one.path, one.experiment):
        assert mark_failed(one) == "busy"
    assert execute(one) == "done"
    before = content(one.path)
    assert mark_failed(one) == "done"
    lock = {str(one.path / ".lock"): b""}
    assert content(one.path) | lock == before | lock


def test_a_half_written_line_is_not_read(tmp_path: Path) -> None:
    one = tiny(tmp_path)
    one.path.mkdir()
    (one.path / "metrics.jsonl").write_text('{"epoch": 1, "iteration": 2}\n{"itera')
    assert read_progress(one).last_metrics == {"epoch": 1, "iteration": 2}


def test_tick_is_called_while_waiting_for_busy_runs(tmp_path: Path) -> None:
    one, began = tiny(tmp_path), time.monotonic()
    with Run.open_or_create(one.path, one.experiment), pytest.raises(SweepStopped):
        run_all([one], Here(), stop=lambda: time.monotonic() - began > 0.2)
