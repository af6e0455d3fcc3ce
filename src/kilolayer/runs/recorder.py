"""Trains a run and records it: metrics of every epoch, checkpoints, and at the end weights and result."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

from kilolayer.runs.folder import Run
from kilolayer.runs.predictions import Predictions, write_predictions
from kilolayer.runs.snapshots import write_due_snapshot
from kilolayer.runs.start_environment import environment_differences, environment_record, peak_memory_bytes
from kilolayer.runs.weights_file import write_weights
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
    With many ranks only the main one writes.

    on_start: called when the state to continue from is restored.
    on_epoch: called with an epoch's row of metrics, once it is saved.
    environment: `trainer_environment(trainer)` with what else a start records, if you have it already.

    Raises `NonFinite` where a loss or a tensor is not finite: the result then says so, and that state is not
    saved.

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
    if run.result() is not None:
        return
    is_main = trainer.context.is_main
    _resume(run, trainer, environment or trainer_environment(trainer))
    on_start()
    if is_main and trainer.state.iteration == 0:
        write_due_snapshot(run.path, trainer)
    saved = time.monotonic()
    try:
        for step in trainer.steps(stop):
            row, clock = _metrics_row(step.epoch, trainer.monitor), _timing_row(step.epoch)
            if row and is_main:
                run.append_metrics(row, clock)
                write_due_snapshot(run.path, trainer)
            if row or _is_save_due(trainer, saved + save_seconds):
                _save_state(run, trainer)
                saved = time.monotonic()
            if row and is_main:
                on_epoch(row | clock)
            yield step
        if trainer.steps_finished:
            _write_result(run, trainer, trainer.conclude(stop))
        else:
            _save_state(run, trainer)
    except NonFinite as error:
        if is_main:
            run.write_json("result.json", {"status": "diverged", "reason": str(error), **_progress(trainer)})
        raise


def _resume(run: Run, trainer: Trainer, environment: dict[str, Any]) -> None:
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
        run.truncate(checkpoint)
        run.append_environment(environment)


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


def _save_state(run: Run, trainer: Trainer) -> None:
    trainer.check_finite()
    tensors = trainer.tensors()
    if trainer.context.is_main:
        run.save(tensors, trainer.counters())


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
    write_weights(
        run.file("weights.safetensors"),
        trainer.experiment.network,
        trainer.state.reported_weights,
        trainer.splits.classes,
        trainer.statistics.to("cpu"),
    )
    write_predictions(
        run.path,
        Predictions(final.answers, trainer.splits.test.labels, final.losses),
        trainer.splits.test.fingerprint(),
    )
    rows, selected = run.metrics(), final.selected
    run.write_json(
        "result.json",
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
