"""The labelled images on which a trained network is evaluated, in its own channels, size and classes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from kilolayer.data import Data, Images, load, load_labelled
from kilolayer.data.labelled_images import LabelledImages, convert_channels
from kilolayer.data.loading import find_stored_dataset, open_source
from kilolayer.data.pictures.decoding import PixelFormat
from kilolayer.data.registry import DATASETS
from kilolayer.data.sources.classes import nfc
from kilolayer.data.sources.splits import name_roles
from kilolayer.errors import InputError
from kilolayer.system.folders import expand_home
from kilolayer.system.message_text import listing, quote

OWN_PARTS = ("test", "validation", "train", "all")


@dataclass(frozen=True)
class EvaluationSample:
    """Labelled images whose labels are indices of the network's classes.

    `name` and `part` say which data these are. `location` gives the place of image i in words. `notes` say in
    one line each what was used, converted and left out.
    """

    name: str
    part: str
    images: Images
    location: Callable[[int], str]
    notes: tuple[str, ...]


def is_same_place(source: str, data: Data) -> bool:
    """Whether `source` names the path of these data."""
    return _place(source) == _place(data.source)


def lies_within(source: str, data: Data) -> bool:
    """Whether `source` is a file or folder within the folder of these data."""
    return _place(source).startswith(os.path.join(_place(data.source), ""))


def _place(source: str) -> str:
    return source if source in DATASETS else os.path.realpath(expand_home(source))


def select_new_images(data: Data, part: str | None, grey: bool) -> tuple[LabelledImages, str]:
    """A part of any data, and its name. The default is `test` for digits and CIFAR, otherwise all."""
    part = part or ("all" if find_stored_dataset(data) is None else "test")
    return load_labelled(data, part, grey), part


def select_own_images(
    run_data: Data,
    part: str,
    format: PixelFormat,
    check: Callable[[str, Images], None] = lambda _part, _images: None,
) -> LabelledImages:
    """A part of the data that a run was trained on, split as in its training. Raises `InputError`.

    `format` is the network's; since it is known, no training image is read for the test set. `check` is
    called with the part and its images, and raises where they have changed.
    """
    grey = format.grey
    if len(purposes := name_roles(part)) == 1:  # val is validation
        (part,) = purposes
    if part not in OWN_PARTS:
        raise InputError(f"--part is {part!r}; allowed for a run's own data: {', '.join(OWN_PARTS)}")
    if part == "all":
        everything = load_labelled(run_data, "all", grey)
        return replace(
            everything, origin=(*everything.origin, "the network was trained on most of these images")
        )
    if part == "test":
        source = open_source(run_data, format)
        check(part, images := source.read_test())
        return convert_channels(
            LabelledImages(source.name, source.classes, images, (), partial(source.locate, part)), grey
        )
    splits = load(run_data)
    images = getattr(splits, part)
    if images is None:
        raise InputError(f"the run held out no validation images of {splits.name}; use --part test")
    check(part, images)
    return convert_channels(
        LabelledImages(splits.name, splits.classes, images, (), partial(splits.locate, part)), grey
    )


def match_classes(
    labelled: LabelledImages, part: str, classes: Sequence[str], *, skip_unknown: bool = False
) -> EvaluationSample:
    """The images with their labels as indices of `classes`, the network's.

    With `skip_unknown` images of other classes are left out.

    Raises:
        InputError: there are images of other classes.
    """
    classes = [*map(nfc, classes)]  # older runs on a Mac have decomposed Unicode names
    counts = torch.bincount(labelled.images.labels, minlength=len(labelled.classes)).tolist()
    present = {name: count for name, count in zip(labelled.classes, counts, strict=True) if count}
    numbers = {name: number for number, name in enumerate(classes)}
    unknown = {name: count for name, count in present.items() if name not in numbers}
    if unknown and (not skip_unknown or len(unknown) == len(present)):
        raise InputError(_unknown(unknown, present, classes))
    lookup = torch.tensor([numbers.get(name, -1) for name in labelled.classes])
    labels = lookup[labelled.images.labels]
    index = torch.nonzero(labels >= 0).flatten()
    places = index.tolist()
    relabelled = Images(labelled.images.pixels, labels)
    return EvaluationSample(
        labelled.name,
        part,
        relabelled[index] if unknown else relabelled,  # indexing would copy all pixels
        lambda i: labelled.locate(places[i]),
        (*labelled.origin, *_left_out(unknown), *_missing(present, classes)),
    )


def _unknown(unknown: dict[str, int], present: dict[str, int], classes: Sequence[str]) -> str:
    names = [f"{quote(name)} ({count:,} images)" for name, count in unknown.items()]
    if all(name.isdecimal() for name in unknown) and not any(name.isdecimal() for name in classes):
        hint = f"the data have numbers for names, the network has {listing([*map(quote, classes)], 5)}"
    elif len(unknown) == len(present):
        hint = f"the network's are {listing([*map(quote, classes)], 5)}"
    else:
        hint = "--skip-unknown-classes leaves them out"
    return (
        f"{len(unknown):,} of the data's {len(present):,} classes are not among the network's "
        f"{len(classes):,}: {listing(names, 5)}; {hint}"
    )


def _left_out(unknown: dict[str, int]) -> tuple[str, ...]:
    if not unknown:
        return ()
    names = listing([*map(quote, unknown)], 5)
    return (f"left out: {sum(unknown.values()):,} images of classes that the network does not know: {names}",)


def _missing(present: dict[str, int], classes: Sequence[str]) -> tuple[str, ...]:
    missing = [quote(name) for name in classes if name not in present]
    if not missing:
        return ()
    return (f"no image of {len(missing):,} of the network's {len(classes):,} classes: {listing(missing, 5)}",)
