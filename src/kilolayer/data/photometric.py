"""How photographs vary: random-resized crop and colour jitter on whole batches, drawn as pure functions.

Every picture's draws depend on (seed, epoch, position) and on nothing else, and its pixels on its draws
alone: no sum runs over pictures, and sums over a picture's pixels are exact.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from kilolayer.data.config import ColorJitter, ResizedCrop
from kilolayer.data.randomness import random_words

LUMA_WEIGHTS = (299, 587, 114)
"""Thousandths of red, green and blue in a pixel's brightness (ITU-R BT.601), as in PIL and torchvision."""


def draw_uniform(n: int, columns: int, purpose: str, seed: int, epoch: int) -> NDArray[np.float64]:
    """(n, columns) of numbers from 0 to below 1."""
    return (random_words(columns * n, purpose, seed, epoch) >> np.uint64(11)).reshape(n, columns) / 2.0**53


def draw_crop_boxes(crop: ResizedCrop | None, seed: int, epoch: int, n: int) -> Tensor:
    """float32 (n, 4): top, left, height and width of each crop, as shares of the side; (n, 0) for None."""
    if crop is None:
        return torch.empty(n, 0)
    uniform = draw_uniform(n, 4, "resized crop", seed, epoch)
    low, high = crop.area
    area = low + (high - low) * uniform[:, 0]
    narrow, wide = map(math.log, crop.ratio)
    ratio = np.exp(narrow + (wide - narrow) * uniform[:, 1])
    height, width = np.sqrt(area / ratio).clip(max=1), np.sqrt(area * ratio).clip(max=1)
    top, left = uniform[:, 2] * (1 - height), uniform[:, 3] * (1 - width)
    return torch.from_numpy(np.stack([top, left, height, width], 1).astype(np.float32))


def draw_color_factors(jitter: ColorJitter | None, seed: int, epoch: int, n: int) -> Tensor:
    """float32 (n, 3): factors of contrast, brightness and saturation; (n, 0) for None."""
    if jitter is None:
        return torch.empty(n, 0)
    spread = np.array([jitter.contrast, jitter.brightness, jitter.saturation])
    uniform = draw_uniform(n, 3, "colour jitter", seed, epoch)
    return torch.from_numpy((1 + spread * (2 * uniform - 1)).astype(np.float32))


def resized_crop(x: Tensor, box: Tensor) -> Tensor:
    """Each picture of x (B, C, H, W) is what lies in its box (B, 4), enlarged to its size, bilinearly."""
    rows, columns = (_pixel_centers(box[:, axis], box[:, axis + 2], x.shape[axis + 2]) for axis in (0, 1))
    grid = torch.stack(
        [
            columns[:, None, :].expand(-1, rows.shape[1], -1),
            rows[:, :, None].expand(-1, -1, columns.shape[1]),
        ],
        -1,
    )
    return functional.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _pixel_centers(start: Tensor, length: Tensor, size: int) -> Tensor:
    """(B, size): where the pixels' centres lie along a side that goes from −1 to 1."""
    centres = (torch.arange(size, device=start.device) + 0.5) / size
    return 2 * (start[:, None] + length[:, None] * centres) - 1


def jitter_colors(pixels: Tensor, factors: Tensor) -> Tensor:
    """uint8 pixels (B, C, H, W) as float32 from 0 to 255, in other light.

    Contrast is about the picture's mean brightness, saturation about every pixel's own; then all is cut to
    what a pixel can be. Pictures of one channel have no saturation.
    """
    contrast, brightness, saturation = (factor[:, None, None, None] for factor in factors.unbind(1))
    mean = _mean_brightness(pixels)
    x = ((pixels.float() - mean) * contrast + mean) * brightness
    if x.shape[1] == len(LUMA_WEIGHTS):
        grey = sum(x[:, channel, None] * (part / 1000) for channel, part in enumerate(LUMA_WEIGHTS))
        x = (x - grey) * saturation + grey
    return x.clamp_(0, 255)


def _mean_brightness(pixels: Tensor) -> Tensor:
    """float32 (B, 1, 1, 1), from sums of whole numbers: in every batch the same bits."""
    channels, height, width = pixels.shape[1:]
    parts = LUMA_WEIGHTS if channels == len(LUMA_WEIGHTS) else (1,) * channels
    sums = pixels.sum((2, 3), dtype=torch.int64).unbind(1)
    total = torch.stack([part * channel for part, channel in zip(parts, sums, strict=True)]).sum(0)
    return (total / (sum(parts) * height * width))[:, None, None, None]
