"""kilolayer predict: the classes that a trained network predicts for images."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes

from kilolayer.cli.foreign_options import NO_FOREIGN, ForeignOptions
from kilolayer.cli.option_types import (
    NO_DEFAULT_SHOWN,
    Device,
    ImageFiles,
    OptionalCsv,
    OptionalWhole,
    OwnUnit,
    RunOrWeights,
    Switch,
    Whole,
    check_positive,
    choice_option,
)
from kilolayer.data.config import Appearance
from kilolayer.errors import InputError
from kilolayer.networks.description import MAX_IMAGE_SIZE

if TYPE_CHECKING:
    from kilolayer.runs import SavedNetwork
    from kilolayer.runs.file_predictions import FilePrediction


@dataclass(frozen=True)
class PredictOptions:
    """Predict the classes of images, with probabilities.

    Images are files, folders with everything below them, and patterns: 'in/**/*.jpg'.

    Files that cannot be read are listed, and the other images are predicted.

    Exit status: 0 all images predicted, 1 some cannot be read, 2 no image predicted.
    """

    trained: RunOrWeights
    """A run's folder, or a weights file."""
    images: ImageFiles = ()
    """Files, folders and patterns: JPEG, PNG and other common formats."""
    top: Whole = 3
    """How many classes to print, the most probable first."""
    csv: OptionalCsv = None
    """Write a table with path, class, probability, class_2, probability_2, … and error, to standard output or
    to a file whose name ends in .csv."""
    json: Switch = False
    """Print JSON."""
    unit: OwnUnit = None
    """FILE.py that the network's own kind of unit is from. Its code runs."""
    image_size: OptionalWhole = None
    """Resize to this many pixels a side; otherwise the network's own size."""
    appearance: Annotated[Appearance | None, choice_option("shown", "stored"), NO_DEFAULT_SHOWN] = None
    """Read images as a viewer shows them, or as the file stores them; otherwise as the run was trained, and
    as shown for a weights file."""
    foreign: OmitArgPrefixes[ForeignOptions] = NO_FOREIGN
    device: Device = "auto"
    """auto (the first GPU, or else the CPU), cpu, cuda or cuda:1."""


def execute(options: PredictOptions) -> int:
    """Classifies the images and writes the predictions. The status is 1 where a file cannot be read."""
    from kilolayer.data.picture_files import find_picture_files
    from kilolayer.report.prediction_formats import UnpredictedFiles
    from kilolayer.runs.file_predictions import image_form, predict_files
    from kilolayer.system.progress_line import track

    _check(options)
    weights, appearance = _trained(options)
    form = image_form(weights, options.image_size)
    write = _writer(options, len(weights.classes))
    files = find_picture_files(options.images)
    unpredicted = UnpredictedFiles()
    title = "" if _prints_to_reader(options) else "predicting"
    answers = predict_files(
        weights, files, form, options.top, options.appearance or appearance, options.device
    )
    write(unpredicted.record(track(((1, prediction) for prediction in answers), len(files), title)))
    unpredicted.print_summary(len(files))
    return 1 if unpredicted.unreadable else 0


def _prints_to_reader(options: PredictOptions) -> bool:
    """Whether predictions may be printed on a terminal, directly or through a pipe: a bar would mix with
    them."""
    if options.csv not in (None, "-"):
        return False
    try:
        return sys.stdout.isatty() or stat.S_ISFIFO(os.fstat(sys.stdout.fileno()).st_mode)
    except OSError:  # in a notebook standard output is no file
        return True


def _check(options: PredictOptions) -> None:
    from kilolayer.report.prediction_formats import check_csv

    if not options.images:
        raise InputError("no image given: kilolayer predict RUN_OR_WEIGHTS IMAGE...")
    check_positive(options, "top")
    if options.image_size is not None and not 1 <= options.image_size <= MAX_IMAGE_SIZE:
        raise InputError(
            f"--image-size is {options.image_size}; allowed: a whole number from 1 to {MAX_IMAGE_SIZE:,}"
        )
    if options.csv is not None and options.json:
        raise InputError("--csv and --json exclude each other; give one of them")
    if options.csv is not None:
        check_csv(options.csv)


def _trained(options: PredictOptions) -> tuple[SavedNetwork, Appearance]:
    """The network, and the appearance of the images that it was trained on, which only a run records."""
    from kilolayer.cli.foreign_weights import load_foreign_weights
    from kilolayer.runs.trained_network import open_trained

    if options.foreign.model is not None:
        return load_foreign_weights(options.trained, options.foreign), "shown"
    options.foreign.check_unused()
    network = open_trained(options.trained)
    return network.weights, network.experiment.data.appearance if network.experiment else "shown"


def _writer(options: PredictOptions, classes: int) -> Callable[[Iterable[FilePrediction]], None]:
    from kilolayer.report.prediction_formats import write_csv, write_json, write_text

    if options.csv is not None:
        return partial(write_csv, name=options.csv, columns=min(options.top, classes))
    return write_json if options.json else write_text
