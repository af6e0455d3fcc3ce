"""The figures that centre and scale pixels, taken exactly from the training images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kilolayer.data.config import Normalization
from kilolayer.data.images import Images
from kilolayer.errors import InputError

CHUNK = 256  # 256 · 255² < 2²⁴: so many squares add up in float32 without rounding


@dataclass(frozen=True)
class InputStatistics:
    """Input = (pixel - mean) / scale, with pixels 0 … 255.

    mean: float32 (C, H, W) per pixel or (C, 1, 1) per channel; scale: float32 (1, 1, 1) or (C, 1, 1).
    """

    mean: Tensor
    scale: Tensor

    def normalize(self, pixels: Tensor) -> Tensor:
        """Pixels from 0 to 255, (B, C, H, W), to float32 of the same shape."""
        return pixels.to(torch.float32, copy=True).sub_(self.mean).div_(self.scale)

    def to(self, device: torch.device | str) -> InputStatistics:
        return InputStatistics(self.mean.to(device), self.scale.to(device))

    def tensors(self) -> dict[str, Tensor]:
        """What a safetensors file holds; `Statistics(**tensors)` is the way back."""
        return {"mean": self.mean, "scale": self.scale}


def measure_statistics(images: Images, normalization: Normalization = "per_pixel_mean") -> InputStatistics:
    """The statistics of these (training) images."""
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
    """float64 (C, H, W): the sums of pixels and of their squares over all images, exact in any order."""
    total = torch.zeros(pixels.shape[1:], dtype=torch.float64, device=pixels.device)
    squares = torch.zeros_like(total)
    for part in torch.split(pixels, CHUNK):
        x = part.float()
        total += x.sum(0)
        squares += x.square_().sum(0)
    return total, squares


def _from_moments(mean: Tensor, variance: Tensor) -> InputStatistics:
    # images without any contrast are centred only
    scale = torch.where(variance > 0, variance.clamp(min=0).sqrt(), 1.0)
    return InputStatistics(mean.float(), scale.float())
