"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), from the author's files or from torchvision's folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from kilolayer.data.config import Data
from kilolayer.data.images import Images, StoredDataset
from kilolayer.data.registry import DATASETS, downloads_text
from kilolayer.data.sources import cifar_pickle
from kilolayer.data.sources.archive import is_archive, member_names, read_members
from kilolayer.data.sources.download import download_archive
from kilolayer.errors import InputError
from kilolayer.system.folders import cache_folder, expand_home, home_cache_folder
from kilolayer.system.message_text import is_text, quote

PIXELS = 3 * 32 * 32
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

Raw = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Pixels (N, 3072), the red, green and blue planes row by row, and labels (N,)."""


def _parse_binary(raw: bytes, _: str, labels: int) -> Raw:
    """Records of `labels` label bytes, of which the last counts, and 3,072 pixel bytes."""
    record = labels + PIXELS
    table = np.frombuffer(raw, np.uint8).reshape(-1, record)
    return table[:, labels:], table[:, labels - 1].astype(np.int64)


def _parse_lines(raw: bytes, where: str) -> tuple[str, ...]:
    return tuple(line for line in raw.decode("utf-8", "replace").split() if line)


@dataclass(frozen=True)
class CifarFormat:
    """One of the formats in which CIFAR is published: its files, and how to read them.

    source: the name in `DATASETS`. record: the bytes of one image; 1 where the format has no fixed record.
    """

    source: str
    classes: int
    folder: str
    archive: str
    train: tuple[str, ...]
    test: str
    meta: str
    record: int
    parse: Callable[[bytes, str], Raw]
    parse_names: Callable[[bytes, str], tuple[str, ...]]

    @property
    def record_sizes(self) -> dict[str, int]:
        """The files that must exist, with the bytes of one record."""
        return dict.fromkeys((*self.train, self.test), self.record)


_FIVE = tuple(f"data_batch_{number}" for number in range(1, 6))

CIFAR_FORMATS = (
    CifarFormat(
        "cifar10", 10, "cifar-10-batches-bin", "cifar-10-binary.tar.gz",
        tuple(f"{name}.bin" for name in _FIVE), "test_batch.bin", "batches.meta.txt", 1 + PIXELS,
        partial(_parse_binary, labels=1), _parse_lines,
    ),
    CifarFormat(
        "cifar100", 100, "cifar-100-binary", "cifar-100-binary.tar.gz",
        ("train.bin",), "test.bin", "fine_label_names.txt", 2 + PIXELS,
        partial(_parse_binary, labels=2), _parse_lines,
    ),
    CifarFormat(
        "cifar10", 10, "cifar-10-batches-py", "cifar-10-python.tar.gz",
        _FIVE, "test_batch", "batches.meta", 1,
        partial(cifar_pickle.parse_batch, labels="labels"),
        partial(cifar_pickle.parse_names, key="label_names"),
    ),
    CifarFormat(
        "cifar100", 100, "cifar-100-python", "cifar-100-python.tar.gz",
        ("train",), "test", "meta", 1,
        partial(cifar_pickle.parse_batch, labels="fine_labels"),
        partial(cifar_pickle.parse_names, key="fine_label_names"),
    ),
)  # fmt: skip


def data_folders(folder: str | None) -> list[Path]:
    """The folders that may hold downloaded data sets. A download goes into the first.

    `folder`, else $KILOLAYER_DATA, else the caches. Raises `InputError` where there is none of these.
    """
    chosen = folder or os.environ.get("KILOLAYER_DATA")
    if chosen:
        return [Path(expand_home(chosen))]
    caches = [path for path in dict.fromkeys((cache_folder(), home_cache_folder())) if path]
    if not caches:
        raise InputError(
            f"data: {downloads_text()} lie in ~/.cache/kilolayer, and there is no home folder here; name "
            "the folder: --data-folder DIR, or $KILOLAYER_DATA"
        )
    return caches


def find_cifar(root: Path, source: str | None = None) -> tuple[CifarFormat, Path] | None:
    """The format and the folder or archive of the CIFAR at this path (of the name `source`, where given)."""
    formats = [format for format in CIFAR_FORMATS if source in (None, format.source)]
    if root.is_file():
        return _identify_archive(formats, root) if is_archive(root) else None
    for format in formats:
        for path in (root / format.folder, root):
            if (path / format.train[0]).is_file():
                return format, path
        if (root / format.archive).is_file():
            return format, root / format.archive
    return None


def read_cifar(data: Data) -> StoredDataset | None:
    """The CIFAR that a description means, in a folder or an archive; None where the path holds no CIFAR.

    Raises `InputError` where a named CIFAR is in none of the folders and is not to be downloaded.
    """
    located = _locate(data) if data.source in DATASETS else find_cifar(Path(expand_home(data.source)))
    if located is None:
        return None
    format, path = located

    @cache
    def training() -> tuple[Images, tuple[str, ...]]:
        files = read_members(path, (*format.train, format.meta), format.record_sizes)
        images = parse_images(format, {name: files[name] for name in format.train}, path)
        return images, read_class_names(format, files.get(format.meta), path)

    def read_test() -> Images:
        return parse_images(format, read_members(path, (format.test,), {format.test: format.record}), path)

    return StoredDataset(format.source, lambda: training()[1], lambda: training()[0], read_test)


def _locate(data: Data) -> tuple[CifarFormat, Path] | None:
    """The format and path of the CIFAR that `data` names; None where it names another data set."""
    archive = DATASETS[data.source].archive
    binary = next((format for format in CIFAR_FORMATS if format.source == data.source), None)
    if binary is None or archive is None:
        return None
    folders = data_folders(data.folder)
    located = next(filter(None, (find_cifar(folder, data.source) for folder in folders)), None)
    if located is None and data.download:
        fetched = download_archive(
            archive, folders[0], (*binary.record_sizes, binary.meta), binary.record_sizes
        )
        located = find_cifar(fetched, data.source)
    if located is None:
        raise InputError(
            f"data: {data.source} is not in {' or '.join(map(quote, folders))}; add --download to fetch it, "
            "or name the folder that holds it: --data-folder DIR, or $KILOLAYER_DATA"
        )
    return located


def _identify_archive(formats: list[CifarFormat], archive: Path) -> tuple[CifarFormat, Path] | None:
    matches = [format for format in formats if format.archive == archive.name]
    if not matches:
        members = member_names(archive)
        matches = [format for format in formats if {*format.train, format.test} <= members]
    return (matches[0], archive) if matches else None


def parse_images(format: CifarFormat, files: dict[str, bytes], path: Path) -> Images:
    """The images in the bytes of these files. Raises `InputError` where they are damaged."""
    parts = []
    for name, raw in files.items():
        where = f"{quote(path)}, {name}"
        pixels, labels = format.parse(raw, where)
        if labels.min() < 0 or labels.max() >= format.classes:
            wrong = int(np.flatnonzero((labels < 0) | (labels >= format.classes))[0])
            raise InputError(
                f"{where}: image {wrong} has label {labels[wrong]}, allowed: 0 to {format.classes - 1}; "
                "it is damaged"
            )
        parts.append((pixels, labels))
    pixels, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Images(torch.from_numpy(pixels).view(-1, 3, 32, 32), torch.from_numpy(labels))


def read_class_names(format: CifarFormat, meta: bytes | None, path: Path) -> tuple[str, ...]:
    """The names in the file of names, or the usual names where that file has none that fit."""
    names = format.parse_names(meta, f"{quote(path)}, {format.meta}") if meta is not None else ()
    if len(names) == len(set(names)) == format.classes and all(map(is_text, names)):
        return names
    return CIFAR10_CLASSES if format.classes == 10 else tuple(str(number) for number in range(format.classes))
