"""The network of a weights file without metadata: options give its name, classes and normalisation."""

from __future__ import annotations

from dataclasses import replace

import torch

from kilolayer.cli.foreign_options import ForeignOptions, PixelStatistics
from kilolayer.data import InputStatistics
from kilolayer.errors import InputError
from kilolayer.networks import ResidualNetwork, build, describe
from kilolayer.runs import SavedNetwork
from kilolayer.system.printer import print_line
from kilolayer.weights import load_weights, read_state_dict

FIRST_CONV, CLASSIFIER = "stem.conv1.weight", "classifier.weight"


def build_foreign_network(path: str, name: str, image_size: int | None = None) -> ResidualNetwork:
    """The network `name` with the file's weights, and with as many channels and classes as they have.

    Raises:
        InputError: the file cannot be read safely, or a tensor does not fit.
    """
    state = read_state_dict(path)
    network = describe(name)
    first, last = state.get(FIRST_CONV), state.get(CLASSIFIER)
    model = build(
        replace(
            network,
            in_chans=first.shape[1] if first is not None and first.ndim == 4 else network.in_chans,
            num_classes=last.shape[0] if last is not None and last.ndim == 2 else network.num_classes,
            image_size=image_size or network.image_size,
        )
    )
    try:
        load_weights(model, state)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return model.eval()


def load_foreign_weights(path: str, options: ForeignOptions) -> SavedNetwork:
    """The network, with the classes and the normalisation of the options. Raises `InputError`."""
    assert options.model is not None  # noqa: S101 - the caller checks it
    pixel_statistics, names = options.pixel_statistics(), options.class_names()
    if pixel_statistics is None:
        raise InputError("--model needs --mean and --std too, which normalised the network's input")
    model = build_foreign_network(path, options.model)
    if names is None:
        print_line("without --classes FILE the classes are numbers from 0", stderr=True)
        names = tuple(str(i) for i in range(model.description.num_classes))
    return SavedNetwork(
        model, check_class_names(model, names, "--classes"), channel_statistics(model, pixel_statistics)
    )


def check_class_names(model: ResidualNetwork, names: tuple[str, ...], where: str) -> tuple[str, ...]:
    """The names, checked to be as many as the network's classes. Raises `InputError`."""
    if len(names) != model.description.num_classes:
        raise InputError(
            f"the network has {model.description.num_classes:,} classes, {where} {len(names):,}; name all "
            "classes in the network's order: --classes FILE"
        )
    return names


def channel_statistics(model: ResidualNetwork, pixel_statistics: PixelStatistics) -> InputStatistics:
    """The normalisation as tensors. Raises `InputError` where the network has another number of channels."""
    channels = model.description.in_chans
    if len(pixel_statistics.mean) != channels:
        raise InputError(
            f"--mean and --std have {len(pixel_statistics.mean)} numbers, the network {channels} channels"
        )
    mean, scale = (
        torch.tensor(values).view(-1, 1, 1) for values in (pixel_statistics.mean, pixel_statistics.std)
    )
    return InputStatistics(mean, scale)
