"""A folder with a folder of images per class, or such under train/ and test/ (validation/, valid/, val/)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kilolayer.data.describe import Data
from kilolayer.data.images import Source
from kilolayer.data.labelled import fifth, source
from kilolayer.data.pictures import Pictures
from kilolayer.data.scanning import Classes, Scan, parts, scan
from kilolayer.data.wording import listed, quoted
from kilolayer.errors import InputError


def folder(root: Path, data: Data) -> Source:
    """The data set in this folder; class names are folder names, in order. Raises InputError."""
    train_root, test_root = parts(root)
    found = _sound(scan(train_root), data.skip_damaged)
    separate = _sound(scan(test_root), data.skip_damaged) if test_root else Scan({})
    classes = tuple(sorted({*found.classes, *separate.classes}))
    train, test = pictures(found.classes, classes), pictures(separate.classes, classes)
    if not separate.classes:
        drawn = fifth(train.labels, classes, data.split_seed)
        train, test = train.take(np.flatnonzero(~drawn)), train.take(np.flatnonzero(drawn))
    return source(
        root.resolve().name or "images",
        classes,
        train,
        test,
        data.image_size,
        appearance=data.appearance,
        skip_damaged=data.skip_damaged,
        skipped=tuple(f"{quoted(path)} (no file)" for path in (*found.no_files, *separate.no_files)),
    )


def pictures(found: Classes, classes: tuple[str, ...]) -> Pictures:
    """The files of these classes, labelled by the classes' places in `classes`."""
    paths = [path for name in classes for path in found.get(name, ())]
    counts = [len(found.get(name, ())) for name in classes]
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), counts)
    return Pictures(labels, paths.__getitem__, lambda i: quoted(paths[i]))


def _sound(found: Scan, skip_damaged: bool) -> Scan:
    """Raises `InputError` for what cannot be classes and images, or for what cannot be passed over."""
    if found.astray:
        names = listed([quoted(path) for path in found.astray])
        raise InputError(f"data: {len(found.astray)} links beside class folders lead nowhere: {names}")
    if found.no_files and not skip_damaged:
        names = listed([quoted(path) for path in found.no_files])
        raise InputError(f"data: {len(found.no_files)} entries of class folders are no files: {names}")
    empty = [quoted(found.root / name) for name, files in found.classes.items() if not files]
    if empty:
        raise InputError(
            f"data: {len(empty)} of {len(found.classes)} class folders hold no image: {listed(empty)}"
        )
    return found
