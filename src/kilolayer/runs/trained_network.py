"""A trained network: a run's folder or a weights file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from kilolayer.errors import InputError, missing_path_error
from kilolayer.runs import Run, SavedNetwork, read_weights
from kilolayer.runs.data_record import locate_data, recorded_fingerprints
from kilolayer.training import Experiment


@dataclass(frozen=True)
class TrainedNetwork:
    """The weights; for a run also the experiment, with its data at their present path."""

    name: str
    weights: SavedNetwork
    experiment: Experiment | None = None
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """The fingerprints of the parts of its data, as far as the run recorded them."""


def open_trained(path: str) -> TrainedNetwork:
    """The network at `path`. Raises `InputError` where it is neither a finished run nor our weights file."""
    if Path(path).is_dir():
        run = Run.open(path)
        experiment = replace(run.experiment(), data=locate_data(run))
        return TrainedNetwork(path, run.weights(), experiment, recorded_fingerprints(run))
    if not Path(path).exists():
        raise missing_path_error(path)
    return TrainedNetwork(path, read_weights(Path(path)))


def check_image_shape(weights: SavedNetwork, channels: int, side: int) -> None:
    """Raises `InputError` where the network cannot read images with these channels and this side."""
    mean, description = weights.statistics.mean, weights.model.description
    if channels != description.in_chans:
        expected = description.in_chans
        raise InputError(f"the network reads images with {expected} channels, and these have {channels}")
    if mean.shape[-1] not in (1, side):
        raise InputError(
            f"the network subtracts a mean image of {mean.shape[-1]} pixels a side, and the images have "
            f"{side}; leave out --image-size"
        )
    if side < description.total_stride:
        raise InputError(
            f"images of {side} pixels are too small for a network that divides by {description.total_stride}"
        )
