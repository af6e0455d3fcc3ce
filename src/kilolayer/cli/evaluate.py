"""kilolayer evaluate: the errors of a trained network on labelled images."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes

from kilolayer.cli.foreign_options import NO_FOREIGN, ForeignOptions
from kilolayer.cli.option_types import (
    NO_DEFAULT_SHOWN,
    Device,
    OptionalColumn,
    OptionalFile,
    OptionalFolder,
    OptionalText,
    OptionalWhole,
    OwnUnit,
    PrecisionChoice,
    RunOrWeights,
    Switch,
    Whole,
    choice_option,
)
from kilolayer.data.config import Appearance, Normalization
from kilolayer.errors import InputError


@dataclass(frozen=True)
class EvaluateOptions:
    """Measure a trained network: errors, loss, figures of each class, confusions.

    With --data it uses all labelled images there, whatever their splits.
    """

    trained: RunOrWeights
    """A run's folder, or a weights file (which needs --data)."""
    data: OptionalText = None
    """{DATASETS} or a PATH with labelled images; otherwise the run's own test set."""
    part: OptionalText = None
    """test, validation, train, another SPLIT of the data, or all. Otherwise test for digits, CIFAR and the
    run's own data, and all for other data."""
    html: OptionalFile = None
    """Write a page too: the confusion matrix, each class, and the most confident mistakes as images."""
    json: Switch = False
    """Print JSON."""
    unit: OwnUnit = None
    """The FILE.py that defines the network's unit. Its code runs."""
    skip_unknown_classes: Switch = False
    """Leave out images of classes that the network does not have; otherwise they are an error."""
    skip_damaged: Switch = False
    """Leave out images that cannot be read; otherwise they are an error."""
    image_size: OptionalWhole = None
    """Resize to this many pixels a side; otherwise the network's own size."""
    appearance: Annotated[Appearance | None, choice_option("shown", "stored"), NO_DEFAULT_SHOWN] = None
    """Read images as a viewer shows them, or as the file stores them; otherwise as the run was trained, and
    as shown for a weights file."""
    image_column: OptionalColumn = None
    """Parquet's column of images, where its name is unusual."""
    label_column: OptionalColumn = None
    """Parquet's column of labels, where its name is unusual."""
    data_folder: OptionalFolder = None
    """Where {DOWNLOADS} lie; otherwise $KILOLAYER_DATA or ~/.cache/kilolayer."""
    download: Switch = False
    """Fetch {DOWNLOAD} where it is missing."""
    batch_size: Whole = 256
    """Images in one batch."""
    device: Device = "auto"
    """auto (the first GPU, or else the CPU), cpu, cuda or cuda:1."""
    precision: PrecisionChoice = "auto"
    """auto is the run's own precision, and fp32 for a weights file."""
    foreign: OmitArgPrefixes[ForeignOptions] = NO_FOREIGN
    normalization: Annotated[Normalization, choice_option("channel", "per_pixel_mean")] = "channel"
    """With --model and without --mean: how to normalise pixels by the statistics of the training images."""


def execute(options: EvaluateOptions) -> int:
    """Evaluates the network, writes the page, and prints the result."""
    _check(options)
    from kilolayer.cli.evaluation_input import network_and_sample
    from kilolayer.report.evaluation_text import evaluation_json, print_evaluation
    from kilolayer.runs.evaluation_result import evaluate_sample

    network, sample = network_and_sample(options)
    measurement = evaluate_sample(network, sample, options.device, options.precision, options.batch_size)
    if options.html is not None:
        from kilolayer.report.evaluation_page import write_evaluation_page

        write_evaluation_page(measurement, options.trained, Path(options.html))
    if options.json:
        print(json.dumps(evaluation_json(measurement)))
    else:
        print_evaluation(measurement, page=options.html)
    return 0


def _check(options: EvaluateOptions) -> None:
    if options.batch_size < 1:
        raise InputError(f"--batch-size is {options.batch_size}; allowed: a whole number from 1")
    if options.html is not None:
        from kilolayer.report.extra import check_installed
        from kilolayer.system import durable

        check_installed()
        durable.check_writable(Path(options.html))
