"""Turns labelled pictures into a data set, and checks classes and sizes, wherever the pictures come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from kilolayer.data.config import Data
from kilolayer.data.images import Images, Source
from kilolayer.data.pictures.decoding import (
    EncodedPictures,
    Header,
    PixelFormat,
    Unreadable,
    decode,
    refuse_unusable,
    unusable_pictures,
)
from kilolayer.data.pictures.inspection import (
    InspectedPicture,
    inspect_pictures,
    read_headers,
)
from kilolayer.data.pictures.rendering import AS_STORED, TraitCounts
from kilolayer.data.randomness import random_permutation
from kilolayer.data.sources.cifar_files import CIFAR10_CLASSES
from kilolayer.data.sources.classes import NamedPictures, join_pictures, merge_class_names, name_notes
from kilolayer.data.sources.splits import Assignment, SourceLayout, Split
from kilolayer.errors import InputError
from kilolayer.system.memory_limit import require_memory
from kilolayer.system.message_text import listing, quote

DEFAULT_SIDE = 224
PART_NAMES = {"train": "training", "validation": "validation", "test": "test"}
ADVICE = "; kilolayer check-data lists all that is wrong, --skip-damaged goes on without them"


def picture_source(
    layout: SourceLayout, assignment: Assignment, data: Data, format: PixelFormat | None = None
) -> Source:
    """The data set in these splits, with everything checked but the training pixels.

    Training pictures are decoded before the training begins anyway. format: the format of decoded pictures
    where it is known; the training pictures then stay unread. None: the format follows from all headers.

    Raises `InputError` for damaged pictures, for classes that do not agree, and where memory is too small.
    """
    encoded_bytes = sum(split.size for split in assignment.used)
    require_memory(encoded_bytes, f"data: the encoded images of {layout.path}")
    lots = {part: read_pictures(splits) for part, splits in assignment.parts().items()}
    all_lots = [lot for part_lots in lots.values() for lot in part_lots]
    classes = merge_class_names(all_lots)
    parts = {
        part: replace(join_pictures(part_lots, classes), appearance=data.appearance)
        for part, part_lots in lots.items()
    }
    parts, skipped = _usable_parts(layout.name, classes, parts, assignment, data)
    inspected = _inspect_parts(parts, [part for part in parts if part != "train" or format is None])
    headers = {picture.header for pictures in inspected.values() for picture in pictures}
    pixels = format or _common_format(headers, data.image_size)
    traits = TraitCounts()
    traits.add(picture.traits for part in inspected if part != "train" for picture in inspected[part])
    num_held_out = sum(map(len, parts.values())) - len(parts["train"])

    def read_train(index: NDArray[np.int64]) -> Images:
        images = len(index) + num_held_out
        size = pixels.side**2 * pixels.channels * images
        require_memory(encoded_bytes + size, f"data: {images:,} images of {pixels.side}×{pixels.side}")
        return decode(parts["train"].take(index), pixels, "reading the training images", ADVICE, traits)

    def read_part(part: str) -> Images:
        return decode(parts[part], pixels, f"reading the {PART_NAMES[part]} images")

    return Source(
        name=_title(layout.name, classes, headers, (len(parts["train"]), len(parts["test"]))),
        classes=classes,
        count=len(parts["train"]),
        read_train=read_train,
        read_test=partial(read_part, "test"),
        skipped=skipped,
        looks=traits.sentences if data.appearance == "shown" else lambda: AS_STORED,
        origin=(*assignment.lines(len(parts["test"])), *name_notes(all_lots), *layout.notes),
        read_validation=partial(read_part, "validation") if assignment.validation else None,
        available_validation=assignment.available_validation,
        locate=lambda part, i: parts[part].locate(i),
    )


def _usable_parts(
    name: str, classes: tuple[str, ...], parts: dict[str, EncodedPictures], assigned: Assignment, data: Data
) -> tuple[dict[str, EncodedPictures], tuple[str, ...]]:
    """The parts without the pictures to leave out, with a test set; and what is left out, in words."""
    _check_folders(assigned.used, skip_damaged=data.skip_damaged)
    _check_classes(name, classes, parts)
    skipped = tuple(f"{path} (no file)" for split in assigned.used for path in split.non_files)
    # Leave pictures out before numbering the images and drawing the test set.
    if data.skip_damaged:
        parts, damaged = _without_damaged(parts)
        skipped += damaged
    if not assigned.test:
        parts = parts | _hold_out_test(parts["train"], classes, data.split_seed)
    _check_classes(name, classes, parts)
    return parts, skipped


def read_pictures(splits: Sequence[Split]) -> list[NamedPictures]:
    """The pictures of these splits, with the class names of each file. Raises `InputError`."""
    return [lot() for split in splits for lot in split.readers]


def _check_folders(splits: Sequence[Split], *, skip_damaged: bool) -> None:
    """Raises `InputError` for empty class folders, broken links and entries that are not files."""
    astray = [location for split in splits for location in split.broken_links]
    if astray:
        raise InputError(f"data: {len(astray)} links beside class folders are broken: {listing(astray)}")
    no_files = [location for split in splits for location in split.non_files]
    if no_files and not skip_damaged:
        raise InputError(f"data: {len(no_files)} entries of class folders are not files: {listing(no_files)}")
    empty = [location for split in splits for location in split.empty_folders]
    if empty:
        raise InputError(f"data: {len(empty)} class folders are empty: {listing(empty)}")


def _without_damaged(
    parts: Mapping[str, EncodedPictures],
) -> tuple[dict[str, EncodedPictures], tuple[str, ...]]:
    usable = {
        part: usable_pictures(pictures, f"checking the {PART_NAMES[part]} images")
        for part, pictures in parts.items()
    }
    damaged = tuple(location for _, locations in usable.values() for location in locations)
    return {part: pictures for part, (pictures, _) in usable.items()}, damaged


def usable_pictures(
    pictures: EncodedPictures, title: str = "checking the images"
) -> tuple[EncodedPictures, tuple[str, ...]]:
    """The usable pictures, and the others in words."""
    results = inspect_pictures(pictures, title)
    usable = np.flatnonzero([isinstance(result, InspectedPicture) for result in results])
    return pictures.take(usable), tuple(unusable_pictures(pictures, results))


def _hold_out_test(train: EncodedPictures, classes: tuple[str, ...], seed: int) -> dict[str, EncodedPictures]:
    is_test = stratified_holdout(train.labels, classes, seed)
    return {"train": train.take(np.flatnonzero(~is_test)), "test": train.take(np.flatnonzero(is_test))}


def _inspect_parts(
    parts: Mapping[str, EncodedPictures], names: Sequence[str]
) -> dict[str, list[InspectedPicture]]:
    """The pictures of the named parts: headers of training pictures, all pixels of others.

    Raises `InputError` that names all damaged pictures of these parts at once.
    """
    results = {
        name: (read_headers if name == "train" else inspect_pictures)(
            parts[name], f"checking the {PART_NAMES[name]} images"
        )
        for name in names
    }
    if any(isinstance(result, Unreadable) for part_results in results.values() for result in part_results):
        if "train" in results:
            results["train"] = inspect_pictures(parts["train"], "checking the training images")
        refuse_unusable([parts[name] for name in names], list(results.values()), ADVICE)
    return {
        name: [result for result in part_results if isinstance(result, InspectedPicture)]
        for name, part_results in results.items()
    }


def stratified_holdout(labels: NDArray[np.int64], classes: tuple[str, ...], seed: int) -> NDArray[np.bool_]:
    """A test set for data without one: a fifth of each class, at least one image, drawn by `seed`.

    Returns bool (N,), true for the test images. Raises `InputError` where a class has only one image.

    >>> labels = np.repeat([0, 1], 10)
    >>> stratified_holdout(labels, ("cat", "dog"), seed=0).reshape(2, 10).sum(1).tolist()
    [2, 2]
    """
    test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            raise InputError(
                f"data: class {quote(classes[label])} has 1 image; without a test set it needs 2 or more"
            )
        test[
            members[random_permutation(len(members), "test", seed, int(label))[: max(1, len(members) // 5)]]
        ] = True
    return test


def inspect_format(pictures: EncodedPictures, image_size: int | None) -> PixelFormat:
    """The format that these pictures are decoded to. Raises `InputError` for unusable pictures."""
    results = read_headers(pictures, "checking the images")
    refuse_unusable([pictures], [results], ADVICE)
    return _common_format(
        {result.header for result in results if isinstance(result, InspectedPicture)}, image_size
    )


def _common_format(headers: set[Header], image_size: int | None) -> PixelFormat:
    sizes = {header.size for header in headers}
    width, height = next(iter(sizes))
    native = width if len(sizes) == 1 and width == height else DEFAULT_SIDE
    return PixelFormat(image_size or native, all(header.grey for header in headers))


def _title(name: str, classes: tuple[str, ...], headers: set[Header], counts: tuple[int, int]) -> str:
    # Figures measured on re-encoded pixels must say so, wherever the files lie.
    lossy = {(header.format, header.size) for header in headers} == {("JPEG", (32, 32))}
    is_cifar10 = lossy and classes == CIFAR10_CLASSES and counts == (50_000, 10_000)
    return "CIFAR-10 (JPEG re-encode)" if is_cifar10 else name


def _check_classes(name: str, classes: tuple[str, ...], parts: Mapping[str, EncodedPictures]) -> None:
    if not sum(map(len, parts.values())):
        raise InputError(f"{quote(name)}: there are no labelled images")
    if len(classes) < 2:
        raise InputError(f"{quote(name)}: {len(classes)} class, but at least 2 are needed")
    present = {part: set(pictures.labels.tolist()) for part, pictures in parts.items()}
    for part in [part for part in present if part != "train"]:
        missing = [classes[label] for label in sorted(present[part] - present["train"])]
        _refuse_missing(name, "training", missing, part)
    if "test" in present:
        missing = [classes[label] for label in sorted(present["train"] - present["test"])]
        _refuse_missing(name, "test", missing, "training")


def _refuse_missing(name: str, part: str, missing: Sequence[str], other_part: str) -> None:
    if missing:
        names = listing([quote(class_name) for class_name in missing])
        raise InputError(
            f"{quote(name)}: the {part} set has no image of {names}, which the {other_part} set has; "
            "training and test sets need the same classes"
        )
