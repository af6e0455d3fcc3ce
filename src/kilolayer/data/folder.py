"""A folder with a folder of images per class, or such under train/ and test/ (validation/, valid/, val/)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from kilolayer.data.images import Source
from kilolayer.data.labelled import fifth, source
from kilolayer.data.pictures import Pictures
from kilolayer.data.wording import brief, listed, quoted
from kilolayer.errors import InputError

TEST = ("test", "validation", "valid", "val")
LITTER = ("Thumbs.db", "desktop.ini")  # what Windows leaves behind; hidden files are passed over as well

Classes = dict[str, list[Path]]


def folder(root: Path, image_size: int | None, split_seed: int) -> Source:
    """The data set in this folder; class names are folder names, in order. Raises InputError."""
    train_root, test_root = _parts(root)
    found = _classes(train_root)
    separate = _classes(test_root) if test_root else {}
    classes = tuple(sorted({*found, *separate}))
    train, test = _pictures(found, classes), _pictures(separate, classes)
    if not separate:
        drawn = fifth(train.labels, classes, split_seed)
        train, test = train.take(np.flatnonzero(~drawn)), train.take(np.flatnonzero(drawn))
    return source(root.resolve().name or "images", classes, train, test, image_size)


def _parts(root: Path) -> tuple[Path, Path | None]:
    test = next((root / name for name in TEST if (root / name).is_dir()), None)
    if (root / "train").is_dir():
        return root / "train", test
    if test and {path.name for path in _folders(root)} <= set(TEST):
        raise InputError(f"{quoted(root)}: has {test.name}/ but no train/")
    return root, None


def _classes(root: Path) -> Classes:
    found = {path.name: _files(path) for path in _folders(root)}
    if not found:
        raise InputError(
            f"{quoted(root)}: has no class folders; expected: FOLDER/train/CLASS/IMAGE or FOLDER/CLASS/IMAGE"
        )
    empty = [quoted(root / name) for name, files in found.items() if not files]
    if empty:
        raise InputError(f"data: {len(empty)} of {len(found)} class folders hold no image: {listed(empty)}")
    return found


def _folders(root: Path) -> list[Path]:
    return [path for path in _visible(root) if os.path.isdir(path)]


def _files(root: Path) -> list[Path]:
    paths = _visible(root)
    odd = [quoted(path) for path in paths if not os.path.isfile(path)]
    if odd:
        raise InputError(f"data: {len(odd)} entries of class folders are no files: {listed(odd)}")
    return paths


def _visible(root: Path) -> list[Path]:
    try:
        return sorted(path for path in root.iterdir() if path.name[0] != "." and path.name not in LITTER)
    except OSError as error:
        raise InputError(f"{quoted(root)}: cannot be read ({brief(error)})") from None


def _pictures(found: Classes, classes: tuple[str, ...]) -> Pictures:
    paths = [path for name in classes for path in found.get(name, ())]
    counts = [len(found.get(name, ())) for name in classes]
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), counts)
    return Pictures(labels, paths.__getitem__, lambda i: quoted(paths[i]))
