"""The network and the labelled images that the options of `kilolayer evaluate` name."""

from __future__ import annotations

import os
import shlex
from dataclasses import replace
from pathlib import Path

from kilolayer.cli.foreign_options import ForeignOptions
from kilolayer.cli.foreign_weights import build_foreign_network, channel_statistics, check_class_names
from kilolayer.cli.options import EvaluationDataOptions
from kilolayer.data import Data, Images, LabelledImages, load_labelled, measure_statistics
from kilolayer.data.evaluation_sample import (
    EvaluationSample,
    is_same_place,
    lies_within,
    match_classes,
    select_new_images,
    select_own_images,
)
from kilolayer.data.loading import open_source
from kilolayer.data.pictures.decoding import PixelFormat
from kilolayer.data.registry import DATASETS
from kilolayer.data.sources.class_folders import FOLDER_ADVICE
from kilolayer.errors import InputError
from kilolayer.runs import SavedNetwork
from kilolayer.runs.data_record import PART_TITLES, check_same_part
from kilolayer.runs.trained_network import TrainedNetwork, open_trained
from kilolayer.system.folders import expand_home
from kilolayer.system.message_text import quote
from kilolayer.units.extensions import UnitFileError

UNKNOWN_TRAINING = "a weights file does not name its training data: training images may be among these"
NOT_NOTED = "the run has no record of its {}: we cannot tell whether it has changed since"
SAME_CLASSES = "these have the run's classes: if its training images are among them, the error is too low"
WITHIN_OWN = "these lie within the run's data: its training images may be among them"


def network_and_sample(
    path: str, options: EvaluationDataOptions, foreign: ForeignOptions
) -> tuple[TrainedNetwork, EvaluationSample]:
    """The network at `path`, and the images that the options name. Raises `InputError`."""
    if foreign.model is not None:
        return _read_foreign(path, options, foreign, foreign.model)
    foreign.check_unused()
    try:
        network = open_trained(path)
    except UnitFileError:
        raise
    except InputError as error:
        hint = "; for weights from elsewhere add --model NAME" if Path(path).is_file() else ""
        raise InputError(f"{error}{hint}") from None
    return network, _sample(options, network)


def _sample(options: EvaluationDataOptions, network: TrainedNetwork) -> EvaluationSample:
    weights, run_data = network.weights, network.experiment.data if network.experiment else None
    if run_data is not None and options.data is None:
        _check_there(run_data, network.name)
    grey = weights.model.description.in_chans == 1
    if run_data is not None and (options.data is None or is_same_place(options.data, run_data)):
        labelled, part = _own_images(options, run_data, network)
    elif run_data is not None and options.part != "all" and _is_moved(options, run_data, network):
        labelled, part = _own_images(options, run_data, network)
        note = "the run's test set is in these data, so they are split as the run's (--part all takes all)"
        labelled = replace(labelled, origin=(*labelled.origin, note))
    else:
        size = options.image_size or weights.model.description.image_size
        labelled, part = _new_images(
            network.name, options, _data(network.name, options, size, run_data), grey
        )
        if run_data is None and part == "all":
            labelled = replace(labelled, origin=(*labelled.origin, UNKNOWN_TRAINING))
        if run_data is not None and lies_within(str(options.data), run_data):
            labelled = replace(labelled, origin=(*labelled.origin, WITHIN_OWN))
        elif (
            run_data is not None
            and run_data.source not in DATASETS
            and {*labelled.classes} == {*weights.classes}
        ):
            labelled = replace(labelled, origin=(*labelled.origin, SAME_CLASSES))
    return match_classes(labelled, part, weights.classes, skip_unknown=options.skip_unknown_classes)


def _new_images(
    path: str, options: EvaluationDataOptions, data: Data, grey: bool
) -> tuple[LabelledImages, str]:
    try:
        return select_new_images(data, options.part, grey)
    except InputError as error:
        words = shlex.join(["kilolayer", "predict", path, data.source])
        hint = f"; for images without labels: {words}" if FOLDER_ADVICE in str(error) else ""
        raise InputError(f"{error}{hint}") from None


def _check_there(run_data: Data, name: str) -> None:
    if run_data.source not in DATASETS and not os.path.exists(expand_home(run_data.source)):
        raise InputError(
            f"the data of {name}, {quote(run_data.source)}, do not exist; name their new place: --data PATH"
        )


def _is_moved(options: EvaluationDataOptions, run_data: Data, network: TrainedNetwork) -> bool:
    """Whether the run's data have moved to this path; the run was trained on most of these images."""
    test_set = network.fingerprints.get(PART_TITLES["test"])
    moved_data = _as_trained(_own_data(options, run_data), run_data)
    if test_set is None or moved_data.source in DATASETS:
        return False
    try:
        source = open_source(moved_data, _format(moved_data, network))
        return source.read_test().fingerprint() == test_set
    except InputError:
        return False


def _format(data: Data, network: TrainedNetwork) -> PixelFormat:
    """The size and channels of the images that the network was trained on, or the size that is asked for."""
    description = network.weights.model.description
    return PixelFormat(data.image_size or description.image_size, description.in_chans == 1)


def _own_images(
    options: EvaluationDataOptions, run_data: Data, network: TrainedNetwork
) -> tuple[LabelledImages, str]:
    """A part of the run's data, which must not have changed since the run began; and the part's name."""
    data, noted = _own_data(options, run_data), network.fingerprints
    trained_on = _as_trained(data, run_data)

    def check(part: str, images: Images) -> None:
        check_same_part(network.name, part, images, noted)

    part = options.part or "test"
    labelled = select_own_images(trained_on, part, _format(trained_on, network), check)
    if data != trained_on:  # fingerprints differ with size and appearance
        labelled = select_own_images(data, part, _format(data, network))
    if run_data.source not in DATASETS and part in PART_TITLES and PART_TITLES[part] not in noted:
        labelled = replace(labelled, origin=(*labelled.origin, NOT_NOTED.format(PART_TITLES[part])))
    return labelled, part


def _as_trained(data: Data, run_data: Data) -> Data:
    return replace(data, image_size=run_data.image_size, appearance=run_data.appearance)


def _own_data(options: EvaluationDataOptions, run_data: Data) -> Data:
    return replace(
        run_data,
        source=options.data or run_data.source,
        folder=options.data_folder or run_data.folder,
        download=options.download,
        image_size=options.image_size or run_data.image_size,
        skip_damaged=options.skip_damaged or run_data.skip_damaged,
        appearance=options.appearance or run_data.appearance,
        image_column=options.image_column or run_data.image_column,
        label_column=options.label_column or run_data.label_column,
    )


def _data(path: str, options: EvaluationDataOptions, size: int, run_data: Data | None = None) -> Data:
    if options.data is None:
        raise InputError(f"{path} is a weights file, which names no data; add --data")
    appearance = options.appearance or (run_data.appearance if run_data else "shown")
    return Data(
        options.data,
        options.data_folder,
        options.download,
        size,
        skip_damaged=options.skip_damaged,
        appearance=appearance,
        image_column=options.image_column,
        label_column=options.label_column,
    )


def _read_foreign(
    path: str, options: EvaluationDataOptions, foreign: ForeignOptions, name: str
) -> tuple[TrainedNetwork, EvaluationSample]:
    """The network of a weights file without metadata; missing options are filled in from the data."""
    if options.data is None:
        raise InputError("--model is for a weights file, which names no data; add --data")
    pixel_statistics, names = foreign.pixel_statistics(), foreign.class_names()
    model = build_foreign_network(path, name, options.image_size)
    grey = model.description.in_chans == 1
    data = _data(path, options, model.description.image_size)
    labelled, part = _new_images(path, options, data, grey)
    notes = [] if names else ["we assume that the network has the data's classes, in their order (--classes)"]
    classes = check_class_names(model, names or labelled.classes, "--classes" if names else "the data")
    if pixel_statistics is not None:
        normalization = channel_statistics(model, pixel_statistics)
    else:
        training = _training_images(data, grey)
        whose = "these images" if training is None else "the data's training images"
        normalization = measure_statistics(
            labelled.images if training is None else training, options.normalization
        )
        notes.append(f"the network's input is normalised by the statistics of {whose} (--mean, --std)")
    measured = replace(labelled, origin=(*labelled.origin, *notes))
    weights = SavedNetwork(model, classes, normalization)
    chosen = match_classes(measured, part, classes, skip_unknown=options.skip_unknown_classes)
    return TrainedNetwork(path, weights), chosen


def _training_images(data: Data, grey: bool) -> Images | None:
    """The data's training images; None where the data have no training split."""
    try:
        return load_labelled(data, "train", grey).images
    except InputError:
        return None
