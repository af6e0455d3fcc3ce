"""Images in memory, and data sets before and after they are read."""

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
    """The location of an image that has no file of its own, as `train image 7`."""
    return f"{part} image {i}"


@dataclass(frozen=True)
class Images:
    """N images of one size with their labels: `pixels` uint8 (N, C, H, W), `labels` int64 (N,).

    An index or a slice gives `Images` again.

    >>> import torch
    >>> images = Images(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4))
    >>> len(images[1:3]), images[1:3].labels.tolist()
    (2, [1, 2])
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: slice | Tensor) -> Images:
        return Images(self.pixels[index], self.labels[index])

    def to(self, device: torch.device | str) -> Images:
        return Images(self.pixels.to(device), self.labels.to(device))

    def fingerprint(self) -> str:
        """SHA-256 of shape, pixels and labels. A resumed run compares it with that of its first start."""
        digest = hashlib.sha256(str(tuple(self.pixels.shape)).encode())
        for tensor in (self.pixels, self.labels):
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Splits:
    """A data set in memory: training, validation and test images. The test images are read on first use.

    name: the name in figures and tables. classes: the class names, in the order of the labels.
    skipped: the damaged images that were left out, with reasons (`Data.skip_damaged`).
    looks: how pictures were converted for viewing, one sentence for each kind of conversion.
    origin: which files or folders are used for which part, and which are not used and why, one line each.
    locate: the location of an image in words, by the name of its part and its index there.
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
        """The side of the square images in pixels."""
        return self.train.pixels.shape[-1]


@dataclass(frozen=True)
class Source:
    """A data set that is open but not yet in memory.

    count: the number of training images. read_train reads the training images at the given indices.
    read_validation: reads the validation split that `Data.validation_split` names; None without one.
    available_validation: the name of a validation split that the source has and `Data` does not use.
    looks: the conversions of the pictures that have been read so far, one sentence for each kind.
    name, classes, skipped, origin, locate: as in `Splits`.
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
    """What the reader of a named data set returns: three functions that read its files when called.

    name: the key in `DATASETS`. Each function raises `InputError` where its files are damaged.
    """

    name: str
    read_classes: Callable[[], tuple[str, ...]]
    read_train: Callable[[], Images]
    read_test: Callable[[], Images]
