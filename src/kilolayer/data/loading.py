"""From a description to images in memory: `load(Data("cifar10"))`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from kilolayer.data.config import BUILT_IN_NAMES, SELECTOR_FLAGS, Data
from kilolayer.data.images import Images, Source, Splits
from kilolayer.data.memory_limit import require_memory
from kilolayer.data.randomness import random_permutation
from kilolayer.data.sources import cifar
from kilolayer.data.sources.class_folders import ARCHIVES, folder_layout
from kilolayer.data.sources.digits import digits_source
from kilolayer.data.sources.download import download_archive
from kilolayer.data.sources.label_lists import card_notes, dataset_card
from kilolayer.data.sources.parquet import holds_images, is_parquet, parquet_files, parquet_layout
from kilolayer.data.sources.picture_source import picture_source
from kilolayer.data.sources.scan import ignored_file_notes, scan_folder
from kilolayer.data.sources.splits import SourceLayout
from kilolayer.errors import InputError, missing_path_error, suggest
from kilolayer.system.folders import expand_home
from kilolayer.system.message_text import quote


def load(data: Data) -> Splits:
    """Reads and checks the training part; the test part is checked as far as possible without reading it.

    Raises InputError for whatever is wrong with the description, the files, or their size.
    """
    source = open_source(data)
    train, validation_indices = split_indices(source.count, data)
    pictures = source.read_train(np.concatenate([train, validation_indices]))
    validation = pictures[len(train) :] if len(validation_indices) else None
    if source.read_validation is not None:
        validation = source.read_validation()
    images = pictures[: len(train)]

    def where(part: str, i: int) -> str:
        if part == "train" or (part == "validation" and source.read_validation is None):
            return source.locate("train", int((train if part == "train" else validation_indices)[i]))
        return source.locate(part, i)

    return Splits(
        source.name,
        source.classes,
        images,
        validation,
        source.read_test,
        source.skipped,
        source.looks(),
        source.origin,
        where,
    )


def split_indices(count: int, data: Data) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which of `count` training images are trained on and which are held out, each in rising order."""
    limit = count - data.validation
    if limit < 1:
        raise InputError(f"validation: {data.validation:,} of {count:,} images leave none to train on")
    if data.subset is not None and data.subset > limit:
        raise InputError(f"subset: {data.subset:,} is more than the {limit:,} training images there are")
    order = random_permutation(count, "validation", data.split_seed)
    rest = order[data.validation :]
    return np.sort(rest[: data.subset]), np.sort(order[: data.validation])


def open_source(data: Data) -> Source:
    """The data set that a description means, not yet decoded."""
    built = built_in_source(data)
    return (
        picture_source(source_layout(data), data)
        if built is None
        else _resized_source(built, data.image_size)
    )


def built_in_source(data: Data) -> Source | None:
    """The embedded digits or a CIFAR; None for pictures in files. `InputError` where nothing is there."""
    if data.source == "digits":
        refuse_selectors(data)
        return digits_source()
    if files := cifar_files(data):
        refuse_selectors(data)
        return cifar.cifar_source(*files)
    return None


def source_layout(data: Data) -> SourceLayout:
    """The splits of a folder of images, or of parquet. Raises `InputError`."""
    path = Path(expand_home(data.source))
    if os.path.isfile(path) and is_parquet(path):
        return parquet_layout(path, [path], data)
    if not os.path.isdir(path):
        unpack = "; unpack it first" if path.suffix.casefold() in ARCHIVES else ""
        raise InputError(
            f"data: {quote(path)} is no parquet file, no CIFAR archive (.tar.gz), no folder{unpack}"
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
    return replace(splits, notes=(*ignored_file_notes(scanned, is_parquet), *card_notes(card)))


def _refuse_pool(card: Path, layout: SourceLayout, tables: Sequence[Path]) -> None:
    """Raises `InputError` where a card declares splits, and several files are one pool by their names."""
    if len(tables) > 1 and len(layout.splits) == 1 and not layout.splits[0].roles:
        raise InputError(
            f"{quote(card)} declares splits by file (data_files), which is not read, and the names of "
            "the files do not tell them; rename them, as train-0.parquet and test-0.parquet, or pool them: "
            f"--train {shlex.quote(layout.splits[0].name)}"
        )


def refuse_selectors(data: Data) -> None:
    """Raises `InputError` where something is chosen within digits or a CIFAR."""
    selectors = [
        f"{flag} {value}"
        for name, flag in SELECTOR_FLAGS.items()
        if (value := getattr(data, name)) is not None
    ]
    if selectors:
        raise InputError(
            f"{selectors[0]}: {data.source} has one training set, one test set and no columns; leave it out"
        )


def cifar_files(data: Data) -> tuple[cifar.CifarFormat, Path] | None:
    """The CIFAR that is meant; None where the path holds something else. `InputError` where nothing is."""
    if data.source in BUILT_IN_NAMES:
        return _named_cifar(data)
    path = Path(expand_home(data.source))
    if not os.path.isdir(path) and not os.path.isfile(path):
        near = get_close_matches(data.source, BUILT_IN_NAMES, n=1)
        if near:
            raise InputError(
                f"data: {quote(data.source)} is unknown; {suggest(data.source, BUILT_IN_NAMES)}, or a PATH"
            )
        raise InputError(f"data: {missing_path_error(path)}; or one of {', '.join(BUILT_IN_NAMES)}")
    return cifar.find_cifar(path)


def _named_cifar(data: Data) -> tuple[cifar.CifarFormat, Path]:
    folders = cifar.data_folders(data.folder)
    files = next(filter(None, (cifar.find_cifar(folder, data.source) for folder in folders)), None)
    if files is None and data.download:
        files = cifar.find_cifar(download_archive(data.source, folders[0]), data.source)
    if files is None:
        raise InputError(
            f"data: {data.source} is not in {' or '.join(map(quote, folders))}; add --download to fetch it, "
            "or name the folder that holds it: --data-folder DIR, or $KILOLAYER_DATA"
        )
    return files


def _resized_source(source: Source, side: int | None) -> Source:
    """The same data set with each image resized to `side` (bilinear, antialiased)."""
    if side is None:
        return source

    def read_train(index: NDArray[np.int64]) -> Images:
        require_memory(3 * side**2 * len(index), f"{len(index):,} images of {side}²")
        return _resize_images(source.read_train(index), side)

    read_test: Callable[[], Images] = lambda: _resize_images(source.read_test(), side)  # noqa: E731 - beside its twin
    return replace(source, read_train=read_train, read_test=read_test)


def _resize_images(images: Images, side: int) -> Images:
    if images.pixels.shape[-1] == side:
        return images
    parts = (
        functional.interpolate(part, (side, side), mode="bilinear", antialias=True)
        for part in torch.split(images.pixels, 1024)
    )
    return Images(torch.cat(list(parts)), images.labels)
