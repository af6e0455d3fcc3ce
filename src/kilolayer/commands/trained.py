"""A trained network named on the command line: a run's folder or a weights file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from kilolayer.errors import InputError
from kilolayer.runs import Run, Weights, read_weights
from kilolayer.runs.dataset import located, noted_fingerprints
from kilolayer.training import Experiment


@dataclass(frozen=True)
class Trained:
    """The weights; of a run also the experiment, with its data where they lie now."""

    name: str
    weights: Weights
    experiment: Experiment | None = None
    test_set: str | None = None
    """The test set's fingerprint, where the run noted it."""


def trained(path: str) -> Trained:
    """What lies at `path`; `InputError` where it is neither a run that is done nor weights of ours."""
    if Path(path).is_dir():
        run = Run.open(path)
        experiment = replace(run.experiment(), data=located(run))
        return Trained(path, run.weights(), experiment, noted_fingerprints(run).get("test set"))
    if not Path(path).exists():
        raise InputError(f"no run and no weights file at {path}")
    return Trained(path, read_weights(Path(path)))
