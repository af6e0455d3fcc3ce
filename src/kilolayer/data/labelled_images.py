"""All labelled images of a source, whatever its splits, for evaluating a trained network on new images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from kilolayer.data.config import Data
from kilolayer.data.images import Images, Source
from kilolayer.data.loading import find_stored_dataset, open_stored_dataset, source_layout
from kilolayer.data.pictures.decoding import EncodedPictures, PixelFormat, decode
from kilolayer.data.pictures.rendering import AS_STORED, TraitCounts
from kilolayer.data.sources.classes import join_pictures, merge_class_names, name_notes
from kilolayer.data.sources.picture_source import inspect_format, read_pictures, usable_pictures
from kilolayer.data.sources.splits import choose_splits
from kilolayer.errors import InputError
from kilolayer.system.memory_limit import require_memory
from kilolayer.system.message_text import listing, quantity


@dataclass(frozen=True)
class LabelledImages:
    """N labelled images in memory.

    name: the name in figures. classes: the class names, by label. images: pixels uint8 (N, C, H, W), labels
        (N,).
    origin: the files or folders that the images came from, and those not used, one line each.
    locate: the location of image i in words.
    """

    name: str
    classes: tuple[str, ...]
    images: Images
    origin: tuple[str, ...]
    locate: Callable[[int], str]

    def __len__(self) -> int:
        return len(self.images)


def load_labelled(data: Data, part: str = "all", grey: bool | None = None) -> LabelledImages:
    """The labelled images of a source: all of them, or one split (`train`, `validation`, `test`).

    Training and test sets need not have the same classes, and one class is enough. grey: read the images as
    grey or as colour; None: as they are.

    Raises `InputError` where the source has no such split, or has no labelled images.

    >>> from kilolayer.data import Data, load_labelled
    >>> len(load_labelled(Data("digits"))), len(load_labelled(Data("digits"), "test"))
    (1797, 360)
    """
    stored = find_stored_dataset(data)
    if stored is not None:
        return convert_channels(_images_of_parts(open_stored_dataset(stored, data.image_size), part), grey)
    name, classes, pictures, origin = _pictures_in_files(data, part)
    native = inspect_format(pictures, data.image_size)
    format = native if grey is None else PixelFormat(native.side, grey)
    require_memory(
        format.side**2 * format.channels * len(pictures), f"data: {len(pictures):,} images of {format.side}²"
    )
    traits = TraitCounts()
    images = decode(pictures, format, "reading the images", traits=traits)
    notes = AS_STORED if data.appearance == "stored" else traits.sentences()
    return LabelledImages(
        name, classes, images, (*origin, *_channel_notes(native.grey, format.grey), *notes), pictures.locate
    )


def convert_channels(labelled: LabelledImages, grey: bool | None) -> LabelledImages:
    """The same images as grey (with Pillow's weights of red, green and blue) or as colour."""
    native = labelled.images.pixels.shape[1] == 1
    if grey is None or grey == native:
        return labelled
    pixels = _luma(labelled.images.pixels) if grey else labelled.images.pixels.expand(-1, 3, -1, -1)
    images = Images(pixels.contiguous(), labelled.images.labels)
    return replace(labelled, images=images, origin=(*labelled.origin, *_channel_notes(native, grey)))


def _luma(pixels: Tensor) -> Tensor:
    """RGB to luma (ITU-R BT.601) in the fixed-point arithmetic of Pillow's mode L."""
    red, green, blue = pixels.to(torch.int32).unbind(1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).to(torch.uint8)[:, None]


def _channel_notes(native: bool, grey: bool) -> tuple[str, ...]:
    if native == grey:
        return ()
    return ("colour pictures are read as grey",) if grey else ("grey pictures are read as colour",)


def _images_of_parts(source: Source, part: str) -> LabelledImages:
    readers = {
        "train": lambda: source.read_train(np.arange(source.count)),
        "test": source.read_test,
    }
    if part != "all" and part not in readers:
        raise InputError(f"{source.name} has no split {part!r}; it has: train, test")
    parts = {name: read() for name, read in readers.items() if part in ("all", name)}
    images = Images(
        torch.cat([images.pixels for images in parts.values()]),
        torch.cat([images.labels for images in parts.values()]),
    )
    locations = [f"{name} image {i}" for name, images in parts.items() for i in range(len(images))]
    origin = tuple(f"{name}: {len(images):,} images" for name, images in parts.items())
    return LabelledImages(source.name, source.classes, images, origin, locations.__getitem__)


def _pictures_in_files(
    data: Data, part: str
) -> tuple[str, tuple[str, ...], EncodedPictures, tuple[str, ...]]:
    """The name, the classes, the pictures and their origin in folders or parquet files."""
    is_all = part == "all"
    # A named part is looked for among all folders, as a training split would be.
    source = source_layout(data if is_all or data.train else replace(data, train=part))
    splits = source.splits if is_all else choose_splits(source, part, "--part")
    reasons = {split: split.no_label_reason() or ("empty" if split.is_empty else "") for split in splits}
    used = [split for split in splits if not reasons[split]]
    unused = [
        f"not used: {quantity(split.count, 'image')} of {split.location}: {why}"
        for split, why in reasons.items()
        if why
    ]
    require_memory(sum(split.size for split in used), f"data: the encoded images of {source.path}")
    for split in used:
        split.check()
    lots = read_pictures(used)
    if not any(len(lot.pictures) for lot in lots):
        remedies = dict.fromkeys(split.advice for split in splits if split.advice)
        raise InputError("; ".join([f"{source.path}: has no labelled pictures", *unused, *remedies]))
    classes = merge_class_names(lots)
    pictures = replace(join_pictures(lots, classes), appearance=data.appearance)
    pictures, damaged = usable_pictures(pictures) if data.skip_damaged else (pictures, ())
    no_files = [location for split in used for location in (*split.non_files, *split.broken_links)]
    lines = [
        *(f"{quantity(split.count, 'image')} of {split.location}" for split in used),
        *(note for split in used for note in split.notes),
        *unused,
        *name_notes(lots),
        *_count_note("passed over, since they are no files", no_files),
        *_count_note("left out, since they cannot be read", damaged),
        *source.notes,
    ]
    return source.name, classes, pictures, tuple(lines)


def _count_note(reason: str, locations: Sequence[str]) -> tuple[str, ...]:
    return (f"{reason}: {len(locations):,}: {listing(locations)}",) if locations else ()
