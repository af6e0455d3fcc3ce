"""What to train on and how its images are varied: frozen values, with no torch behind them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from kilolayer.data.registry import DATASETS, names_text
from kilolayer.errors import InputError

Normalization = Literal["per_pixel_mean", "channel"]
"""How pixels become the network's input, by figures taken from the training images only.

`per_pixel_mean` (P1, P2): subtract the mean image, then divide by *one* number, the standard deviation
of what remains over all pixels. The papers name no divisor; this one keeps the input at unit variance
and leaves the relation between pixels as the papers have it.
`channel` (the code released with P2): subtract each channel's mean and divide by its standard deviation.
"""


Appearance = Literal["shown", "stored"]
"""Which pixels the pictures of folders and parquet stand for.

`shown`: those that a viewer shows (see `kilolayer.data.pictures.rendering`).
`stored`: those in the file, by Pillow's `convert`, without orientation, profile, transparency or depth, as
torchvision and timm read them and as ImageNet's figures are made everywhere.
"""
SELECTOR_FLAGS = {
    "train": "--train",
    "test": "--test",
    "validation_split": "--validation",
    "image_column": "--image-column",
    "label_column": "--label-column",
}
"""The fields of `Data` that name something within the source, and their options."""


def _check_name(field: str, value: object) -> None:
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise InputError(f"{field}: {value!r} is not a name")


def _check_integer(field: str, value: object, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InputError(f"{field}: {value!r} is not a whole number from {least:,} to {most:,}")


@dataclass(frozen=True)
class Data:
    """What to train on.

    source: `digits` (embedded), `cifar10`, `cifar100`, or a path: a CIFAR folder or archive, a folder with
        one folder of images per class (optionally under `train/`, `val/`, `test/`), a parquet file, or a
        folder of such. Without a test set of its own, a fifth of each class becomes the test set, drawn by
        `split_seed`.
    folder: where cifar10 and cifar100 lie or are downloaded to; None: $KILOLAYER_DATA or ~/.cache/kilolayer.
    download: fetch a missing cifar10 or cifar100.
    image_size: the side to resize to, in pixels (shorter side, then the centre). None: the native size where
        all images are squares of one size, else 224.
    validation: training images held out, drawn by `split_seed` without regard to class (P1: 5,000 of 50,000).
    subset: train on only this many of the images left; a smaller subset is part of every larger one.
    skip_damaged: leave out images of folders and parquet that cannot be used, instead of refusing them all.
    appearance: which pixels the pictures of folders and parquet stand for, `shown` or `stored`.
    train, test: the splits to train and to test on, by their names in the source, several joined by `+`.
        None: those whose names say so (see `splits.WORDS`).
    validation_split: the split that is the validation set; `validation` then holds out no training images.
    image_column, label_column: the columns of parquet; None: those with a usual name.
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
            raise InputError(f"data: {self.source!r} is no path and none of {names_text()}")
        if self.folder is not None and (not self.folder or "\0" in self.folder):
            raise InputError(f"folder: {self.folder!r} is not a path")
        _check_integer("validation", self.validation, 0, 10**9)
        _check_integer("split_seed", self.split_seed, 0, 2**63 - 1)
        if not isinstance(self.skip_damaged, bool):
            raise InputError(f"skip_damaged: {self.skip_damaged!r} is neither true nor false")
        if self.appearance not in ("shown", "stored"):
            raise InputError(f"appearance: {self.appearance!r}; allowed: 'shown', 'stored'")
        if self.image_size is not None:
            _check_integer("image_size", self.image_size, 1, 4096)
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
    """A part of the picture, enlarged to its whole size (Szegedy et al. 2015).

    area: the part's share of the picture, drawn uniformly from this range.
    ratio: its width over its height, drawn from this range, uniformly in its logarithm.
    A side that would be longer than the picture's is the picture's.
    """

    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        _check_range("resized_crop.area", self.area, 0, 1)
        _check_range("resized_crop.ratio", self.ratio, 0, 1000)


@dataclass(frozen=True)
class ColorJitter:
    """Factors of contrast, brightness and saturation, each drawn uniformly from 1 − field to 1 + field."""

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
    """How training images vary (P1, 4.2): zero-pad, crop at random, mirror every second one.

    pad: pixels of zeros on each side, after normalisation; the crop has the image's own size.
    flip: mirror left and right with probability 1/2.
    cutout: side of a square of zeros around a random centre; 0: none, as in the papers.
    resized_crop, color_jitter: as photographs vary; None: not, as in the papers on CIFAR. Colour comes first,
    before normalisation, then the resized crop, then the others.
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
"""For fine-tuning: milder than what is usual where a network learns from nothing."""


def default_augmentation(data: Data) -> Augmentation:
    """The augmentation of `DATASETS` for a named data set, and that of the papers for every other."""
    entry = DATASETS.get(data.source)
    return Augmentation(pad=entry.pad, flip=entry.flip) if entry else Augmentation()
