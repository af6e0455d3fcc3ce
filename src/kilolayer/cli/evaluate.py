"""kilolayer evaluate: the errors of a trained network on labelled images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import OmitArgPrefixes

from kilolayer.cli.foreign_options import NO_FOREIGN, ForeignOptions
from kilolayer.cli.option_types import (
    Device,
    OptionalFile,
    OwnUnit,
    PrecisionChoice,
    RunOrWeights,
    Switch,
    Whole,
    check_positive,
)
from kilolayer.cli.options import EvaluationDataOptions, changed_flags
from kilolayer.errors import InputError
from kilolayer.system.printer import print_json


@dataclass(frozen=True)
class EvaluateOptions:
    """Measure a trained network: errors, loss, figures of each class, confusions.

    With --data it uses all labelled images there, whatever their splits.
    """

    trained: RunOrWeights
    """A run's folder, or a weights file (which needs --data)."""
    html: OptionalFile = None
    """Write a page too: the confusion matrix, each class, and the most confident mistakes as images."""
    predictions: Switch = False
    """Keep the prediction for every image of the run's test set in its folder, as training does now."""
    json: Switch = False
    """Print JSON."""
    unit: OwnUnit = None
    """The FILE.py that defines the network's unit. Its code runs."""
    batch_size: Whole = 256
    """Images in one batch."""
    device: Device = "auto"
    """auto (the first GPU, or else the CPU), cpu, cuda or cuda:1."""
    precision: PrecisionChoice = "auto"
    """auto is the run's own precision, and fp32 for a weights file."""
    images: OmitArgPrefixes[EvaluationDataOptions] = EvaluationDataOptions()  # noqa: RUF009 - frozen
    foreign: OmitArgPrefixes[ForeignOptions] = NO_FOREIGN


def execute(options: EvaluateOptions) -> int:
    """Evaluates the network, writes the page, and prints the result."""
    _check(options)
    from kilolayer.cli.evaluation_input import network_and_sample
    from kilolayer.report.evaluation_text import evaluation_json, print_evaluation
    from kilolayer.runs.evaluation_result import evaluate_sample, keep_predictions

    network, sample = network_and_sample(options.trained, options.images, options.foreign)
    measurement = evaluate_sample(network, sample, options.device, options.precision, options.batch_size)
    if options.predictions:
        keep_predictions(options.trained, measurement)
    if options.html is not None:
        from kilolayer.report.evaluation_page import write_evaluation_page

        write_evaluation_page(measurement, options.trained, Path(options.html))
    if options.json:
        print_json(evaluation_json(measurement), indent=None)
    else:
        print_evaluation(measurement, page=options.html)
    return 0


def _check(options: EvaluateOptions) -> None:
    check_positive(options, "batch_size")
    if options.predictions and (
        not (Path(options.trained) / "config.json").is_file()
        or next(changed_flags(options.images), None) is not None
    ):
        raise InputError(
            "--predictions keeps those of a run's own test set in the run's folder; give a run, and leave "
            "out the options for other images"
        )
    if options.html is not None:
        from kilolayer.report.extra import check_installed
        from kilolayer.system import durable

        check_installed()
        durable.check_writable(Path(options.html))
