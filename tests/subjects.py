"""What analyses are given, small and in float64."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kilolayer.measure.analysis_input import AnalysisInput
from kilolayer.networks import Network, Stage, Stem, build
from kilolayer.units import Unit


def row(unit: Unit, units: int = 3, width: int = 4, side: int = 4) -> Network:
    """Units of one shape."""
    return Network(Stem(width), (Stage(units, width),), unit, num_classes=4, image_size=side)


def two_stages(unit: Unit, units: int = 2, width: int = 4, side: int = 8) -> Network:
    stages = Stage(units, width), Stage(units, 2 * width, stride=2)
    return Network(Stem(width), stages, unit, num_classes=4, image_size=side)


def batch(side: int, size: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, 3, side, side, generator=generator, dtype=torch.float64)
    return x, torch.arange(size) % 4


def subject(network: Network, *, size: int = 4, trained: bool = False) -> AnalysisInput:
    """`network` from seed 0, with a batch of noise."""

    def fresh(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return build(network).double()

    x, labels = batch(network.image_size, size)
    held_out = batch(network.image_size, 8)
    return AnalysisInput(
        "net", fresh(0), x, labels, fresh, lambda count: held_out, description=network, trained=trained
    )


def foreign(model: nn.Module, *units: str, side: int = 8) -> AnalysisInput:
    """A module that is not ours and takes grey images, its units named."""
    images, labels = batch(side)
    model, x = model.double(), images[:, :1]
    return AnalysisInput(
        "foreign", model, x, labels, lambda seed: model, lambda count: (x, labels), units=units
    )
