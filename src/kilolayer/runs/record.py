"""Training recorded: every epoch's figures, checkpoints, and at the end the weights and the result."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

from kilolayer.runs.environment import differences, environment, peak_memory
from kilolayer.runs.folder import Run
from kilolayer.runs.snapshots import keep
from kilolayer.runs.weights import write_weights
from kilolayer.training.loop import Epoch, Final, Step, Training
from kilolayer.training.state import NonFinite

logger = logging.getLogger(__name__)


def record(
    run: Run,
    training: Training,
    *,
    stop: Callable[[], bool] = lambda: False,
    save_seconds: float = 300.0,
    on_epoch: Callable[[dict[str, Any]], None] = lambda row: None,
    here: dict[str, Any] | None = None,
    on_start: Callable[[], None] = lambda: None,
) -> Iterator[Step]:
    """Trains into `run` from its last checkpoint, if it has one, to the end or until `stop()`.

    Yields every step. State is saved at the end of every epoch, at least every `save_seconds` between,
    and when stopped; `on_epoch` hears of an epoch once it is saved. With many processes only the leader
    writes. A loss or a tensor that is not finite leaves a result that says so, and raises `NonFinite`; no
    such state is saved. `on_start` hears once the state to
    go on from is restored. `here` is the `environment_of` this start where it is known already.
    """
    if run.result() is not None:
        return
    leads = training.place.leads
    _continue(run, training, here or environment_of(training))
    on_start()
    if leads and training.iteration == 0:
        keep(run.path, training)
    saved = time.monotonic()
    try:
        for step in training.steps(stop):
            row, clock = _figures(step.epoch, training.monitor), _clock(step.epoch)
            if row and leads:
                run.append_metrics(row, clock)
                keep(run.path, training)
            if row or _late(training, saved + save_seconds):
                _save(run, training)
                saved = time.monotonic()
            if row and leads:
                on_epoch(row | clock)
            yield step
        if training.trained:
            _finish(run, training, training.conclude(stop))
        else:
            _save(run, training)
    except NonFinite as error:
        if leads:
            run.write_json("result.json", {"status": "diverged", "reason": str(error), **_progress(training)})
        raise


def _continue(run: Run, training: Training, here: dict[str, Any]) -> None:
    checkpoint, leads = run.latest(), training.place.leads
    if checkpoint is not None:
        training.restore(checkpoint.tensors, checkpoint.counters)
        logger.info("continuing %s at iteration %s", run.path, training.iteration)
    if leads:
        differing = differences(run.environments(), here)
        if checkpoint is not None and differing:
            logger.warning(
                "%s goes on elsewhere than it began, so its figures can differ in their last digits: %s",
                run.path,
                ", ".join(differing),
            )
        run.rewind(checkpoint)
        run.note_environment(here)


def environment_of(training: Training) -> dict[str, Any]:
    """On what `training` is computed: a start in environment.json."""
    experiment = training.experiment
    # What runs here, which is not what was asked for where another machine goes on without the kernels.
    return environment(
        training.place,
        experiment.precision,
        channels_last=experiment.channels_last,
        kernels="fused" if training.kernels and training.kernels.fused else "plain",
    )


def _late(training: Training, when: float) -> bool:
    place = training.place
    return place.meets(training.iteration) and place.agree(time.monotonic() > when)


def _save(run: Run, training: Training) -> None:
    training.check_finite()
    tensors = training.tensors()
    if training.place.leads:
        run.save(tensors, training.counters())


def _figures(epoch: Epoch | None, monitor: str) -> dict[str, Any]:
    """An epoch as a line of metrics.jsonl: the monitored figures carry their split's name."""
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


def _clock(epoch: Epoch | None) -> dict[str, Any]:
    """The same epoch's line of timing.jsonl."""
    if epoch is None:
        return {}
    return {
        "epoch": epoch.epoch,
        "images_per_second": epoch.images_per_second,
        "seconds": epoch.seconds,
    }


def _progress(training: Training) -> dict[str, Any]:
    return {
        "iterations": training.iteration,
        "epochs": training.epochs_closed,
        "peak_memory_bytes": peak_memory(training.place),
    }


def _finish(run: Run, training: Training, final: Final | None) -> None:
    """Writes the final figures: of the last weights, and where a validation split chose them, of the best.

    The test error at the best validation error is "selected on validation". The least test error of
    all epochs is recorded as "best" because others report it; it is no fair estimate.
    """
    if final is None or not training.place.leads:
        return
    write_weights(
        run.file("weights.safetensors"),
        training.experiment.network,
        training.reported,
        training.splits.classes,
        training.statistics.to("cpu"),
    )
    rows, selected = run.metrics(), final.selected
    run.write_json(
        "result.json",
        {
            "status": "done",
            "data": training.splits.name,
            **({"images_from": training.splits.origin} if training.splits.origin else {}),
            **({"skipped_images": training.splits.skipped} if training.splits.skipped else {}),
            "test_error": final.last.error,
            "test_top5_error": final.last.top5_error,
            "test_loss": final.last.loss,
            **_best(rows, training.monitor),
            **({"test_error_selected_on_validation": selected.error} if selected else {}),
            "train_seconds": sum(row.get("seconds", 0.0) for row in rows),
            **_progress(training),
        },
    )


def _best(rows: list[dict[str, Any]], monitor: str) -> dict[str, Any]:
    key = f"{monitor}_error"
    measured = [row for row in rows if key in row]
    if not measured:
        return {}
    best = min(measured, key=lambda row: row[key])
    return {f"best_{key}": best[key], "best_epoch": best["epoch"]}
