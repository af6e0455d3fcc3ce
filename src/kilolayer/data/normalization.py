"""The mean and scale of the pixels, measured exactly on the training images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kilolayer.data.config import Normalization
from kilolayer.data.images import Images
from kilolayer.errors import InputError

CHUNK = 256  # 256 · 255² < 2²⁴: the sum of so many squares is exact in float32


@dataclass(frozen=True)
class InputStatistics:
    """The normalisation of the input: x = (pixel − mean) / scale, with pixels from 0 to 255.

    mean: float32 (C, H, W) for each pixel, or (C, 1, 1) for each channel.
    scale: float32 (1, 1, 1) or (C, 1, 1).
    """

    mean: Tensor
    scale: Tensor

    def normalize(self, pixels: Tensor) -> Tensor:
        """x = (pixels − mean) / scale: pixels (B, C, H, W) from 0 to 255 become float32 of the same shape."""
        return pixels.to(torch.float32, copy=True).sub_(self.mean).div_(self.scale)

    def to(self, device: torch.device | str) -> InputStatistics:
        """The same statistics on another device."""
        return InputStatistics(self.mean.to(device), self.scale.to(device))

    def tensors(self) -> dict[str, Tensor]:
        """The tensors for a safetensors file; `InputStatistics(**tensors)` restores them."""
        return {"mean": self.mean, "scale": self.scale}


def measure_statistics(images: Images, normalization: Normalization = "per_pixel_mean") -> InputStatistics:
    """The mean and scale of these training images; the sums are exact, so their order does not matter.

    `per_pixel_mean`: mean_p = E[pixel_p]; scale = sqrt(E[(pixel − mean)²]) over all pixels and images (P1,
    P2). `channel`: both for each channel over pixels and images (the code released with P2).

    Raises `InputError` for any other normalisation.

    >>> from kilolayer.data import Data, load
    >>> digits = load(Data("digits")).train
    >>> x = measure_statistics(digits).normalize(digits.pixels)
    >>> round(x.square().mean().item(), 4)
    1.0
    """
    if normalization == "per_pixel_mean":
        return _per_pixel(images.pixels)
    if normalization == "channel":
        return _per_channel(images.pixels)
    raise InputError(f"normalization: {normalization!r} is neither 'per_pixel_mean' nor 'channel'")


def _per_pixel(pixels: Tensor) -> InputStatistics:
    total, squares = _sums(pixels)
    mean = total / len(pixels)
    return _from_moments(mean, (squares.mean() / len(pixels) - mean.square().mean()).view(1, 1, 1))


def _per_channel(pixels: Tensor) -> InputStatistics:
    mean, square = (part.mean((1, 2), keepdim=True) / len(pixels) for part in _sums(pixels))
    return _from_moments(mean, square - mean.square())


def _sums(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The sums over all images of pixels and of squared pixels, float64 (C, H, W), exact in any order."""
    total = torch.zeros(pixels.shape[1:], dtype=torch.float64, device=pixels.device)
    squares = torch.zeros_like(total)
    for part in torch.split(pixels, CHUNK):
        x = part.float()
        total += x.sum(0)
        squares += x.square_().sum(0)
    return total, squares


def _from_moments(mean: Tensor, variance: Tensor) -> InputStatistics:
    # Images without contrast are centred, not scaled.
    scale = torch.where(variance > 0, variance.clamp(min=0).sqrt(), 1.0)
    return InputStatistics(mean.float(), scale.float())
