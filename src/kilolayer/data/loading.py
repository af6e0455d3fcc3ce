"""From a description to images in memory: `load(Data("cifar10"))`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from kilolayer.data.config import SELECTOR_FLAGS, Data
from kilolayer.data.images import Images, Source, Splits, StoredDataset
from kilolayer.data.pictures.decoding import PixelFormat
from kilolayer.data.randomness import random_permutation
from kilolayer.data.registry import DATASETS, names_text
from kilolayer.data.sources.class_folders import ARCHIVES, card_notes, dataset_card, folder_layout
from kilolayer.data.sources.parquet import holds_images, is_parquet, parquet_files, parquet_layout
from kilolayer.data.sources.picture_source import picture_source
from kilolayer.data.sources.scan import notes_on_ignored_files, scan_folder
from kilolayer.data.sources.splits import SourceLayout, assign_splits
from kilolayer.errors import InputError, missing_path_error, suggest
from kilolayer.system.folders import expand_home
from kilolayer.system.memory_limit import require_memory
from kilolayer.system.message_text import quote


def load(data: Data, source: Source | None = None) -> Splits:
    """Reads a data set into memory: the training images now, the test images when they are first used.

    source: the data set that `open_source(data)` has opened already; None: opens it.

    Raises `InputError` where the description, the files or their size do not fit. Damage in the test images
    raises here too, before the training begins.

    >>> from kilolayer.data import Data, load
    >>> digits = load(Data("digits", validation=100))
    >>> digits.train.pixels.shape, len(digits.validation), len(digits.test)
    (torch.Size([1337, 1, 8, 8]), 100, 360)
    """
    source = source or open_source(data)
    train, held_out = split_indices(source.count, data)
    images = source.read_train(np.concatenate([train, held_out]))
    validation = images[len(train) :] if len(held_out) else None
    if source.read_validation is not None:
        validation = source.read_validation()

    def locate(part: str, i: int) -> str:
        if part == "train" or (part == "validation" and source.read_validation is None):
            return source.locate("train", int((train if part == "train" else held_out)[i]))
        return source.locate(part, i)

    return Splits(
        source.name,
        source.classes,
        images[: len(train)],
        validation,
        source.read_test,
        source.skipped,
        source.looks(),
        source.origin,
        locate,
    )


def split_indices(count: int, data: Data) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The indices of the images to train on and of those held out, both ascending.

    count: the number of training images. Raises `InputError` where too few are left.

    >>> train, held_out = split_indices(10, Data(validation=2))
    >>> len(train), len(held_out)
    (8, 2)
    """
    limit = count - data.validation
    if limit < 1:
        raise InputError(f"validation: {data.validation:,} of {count:,} images leave none to train on")
    if data.subset is not None and data.subset > limit:
        raise InputError(f"subset: {data.subset:,} is more than the {limit:,} training images there are")
    order = random_permutation(count, "validation", data.split_seed)
    remaining = order[data.validation :]
    return np.sort(remaining[: data.subset]), np.sort(order[: data.validation])


def open_source(data: Data, format: PixelFormat | None = None) -> Source:
    """Opens a data set: finds and checks its files, but does not decode the training images.

    format: the size and channels of the images where they are known, as for a trained network; the training
        images then stay unread. None: the format follows from the headers of all images.

    Raises `InputError` where there is no such data set, or where it is damaged.
    """
    stored = find_stored_dataset(data)
    if stored is not None:
        return open_stored_dataset(stored, data.image_size)
    layout = source_layout(data)
    return picture_source(layout, assign_splits(layout, data), data, format)


def open_with_validation(data: Data) -> tuple[Data, Source]:
    """Opens a data set whose description does not say what to hold out, and completes the description.

    The validation set is the source's own beside a test set, and otherwise a tenth of the training images.

    >>> data, source = open_with_validation(Data("digits"))
    >>> data.validation, source.count
    (143, 1437)
    """
    stored = find_stored_dataset(data)
    if stored is not None:
        source = open_stored_dataset(stored, data.image_size)
    else:
        layout = source_layout(data)
        assignment = assign_splits(layout, data)
        if assignment.available_validation is not None:
            data = replace(data, validation_split=assignment.available_validation)
            return data, picture_source(layout, assign_splits(layout, data), data)
        source = picture_source(layout, assignment, data)
    return replace(data, validation=source.count // 10), source


def find_stored_dataset(data: Data) -> StoredDataset | None:
    """The named data set that a description means, by its name or its path; None for pictures in files.

    Raises `InputError` where the path does not exist, or where the description chooses a split or a column of
    a named data set.
    """
    if data.source not in DATASETS:
        _check_exists(data.source)
    entries = [DATASETS[data.source]] if data.source in DATASETS else DATASETS.values()
    for reader in dict.fromkeys(entry.reader for entry in entries):
        module, _, function = reader.partition(":")
        stored: StoredDataset | None = getattr(import_module(module), function)(data)
        if stored is not None:
            _refuse_selectors(data)
            return stored
    return None


def _check_exists(source: str) -> None:
    path = Path(expand_home(source))
    if os.path.isdir(path) or os.path.isfile(path):
        return
    if get_close_matches(source, DATASETS, n=1):
        raise InputError(f"data: {quote(source)} is unknown; {suggest(source, tuple(DATASETS))}, or a PATH")
    raise InputError(f"data: {missing_path_error(path)}; or one of {names_text()}")


def open_stored_dataset(stored: StoredDataset, image_size: int | None) -> Source:
    """The named data set with every image resized to `image_size`, where one is given (bilinear).

    The test images are read once here: only reading shows that their file is complete.
    """
    entry = DATASETS[stored.name]
    train = stored.read_train()
    is_complete = len(train) == entry.num_train
    title = entry.title if is_complete else f"{entry.title} ({len(train):,} training images)"
    classes = stored.read_classes()
    stored.read_test()

    def read_train(index: NDArray[np.int64]) -> Images:
        if image_size is not None:
            require_memory(3 * image_size**2 * len(index), f"data: {len(index):,} images of {image_size}²")
        return _resize_images(train[torch.from_numpy(index)], image_size)

    def read_test() -> Images:
        return _resize_images(stored.read_test(), image_size)

    return Source(title, classes, len(train), read_train, read_test)


def source_layout(data: Data) -> SourceLayout:
    """The splits of a folder of images or of parquet files. Raises `InputError`."""
    path = Path(expand_home(data.source))
    if os.path.isfile(path) and is_parquet(path):
        return parquet_layout(path, [path], data)
    if not os.path.isdir(path):
        unpack = "; unpack it first" if path.suffix.casefold() in ARCHIVES else ""
        raise InputError(
            f"data: {quote(path)} is neither a parquet file, a CIFAR archive (.tar.gz) nor a folder{unpack}"
        )
    scanned = scan_folder(path)
    tables = parquet_files(scanned)
    if not tables or (scanned.count and not holds_images(tables)):
        return folder_layout(scanned, data)
    if scanned.count:
        raise InputError(
            f"{quote(path)}: holds {len(tables):,} parquet files and {scanned.count:,} pictures; "
            f"name the folder of one of them, or a parquet file, as {quote(tables[0])}"
        )
    splits = parquet_layout(path, tables, data)
    card = dataset_card(scanned)
    if card is not None and data.train is None:
        _refuse_pool(card, splits, tables)
    return replace(splits, notes=(*notes_on_ignored_files(scanned, is_parquet), *card_notes(card)))


def _refuse_pool(card: Path, layout: SourceLayout, tables: Sequence[Path]) -> None:
    """Raises `InputError` where a dataset card declares splits that the file names do not show."""
    if len(tables) > 1 and len(layout.splits) == 1 and not layout.splits[0].roles:
        raise InputError(
            f"{quote(card)} declares splits by file (data_files), which we do not read, and the file names "
            "do not tell the splits; rename the files, as train-0.parquet and test-0.parquet, or pool them: "
            f"--train {shlex.quote(layout.splits[0].name)}"
        )


def _refuse_selectors(data: Data) -> None:
    """Raises `InputError` where the description chooses a split or a column of a named data set."""
    selectors = [
        f"{flag} {value}"
        for name, flag in SELECTOR_FLAGS.items()
        if (value := getattr(data, name)) is not None
    ]
    if selectors:
        raise InputError(
            f"{selectors[0]}: {data.source} has one training set, one test set and no columns; leave it out"
        )


def _resize_images(images: Images, side: int | None) -> Images:
    if side is None or images.pixels.shape[-1] == side:
        return images
    parts = (
        functional.interpolate(part, (side, side), mode="bilinear", antialias=True)
        for part in torch.split(images.pixels, 1024)
    )
    return Images(torch.cat(list(parts)), images.labels)
