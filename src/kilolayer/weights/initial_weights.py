"""Starts a training from the weights in a file instead of random weights."""

from __future__ import annotations

import hashlib
from dataclasses import fields, replace
from pathlib import Path

from torch import Tensor

from kilolayer.data import InputStatistics
from kilolayer.errors import InputError, missing_path_error
from kilolayer.networks import Network
from kilolayer.runs import Run
from kilolayer.runs.weights_file import SavedNetwork
from kilolayer.system.message_text import quote
from kilolayer.training import Trainer
from kilolayer.training.experiment import InitialWeights
from kilolayer.weights.adaptation import adapt_statistics, adapt_weights
from kilolayer.weights.matching import WeightMatch, load_weights, match_weights
from kilolayer.weights.state_dicts import read_described, read_state_dict


def init_from_file(path: str) -> InitialWeights:
    """The file, or the weights of the run in a folder, as an experiment names it.

    Raises `InputError` where it cannot be read.
    """
    if not path:
        raise InputError("the file of weights has an empty name; name a file or the folder of a run")
    if (Path(path) / "config.json").is_file():
        path = str(Run.open(path).weights_file())
    elif Path(path).is_dir():
        raise InputError(
            f"{quote(path)}: is not the folder of a run; name the folder of a run, or a file of weights"
        )
    # The hash comes last: what is no file of weights is refused at once, however long it is.
    described, _ = _read(path)
    return InitialWeights(path, _sha256(path), "file" if described else "data")


def initial_network(init: InitialWeights) -> Network | None:
    """The network that the file describes; None where it describes none."""
    described = read_described(init.path)
    return described.model.description if described else None


def load_initial_weights(training: Trainer) -> WeightMatch | None:
    """Loads the weights that the trainer's experiment names; returns None where it names none.

    Call it before the first step. The classifier and the stem may be for other classes and channels
    (`kilolayer.weights.adaptation`); the notes of the result say what was done then. A file of ours also
    gives the mean and scale of the input.

    Raises `InputError` where the file is gone, has changed since the experiment was made, or does not fit the
    network in any other tensor. The network is then unchanged.
    """
    init = training.experiment.init
    if init is None:
        return None
    try:
        return _load_state(training, init)
    except InputError as error:
        text = str(error)
        raise InputError(text if init.path in text else f"{quote(init.path)}: {text}") from None


def _read(path: str) -> tuple[SavedNetwork | None, dict[str, Tensor]]:
    """The network that the file describes, if it does, and the weights."""
    described = read_described(path)
    return described, described.model.state_dict() if described else read_state_dict(path)


def _load_state(training: Trainer, init: InitialWeights) -> WeightMatch:
    described, state = _read(init.path)
    if _sha256(init.path) != init.sha256:
        raise InputError("has changed since the run began; restore the file")
    if "sums" in state and any(name.startswith("model.") for name in state):
        raise InputError(
            "holds the state of an unfinished training, not weights; name the run's folder when it is done"
        )
    statistics = (
        _input_statistics(training, described) if described and init.normalization == "file" else None
    )
    match, notes = _load_adapted(training, state, described.classes if described else None)
    if described:
        notes = (*notes, *_network_difference(described.model.description, training.experiment.network))
    if statistics:
        training.statistics = statistics.to(training.context.device)
        notes = (*notes, "pixels are normalised by the file's mean and scale")
    return replace(match, notes=notes)


def _load_adapted(
    training: Trainer, state: dict[str, Tensor], classes: tuple[str, ...] | None
) -> tuple[WeightMatch, tuple[str, ...]]:
    model = training.model
    adapted = adapt_weights(state, model, classes=training.splits.classes, file_classes=classes)
    # Where more than classes and channels differ, report the file's own tensors.
    exact = match_weights(model, adapted.state).exact
    return load_weights(model, adapted.state if exact else state), adapted.notes


def _input_statistics(training: Trainer, described: SavedNetwork) -> InputStatistics:
    """The statistics that normalise the input as in the training of the file's network."""
    splits = training.splits
    _check_statistics(described)
    return adapt_statistics(described.statistics, in_chans=splits.in_chans, side=splits.image_size)


def _check_statistics(described: SavedNetwork) -> None:
    mean, scale = described.statistics.mean, described.statistics.scale
    channels = described.model.description.in_chans
    numbers = all(tensor.is_floating_point() and bool(tensor.isfinite().all()) for tensor in (mean, scale))
    if not numbers or not bool((scale > 0).all()):
        raise InputError("its input.mean and input.scale are not finite numbers, scale above 0")
    square = mean.ndim == 3 and mean.shape == (channels, mean.shape[2], mean.shape[2])
    if not square or tuple(scale.shape) not in {(1, 1, 1), (channels, 1, 1)}:
        raise InputError(f"its input.mean and input.scale are not those of images of {channels} channels")


def _network_difference(file_network: Network, network: Network) -> tuple[str, ...]:
    """A note where the tensors fit, but the network computes something else with them."""
    ignored = ("num_classes", "in_chans", "image_size", "initialisation")
    differing = [
        field.name
        for field in fields(Network)
        if field.name not in ignored and getattr(file_network, field.name) != getattr(network, field.name)
    ]
    return (
        (f"the file's network has the same tensors, but another {' and '.join(differing)}",)
        if differing
        else ()
    )


def _sha256(path: str) -> str:
    if not Path(path).is_file():
        raise missing_path_error(path)
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{quote(path)}: cannot be read ({error.strerror})") from None
