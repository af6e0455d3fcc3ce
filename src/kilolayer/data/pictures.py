"""Encoded pictures (JPEG, PNG …) from files or tables: checked first, then decoded once into memory.

Sizes and formats are read from the headers of all pictures before anything is decoded, so that what is
wrong with any of them, in the test set too, is said before the training begins. The test set's pixels are not
decoded until it is asked for (a JPEG or PNG whose end is missing is the exception: only decoding tells).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from kilolayer.data.images import Images
from kilolayer.data.progress import follow
from kilolayer.data.wording import brief, listed
from kilolayer.errors import InputError

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # none that Pillow hands to another program
GREY = ("1", "L", "I;16", "I;16B", "I;16L")
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
MOST_PIXELS = 50_000_000
CHUNK = 64
T = TypeVar("T")


@dataclass(frozen=True)
class Pictures:
    """N encoded pictures: int64 labels (N,), the i-th one's file or bytes, and where that is, in words."""

    labels: NDArray[np.int64]
    raw: Callable[[int], Path | bytes]
    where: Callable[[int], str]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: NDArray[np.int64]) -> Pictures:
        chosen = index.tolist()
        return Pictures(self.labels[index], lambda i: self.raw(chosen[i]), lambda i: self.where(chosen[i]))


@dataclass(frozen=True)
class Header:
    format: str
    size: tuple[int, int]
    grey: bool


@dataclass(frozen=True)
class Form:
    """What every decoded picture looks like: `side` pixels square, grey or RGB."""

    side: int
    grey: bool

    @property
    def channels(self) -> int:
        return 1 if self.grey else 3


def headers(pictures: Pictures, what: str) -> set[Header]:
    """The kinds of headers there are. Raises InputError naming the first pictures that are none."""
    return set(_each(pictures, _header, what))


def decode(pictures: Pictures, form: Form, what: str) -> Images:
    """All pictures as uint8 (N, C, side, side): the centred square, resized. Raises InputError."""
    pixels = np.empty((len(pictures), form.side, form.side, form.channels), np.uint8)

    def into(image: Image.Image, i: int) -> None:
        pixels[i] = np.asarray(_square(image, form)).reshape(pixels.shape[1:])

    _each(pictures, into, what)
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return Images(tensor, torch.from_numpy(pictures.labels.copy()))


def _square(image: Image.Image, form: Form) -> Image.Image:
    mode, side = "L" if form.grey else "RGB", form.side
    image.draft(mode, (side, side))  # JPEG decodes at 1/2, 1/4 or 1/8 where that is still large enough
    shorter = min(image.size)
    left, top = (image.width - shorter) // 2, (image.height - shorter) // 2
    converted = image.convert(mode)
    if image.size == (side, side):
        return converted
    box = (left, top, left + shorter, top + shorter)
    return converted.resize((side, side), Image.Resampling.BILINEAR, box=box)


def _header(image: Image.Image, i: int) -> Header:
    return Header(str(image.format), image.size, image.mode in GREY)


def _ends(raw: Path | bytes, format: str | None) -> bool:
    """Whether the mark that ends this format stands near the end."""
    mark = ENDS.get(format or "", b"")
    if isinstance(raw, bytes):
        return mark in raw[-4096:]
    with raw.open("rb") as file:
        file.seek(max(0, raw.stat().st_size - 4096))
        return mark in file.read()


def _opened(pictures: Pictures, i: int, use: Callable[[Image.Image, int], T]) -> T:
    raw = pictures.raw(i)
    with Image.open(BytesIO(raw) if isinstance(raw, bytes) else raw, formats=FORMATS) as image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"{image.width}×{image.height} pixels, more than {MOST_PIXELS // 10**6} million")
        result = use(image, i)
        if not _ends(raw, image.format):
            image.load()
        return result


def _each(pictures: Pictures, use: Callable[[Image.Image, int], T], what: str) -> list[T]:
    """Applies `use` to every opened picture, in threads; collects what went wrong and raises it together."""
    wrong: list[tuple[int, str]] = []

    def some(start: int) -> tuple[int, list[T]]:
        done = []
        end = min(start + CHUNK, len(pictures))
        for i in range(start, end):
            try:
                done.append(_opened(pictures, i, use))
            except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
                wrong.append((i, _reason(error)))
        return end - start, done

    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        # Pillow warns of sizes and of damaged metadata: refused above, or harmless
        warnings.simplefilter("ignore")
        chunks = follow(pool.map(some, range(0, len(pictures), CHUNK)), len(pictures), what)
        results = [result for chunk in chunks for result in chunk]
    if wrong:
        reasons = [f"{pictures.where(i)} ({reason})" for i, reason in sorted(wrong)]
        raise InputError(f"data: {len(wrong):,} of {len(pictures):,} images are unusable: {listed(reasons)}")
    return results


def _reason(error: Exception) -> str:
    return "not an image" if type(error).__name__ == "UnidentifiedImageError" else brief(error, 60)
