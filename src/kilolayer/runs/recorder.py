"""Trains a run and records it: metrics of every epoch, checkpoints, and at the end weights and result."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kilolayer.runs.checkpoints import Owner
from kilolayer.runs.data_record import DATA_KEY
from kilolayer.runs.folder import PREDICTIONS, RESULT, WEIGHTS, Run
from kilolayer.runs.predictions import Predictions, predictions_content
from kilolayer.runs.start_environment import environment_differences, environment_record, peak_memory_bytes
from kilolayer.runs.weights_file import weights_content
from kilolayer.system.opened_folder import FolderLost
from kilolayer.training.train_state import NonFinite
from kilolayer.training.trainer import EpochMetrics, FinalMetrics, StepResult, Trainer

logger = logging.getLogger(__name__)


def train_run(
    run: Run,
    trainer: Trainer,
    *,
    stop: Callable[[], bool] = lambda: False,
    save_seconds: float = 300.0,
    on_epoch: Callable[[dict[str, Any]], None] = lambda row: None,
    environment: dict[str, Any] | None = None,
    on_start: Callable[[], None] = lambda: None,
) -> Iterator[StepResult]:
    """Trains `run` from its last checkpoint, if it has one, to the end or until `stop()`; yields every step.

    Saves a checkpoint at the end of every epoch, at least every `save_seconds` in between, and when stopped.
    With many ranks only the main one writes; it holds the run's lock, unless `run` has it already.

    on_start: called when the state to continue from is restored.
    on_epoch: called with an epoch's row of metrics, once it is saved.
    environment: `trainer_environment(trainer)` with what else a start records, if you have it already.

    Raises `NonFinite` where a loss or a tensor is not finite: the result then says so, and that state is not
    saved. Raises `FolderLost` at the next write where the folder was moved, removed or replaced.

    >>> import tempfile, torch
    >>> from kilolayer.data import Data, load
    >>> from kilolayer.networks import describe
    >>> from kilolayer.training import DistributedContext, Experiment, network_for_data, recipe_by_name
    >>> data, recipe = Data("digits", subset=64), recipe_by_name("smoke", 64).with_iterations(2)
    >>> network = network_for_data(describe("preact_resnet8_cifar"), classes=10, in_chans=1, image_size=8)
    >>> experiment, context = Experiment(network, data, recipe), DistributedContext(torch.device("cpu"))
    >>> with tempfile.TemporaryDirectory() as folder, Run.open_or_create(f"{folder}/run", experiment) as run:
    ...     iterations = [step.iteration for step in train_run(run, Trainer(experiment, load(data), context))]
    ...     print(iterations, run.result()["status"], len(run.metrics()))
    [1, 2] done 1
    """
    with _lock_on_main_rank(run, trainer) as run:
        if run.result() is not None:
            return
        recording = _resume(run, trainer, environment or trainer_environment(trainer))
        on_start()
        try:
            yield from _train(recording, stop, save_seconds, on_epoch)
        except NonFinite as error:
            if recording.is_main:
                reason = {"status": "diverged", "reason": str(error)}
                run.write_json(RESULT, {**reason, **_progress(trainer)})
            raise
        except FolderLost as error:
            raise FolderLost(f"{error}; {recording.loss()}") from None


@contextmanager
def _lock_on_main_rank(run: Run, trainer: Trainer) -> Iterator[Run]:
    """The run, locked on the main rank."""
    if run.locked is not None or not trainer.context.is_main:
        yield run
    else:
        with run.lock() as locked:
            yield locked


def _train(
    recording: _Recording,
    stop: Callable[[], bool],
    save_seconds: float,
    on_epoch: Callable[[dict[str, Any]], None],
) -> Iterator[StepResult]:
    trainer, is_main = recording.trainer, recording.is_main
    if is_main:
        recording.run.check_snapshot_plan(trainer.num_epochs)
        if trainer.state.iteration == 0:
            recording.run.write_due_snapshot(trainer)
    saved = time.monotonic()
    for step in trainer.steps(stop):
        row, clock = _metrics_row(step.epoch, trainer.monitor), _timing_row(step.epoch)
        if row and is_main:
            recording.append(row, clock)
            recording.run.write_due_snapshot(trainer)
        if row or _is_save_due(trainer, saved + save_seconds):
            recording.save()
            saved = time.monotonic()
        if row and is_main:
            on_epoch(row | clock)
        yield step
    if trainer.steps_finished:
        _write_result(recording.run, trainer, trainer.conclude(stop))
    else:
        recording.save()


@dataclass
class _Recording:
    """A run under way. Whose states it saves, and its metrics, are this process's: the disk's may change."""

    run: Run
    trainer: Trainer
    owner: Owner
    metrics: bytes
    saved: int | None
    fingerprints: Mapping[str, str]

    @property
    def is_main(self) -> bool:
        return self.trainer.context.is_main

    def append(self, row: dict[str, Any], clock: dict[str, Any]) -> None:
        self.metrics = self.run.append_metrics(row, clock, self.metrics)

    def save(self) -> None:
        self.trainer.check_finite()
        tensors = self.trainer.tensors()
        if self.is_main:
            counters = self.trainer.counters()
            counters["data"] = counters["data"] | self.fingerprints
            self.run.save(tensors, counters, self.metrics, self.owner)
            self.saved = self.trainer.state.iteration

    def loss(self) -> str:
        """What is lost with a folder that is another's now."""
        newest = (
            "" if self.saved is None else f"; the newest one saved, of iteration {self.saved:,}, went with it"
        )
        return f"the state of iteration {self.trainer.state.iteration:,} could not be saved{newest}"


def _resume(run: Run, trainer: Trainer, environment: dict[str, Any]) -> _Recording:
    checkpoint, is_main = run.latest_checkpoint(), trainer.context.is_main
    if checkpoint is not None:
        trainer.restore(checkpoint.tensors, checkpoint.counters)
        logger.info("continuing %s at iteration %s", run.path, trainer.state.iteration)
    if is_main:
        differing = environment_differences(run.environments(), environment)
        if checkpoint is not None and differing:
            logger.warning(
                "%s continues in another environment, so its figures can differ in their last digits: %s",
                run.path,
                ", ".join(differing),
            )
        run.cut_back(checkpoint)
        run.append_environment(environment)
    saved = trainer.state.iteration if checkpoint else None
    metrics, data = checkpoint.metrics if checkpoint else b"", environment.get(DATA_KEY, {})
    return _Recording(run, trainer, run.owner(), metrics, saved, data.get("fingerprints", {}))


def trainer_environment(trainer: Trainer) -> dict[str, Any]:
    """The environment in which `trainer` computes, for environment.json."""
    experiment = trainer.experiment
    # The kernels in use, which the experiment asks for but another machine may not have.
    return environment_record(
        trainer.context,
        experiment.precision,
        channels_last=experiment.channels_last,
        kernels="fused" if trainer.kernels and trainer.kernels.fused_units else "plain",
    )


def _is_save_due(trainer: Trainer, deadline: float) -> bool:
    context = trainer.context
    return context.is_sync_step(trainer.state.iteration) and context.any(time.monotonic() > deadline)


def _metrics_row(epoch: EpochMetrics | None, monitor: str) -> dict[str, Any]:
    """An epoch's line of metrics.jsonl; the names of the monitored figures begin with their split."""
    if epoch is None:
        return {}
    row: dict[str, Any] = {
        "epoch": epoch.epoch,
        "iteration": epoch.iteration,
        "learning_rate": epoch.learning_rate,
        "train_loss": epoch.train_loss,
        "train_error": epoch.train_error,
    }
    if epoch.monitored_error is not None:
        row |= {f"{monitor}_loss": epoch.monitored_loss, f"{monitor}_error": epoch.monitored_error}
    return row


def _timing_row(epoch: EpochMetrics | None) -> dict[str, Any]:
    """The same epoch's line of timing.jsonl."""
    if epoch is None:
        return {}
    return {
        "epoch": epoch.epoch,
        "images_per_second": epoch.images_per_second,
        "seconds": epoch.seconds,
    }


def _progress(trainer: Trainer) -> dict[str, Any]:
    return {
        "iterations": trainer.state.iteration,
        "epochs": trainer.state.epochs_closed,
        "peak_memory_bytes": peak_memory_bytes(trainer.context),
    }


def _write_result(run: Run, trainer: Trainer, final: FinalMetrics | None) -> None:
    """Writes the final figures of the last weights, and of those with the least validation error.

    The test error of the latter is "selected on validation". The least test error of all epochs is recorded
    as "best", since others report it; it is biased, because the test set selected it.
    """
    if final is None or not trainer.context.is_main:
        return
    network, classes = trainer.experiment.network, trainer.splits.classes
    weights, test = trainer.state.reported_weights, trainer.splits.test
    predictions = Predictions(final.answers, test.labels, final.losses)
    run.write(WEIGHTS, weights_content(network, weights, classes, trainer.statistics.to("cpu")))
    run.write(PREDICTIONS, predictions_content(predictions, test.fingerprint()))
    rows, selected = run.metrics(), final.selected
    run.write_json(
        RESULT,
        {
            "status": "done",
            "data": trainer.splits.name,
            **({"images_from": trainer.splits.origin} if trainer.splits.origin else {}),
            **({"skipped_images": trainer.splits.skipped} if trainer.splits.skipped else {}),
            "test_error": final.last.error,
            "test_top5_error": final.last.top5_error,
            "test_loss": final.last.loss,
            **_best_epoch(rows, trainer.monitor),
            **({"test_error_selected_on_validation": selected.error} if selected else {}),
            "train_seconds": sum(row.get("seconds", 0.0) for row in rows),
            **_progress(trainer),
        },
    )


def _best_epoch(rows: list[dict[str, Any]], monitor: str) -> dict[str, Any]:
    key = f"{monitor}_error"
    measured = [row for row in rows if key in row]
    if not measured:
        return {}
    best = min(measured, key=lambda row: row[key])
    return {f"best_{key}": best[key], "best_epoch": best["epoch"]}
