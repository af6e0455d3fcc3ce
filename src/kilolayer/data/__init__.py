"""Data sets in memory, and the augmentation of whole batches.

Sources are digits, CIFAR-10 and CIFAR-100, folders of images, and parquet files as Hugging Face stores them.
The descriptions (`Data`, `Augmentation`, `Normalization`) do not import torch; everything else is imported on
first use.

>>> from kilolayer.data import Data, load
>>> digits = load(Data("digits"))
>>> len(digits.train), len(digits.test), digits.num_classes
(1437, 360, 10)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kilolayer.data.config import (
    NO_AUGMENTATION,
    PHOTO_AUGMENTATION,
    Augmentation,
    ColorJitter,
    Data,
    Normalization,
    ResizedCrop,
    default_augmentation,
)
from kilolayer.lazy import lazy_attributes

if TYPE_CHECKING:
    from kilolayer.data.augmentation import (
        AugmentationParams,
        BatchSpec,
        batch_at,
        batch_spec,
        draw_augmentation,
        epoch_order,
        make_batch,
        resize_batch,
    )
    from kilolayer.data.images import Images, Splits
    from kilolayer.data.labelled_images import LabelledImages, load_labelled
    from kilolayer.data.loading import load
    from kilolayer.data.normalization import InputStatistics, measure_statistics

_HOMES = {
    "AugmentationParams": "augmentation",
    "BatchSpec": "augmentation",
    "batch_at": "augmentation",
    "draw_augmentation": "augmentation",
    "epoch_order": "augmentation",
    "resize_batch": "augmentation",
    "batch_spec": "augmentation",
    "make_batch": "augmentation",
    "Images": "images",
    "Splits": "images",
    "load": "loading",
    "InputStatistics": "normalization",
    "measure_statistics": "normalization",
    "LabelledImages": "labelled_images",
    "load_labelled": "labelled_images",
}

__all__ = [
    "NO_AUGMENTATION",
    "PHOTO_AUGMENTATION",
    "Augmentation",
    "AugmentationParams",
    "BatchSpec",
    "ColorJitter",
    "Data",
    "Images",
    "InputStatistics",
    "LabelledImages",
    "Normalization",
    "ResizedCrop",
    "Splits",
    "batch_at",
    "batch_spec",
    "default_augmentation",
    "draw_augmentation",
    "epoch_order",
    "load",
    "load_labelled",
    "make_batch",
    "measure_statistics",
    "resize_batch",
]


__getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
