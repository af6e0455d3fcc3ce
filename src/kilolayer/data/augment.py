"""Augmentation on whole batches, as a pure function of (seed, epoch, position).

Position p of an epoch is the p-th image trained on. Its crop and flip depend on nothing else, so any
slice of positions (a batch, a rank's share of it, the rest after a resume) sees the images that the whole
epoch would.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from kilolayer.data.describe import NO_AUGMENTATION, Augmentation
from kilolayer.data.images import Images
from kilolayer.data.photographs import boxes, factors, jittered, resized_crop
from kilolayer.data.randomness import shuffled, words
from kilolayer.data.statistics import Statistics


@dataclass(frozen=True)
class Draws:
    """What chance decides for P images.

    top, left: int64 (P,), the crop's corner in the padded image, 0 … 2·pad; flip: bool (P,);
    centre: int64 (P, 2), cutout's centre as (row, column), 0 … 2³²-1, still to be scaled to the image's size;
    box: float32 (P, 4), the resized crop; factor: float32 (P, 3), contrast, brightness and saturation; each
    (P, 0) where there is none (`kilolayer.data.photographs`).
    """

    top: Tensor
    left: Tensor
    flip: Tensor
    centre: Tensor
    box: Tensor
    factor: Tensor

    def fields(self) -> tuple[Tensor, ...]:
        return self.top, self.left, self.flip, self.centre, self.box, self.factor


@dataclass(frozen=True)
class Selection:
    """The images of a step: int64 (B,), which they are, and what chance decides for each; on one device."""

    images: Tensor
    draws: Draws | None

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.images, *(self.draws.fields() if self.draws else ()))

    def mapped(self, each: Callable[[Tensor], Tensor]) -> Selection:
        """`each` applied to every tensor."""
        drawn = Draws(*map(each, self.draws.fields())) if self.draws else None
        return Selection(each(self.images), drawn)

    def copy_(self, other: Selection) -> None:
        """Takes the content of another selection of the same size, in place."""
        for own, new in zip(self.tensors(), other.tensors(), strict=True):
            own.copy_(new)


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, n: int) -> Tensor:
    """int64 (n,), shared, not to be written to: which image stands at each position; each exactly once."""
    return torch.from_numpy(shuffled(n, "permutation", seed, epoch))


@lru_cache(maxsize=4)
def draws(seed: int, epoch: int, n: int, augmentation: Augmentation) -> Draws:
    """The draws for all n positions of an epoch, shared; without flips the crops stay what they were."""
    raw = torch.from_numpy((words(5 * n, "augmentation", seed, epoch) >> 32).astype("int64")).view(n, 5)
    places = 2 * augmentation.pad + 1
    flip = raw[:, 2] % 2 == 1 if augmentation.flip else torch.zeros(n, dtype=torch.bool)
    return Draws(
        raw[:, 0] % places,
        raw[:, 1] % places,
        flip,
        raw[:, 3:],
        boxes(augmentation.resized_crop, seed, epoch, n),
        factors(augmentation.color_jitter, seed, epoch, n),
    )


def crop(x: Tensor, top: Tensor, left: Tensor, pad: int) -> Tensor:
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


def augment(x: Tensor, drawn: Draws, augmentation: Augmentation) -> Tensor:
    """Resized crop, crop, mirror, cut out: normalised x (B, C, H, W) to the same shape."""
    enlarged = resized_crop(x, drawn.box) if augmentation.resized_crop else x
    cropped = crop(enlarged, drawn.top, drawn.left, augmentation.pad)
    mirrored = mirror(cropped, drawn.flip) if augmentation.flip else cropped
    return cut_out(mirrored, drawn.centre, augmentation.cutout)


def resampled(x: Tensor, side: int) -> Tensor:
    """x (B, C, H, W) at `side` pixels a side, each a mean of what it covers, weighted by a triangle."""
    if x.shape[-2:] == (side, side):
        return x
    return functional.interpolate(x, (side, side), mode="bilinear", align_corners=False, antialias=True)


def batch(
    images: Images,
    statistics: Statistics,
    augmentation: Augmentation,
    seed: int,
    epoch: int,
    positions: Tensor | range,
) -> tuple[Tensor, Tensor]:
    """The images at these positions of an epoch: float32 (B, C, H, W) and int64 (B,), where the pixels are.

    positions: a range, or int64 (B,), each within 0 … len(images)-1.
    """
    device = images.pixels.device
    selection = select(len(images), augmentation, seed, epoch, positions, device)
    return selected(images, statistics, augmentation, selection)


def select(
    n: int,
    augmentation: Augmentation,
    seed: int,
    epoch: int,
    positions: Tensor | range,
    device: torch.device,
) -> Selection:
    """Which of n images stand at these positions of an epoch. Positions as a range wait for no device."""
    at = slice(positions.start, positions.stop, positions.step) if isinstance(positions, range) else positions
    return _epoch(seed, epoch, n, augmentation, device).mapped(lambda field: field[at])


def selected(
    images: Images, statistics: Statistics, augmentation: Augmentation, selection: Selection
) -> tuple[Tensor, Tensor]:
    """The selected images as `batch` gives them: a function of tensors on one device and of nothing else."""
    chosen, drawn = images[selection.images], selection.draws
    if drawn is None:
        return statistics.normalize(chosen.pixels), chosen.labels
    pixels = jittered(chosen.pixels, drawn.factor) if augmentation.color_jitter else chosen.pixels
    return augment(statistics.normalize(pixels), drawn, augmentation), chosen.labels


@lru_cache(maxsize=4)
def _epoch(seed: int, epoch: int, n: int, augmentation: Augmentation, device: torch.device) -> Selection:
    """All positions of an epoch, not to be written to; sent to the device once, and nothing waits for it."""
    drawn = None if augmentation == NO_AUGMENTATION else draws(seed, epoch, n, augmentation)
    whole = Selection(permutation(seed, epoch, n), drawn)
    if device.type != "cuda":
        return whole
    return whole.mapped(lambda field: field.pin_memory().to(device, non_blocking=True))


def _between(start: Tensor, side: int, size: int) -> Tensor:
    offset = torch.arange(size, device=start.device) - start[:, None]
    return (offset >= 0) & (offset < side)
