"""The network and the labelled images that `kilolayer evaluate` is asked to measure."""

from __future__ import annotations

import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kilolayer.commands.foreign_weights import foreign_network, named, statistics
from kilolayer.commands.sample import Sample, is_place, lies_within, new_images, own_images, sample
from kilolayer.commands.trained import Trained, trained
from kilolayer.data import Data, Images, Labelled, load_labelled, measure
from kilolayer.data.describe import BUILT_IN
from kilolayer.data.folder import REMEDY
from kilolayer.data.loading import find
from kilolayer.data.wording import quoted
from kilolayer.errors import InputError
from kilolayer.folders import expand
from kilolayer.runs import Weights
from kilolayer.runs.dataset import PARTS, check_part

if TYPE_CHECKING:
    from kilolayer.commands.evaluate import Evaluate

UNKNOWN_TRAINING = "a weights file does not say what it was trained on: images of that would count here too"
NOT_NOTED = "the run did not note what its {} was: whether that has changed since cannot be told"
ALIKE = "these have the run's classes: any pictures among them that it was trained on make the error too low"
WITHIN_OWN = "these lie within the data of the run: images that it was trained on may count here too"


def network_and_sample(options: Evaluate) -> tuple[Trained, Sample]:
    """What `options` name. Raises `InputError`."""
    if options.foreign.model is not None:
        return _read_foreign(options, options.foreign.model)
    options.foreign.check_unused()
    try:
        network = trained(options.trained)
    except InputError as error:
        hint = "; for a file of others add --model NAME" if Path(options.trained).is_file() else ""
        raise InputError(f"{error}{hint}") from None
    return network, _sample(options, network)


def _sample(options: Evaluate, network: Trained) -> Sample:
    weights, own = network.weights, network.experiment.data if network.experiment else None
    if own is not None and options.data is None:
        _check_there(own, network.name)
    grey = weights.model.description.in_chans == 1
    if own is not None and (options.data is None or is_place(options.data, own)):
        labelled, part = _own_images(options, own, network, grey)
    elif own is not None and options.part != "all" and _is_moved(options, own, network):
        labelled, part = _own_images(options, own, network, grey)
        note = "the run's test set is in these data, so they are split as the run's (--part all takes all)"
        labelled = replace(labelled, origin=(*labelled.origin, note))
    else:
        size = options.image_size or weights.model.description.image_size
        labelled, part = _new_images(options, _data(options, size, own), grey)
        if own is None and part == "all":
            labelled = replace(labelled, origin=(*labelled.origin, UNKNOWN_TRAINING))
        if own is not None and lies_within(str(options.data), own):
            labelled = replace(labelled, origin=(*labelled.origin, WITHIN_OWN))
        elif own is not None and own.source not in BUILT_IN and {*labelled.classes} == {*weights.classes}:
            labelled = replace(labelled, origin=(*labelled.origin, ALIKE))
    return sample(labelled, part, weights.classes, skip_unknown=options.skip_unknown_classes)


def _new_images(options: Evaluate, data: Data, grey: bool) -> tuple[Labelled, str]:
    try:
        return new_images(data, options.part, grey)
    except InputError as error:
        words = shlex.join(["kilolayer", "predict", options.trained, data.source])
        hint = f"; for pictures without labels: {words}" if REMEDY in str(error) else ""
        raise InputError(f"{error}{hint}") from None


def _check_there(own: Data, name: str) -> None:
    if own.source not in BUILT_IN and not os.path.exists(expand(own.source)):
        raise InputError(
            f"the data of {name}, {quoted(own.source)}, are not there; --data PATH says where they lie now"
        )


def _is_moved(options: Evaluate, own: Data, network: Trained) -> bool:
    """Whether the run's data lie at this other place: most of those images it was trained on."""
    test_set = network.fingerprints.get(PARTS["test"])
    there = _as_trained(_own_data(options, own), own)
    if test_set is None or there.source in BUILT_IN:
        return False
    try:
        return find(there).read_test().fingerprint() == test_set
    except InputError:
        return False


def _own_images(options: Evaluate, own: Data, network: Trained, grey: bool) -> tuple[Labelled, str]:
    """A part of the run's data, which must be what it was when the run began; and the part's name."""
    data, noted = _own_data(options, own), network.fingerprints
    trained_on = _as_trained(data, own)

    def check(part: str, images: Images) -> None:
        check_part(network.name, part, images, noted)

    part = options.part or "test"
    labelled = own_images(trained_on, part, grey, check)
    if data != trained_on:  # another size or appearance has other fingerprints
        labelled = own_images(data, part, grey)
    if own.source not in BUILT_IN and part in PARTS and PARTS[part] not in noted:
        labelled = replace(labelled, origin=(*labelled.origin, NOT_NOTED.format(PARTS[part])))
    return labelled, part


def _as_trained(data: Data, own: Data) -> Data:
    return replace(data, image_size=own.image_size, appearance=own.appearance)


def _own_data(options: Evaluate, own: Data) -> Data:
    return replace(
        own,
        source=options.data or own.source,
        folder=options.data_folder or own.folder,
        download=options.download,
        image_size=options.image_size or own.image_size,
        skip_damaged=options.skip_damaged or own.skip_damaged,
        appearance=options.appearance or own.appearance,
        image_column=options.image_column or own.image_column,
        label_column=options.label_column or own.label_column,
    )


def _data(options: Evaluate, size: int, own: Data | None = None) -> Data:
    if options.data is None:
        raise InputError(f"{options.trained} is a weights file, which names no data; add --data")
    appearance = options.appearance or (own.appearance if own else "shown")
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


def _read_foreign(options: Evaluate, name: str) -> tuple[Trained, Sample]:
    """The network of a file that says nothing of it; what is not given of it is taken from the data."""
    if options.data is None:
        raise InputError("--model is for a weights file, which names no data; add --data")
    given, names = options.foreign.statistics(), options.foreign.class_names()
    model = foreign_network(options.trained, name, options.image_size)
    grey = model.description.in_chans == 1
    data = _data(options, model.description.image_size)
    labelled, part = _new_images(options, data, grey)
    notes = [] if names else ["the network's classes are taken to be the data's, in their order (--classes)"]
    classes = named(model, names or labelled.classes, "--classes" if names else "the data")
    if given is not None:
        normalization = statistics(model, given)
    else:
        training = _training_images(data, grey)
        whose = "these images" if training is None else "the data's training images"
        normalization = measure(labelled.images if training is None else training, options.normalization)
        notes.append(f"the network's input is normalised by figures of {whose} (--mean, --std)")
    measured = replace(labelled, origin=(*labelled.origin, *notes))
    weights = Weights(model, classes, normalization)
    taken = sample(measured, part, classes, skip_unknown=options.skip_unknown_classes)
    return Trained(options.trained, weights), taken


def _training_images(data: Data, grey: bool) -> Images | None:
    """None where the data have no training part of their own."""
    try:
        return load_labelled(data, "train", grey).images
    except InputError:
        return None
