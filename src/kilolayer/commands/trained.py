"""A trained network named on the command line: a run's folder or a weights file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from kilolayer.data import Normalization, Splits, measure
from kilolayer.errors import InputError
from kilolayer.networks import Network, build
from kilolayer.runs import Run, Weights, read_weights
from kilolayer.runs.dataset import located
from kilolayer.training import Experiment
from kilolayer.training.experiment import fitted
from kilolayer.weights import fit, read_state_dict


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


def stranger(path: str, network: Network, splits: Splits, normalization: Normalization) -> Trained:
    """`network` for these data with the weights of a file that says nothing of itself.

    Raises `InputError` where the file cannot be read safely or a tensor does not fit.
    """
    state = read_state_dict(path)
    model = build(
        fitted(network, classes=splits.num_classes, in_chans=splits.in_chans, image_size=splits.image_size)
    )
    try:
        fit(model, state)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    statistics = measure(splits.train, normalization)
    return Trained(path, Weights(model.eval(), splits.classes, statistics), None)
