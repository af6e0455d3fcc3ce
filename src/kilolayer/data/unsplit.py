"""The labelled pictures of a source whatever its splits: for measuring a trained network on new pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from kilolayer.data.appearance import AS_STORED, Looks
from kilolayer.data.classes import class_names, joined, remarks
from kilolayer.data.describe import Data
from kilolayer.data.images import Images, Source
from kilolayer.data.labelled import form_of, read, sound
from kilolayer.data.loading import built_in, find, layout
from kilolayer.data.memory import require_memory
from kilolayer.data.pictures import Form, Pictures, decode
from kilolayer.data.splits import choose
from kilolayer.data.wording import counted, listed
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
    built = built_in(data)
    if built is not None:
        return converted(_built(find(data), part), grey)
    name, classes, shown, origin = _in_files(data, part)
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


def _in_files(data: Data, part: str) -> tuple[str, tuple[str, ...], Pictures, tuple[str, ...]]:
    """Name, classes, pictures and origin of what folders or parquet files hold."""
    every = part == "all"
    # A named part is looked for among all folders, as a training split would be.
    there = layout(data if every or data.train else replace(data, train=part))
    splits = there.splits if every else choose(there, part, "--part")
    without = {split: split.unlabelled() or ("empty" if split.is_empty else "") for split in splits}
    used = [split for split in splits if not without[split]]
    unused = [
        f"not used: {counted(split.count, 'image')} of {split.where}: {why}"
        for split, why in without.items()
        if why
    ]
    require_memory(sum(split.size for split in used), f"the encoded images of {there.path}")
    for split in used:
        split.check()
    lots = read(used)
    if not any(len(lot.pictures) for lot in lots):
        remedies = dict.fromkeys(split.remedy for split in splits if split.remedy)
        raise InputError("; ".join([f"{there.path}: has no labelled pictures", *unused, *remedies]))
    classes = class_names(lots)
    shown = replace(joined(lots, classes), appearance=data.appearance)
    shown, damaged = sound(shown) if data.skip_damaged else (shown, ())
    no_files = [place for split in used for place in (*split.no_files, *split.astray)]
    lines = [
        *(f"{counted(split.count, 'image')} of {split.where}" for split in used),
        *(note for split in used for note in split.notes),
        *unused,
        *remarks(lots),
        *_counted("passed over, since they are no files", no_files),
        *_counted("left out, since they cannot be read", damaged),
        *there.notes,
    ]
    return there.name, classes, shown, tuple(lines)


def _counted(what: str, places: Sequence[str]) -> tuple[str, ...]:
    return (f"{what}: {len(places):,}: {listed(places)}",) if places else ()
