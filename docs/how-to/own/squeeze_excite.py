"""A branch of your own: every channel of F(x) is weighed by what the whole image says."""

from dataclasses import dataclass

from torch import Tensor, nn

from kilolayer.units import Arrangement, Basic, CustomLayer, Op


class Excite(nn.Module):
    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        inner = channels // reduction
        layers = (nn.Linear(channels, inner), nn.ReLU(), nn.Linear(inner, channels), nn.Sigmoid())
        self.gate = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((2, 3)))[:, :, None, None]


@dataclass(frozen=True)
class SqueezeExcite(Basic):
    reduction: int = 8

    def function(self, arrangement: Arrangement, in_channels: int, width: int, stride: int) -> tuple[Op, ...]:
        F = super().function(arrangement, in_channels, width, stride)
        return (*F, CustomLayer(Excite, self.out_channels(width), self.reduction))
