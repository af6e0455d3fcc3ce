"""A branch of your own: in training an image passes F with probability 1 − p, else the shortcut alone."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kilolayer.units import Arrangement, Basic, CustomLayer, Op


class DropImages(nn.Module):
    def __init__(self, channels: int, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        kept = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.p
        return x * kept / (1 - self.p) if self.training else x


@dataclass(frozen=True)
class StochasticDepth(Basic):
    p: float = 0.2

    def function(self, arrangement: Arrangement, in_channels: int, width: int, stride: int) -> tuple[Op, ...]:
        F = super().function(arrangement, in_channels, width, stride)
        return (*F, CustomLayer(DropImages, self.out_channels(width), self.p))
