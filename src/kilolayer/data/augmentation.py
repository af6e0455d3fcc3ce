"""Augmentation of whole batches, as a pure function of (seed, epoch, position).

Position p of an epoch is the p-th image trained on. Its random crop, flip and colours depend only on
(seed, epoch, p). A batch, a rank's share of a batch and the rest of an epoch after a resume are therefore
slices of one and the same epoch. The pixels of a picture depend only on its own parameters: no sum runs over
pictures, and the sums over the pixels of one picture are exact.
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
    """The random parameters of P images.

    top, left: int64 (P,), the corner of the crop in the padded image, 0 … 2·pad.
    flip: bool (P,), whether to mirror.
    cutout_center: int64 (P, 2), row and column of the cutout's centre, 0 … 2³²−1, as a fraction of the
        image's size.
    crop_box: float32 (P, 4), top, left, height and width of the resized crop; (P, 0) without one.
    color_factors: float32 (P, 3), factors of contrast, brightness and saturation; (P, 0) without colour
        jitter.
    """

    top: Tensor
    left: Tensor
    flip: Tensor
    cutout_center: Tensor
    crop_box: Tensor
    color_factors: Tensor

    def fields(self) -> tuple[Tensor, ...]:
        """All six tensors, in the order of the fields."""
        return self.top, self.left, self.flip, self.cutout_center, self.crop_box, self.color_factors


@dataclass(frozen=True)
class BatchSpec:
    """The images of a step: their indices, int64 (B,), and their random parameters, on one device.

    params: None without augmentation.
    """

    indices: Tensor
    params: AugmentationParams | None

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors of the batch, in a fixed order."""
        return (self.indices, *(self.params.fields() if self.params else ()))

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> BatchSpec:
        """The batch with `function` applied to every tensor."""
        params = AugmentationParams(*map(function, self.params.fields())) if self.params else None
        return BatchSpec(function(self.indices), params)

    def copy_(self, source_spec: BatchSpec) -> None:
        """Copies the tensors of another batch of the same size into this one."""
        for target, source in zip(self.tensors(), source_spec.tensors(), strict=True):
            target.copy_(source)


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, n: int) -> Tensor:
    """The index of the image at each of the n positions of an epoch: int64 (n,), each image exactly once.

    The tensor is shared; do not write to it.

    >>> sorted(epoch_order(seed=0, epoch=1, n=4).tolist())
    [0, 1, 2, 3]
    """
    return torch.from_numpy(random_permutation(n, "permutation", seed, epoch))


@lru_cache(maxsize=4)
def draw_augmentation(seed: int, epoch: int, n: int, augmentation: Augmentation) -> AugmentationParams:
    """The random parameters of all n positions of an epoch. The tensors are shared; do not write to them.

    Turning `flip` off does not change the crops.

    >>> from kilolayer.data import Augmentation
    >>> params = draw_augmentation(seed=0, epoch=0, n=100, augmentation=Augmentation(pad=4))
    >>> params.top.shape, int(params.top.max()) <= 8
    (torch.Size([100]), True)
    """
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
    """Zero-pads x (B, C, H, W) by `pad` pixels and cuts the H×W window at (top, left) out of each image."""
    if pad == 0:
        return x
    height, width = x.shape[-2:]
    padded = functional.pad(x, (pad, pad, pad, pad))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view, (B, C, 2·pad+1, 2·pad+1, H, W)
    return windows[torch.arange(len(x), device=x.device), :, top, left]


def mirror(x: Tensor, flip: Tensor) -> Tensor:
    """Mirrors the images of x (B, C, H, W) left and right where `flip` (B,) is true."""
    return torch.where(flip[:, None, None, None], x.flip(3), x)


def cut_out(x: Tensor, centre: Tensor, side: int) -> Tensor:
    """Sets a square around each centre to zero, cut off at the border (DeVries and Taylor 2017)."""
    if side == 0:
        return x
    height, width = x.shape[-2:]
    rows, columns = ((centre[:, axis] * size >> 32) - side // 2 for axis, size in enumerate((height, width)))
    inside = _between(rows, side, height)[:, :, None] & _between(columns, side, width)[:, None, :]
    return x.masked_fill(inside[:, None], 0.0)


def augment_batch(x: Tensor, params: AugmentationParams, augmentation: Augmentation) -> Tensor:
    """Resized crop, padded crop, mirror and cutout of normalised images x (B, C, H, W); the shape stays."""
    enlarged = crop_and_resize(x, params.crop_box) if augmentation.resized_crop else x
    cropped = pad_and_crop(enlarged, params.top, params.left, augmentation.pad)
    mirrored = mirror(cropped, params.flip) if augmentation.flip else cropped
    return cut_out(mirrored, params.cutout_center, augmentation.cutout)


def resize_batch(x: Tensor, side: int) -> Tensor:
    """x (B, C, H, W) resized to (side, side), bilinear and antialiased.

    >>> resize_batch(torch.ones(2, 3, 32, 32), 16).shape
    torch.Size([2, 3, 16, 16])
    """
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
    """The augmented images at these positions of an epoch: float32 (B, C, H, W) and labels int64 (B,).

    positions: a range, or int64 (B,), within 0 … len(images) − 1. The result is on the device of the pixels.

    >>> from kilolayer.data import Augmentation, Data, load, measure_statistics
    >>> digits = load(Data("digits")).train
    >>> x, labels = batch_at(digits, measure_statistics(digits), Augmentation(pad=1), 0, 0, range(32))
    >>> x.shape, labels.shape
    (torch.Size([32, 1, 8, 8]), torch.Size([32]))
    """
    device = images.pixels.device
    spec = batch_spec(len(images), augmentation, seed, epoch, positions, device)
    return make_batch(images, statistics, augmentation, spec)


def batch_spec(
    n: int,
    augmentation: Augmentation,
    seed: int,
    epoch: int,
    positions: Tensor | range,
    device: torch.device,
) -> BatchSpec:
    """The indices and random parameters of these positions of an epoch of n images.

    positions: a range, or int64 (B,). A range does not wait for the device.
    """
    at = slice(positions.start, positions.stop, positions.step) if isinstance(positions, range) else positions
    return _epoch_spec(seed, epoch, n, augmentation, device).map_tensors(lambda field: field[at])


def make_batch(
    images: Images, statistics: InputStatistics, augmentation: Augmentation, spec: BatchSpec
) -> tuple[Tensor, Tensor]:
    """The images of a batch, augmented and normalised: float32 (B, C, H, W), and labels int64 (B,).

    A function of tensors on one device only, so that a CUDA graph can record it.
    """
    chosen, params = images[spec.indices], spec.params
    if params is None:
        return statistics.normalize(chosen.pixels), chosen.labels
    pixels = (
        jitter_colors(chosen.pixels, params.color_factors) if augmentation.color_jitter else chosen.pixels
    )
    return augment_batch(statistics.normalize(pixels), params, augmentation), chosen.labels


@lru_cache(maxsize=4)
def _epoch_spec(seed: int, epoch: int, n: int, augmentation: Augmentation, device: torch.device) -> BatchSpec:
    """All positions of an epoch, copied to the device once, without waiting; do not write to them."""
    params = None if augmentation == NO_AUGMENTATION else draw_augmentation(seed, epoch, n, augmentation)
    spec = BatchSpec(epoch_order(seed, epoch, n), params)
    if device.type != "cuda":
        return spec
    return spec.map_tensors(lambda field: field.pin_memory().to(device, non_blocking=True))


def _between(start: Tensor, side: int, size: int) -> Tensor:
    offset = torch.arange(size, device=start.device) - start[:, None]
    return (offset >= 0) & (offset < side)


LUMA_WEIGHTS = (299, 587, 114)
"""The weights of red, green and blue in a pixel's brightness, in thousandths (ITU-R BT.601), as in Pillow."""


def draw_uniform(n: int, columns: int, purpose: str, seed: int, epoch: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), float64 (n, columns)."""
    return (random_words(columns * n, purpose, seed, epoch) >> np.uint64(11)).reshape(n, columns) / 2.0**53


def draw_crop_boxes(crop: ResizedCrop | None, seed: int, epoch: int, n: int) -> Tensor:
    """The resized crops, float32 (n, 4): top, left, height, width as shares of the side; (n, 0) for None."""
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
    """The factors of contrast, brightness and saturation of each picture, float32 (n, 3); (n, 0) for None."""
    if jitter is None:
        return torch.empty(n, 0)
    spread = np.array([jitter.contrast, jitter.brightness, jitter.saturation])
    uniform = draw_uniform(n, 3, "colour jitter", seed, epoch)
    return torch.from_numpy((1 + spread * (2 * uniform - 1)).astype(np.float32))


def crop_and_resize(x: Tensor, box: Tensor) -> Tensor:
    """Cuts its box (B, 4) out of each picture of x (B, C, H, W) and enlarges it to H×W, bilinearly."""
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
    """The centres of the pixels along one side, (B, size), in coordinates from −1 to 1."""
    centres = (torch.arange(size, device=start.device) + 0.5) / size
    return 2 * (start[:, None] + length[:, None] * centres) - 1


def jitter_colors(pixels: Tensor, factors: Tensor) -> Tensor:
    """Changes contrast, brightness and saturation of uint8 pixels (B, C, H, W); float32 from 0 to 255.

    factors: float32 (B, 3). Contrast changes around the mean brightness of the picture, saturation around the
    brightness of each pixel. Values are clamped to 0 … 255. Pictures of one channel have no saturation.
    """
    contrast, brightness, saturation = (factor[:, None, None, None] for factor in factors.unbind(1))
    mean = _mean_brightness(pixels)
    x = ((pixels.float() - mean) * contrast + mean) * brightness
    if x.shape[1] == len(LUMA_WEIGHTS):
        grey = sum(x[:, channel, None] * (part / 1000) for channel, part in enumerate(LUMA_WEIGHTS))
        x = (x - grey) * saturation + grey
    return x.clamp_(0, 255)


def _mean_brightness(pixels: Tensor) -> Tensor:
    """The mean brightness of each picture, float32 (B, 1, 1, 1); integer sums keep the bits in any batch."""
    channels, height, width = pixels.shape[1:]
    parts = LUMA_WEIGHTS if channels == len(LUMA_WEIGHTS) else (1,) * channels
    sums = pixels.sum((2, 3), dtype=torch.int64).unbind(1)
    total = torch.stack([part * channel for part, channel in zip(parts, sums, strict=True)]).sum(0)
    return (total / (sum(parts) * height * width))[:, None, None, None]
