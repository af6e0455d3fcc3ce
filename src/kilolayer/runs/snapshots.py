"""Snapshots of the weights over a run's training, for analyses: `kilolayer train --snapshots 8`.

snapshots/plan.json                the number of snapshots
snapshots/000000090.safetensors    the weights after 90 iterations; the first file is the initialisation

They are no part of the experiment: no figure depends on them, and two runs that differ only in snapshots are
runs of one experiment. Each is written before the checkpoint that closes its epoch, so that a run killed
between the two trains the epoch again and writes the same bits.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from kilolayer.errors import InputError
from kilolayer.runs.records import SnapshotPlan, read_record
from kilolayer.runs.weights_file import weights_content
from kilolayer.system.opened_folder import OpenedFolder
from kilolayer.training.trainer import Trainer

FOLDER = "snapshots"
_PLAN = "plan.json"
_MAX_PLAN_BYTES = 1000


def check_snapshot_count(count: int, epochs: int, name: str = "--snapshots") -> None:
    """Raises `InputError` where a run of `epochs` epochs has too few ends of epochs for `count` snapshots.

    name: what the count is called where it was given.
    """
    if count and not 2 <= count <= epochs + 1:
        raise InputError(
            f"{name} is {count}; the first is the initialisation and the others are at ends of "
            f"epochs, so with {epochs:,} epochs allowed: 2 to {epochs + 1:,}, or 0 for none"
        )


def plan_snapshots(run: OpenedFolder, count: int) -> None:
    """Records that a new run will have `count` snapshots."""
    if count:
        with run.subfolder(FOLDER, create=True) as folder:
            folder.write(_PLAN, json.dumps({"count": count}).encode())
    elif run.has_folder(FOLDER):
        # A run that was killed at its beginning may have a plan.
        with run.subfolder(FOLDER) as folder:
            folder.remove(_PLAN)


def write_due_snapshot(run: OpenedFolder, trainer: Trainer) -> None:
    """Writes the current weights if the plan has a snapshot at this end of an epoch."""
    count = checked_count(run, trainer.num_epochs)
    if not _is_due(trainer.state.epochs_closed, count, trainer.num_epochs):
        return
    content = weights_content(
        trainer.experiment.network,
        trainer.model.state_dict(),
        trainer.splits.classes,
        trainer.statistics.to("cpu"),
    )
    with run.subfolder(FOLDER, create=True) as folder:
        folder.remove_temporary_files()
        folder.write(f"{trainer.state.iteration:09d}.safetensors", content)


def list_snapshots(run: OpenedFolder) -> tuple[tuple[int, Path], ...]:
    """The iteration and the weights file of every snapshot, from the first to the last."""
    if not run.has_folder(FOLDER):
        return ()
    with run.subfolder(FOLDER) as folder:
        names = [name for name in folder.names() if re.fullmatch(r"\d+\.safetensors", name)]
        return tuple((int(name.split(".")[0]), folder.path / name) for name in names if folder.has_file(name))


def planned_count(run: OpenedFolder) -> int:
    """How many snapshots a run is planned to have."""
    if not run.has_folder(FOLDER):
        return 0
    with run.subfolder(FOLDER) as folder:
        content = folder.read(_PLAN, _MAX_PLAN_BYTES)
        return 0 if content is None else read_record(content, SnapshotPlan, folder.path / _PLAN)["count"]


def checked_count(run: OpenedFolder, epochs: int) -> int:
    """`planned_count`; raises `InputError` where a run of `epochs` epochs cannot have so many."""
    count = planned_count(run)
    check_snapshot_count(count, epochs, f"{run.path / FOLDER / _PLAN}: count")
    return count


def _is_due(closed: int, count: int, epochs: int) -> bool:
    """Whether one of `count` snapshots, evenly spread over the epochs, is due after `closed` of them."""
    if not count:
        return False
    nearest = round(closed * (count - 1) / epochs)
    return round(nearest * epochs / (count - 1)) == closed
