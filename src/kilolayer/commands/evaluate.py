"""kilolayer evaluate: the errors of a trained network on labelled images."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes

from kilolayer.commands.flags import (
    SAID,
    Device,
    OptionalColumn,
    OptionalFile,
    OptionalFolder,
    OptionalText,
    OptionalWhole,
    OwnUnit,
    PrecisionChoice,
    Switch,
    Trained,
    Whole,
    choice,
)
from kilolayer.commands.foreign_options import NO_FOREIGN, ForeignOptions
from kilolayer.data.describe import Appearance, Normalization
from kilolayer.errors import InputError


@dataclass(frozen=True)
class Evaluate:
    """Measure a trained network: errors, loss, each class, what is taken for what.

    With --data all labelled images there count, whatever their splits.
    """

    trained: Trained
    """A run's folder, or a weights file (which needs --data)."""
    data: OptionalText = None
    """digits, cifar10, cifar100 or a PATH with labelled images; otherwise the run's own test set."""
    part: OptionalText = None
    """test, validation, train, another SPLIT that the data have, or all. Otherwise test for digits, CIFAR and
    the run's own data, and all for other data."""
    html: OptionalFile = None
    """Write a page too: confusion matrix, each class, the most confident mistakes as pictures."""
    json: Switch = False
    """Print JSON."""
    unit: OwnUnit = None
    """FILE.py that the network's own kind of unit is from. Its code runs."""
    skip_unknown_classes: Switch = False
    """Leave out images of classes that the network does not have; otherwise they are refused."""
    skip_damaged: Switch = False
    """Leave out images that cannot be read; otherwise they are refused."""
    image_size: OptionalWhole = None
    """Resize to this many pixels a side; otherwise the network's own size."""
    appearance: Annotated[Appearance | None, choice("shown", "stored"), SAID] = None
    """Pictures as a viewer shows them, or as the file stores them; otherwise as the run was trained, and
    shown for a weights file."""
    image_column: OptionalColumn = None
    """Parquet's column of images, where its name is unusual."""
    label_column: OptionalColumn = None
    """Parquet's column of labels, where its name is unusual."""
    data_folder: OptionalFolder = None
    """Where cifar10 and cifar100 lie; otherwise $KILOLAYER_DATA or ~/.cache/kilolayer."""
    download: Switch = False
    """Fetch cifar10 or cifar100 where it is missing."""
    batch_size: Whole = 256
    """Images at a time."""
    device: Device = "auto"
    """auto (the first GPU, or else the CPU), cpu, cuda or cuda:1."""
    precision: PrecisionChoice = "auto"
    """auto is the run's own, and fp32 for a weights file."""
    foreign: OmitArgPrefixes[ForeignOptions] = NO_FOREIGN
    normalization: Annotated[Normalization, choice("channel", "per_pixel_mean")] = "channel"
    """With --model and without --mean: how pixels are normalised, by figures of the training images."""
    split: OptionalText = None
    """The old name of --part."""


def evaluate(options: Evaluate) -> int:
    """Measures, writes the page, and prints."""
    options = _checked(options)
    from kilolayer.commands.evaluation_input import network_and_sample
    from kilolayer.commands.evaluation_output import as_json, print_text
    from kilolayer.commands.measurement import measure

    network, sample = network_and_sample(options)
    measurement = measure(network, sample, options.device, options.precision, options.batch_size)
    if options.html is not None:
        from kilolayer.commands.evaluation_page import write_page

        write_page(measurement, options.trained, Path(options.html))
    if options.json:
        print(json.dumps(as_json(measurement)))
    else:
        print_text(measurement, page=options.html)
    return 0


def _checked(options: Evaluate) -> Evaluate:
    if options.batch_size < 1:
        raise InputError(f"--batch-size is {options.batch_size}; allowed: a whole number from 1")
    if options.html is not None:
        from kilolayer import durable
        from kilolayer.report.optional import check_installed

        check_installed()
        durable.check_place(Path(options.html))
    if options.split is None:
        return options
    if options.part is not None:
        raise InputError("--split is the old name of --part; give only --part")
    print("--split is now called --part", file=sys.stderr)
    return replace(options, part=options.split)
