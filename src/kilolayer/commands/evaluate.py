"""kilolayer evaluate: the errors of a trained network on a data set."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from kilolayer.commands.flags import (
    Device,
    OptionalFolder,
    OptionalName,
    OptionalText,
    OptionalWhole,
    PrecisionChoice,
    Switch,
    Trained,
    Whole,
    choice,
)
from kilolayer.data.describe import Normalization
from kilolayer.errors import InputError
from kilolayer.networks import describe

if TYPE_CHECKING:
    from kilolayer.commands.trained import Trained as Network
    from kilolayer.data import Data, Images, Splits
    from kilolayer.training import Evaluation

Split = Literal["test", "validation", "train"]
MOST_CLASSES = 20


@dataclass(frozen=True)
class Evaluate:
    """Measure a trained network: top-1 and top-5 error, loss, and each class."""

    trained: Trained
    """A run's folder, or a weights file (which needs --data)."""
    data: OptionalText = None
    """digits, cifar10, cifar100 or a PATH; otherwise the run's own data."""
    model: OptionalName = None
    """The network of a weights file that says nothing of it: a state dict in our names, from torch.save or
    safetensors. Its classes are taken to be the data's, in their order."""
    normalization: Annotated[Normalization, choice("channel", "per_pixel_mean")] = "channel"
    """With --model: how pixels are normalised, by figures of the data's training images."""
    image_size: OptionalWhole = None
    """Resize to this many pixels a side; otherwise the network's own size."""
    data_folder: OptionalFolder = None
    """Where cifar10 and cifar100 lie; otherwise $KILOLAYER_DATA or ~/.cache/kilolayer."""
    download: Switch = False
    """Fetch cifar10 or cifar100 where it is missing."""
    split: Annotated[Split, choice("test", "validation", "train")] = "test"
    """Which images."""
    batch_size: Whole = 256
    """Images at a time."""
    device: Device = "auto"
    """auto (the first GPU, or else the CPU), cpu, cuda or cuda:1."""
    precision: PrecisionChoice = "auto"
    """auto is the run's own, and fp32 for a weights file."""
    json: Switch = False
    """Print JSON."""


def evaluate(options: Evaluate) -> int:
    """Measures and prints."""
    if options.batch_size < 1:
        raise InputError(f"--batch-size is {options.batch_size}; allowed: a whole number from 1")
    network, splits = _found(options)
    measured = _measured(options, network, _labelled(options, network, splits))
    if not math.isfinite(measured.loss):
        raise InputError(f"{options.trained} gives output that is not finite; its figures would mean nothing")
    title = f"{options.split} images of {splits.name}"
    if options.json:
        print(json.dumps({"data": splits.name, "split": options.split, **asdict(measured)}))
    else:
        _print(title, measured, network.weights.classes)
    return 0


def _found(options: Evaluate) -> tuple[Network, Splits]:
    from kilolayer.commands.trained import stranger, trained
    from kilolayer.data import Data, load

    if options.model is None:
        try:
            network = trained(options.trained)
        except InputError as error:
            hint = "; for a file of others add --model NAME" if Path(options.trained).is_file() else ""
            raise InputError(f"{error}{hint}") from None
        return network, load(_data(options, network))
    if options.data is None:
        raise InputError("--model is for a weights file, which names no data; add --data")
    named = describe(options.model)
    size = options.image_size or named.image_size
    splits = load(Data(options.data, options.data_folder, options.download, size))
    return stranger(options.trained, named, splits, options.normalization), splits


def _data(options: Evaluate, network: Network) -> Data:
    """The run's own data, or those asked for in the network's image size."""
    from kilolayer.data.describe import Data

    own = network.experiment.data if network.experiment else None
    if options.data is None:
        if own is None:
            raise InputError(f"{options.trained} is a weights file, which names no data; add --data")
        folder, size = options.data_folder or own.folder, options.image_size or own.image_size
        return replace(own, folder=folder, download=options.download, image_size=size)
    size = options.image_size or network.weights.model.description.image_size
    data = Data(options.data, options.data_folder, options.download, size)
    same = own is not None and options.data == own.source
    return replace(data, validation=own.validation, split_seed=own.split_seed) if own and same else data


def _labelled(options: Evaluate, network: Network, splits: Splits) -> Images:
    """The images of the split, their labels those of the network's classes. Raises `InputError`."""
    import torch

    from kilolayer.data import Images

    images = getattr(splits, options.split)
    if images is None:
        raise InputError(f"{splits.name} has no validation images here: none were held out; use --split test")
    _check_channels(network, images.pixels.shape[1])
    classes = network.weights.classes
    unknown = [name for name in splits.classes if name not in classes]
    if unknown:
        raise InputError(
            f"{len(unknown)} of the data's {splits.num_classes} classes are none of the network's "
            f"{len(classes)}: {', '.join(map(repr, unknown[:5]))}{' …' if len(unknown) > 5 else ''}"
        )
    numbers = torch.tensor([classes.index(name) for name in splits.classes])
    return Images(images.pixels, numbers[images.labels])


def _check_channels(network: Network, channels: int) -> None:
    expected = network.weights.model.description.in_chans
    if channels != expected:
        raise InputError(f"the network reads images of {expected} channels, the data have {channels}")


def _measured(options: Evaluate, network: Network, images: Images) -> Evaluation:
    from kilolayer.training import Place, choose_device, choose_precision
    from kilolayer.training import evaluate as measure

    device = choose_device(options.device)
    own = network.experiment
    precision = choose_precision(options.precision, device)
    if options.precision == "auto":
        precision = own.precision if own else "fp32"
    measured = measure(
        network.weights.model.to(device),
        images,
        network.weights.statistics,
        place=Place(device),
        num_classes=len(network.weights.classes),
        batch_size=options.batch_size,
        precision=precision,
        channels_last=bool(own and own.channels_last),
        evaluation=own.evaluation if own else "plain",
    )
    assert measured is not None  # noqa: S101 - only a stop gives none
    return measured


def _print(title: str, measured: Evaluation, classes: tuple[str, ...]) -> None:
    from kilolayer.report.content import Table
    from kilolayer.terminal import say, show_table

    say(f"{measured.images:,} {title}")
    errors = f"top-1 error {measured.error:.2f} %, top-5 error {measured.top5_error:.2f} %"
    say(f"{errors}, loss {measured.loss:.4f}\n")
    rows = [(name, *each) for name, each in zip(classes, measured.class_errors(), strict=True) if each[0]]
    if len(rows) > MOST_CLASSES:
        rows = sorted(rows, key=lambda row: -row[2])[:MOST_CLASSES]
        say(f"the {MOST_CLASSES} worst of {len(classes):,} classes (all with --json):")
    cells = tuple((name, f"{count:,}", f"{error:.1f} %") for name, count, error in rows)
    show_table(Table("", ("class", "images", "error"), cells))


def _plain(name: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in name)
