"""The description of a data set and of its augmentation, as frozen values. This module does not import torch.

>>> from kilolayer.data import Data
>>> Data("cifar10", validation=5_000)  # doctest: +ELLIPSIS
Data(source='cifar10', folder=None, download=False, image_size=None, validation=5000, ...)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from kilolayer.data.registry import DATASETS, names_text
from kilolayer.errors import InputError
from kilolayer.networks.description import MAX_IMAGE_SIZE

Normalization = Literal["per_pixel_mean", "channel"]
"""How pixels become the network's input. Mean and scale are measured on the training images only.

`per_pixel_mean` (P1, P2): subtract the mean image, then divide by *one* number, the standard deviation of the
difference over all pixels. The papers name no divisor. This one gives the input unit variance and keeps the
relation between pixels.
`channel` (the code released with P2): subtract the mean of each channel and divide by its standard deviation.
"""


Appearance = Literal["shown", "stored"]
"""How the pictures of folders and parquet files are read.

`shown`: as a viewer shows them (see `kilolayer.data.pictures.rendering`).
`stored`: as Pillow's `convert` gives the stored pixels, without orientation, profile, transparency or depth.
torchvision and timm read pictures in this way, and published ImageNet figures are measured on them.
"""
SELECTOR_FLAGS = {
    "train": "--train",
    "test": "--test",
    "validation_split": "--validation",
    "image_column": "--image-column",
    "label_column": "--label-column",
}
"""The fields of `Data` that choose a split or a column within the source, and their options."""


def _check_name(field: str, value: object) -> None:
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise InputError(f"{field}: {value!r} is not a name")


def _check_integer(field: str, value: object, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InputError(f"{field}: {value!r} is not a whole number from {least:,} to {most:,}")


@dataclass(frozen=True)
class Data:
    """A data set and how it is split.

    source: a name of `kilolayer.data.registry.DATASETS`, or a path: a CIFAR folder or archive, a folder with
        one folder of images for each class (optionally under `train/`, `val/`, `test/`), a parquet file, or a
        folder of parquet files. Where the source has no test set, a fifth of each class becomes the test set.
        `split_seed` draws it.
    folder: the folder of downloaded data sets. None: $KILOLAYER_DATA, or ~/.cache/kilolayer.
    download: fetch a named data set that is missing.
    image_size: the side in pixels to resize to (the shorter side, then a centre crop). None: the images' own
        size where all are squares of one size, and otherwise 224.
    validation: the number of training images to hold out (P1: 5,000 of 50,000). `split_seed` draws them from
        all classes together.
    subset: train on only this many of the remaining images. A smaller subset is part of every larger one.
    skip_damaged: leave out damaged images of folders and parquet files. Otherwise they are an error.
    appearance: read the pictures of folders and parquet files as `shown` or as `stored` (`Appearance`).
    train, test: the splits to train and to test on, by their names in the source; `+` joins several.
        None: the splits whose names say so (see `splits.ROLE_WORDS`).
    validation_split: the split to use as the validation set. `validation` must then be 0.
    image_column, label_column: the columns of a parquet file. None: the columns with a usual name.

    Raises `InputError` where a field has an impossible value.
    """

    source: str = "digits"
    folder: str | None = None
    download: bool = False
    image_size: int | None = None
    validation: int = 0
    split_seed: int = 0
    subset: int | None = None
    skip_damaged: bool = False
    appearance: Appearance = "shown"
    train: str | None = None
    test: str | None = None
    validation_split: str | None = None
    image_column: str | None = None
    label_column: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.source, str) or not self.source or "\0" in self.source:
            raise InputError(f"data: {self.source!r} is neither a path nor one of {names_text()}")
        if self.folder is not None and (not self.folder or "\0" in self.folder):
            raise InputError(f"folder: {self.folder!r} is not a path")
        _check_integer("validation", self.validation, 0, 10**9)
        _check_integer("split_seed", self.split_seed, 0, 2**63 - 1)
        if not isinstance(self.skip_damaged, bool):
            raise InputError(f"skip_damaged: {self.skip_damaged!r} is neither true nor false")
        if self.appearance not in ("shown", "stored"):
            raise InputError(f"appearance: {self.appearance!r}; allowed: 'shown', 'stored'")
        if self.image_size is not None:
            _check_integer("image_size", self.image_size, 1, MAX_IMAGE_SIZE)
        if self.subset is not None:
            _check_integer("subset", self.subset, 1, 10**9)
        for name in SELECTOR_FLAGS:
            _check_name(name, getattr(self, name))
        if self.validation_split is not None and self.validation:
            raise InputError("validation and validation_split exclude each other; give one of them")


def _check_range(field: str, value: object, least: float, most: float) -> None:
    """Raises `InputError` unless `value` is two numbers in order, above `least` and up to `most`."""
    numbers = value if isinstance(value, tuple) and len(value) == 2 else (math.nan, math.nan)
    real = all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers)
    if not real or not least < numbers[0] <= numbers[1] <= most:
        raise InputError(
            f"{field}: {value!r} is not (low, high) with {least:g} < low ≤ high"
            + (f" ≤ {most:g}" if math.isfinite(most) else "")
        )


@dataclass(frozen=True)
class ResizedCrop:
    """A random crop of the picture, enlarged to the size of the picture (Szegedy et al. 2015).

    area: the range of the crop's share of the picture; drawn uniformly.
    ratio: the range of width over height; its logarithm is drawn uniformly.
    A side of the crop is never longer than the picture's.
    """

    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        _check_range("resized_crop.area", self.area, 0, 1)
        _check_range("resized_crop.ratio", self.ratio, 0, 1000)


@dataclass(frozen=True)
class ColorJitter:
    """Random factors of contrast, brightness and saturation, each uniform in [1 − field, 1 + field]."""

    contrast: float = 0.4
    brightness: float = 0.4
    saturation: float = 0.4

    def __post_init__(self) -> None:
        for name in ("contrast", "brightness", "saturation"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise InputError(f"color_jitter.{name}: {value!r} is not a number from 0 to 1")


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of training images (P1, section 4.2): zero-pad, crop at random, mirror every second.

    pad: the zeros on each side in pixels, added after normalisation. The crop has the size of the image.
    flip: mirror left and right with probability 1/2.
    cutout: the side in pixels of a square of zeros around a random centre; 0: none, as in the papers.
    resized_crop, color_jitter: variation of photographs; None: none, as in the papers on CIFAR. Colour jitter
        comes first, before normalisation, then the resized crop, then the others.

    >>> Augmentation().pad, Augmentation().flip
    (4, True)
    """

    pad: int = 4
    flip: bool = True
    cutout: int = 0
    resized_crop: ResizedCrop | None = None
    color_jitter: ColorJitter | None = None

    def __post_init__(self) -> None:
        _check_integer("augmentation.pad", self.pad, 0, 1024)
        _check_integer("augmentation.cutout", self.cutout, 0, 4096)


NO_AUGMENTATION = Augmentation(pad=0, flip=False)
PHOTO_AUGMENTATION = Augmentation(
    pad=0, resized_crop=ResizedCrop((0.6, 1.0)), color_jitter=ColorJitter(0.2, 0.2, 0.2)
)
"""For fine-tuning on photographs: milder than usual for a network that is trained from scratch."""


def default_augmentation(data: Data) -> Augmentation:
    """The augmentation in `DATASETS` for a named data set, and the papers' augmentation for any other.

    >>> default_augmentation(Data("digits"))  # a mirrored digit is no digit
    Augmentation(pad=1, flip=False, cutout=0, resized_crop=None, color_jitter=None)
    """
    entry = DATASETS.get(data.source)
    return Augmentation(pad=entry.pad, flip=entry.flip) if entry else Augmentation()
