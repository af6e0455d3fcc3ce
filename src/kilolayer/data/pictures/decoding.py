"""Decodes pictures (JPEG, PNG …) from files or tables into memory.

`kilolayer.data.pictures.inspection` checks them first, those of the test set too, so that errors come before
the training.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from kilolayer.data.config import Appearance
from kilolayer.data.images import Images
from kilolayer.data.pictures.rendering import (
    TraitCounts,
    UnusablePicture,
    check_displayable,
    is_grey,
    is_read_error,
    viewer_pixels,
)
from kilolayer.data.pictures.signatures import SIGNATURE_BYTES, describe_signature, is_canon_raw
from kilolayer.errors import InputError
from kilolayer.system import durable
from kilolayer.system.message_text import error_text, listing
from kilolayer.system.progress_line import track

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""The formats that Pillow decodes itself. It passes others (EPS) to another program."""
STORED_GREY = ("1", "L", "I;16", "I;16B", "I;16L")
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
MOST_PIXELS = 50_000_000
LARGE = 10_000_000
START_OF_SCAN, MOST_SCANS = b"\xff\xda", 100  # a progressive JPEG has about ten
_ONE_LARGE = Lock()  # a picture of 50 million pixels in every thread would exhaust the memory
CHUNK = 64
T = TypeVar("T")


UnreadableKind = Literal["damaged", "empty", "too_large"]


@dataclass(frozen=True)
class EncodedPictures:
    """N encoded pictures, with labels int64 (N,).

    encoded: the file or the bytes of picture i. locate: its location in words. appearance: see `Data`.
    contents: a number for each picture, int64 (N,): equal numbers are equal bytes, which are then read once.
    """

    labels: NDArray[np.int64]
    encoded: Callable[[int], Path | bytes]
    locate: Callable[[int], str]
    appearance: Appearance = "shown"
    contents: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: NDArray[np.int64]) -> EncodedPictures:
        """The pictures at these indices."""
        chosen = index.tolist()
        return replace(
            self,
            labels=self.labels[index],
            encoded=lambda i: self.encoded(chosen[i]),
            locate=lambda i: self.locate(chosen[i]),
            contents=None if self.contents is None else self.contents[index],
        )

    def without_repetitions(self) -> tuple[EncodedPictures, NDArray[np.int64]]:
        """The pictures of different contents, and for each picture the index of the one with its content."""
        if self.contents is None:
            return self, np.arange(len(self))
        _, firsts, index = np.unique(self.contents, return_index=True, return_inverse=True)
        return self.take(firsts), index


@dataclass(frozen=True)
class Header:
    """The format, the size and the channels of a picture, from its first bytes.

    size: as stored. A square stays a square when it is turned.
    """

    format: str
    size: tuple[int, int]
    grey: bool

    @classmethod
    def of(cls, image: Image.Image, appearance: Appearance) -> Header:
        """The header of an opened picture. Raises `UnusablePicture` where it cannot be shown."""
        if appearance == "shown":
            check_displayable(image)
        grey = is_grey(image) if appearance == "shown" else image.mode in STORED_GREY
        return cls(str(image.format), image.size, grey)


@dataclass(frozen=True)
class Unreadable:
    """A picture that cannot be used, with the reason and its kind."""

    reason: str
    kind: UnreadableKind = "damaged"


@dataclass(frozen=True)
class PixelFormat:
    """The format of decoded pictures: squares of `side` pixels, grey or RGB."""

    side: int
    grey: bool

    @property
    def channels(self) -> int:
        return 1 if self.grey else 3


def decode(
    pictures: EncodedPictures,
    format: PixelFormat,
    title: str,
    advice: str = "",
    traits: TraitCounts | None = None,
) -> Images:
    """Decodes all pictures to uint8 (N, C, side, side): the centre square, resized.

    title: the title of the progress line. advice: ends the error message. traits: collects the traits of the
        pictures.
    Raises `InputError` that names the unusable pictures.
    """
    images, outcomes = decode_readable(pictures, format, title, traits)
    refuse_unusable([pictures], [outcomes], advice)
    return images


def decode_readable(
    pictures: EncodedPictures, format: PixelFormat, title: str, traits: TraitCounts | None = None
) -> tuple[Images, list[Unreadable | None]]:
    """As `decode`, but gives an `Unreadable` for each picture that cannot be read; its pixels are undefined.

    title: the title of the progress line; "" for none.
    """
    pixels = np.empty((len(pictures), format.side, format.side, format.channels), np.uint8)
    distinct, index = pictures.without_repetitions()
    order = np.argsort(index, kind="stable")
    ends = np.searchsorted(index[order], np.arange(len(distinct) + 1))

    def into(image: Image.Image, i: int) -> frozenset[str]:
        square, traits = _center_square(image, format, pictures.appearance)
        pixels[order[ends[i] : ends[i + 1]]] = np.asarray(square).reshape(pixels.shape[1:])
        return traits

    outcomes_by_content = map_pictures(distinct, into, title)
    results = [outcomes_by_content[at] for at in index.tolist()]
    if traits is not None:
        traits.add(outcome for outcome in results if not isinstance(outcome, Unreadable))
    outcomes = [outcome if isinstance(outcome, Unreadable) else None for outcome in results]
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return Images(tensor, torch.from_numpy(pictures.labels.copy())), outcomes


def _center_square(
    image: Image.Image, format: PixelFormat, appearance: Appearance
) -> tuple[Image.Image, frozenset[str]]:
    mode, side = "L" if format.grey else "RGB", format.side
    rendered, traits = pixels_in_mode(image, mode, appearance, side)
    if rendered.size == (side, side):
        return rendered, traits
    shorter = min(rendered.size)
    left, top = (rendered.width - shorter) // 2, (rendered.height - shorter) // 2
    box = (left, top, left + shorter, top + shorter)
    return rendered.resize((side, side), Image.Resampling.BILINEAR, box=box), traits


def pixels_in_mode(
    image: Image.Image, mode: str, appearance: Appearance, side: int | None = None
) -> tuple[Image.Image, frozenset[str]]:
    """An opened picture in `mode`, as displayed or as stored, and its traits."""
    if appearance == "shown":
        return viewer_pixels(image, mode, side)
    if side is not None:
        image.draft(mode, (side, side))
    return image.convert(mode), frozenset()


def _has_end_mark(raw: Path | bytes, format: str | None) -> bool:
    """Whether the mark that ends a file of this format stands near the end."""
    mark = ENDS.get(format or "", b"")
    if isinstance(raw, bytes):
        return mark in raw[-4096:]
    with raw.open("rb") as file:
        file.seek(max(0, raw.stat().st_size - 4096))
        return mark in file.read()


def _use_picture(pictures: EncodedPictures, i: int, function: Callable[[Image.Image, int], T]) -> T:
    raw = pictures.encoded(i)
    if not (raw if isinstance(raw, bytes) else raw.stat().st_size):
        raise UnusablePicture("empty", "empty")
    with _open_picture(raw) as image:
        if image.width * image.height > MOST_PIXELS:
            reason = f"{image.width}×{image.height} pixels, more than {MOST_PIXELS // 10**6} million"
            raise UnusablePicture(reason, "too_large")
        if image.format == "TIFF" and pictures.appearance == "shown" and is_canon_raw(_first_bytes(raw)):
            raise UnusablePicture(describe_signature(_first_bytes(raw)))
        if "progressive" in image.info and (scans := _count_scans(raw)) > MOST_SCANS:
            raise UnusablePicture(f"{scans:,} scans, more than {MOST_SCANS}")
        with _large_picture_lock(image):
            result = function(image, i)
            if not _has_end_mark(raw, image.format):
                image.load()
            return result


def _count_scans(raw: Path | bytes) -> int:
    """The scans of a JPEG. Each costs as much time as a whole picture, and may have a few bytes."""
    return (raw if isinstance(raw, bytes) else raw.read_bytes()).count(START_OF_SCAN)


def _open_picture(raw: Path | bytes) -> Image.Image:
    try:
        return Image.open(BytesIO(raw) if isinstance(raw, bytes) else raw, formats=FORMATS)
    except Exception as error:
        if isinstance(error, UnidentifiedImageError) or is_canon_raw(_first_bytes(raw)):
            raise UnusablePicture(describe_signature(_first_bytes(raw))) from None
        raise


def _first_bytes(raw: Path | bytes) -> bytes:
    if isinstance(raw, bytes):
        return raw[:SIGNATURE_BYTES]
    with raw.open("rb") as file:
        return file.read(SIGNATURE_BYTES)


def _large_picture_lock(image: Image.Image) -> AbstractContextManager[object]:
    return _ONE_LARGE if image.width * image.height > LARGE else nullcontext()


def map_pictures(
    pictures: EncodedPictures, function: Callable[[Image.Image, int], T], title: str
) -> list[T | Unreadable]:
    """Applies `function` to every opened picture, in threads. A picture that fails gives an `Unreadable`.

    Raises `StorageError` where the system cannot read a picture, which may be sound.
    """

    def apply(i: int) -> T | Unreadable:
        try:
            return _use_picture(pictures, i, function)
        except UnusablePicture as unusable:
            return Unreadable(*unusable.args)
        except Exception as error:  # Pillow's decoders raise almost any exception on damaged files
            if isinstance(error, OSError) and is_read_error(error):
                raise durable.storage_error(f"cannot read {pictures.locate(i)}", error) from error
            return Unreadable(error_text(error, 60))

    def apply_chunk(start: int) -> tuple[int, list[T | Unreadable]]:
        end = min(start + CHUNK, len(pictures))
        return end - start, [apply(i) for i in range(start, end)]

    with _silence_pillow(), ThreadPoolExecutor() as pool:
        chunks = track(pool.map(apply_chunk, range(0, len(pictures), CHUNK)), len(pictures), title)
        return [result for chunk in chunks for result in chunk]


@contextmanager
def _silence_pillow() -> Iterator[None]:
    """Silences Pillow's warnings of large sizes (we refuse them) and of damaged metadata (harmless)."""
    logger = logging.getLogger("PIL")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(level)


def refuse_unusable(
    parts: Sequence[EncodedPictures], results: Sequence[Sequence[object]], advice: str = ""
) -> None:
    """Raises `InputError` that names the first unusable pictures of all parts, and their number."""
    reasons = [
        text
        for part, part_results in zip(parts, results, strict=True)
        for text in unusable_pictures(part, part_results)
    ]
    if reasons:
        images = sum(map(len, parts))
        raise InputError(
            f"data: {len(reasons):,} of {images:,} images are unusable: {listing(reasons)}{advice}"
        )


def unusable_pictures(pictures: EncodedPictures, results: Sequence[object]) -> list[str]:
    """The locations of unusable pictures, with reasons."""
    return [
        f"{pictures.locate(i)} ({result.reason})"
        for i, result in enumerate(results)
        if isinstance(result, Unreadable)
    ]
