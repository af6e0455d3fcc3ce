"""Snapshots of the weights over a run's training, for analyses: `kilolayer train --snapshots 8`.

snapshots/plan.json                the number of snapshots
snapshots/000000090.safetensors    the weights after 90 iterations; the first file is the initialisation

They are no part of the experiment: no figure depends on them, and two runs that differ only in snapshots are
runs of one experiment. Each is written before the checkpoint that closes its epoch, so that a run killed
between the two trains the epoch again and writes the same bits.
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
    """Raises `InputError` where a run of `epochs` epochs has too few ends of epochs for `count` snapshots."""
    if count and not 2 <= count <= epochs + 1:
        raise InputError(
            f"--snapshots is {count}; the first is the initialisation and the others are at ends of "
            f"epochs, so with {epochs:,} epochs allowed: 2 to {epochs + 1:,}, or 0 for none"
        )


def plan_snapshots(run: Path, count: int) -> None:
    """Records that a new run will have `count` snapshots."""
    path = run / FOLDER / "plan.json"
    if count:
        durable.write_file(path, json.dumps({"count": count}).encode())
    else:
        # A run that was killed at its beginning may have a plan.
        path.unlink(missing_ok=True)


def write_due_snapshot(run: Path, trainer: Trainer) -> None:
    """Writes the current weights if the plan has a snapshot at this end of an epoch."""
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
    """The iteration and the weights file of every snapshot, from the first to the last."""
    files = sorted((run / FOLDER).glob("[0-9]*.safetensors"))
    return tuple((int(path.stem), path) for path in files)


def planned_count(run: Path) -> int:
    """How many snapshots a run is planned to have."""
    path = run / FOLDER / "plan.json"
    if not path.exists():
        return 0
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["count"])
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is damaged") from None


def _due_epochs(run: Path, epochs: int) -> set[int]:
    """The numbers of closed epochs after which a snapshot is due, evenly spread."""
    count = planned_count(run)
    return {round(index * epochs / (count - 1)) for index in range(count)}
