"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), from the author's files or torchvision's folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from kilolayer import folders
from kilolayer.data import cifar_python
from kilolayer.data.bundle import is_archive, names_in, read
from kilolayer.data.images import Images, Source
from kilolayer.data.wording import is_text, quoted
from kilolayer.errors import InputError

PIXELS = 3 * 32 * 32
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

Raw = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Pixels (N, 3072), red, green and blue planes by rows, and labels (N,)."""


def _binary(raw: bytes, _: str, labels: int) -> Raw:
    """Whole records of `labels` label bytes, the last of which counts, and 3,072 pixel bytes."""
    record = labels + PIXELS
    table = np.frombuffer(raw, np.uint8).reshape(-1, record)
    return table[:, labels:], table[:, labels - 1].astype(np.int64)


def _lines(raw: bytes, where: str) -> tuple[str, ...]:
    return tuple(line for line in raw.decode("utf-8", "replace").split() if line)


@dataclass(frozen=True)
class Layout:
    """One way in which a CIFAR comes: its files, how to read them, and the bytes of an image (1: no rule)."""

    source: str
    title: str
    classes: int
    folder: str
    archive: str
    train: tuple[str, ...]
    test: str
    meta: str
    record: int
    parse: Callable[[bytes, str], Raw]
    class_names: Callable[[bytes, str], tuple[str, ...]]

    @property
    def required(self) -> dict[str, int]:
        """The files without which there is no data set, and the unit of their sizes in bytes."""
        return dict.fromkeys((*self.train, self.test), self.record)


_FIVE = tuple(f"data_batch_{number}" for number in range(1, 6))

LAYOUTS = (
    Layout(
        "cifar10", "CIFAR-10", 10, "cifar-10-batches-bin", "cifar-10-binary.tar.gz",
        tuple(f"{name}.bin" for name in _FIVE), "test_batch.bin", "batches.meta.txt", 1 + PIXELS,
        partial(_binary, labels=1), _lines,
    ),
    Layout(
        "cifar100", "CIFAR-100", 100, "cifar-100-binary", "cifar-100-binary.tar.gz",
        ("train.bin",), "test.bin", "fine_label_names.txt", 2 + PIXELS,
        partial(_binary, labels=2), _lines,
    ),
    Layout(
        "cifar10", "CIFAR-10", 10, "cifar-10-batches-py", "cifar-10-python.tar.gz",
        _FIVE, "test_batch", "batches.meta", 1,
        partial(cifar_python.batch, labels="labels"), partial(cifar_python.names, key="label_names"),
    ),
    Layout(
        "cifar100", "CIFAR-100", 100, "cifar-100-python", "cifar-100-python.tar.gz",
        ("train",), "test", "meta", 1,
        partial(cifar_python.batch, labels="fine_labels"),
        partial(cifar_python.names, key="fine_label_names"),
    ),
)  # fmt: skip


def homes(folder: str | None) -> list[Path]:
    """Where the named data sets may lie, and into the first of which they are fetched.

    `folder`, else $KILOLAYER_DATA, else the caches. Raises `InputError` where there is none of them.
    """
    asked = folder or os.environ.get("KILOLAYER_DATA")
    if asked:
        return [Path(folders.expand(asked))]
    found = [cache for cache in dict.fromkeys((folders.cache(), folders.home_cache())) if cache]
    if not found:
        raise InputError(
            "data: cifar10 and cifar100 lie in ~/.cache/kilolayer, and there is no home folder here; name "
            "the folder: --data-folder DIR, or $KILOLAYER_DATA"
        )
    return found


def find(root: Path, source: str | None = None) -> tuple[Layout, Path] | None:
    """The CIFAR in or at this path (named `source`, where given) and the folder or archive that holds it."""
    wanted = [layout for layout in LAYOUTS if source in (None, layout.source)]
    if root.is_file():
        return _recognised(wanted, root) if is_archive(root) else None
    for layout in wanted:
        for place in (root / layout.folder, root):
            if (place / layout.train[0]).is_file():
                return layout, place
        if (root / layout.archive).is_file():
            return layout, root / layout.archive
    return None


def cifar(layout: Layout, place: Path) -> Source:
    """The data set in this folder or archive: training files are read here, the test file when asked for.

    The test file is gone through once here: nothing but that tells whether it is whole.
    """
    files = read(place, (*layout.train, layout.meta), layout.required)
    train = images(layout, {name: files[name] for name in layout.train}, place)
    title = layout.title if len(train) == 50_000 else f"{layout.title} ({len(train):,} training images)"
    classes = class_names(layout, files.get(layout.meta), place)
    _test(layout, place)

    def read_train(index: NDArray[np.int64]) -> Images:
        return train[torch.from_numpy(index)]

    return Source(title, classes, len(train), read_train, lambda: _test(layout, place))


def _test(layout: Layout, place: Path) -> Images:
    return images(layout, read(place, (layout.test,), {layout.test: layout.record}), place)


def _recognised(wanted: list[Layout], archive: Path) -> tuple[Layout, Path] | None:
    named = [layout for layout in wanted if layout.archive == archive.name]
    if not named:
        inside = names_in(archive)
        named = [layout for layout in wanted if {*layout.train, layout.test} <= inside]
    return (named[0], archive) if named else None


def images(layout: Layout, files: dict[str, bytes], place: Path) -> Images:
    """The images in the bytes of these files. Raises `InputError`."""
    parts = []
    for name, raw in files.items():
        where = f"{quoted(place)}, {name}"
        pixels, labels = layout.parse(raw, where)
        if labels.min() < 0 or labels.max() >= layout.classes:
            wrong = int(np.flatnonzero((labels < 0) | (labels >= layout.classes))[0])
            raise InputError(
                f"{where}: image {wrong} has label {labels[wrong]}, allowed are 0 to {layout.classes - 1}; "
                "it is damaged"
            )
        parts.append((pixels, labels))
    pixels, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Images(torch.from_numpy(pixels).view(-1, 3, 32, 32), torch.from_numpy(labels))


def class_names(layout: Layout, meta: bytes | None, place: Path) -> tuple[str, ...]:
    """The names in the file of names, or where it has none that will do, the usual ones."""
    found = layout.class_names(meta, f"{quoted(place)}, {layout.meta}") if meta is not None else ()
    if len(found) == len(set(found)) == layout.classes and all(map(is_text, found)):
        return found
    return CLASSES if layout.classes == 10 else tuple(str(number) for number in range(layout.classes))
