"""A trained network named on the command line: a run's folder or a weights file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from kilolayer.errors import InputError
from kilolayer.runs import Run, Weights, read_weights
from kilolayer.runs.dataset import located
from kilolayer.training import Experiment


@dataclass(frozen=True)
class Trained:
    """The weights, and the experiment where a run names it."""

    name: str
    weights: Weights
    experiment: Experiment | None


def trained(path: str) -> Trained:
    """What lies at `path`; `InputError` where it is neither a run that is done nor weights of ours."""
    if Path(path).is_dir():
        run = Run.open(path)
        return Trained(path, run.weights(), replace(run.experiment(), data=located(run)))
    if not Path(path).exists():
        raise InputError(f"no run and no weights file at {path}")
    return Trained(path, read_weights(Path(path)), None)
