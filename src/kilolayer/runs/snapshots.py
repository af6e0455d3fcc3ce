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

from kilolayer import durable
from kilolayer.errors import InputError
from kilolayer.runs.weights import write_weights
from kilolayer.training.loop import Training

FOLDER = "snapshots"


def check(count: int, epochs: int) -> None:
    """Raises `InputError` where a run of so many epochs has no so many ends of epochs."""
    if count and not 2 <= count <= epochs + 1:
        raise InputError(
            f"--snapshots is {count}; the first is the initialisation and the others stand at ends of "
            f"epochs, so with {epochs:,} epochs allowed: 2 to {epochs + 1:,}, or 0 for none"
        )


def plan(run: Path, count: int) -> None:
    """Notes that a new run is to keep `count` snapshots."""
    path = run / FOLDER / "plan.json"
    if count:
        durable.write(path, json.dumps({"count": count}).encode())
    else:
        # A run that was killed at its very beginning may have planned some.
        path.unlink(missing_ok=True)


def keep(run: Path, training: Training) -> None:
    """Writes the weights as they are where the plan has a snapshot at this end of an epoch."""
    if training.epochs_closed not in _due(run, training.epochs):
        return
    durable.clean(run / FOLDER)
    write_weights(
        run / FOLDER / f"{training.iteration:09d}.safetensors",
        training.experiment.network,
        training.model.state_dict(),
        training.splits.classes,
        training.statistics.to("cpu"),
    )


def kept(run: Path) -> tuple[tuple[int, Path], ...]:
    """(iteration, weights file) of every snapshot there is, from the first to the last."""
    files = sorted((run / FOLDER).glob("[0-9]*.safetensors"))
    return tuple((int(path.stem), path) for path in files)


def planned(run: Path) -> int:
    """How many snapshots a run is to keep."""
    path = run / FOLDER / "plan.json"
    if not path.exists():
        return 0
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["count"])
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is damaged") from None


def _due(run: Path, epochs: int) -> set[int]:
    """The numbers of closed epochs after which a snapshot is kept, evenly spread."""
    count = planned(run)
    return {round(place * epochs / (count - 1)) for place in range(count)}
