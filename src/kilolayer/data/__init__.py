"""Digits, CIFAR-10 and CIFAR-100, folders of images, Hugging Face parquet; augmentation on whole batches.

Descriptions (`Data`, `Augmentation`, `Normalization`) come without torch; the rest is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kilolayer.data.describe import (
    NO_AUGMENTATION,
    PHOTOGRAPHS,
    Augmentation,
    ColorJitter,
    Data,
    Normalization,
    ResizedCrop,
    default_augmentation,
)
from kilolayer.lazy import lazily

if TYPE_CHECKING:
    from kilolayer.data.augment import (
        Draws,
        Selection,
        batch,
        draws,
        permutation,
        resampled,
        select,
        selected,
    )
    from kilolayer.data.images import Images, Splits
    from kilolayer.data.loading import load
    from kilolayer.data.statistics import Statistics, measure
    from kilolayer.data.unsplit import Labelled, load_labelled

_HOMES = {
    "Draws": "augment", "batch": "augment", "draws": "augment", "permutation": "augment",
    "Selection": "augment", "resampled": "augment", "select": "augment", "selected": "augment",
    "Images": "images", "Splits": "images", "load": "loading",
    "Statistics": "statistics", "measure": "statistics",
    "Labelled": "unsplit", "load_labelled": "unsplit",
}  # fmt: skip

__all__ = [
    "NO_AUGMENTATION",
    "PHOTOGRAPHS",
    "Augmentation",
    "ColorJitter",
    "Data",
    "Draws",
    "Images",
    "Labelled",
    "Normalization",
    "ResizedCrop",
    "Selection",
    "Splits",
    "Statistics",
    "batch",
    "default_augmentation",
    "draws",
    "load",
    "load_labelled",
    "measure",
    "permutation",
    "resampled",
    "select",
    "selected",
]


__getattr__, __dir__ = lazily(__name__, _HOMES)
