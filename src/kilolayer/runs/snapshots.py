"""Weights kept over a run's training, for those who look at it as it was: `kilolayer train --snapshots 8`.

snapshots/plan.json                how many there are to be
snapshots/000000090.safetensors    the weights after 90 iterations; the first are the initialisation

They are no part of the experiment: no figure depends on them, and two runs that differ in them only are
runs of one experiment. Each is written before the state that closes its epoch is saved, so that a run
killed between the two trains that epoch again and writes the same bits.
"""

from __future__ import annotations

import json
from pathlib import Path

from kilolayer.errors import InputError
from kilolayer.runs.weights_file import write_weights
from kilolayer.system import durable
from kilolayer.training.trainer import Trainer

FOLDER = "snapshots"


def check_snapshot_count(count: int, epochs: int) -> None:
    """Raises `InputError` where a run of so many epochs has no so many ends of epochs."""
    if count and not 2 <= count <= epochs + 1:
        raise InputError(
            f"--snapshots is {count}; the first is the initialisation and the others stand at ends of "
            f"epochs, so with {epochs:,} epochs allowed: 2 to {epochs + 1:,}, or 0 for none"
        )


def plan_snapshots(run: Path, count: int) -> None:
    """Notes that a new run is to keep `count` snapshots."""
    path = run / FOLDER / "plan.json"
    if count:
        durable.write_file(path, json.dumps({"count": count}).encode())
    else:
        # A run that was killed at its very beginning may have planned some.
        path.unlink(missing_ok=True)


def write_due_snapshot(run: Path, trainer: Trainer) -> None:
    """Writes the weights as they are where the plan has a snapshot at this end of an epoch."""
    if trainer.state.epochs_closed not in _due_epochs(run, trainer.num_epochs):
        return
    durable.remove_temporary_files(run / FOLDER)
    write_weights(
        run / FOLDER / f"{trainer.state.iteration:09d}.safetensors",
        trainer.experiment.network,
        trainer.model.state_dict(),
        trainer.splits.classes,
        trainer.statistics.to("cpu"),
    )


def list_snapshots(run: Path) -> tuple[tuple[int, Path], ...]:
    """(iteration, weights file) of every snapshot there is, from the first to the last."""
    files = sorted((run / FOLDER).glob("[0-9]*.safetensors"))
    return tuple((int(path.stem), path) for path in files)


def planned_count(run: Path) -> int:
    """How many snapshots a run is to keep."""
    path = run / FOLDER / "plan.json"
    if not path.exists():
        return 0
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["count"])
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is damaged") from None


def _due_epochs(run: Path, epochs: int) -> set[int]:
    """The numbers of closed epochs after which a snapshot is kept, evenly spread."""
    count = planned_count(run)
    return {round(index * epochs / (count - 1)) for index in range(count)}
