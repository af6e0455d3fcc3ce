"""Augmentation on whole batches, as a pure function of (seed, epoch, position).

Position p of an epoch is the p-th image trained on. Its crop and flip depend on nothing else, so any
slice of positions (a batch, a rank's share of it, the rest after a resume) sees the images that the whole
epoch would.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from kilolayer.data.config import NO_AUGMENTATION, Augmentation, ColorJitter, ResizedCrop
from kilolayer.data.images import Images
from kilolayer.data.normalization import InputStatistics
from kilolayer.data.randomness import random_permutation, random_words


@dataclass(frozen=True)
class AugmentationParams:
    """What chance decides for P images.

    top, left: int64 (P,), the crop's corner in the padded image, 0 … 2·pad; flip: bool (P,);
    centre: int64 (P, 2), cutout's centre as (row, column), 0 … 2³²-1, still to be scaled to the image's size;
    box: float32 (P, 4), the resized crop; factor: float32 (P, 3), contrast, brightness and saturation; each
    (P, 0) where there is none (`kilolayer.data.augmentation`).
    """

    top: Tensor
    left: Tensor
    flip: Tensor
    cutout_center: Tensor
    crop_box: Tensor
    color_factors: Tensor

    def fields(self) -> tuple[Tensor, ...]:
        return self.top, self.left, self.flip, self.cutout_center, self.crop_box, self.color_factors


@dataclass(frozen=True)
class BatchSpec:
    """The images of a step: int64 (B,), which they are, and what chance decides for each; on one device."""

    indices: Tensor
    params: AugmentationParams | None

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.indices, *(self.params.fields() if self.params else ()))

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> BatchSpec:
        """`each` applied to every tensor."""
        params = AugmentationParams(*map(function, self.params.fields())) if self.params else None
        return BatchSpec(function(self.indices), params)

    def copy_(self, other: BatchSpec) -> None:
        """Takes the content of another selection of the same size, in place."""
        for target, source in zip(self.tensors(), other.tensors(), strict=True):
            target.copy_(source)


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, n: int) -> Tensor:
    """int64 (n,), shared, not to be written to: which image stands at each position; each exactly once."""
    return torch.from_numpy(random_permutation(n, "permutation", seed, epoch))


@lru_cache(maxsize=4)
def draw_augmentation(seed: int, epoch: int, n: int, augmentation: Augmentation) -> AugmentationParams:
    """The draws for all n positions of an epoch, shared; without flips the crops stay what they were."""
    raw = torch.from_numpy((random_words(5 * n, "augmentation", seed, epoch) >> 32).astype("int64")).view(
        n, 5
    )
    positions = 2 * augmentation.pad + 1
    flip = raw[:, 2] % 2 == 1 if augmentation.flip else torch.zeros(n, dtype=torch.bool)
    return AugmentationParams(
        raw[:, 0] % positions,
        raw[:, 1] % positions,
        flip,
        raw[:, 3:],
        draw_crop_boxes(augmentation.resized_crop, seed, epoch, n),
        draw_color_factors(augmentation.color_jitter, seed, epoch, n),
    )


def pad_and_crop(x: Tensor, top: Tensor, left: Tensor, pad: int) -> Tensor:
    """Zero-pads x (B, C, H, W) by `pad` and takes from each image the H×W window at (top, left)."""
    if pad == 0:
        return x
    height, width = x.shape[-2:]
    padded = functional.pad(x, (pad, pad, pad, pad))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: (B, C, 2·pad+1, 2·pad+1, H, W)
    return windows[torch.arange(len(x), device=x.device), :, top, left]


def mirror(x: Tensor, flip: Tensor) -> Tensor:
    """Mirrors left and right those images of x (B, C, H, W) where `flip` (B,) is true."""
    return torch.where(flip[:, None, None, None], x.flip(3), x)


def cut_out(x: Tensor, centre: Tensor, side: int) -> Tensor:
    """Zeros a square around each centre, cut at the border (DeVries and Taylor 2017)."""
    if side == 0:
        return x
    height, width = x.shape[-2:]
    rows, columns = ((centre[:, axis] * size >> 32) - side // 2 for axis, size in enumerate((height, width)))
    inside = _between(rows, side, height)[:, :, None] & _between(columns, side, width)[:, None, :]
    return x.masked_fill(inside[:, None], 0.0)


def augment_batch(x: Tensor, params: AugmentationParams, augmentation: Augmentation) -> Tensor:
    """Resized crop, crop, mirror, cut out: normalised x (B, C, H, W) to the same shape."""
    enlarged = resized_crop(x, params.crop_box) if augmentation.resized_crop else x
    cropped = pad_and_crop(enlarged, params.top, params.left, augmentation.pad)
    mirrored = mirror(cropped, params.flip) if augmentation.flip else cropped
    return cut_out(mirrored, params.cutout_center, augmentation.cutout)


def resize_batch(x: Tensor, side: int) -> Tensor:
    """x (B, C, H, W) at `side` pixels a side, each a mean of what it covers, weighted by a triangle."""
    if x.shape[-2:] == (side, side):
        return x
    return functional.interpolate(x, (side, side), mode="bilinear", align_corners=False, antialias=True)


def batch_at(
    images: Images,
    statistics: InputStatistics,
    augmentation: Augmentation,
    seed: int,
    epoch: int,
    positions: Tensor | range,
) -> tuple[Tensor, Tensor]:
    """The images at these positions of an epoch: float32 (B, C, H, W) and int64 (B,), where the pixels are.

    positions: a range, or int64 (B,), each within 0 … len(images)-1.
    """
    device = images.pixels.device
    selection = batch_spec(len(images), augmentation, seed, epoch, positions, device)
    return make_batch(images, statistics, augmentation, selection)


def batch_spec(
    n: int,
    augmentation: Augmentation,
    seed: int,
    epoch: int,
    positions: Tensor | range,
    device: torch.device,
) -> BatchSpec:
    """Which of n images stand at these positions of an epoch. Positions as a range wait for no device."""
    at = slice(positions.start, positions.stop, positions.step) if isinstance(positions, range) else positions
    return _epoch_spec(seed, epoch, n, augmentation, device).map_tensors(lambda field: field[at])


def make_batch(
    images: Images, statistics: InputStatistics, augmentation: Augmentation, spec: BatchSpec
) -> tuple[Tensor, Tensor]:
    """The selected images as `batch` gives them: a function of tensors on one device and of nothing else."""
    chosen, params = images[spec.indices], spec.params
    if params is None:
        return statistics.normalize(chosen.pixels), chosen.labels
    pixels = (
        jitter_colors(chosen.pixels, params.color_factors) if augmentation.color_jitter else chosen.pixels
    )
    return augment_batch(statistics.normalize(pixels), params, augmentation), chosen.labels


@lru_cache(maxsize=4)
def _epoch_spec(seed: int, epoch: int, n: int, augmentation: Augmentation, device: torch.device) -> BatchSpec:
    """All positions of an epoch, not to be written to; sent to the device once, and nothing waits for it."""
    params = None if augmentation == NO_AUGMENTATION else draw_augmentation(seed, epoch, n, augmentation)
    spec = BatchSpec(epoch_order(seed, epoch, n), params)
    if device.type != "cuda":
        return spec
    return spec.map_tensors(lambda field: field.pin_memory().to(device, non_blocking=True))


def _between(start: Tensor, side: int, size: int) -> Tensor:
    offset = torch.arange(size, device=start.device) - start[:, None]
    return (offset >= 0) & (offset < side)


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
