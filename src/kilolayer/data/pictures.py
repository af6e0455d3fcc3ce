"""Encoded pictures (JPEG, PNG …) from files or tables: checked first, then decoded once into memory.

What is wrong with any of them, in the test set too, is said before the training begins (`inspecting`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Literal, TypeVar

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
LARGE = 10_000_000
_ONE_LARGE = Lock()  # so many threads, each with a picture of 50 million pixels, would fill the memory
CHUNK = 64
T = TypeVar("T")


Kind = Literal["damaged", "empty", "too_large"]


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

    @classmethod
    def of(cls, image: Image.Image) -> Header:
        return cls(str(image.format), image.size, image.mode in GREY)


@dataclass(frozen=True)
class Unreadable:
    """A picture that cannot be used, and why."""

    reason: str
    kind: Kind = "damaged"


@dataclass(frozen=True)
class Form:
    """What every decoded picture looks like: `side` pixels square, grey or RGB."""

    side: int
    grey: bool

    @property
    def channels(self) -> int:
        return 1 if self.grey else 3


def decode(pictures: Pictures, form: Form, what: str, advice: str = "") -> Images:
    """All pictures as uint8 (N, C, side, side): the centred square, resized. Raises InputError."""
    images, outcomes = decode_readable(pictures, form, what)
    refuse([pictures], [outcomes], advice)
    return images


def decode_readable(pictures: Pictures, form: Form, what: str) -> tuple[Images, list[Unreadable | None]]:
    """As `decode`, with an `Unreadable` for each picture that cannot be read; its pixels mean nothing.

    what: the title of the progress bar; "" for none.
    """
    pixels = np.empty((len(pictures), form.side, form.side, form.channels), np.uint8)

    def into(image: Image.Image, i: int) -> None:
        pixels[i] = np.asarray(_square(image, form)).reshape(pixels.shape[1:])

    outcomes = each(pictures, into, what)
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return Images(tensor, torch.from_numpy(pictures.labels.copy())), outcomes


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


def _ends(raw: Path | bytes, format: str | None) -> bool:
    """Whether the mark that ends this format stands near the end."""
    mark = ENDS.get(format or "", b"")
    if isinstance(raw, bytes):
        return mark in raw[-4096:]
    with raw.open("rb") as file:
        file.seek(max(0, raw.stat().st_size - 4096))
        return mark in file.read()


class Refused(ValueError):
    """A picture that is not even opened: its reason and kind."""


def _opened(pictures: Pictures, i: int, use: Callable[[Image.Image, int], T]) -> T:
    raw = pictures.raw(i)
    if not (raw if isinstance(raw, bytes) else raw.stat().st_size):
        raise Refused("empty", "empty")
    with Image.open(BytesIO(raw) if isinstance(raw, bytes) else raw, formats=FORMATS) as image:
        if image.width * image.height > MOST_PIXELS:
            said = f"{image.width}×{image.height} pixels, more than {MOST_PIXELS // 10**6} million"
            raise Refused(said, "too_large")
        with _turn(image):
            result = use(image, i)
            if not _ends(raw, image.format):
                image.load()
            return result


def _turn(image: Image.Image) -> AbstractContextManager[object]:
    return _ONE_LARGE if image.width * image.height > LARGE else nullcontext()


def each(pictures: Pictures, use: Callable[[Image.Image, int], T], what: str) -> list[T | Unreadable]:
    """Applies `use` to every opened picture, in threads."""

    def one(i: int) -> T | Unreadable:
        try:
            return _opened(pictures, i, use)
        except Refused as refused:
            return Unreadable(*refused.args)
        except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
            return Unreadable(_reason(error))

    def some(start: int) -> tuple[int, list[T | Unreadable]]:
        end = min(start + CHUNK, len(pictures))
        return end - start, [one(i) for i in range(start, end)]

    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        # Pillow warns of sizes and of damaged metadata: refused above, or harmless
        warnings.simplefilter("ignore")
        chunks = follow(pool.map(some, range(0, len(pictures), CHUNK)), len(pictures), what)
        return [result for chunk in chunks for result in chunk]


def refuse(parts: Sequence[Pictures], found: Sequence[Sequence[object]], advice: str = "") -> None:
    """Raises `InputError` naming the first of those pictures, in all parts together, that cannot be used."""
    reasons = [text for part, seen in zip(parts, found, strict=True) for text in unusable(part, seen)]
    if reasons:
        images = sum(map(len, parts))
        raise InputError(
            f"data: {len(reasons):,} of {images:,} images are unusable: {listed(reasons)}{advice}"
        )


def unusable(pictures: Pictures, found: Sequence[object]) -> list[str]:
    """Where those pictures are that cannot be used, and why."""
    return [
        f"{pictures.where(i)} ({one.reason})" for i, one in enumerate(found) if isinstance(one, Unreadable)
    ]


def _reason(error: Exception) -> str:
    return "not an image" if type(error).__name__ == "UnidentifiedImageError" else brief(error, 60)
