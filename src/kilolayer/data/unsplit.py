"""The labelled pictures of a source whatever its splits: for measuring a trained network on new pictures."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kilolayer.data import parquet
from kilolayer.data.appearance import AS_STORED, Looks
from kilolayer.data.describe import Data
from kilolayer.data.folder import pictures as folder_pictures
from kilolayer.data.images import Images, Source
from kilolayer.data.labelled import form_of
from kilolayer.data.loading import find, is_built
from kilolayer.data.memory import require_memory
from kilolayer.data.pictures import Form, Pictures, decode
from kilolayer.data.scanning import TEST, scan
from kilolayer.data.table import Table
from kilolayer.data.wording import quoted
from kilolayer.errors import InputError


@dataclass(frozen=True)
class Labelled:
    """N labelled pictures in memory.

    name: how figures name the source; classes: by label; images: pixels uint8 (N, C, H, W), labels (N,).
    origin: which files or folders the pictures came from and which were not used, in words, one per line.
    where: the place of picture i, in words.
    """

    name: str
    classes: tuple[str, ...]
    images: Images
    origin: tuple[str, ...]
    where: Callable[[int], str]

    def __len__(self) -> int:
        return len(self.images)


def load_labelled(data: Data, part: str = "all", grey: bool | None = None) -> Labelled:
    """The labelled pictures of a source: all of them, or one split (`train`, `validation`, `test`).

    Training and test need not have the same classes, and one class is enough. Pictures are read as grey or
    as colour where `grey` says so, otherwise as they are. Raises InputError.
    """
    if is_built(data):
        return converted(_built(find(data), part), grey)
    path = Path(os.path.expanduser(data.source))
    name, classes, shown, origin = (
        _parquet(path, part) if parquet.parquet_files(path) else _folder(path, part)
    )
    if not len(shown):
        raise InputError(f"{quoted(path)}: has no labelled pictures")
    shown = replace(shown, appearance=data.appearance)
    native = form_of(shown, data.image_size)
    form = native if grey is None else Form(native.side, grey)
    require_memory(form.side**2 * form.channels * len(shown), f"{len(shown):,} images of {form.side}²")
    looks = Looks()
    images = decode(shown, form, "reading the images", looks=looks)
    said = AS_STORED if data.appearance == "stored" else looks.sentences()
    return Labelled(name, classes, images, (*origin, *_said(native.grey, form.grey), *said), shown.where)


def converted(labelled: Labelled, grey: bool | None) -> Labelled:
    """The same pictures as grey (by Pillow's weights of red, green and blue) or as colour."""
    native = labelled.images.pixels.shape[1] == 1
    if grey is None or grey == native:
        return labelled
    pixels = _grey(labelled.images.pixels) if grey else labelled.images.pixels.expand(-1, 3, -1, -1)
    images = Images(pixels.contiguous(), labelled.images.labels)
    return replace(labelled, images=images, origin=(*labelled.origin, *_said(native, grey)))


def _grey(pixels: Tensor) -> Tensor:
    """RGB to luma (ITU-R 601-2) in the fixed-point arithmetic of Pillow's "L"."""
    red, green, blue = pixels.to(torch.int32).unbind(1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).to(torch.uint8)[:, None]


def _said(native: bool, grey: bool) -> tuple[str, ...]:
    if native == grey:
        return ()
    return ("colour pictures are read as grey",) if grey else ("grey pictures are read as colour",)


def _built(source: Source, part: str) -> Labelled:
    parts = {
        "train": lambda: source.read_train(np.arange(source.count)),
        "test": source.read_test,
    }
    if part != "all" and part not in parts:
        raise InputError(f"{source.name} has no split {part!r}; it has: train, test")
    chosen = {key: read() for key, read in parts.items() if part in ("all", key)}
    images = Images(
        torch.cat([one.pixels for one in chosen.values()]), torch.cat([one.labels for one in chosen.values()])
    )
    places = [f"{key} image {i}" for key, one in chosen.items() for i in range(len(one))]
    origin = tuple(f"{key}: {len(one):,} images" for key, one in chosen.items())
    return Labelled(source.name, source.classes, images, origin, places.__getitem__)


_Loaded = tuple[str, tuple[str, ...], Pictures, tuple[str, ...]]


def _folder(root: Path, part: str) -> _Loaded:
    splits = {name: root / name for name in ("train", *TEST) if (root / name).is_dir()} or {"all": root}
    chosen = splits if part == "all" else {key: at for key, at in splits.items() if key == part}
    if not chosen:
        raise InputError(f"{quoted(root)} has no split {part!r}; it has: {', '.join(splits)}")
    scans = [scan(at) for at in chosen.values()]
    classes = tuple(sorted({name for one in scans for name in one.classes}))
    merged = {name: [path for one in scans for path in one.classes.get(name, [])] for name in classes}
    origin = tuple(f"{key}: {quoted(at)}" for key, at in chosen.items())
    return root.resolve().name, classes, folder_pictures(merged, classes), origin


def _parquet(root: Path, part: str) -> _Loaded:
    files = parquet.parquet_files(root)
    chosen = files if part == "all" else [path for path in files if path.name.startswith(part)]
    if not chosen:
        raise InputError(f"{quoted(root)} has no split {part!r}")
    rows = [Table(path).read() for path in chosen]
    classes = parquet.class_names(rows)
    return (
        root.resolve().stem,
        classes,
        parquet.pictures(rows),
        tuple(quoted(path) for path in chosen),
    )
