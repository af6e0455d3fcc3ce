"""Images in memory, and the three parts of a data set, of which the test part is read last."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Locator = Callable[[str, int], str]


def image_location(part: str, i: int) -> str:
    """The place of an image that has no file of its own."""
    return f"{part} image {i}"


@dataclass(frozen=True)
class Images:
    """N images of one size with their labels: `pixels` uint8 (N, C, H, W), `labels` int64 (N,)."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: slice | Tensor) -> Images:
        return Images(self.pixels[index], self.labels[index])

    def to(self, device: torch.device | str) -> Images:
        return Images(self.pixels.to(device), self.labels.to(device))

    def fingerprint(self) -> str:
        """SHA-256 of shape, pixels and labels: whether a resumed run sees the data it began with."""
        digest = hashlib.sha256(str(tuple(self.pixels.shape)).encode())
        for tensor in (self.pixels, self.labels):
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Splits:
    """A data set. `name` is how figures name it; `test` is read when first asked for, and not before.

    `skipped`: the damaged images that were left out, where that was asked for, and why each.
    `looks`: what was done so that the pictures look as their viewer shows them, a sentence for each kind.
    `origin`: which files or folders are used as what, what is not used and why, a line each.
    `where`: the place of an image, in words, by the name of its part and its number there.
    """

    name: str
    classes: tuple[str, ...]
    train: Images
    validation: Images | None
    read_test: Callable[[], Images]
    skipped: tuple[str, ...] = ()
    looks: tuple[str, ...] = ()
    origin: tuple[str, ...] = ()
    locate: Locator = image_location

    @cached_property
    def test(self) -> Images:
        return self.read_test()

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def in_chans(self) -> int:
        return self.train.pixels.shape[1]

    @property
    def image_size(self) -> int:
        """The side of the (square) images in pixels."""
        return self.train.pixels.shape[-1]


@dataclass(frozen=True)
class Source:
    """A data set not yet read: `read_train` takes the positions of the training images that are wanted.

    `looks` says what was done to the pictures, of the training images to those that have been read.
    read_validation: the validation split that `Data.validation_split` names; offered: the one that it could
    name. skipped, origin: as in `Splits`; where: as there, of all training images.
    """

    name: str
    classes: tuple[str, ...]
    count: int
    read_train: Callable[[NDArray[np.int64]], Images]
    read_test: Callable[[], Images]
    skipped: tuple[str, ...] = ()
    looks: Callable[[], tuple[str, ...]] = tuple
    origin: tuple[str, ...] = ()
    read_validation: Callable[[], Images] | None = None
    available_validation: str | None = None
    locate: Locator = image_location


@dataclass(frozen=True)
class StoredDataset:
    """A data set with a training file and a test file, which a reader of `DATASETS` returns.

    name: its name in `DATASETS`. Each function reads its part when it is called, and raises `InputError` where
    the files are damaged.
    """

    name: str
    read_classes: Callable[[], tuple[str, ...]]
    read_train: Callable[[], Images]
    read_test: Callable[[], Images]
