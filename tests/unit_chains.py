"""Units of every branch, in chains that keep their shape."""

from dataclasses import replace

import torch
from torch import nn

from kilolayer.units import AGGREGATED, BASIC, BOTTLENECK, ONE_LAYER, Aggregated, build_unit, layout

UNITS = {
    "basic": BASIC,
    "one-layer": ONE_LAYER,
    "bottleneck": BOTTLENECK,
    "aggregated": replace(AGGREGATED, branch=Aggregated(2, 16)),
    "split": replace(AGGREGATED, branch=Aggregated(2, 16, form="split")),
}


def chain(unit, length):
    """Units of width 4 that keep their shape, in float64."""
    channels = unit.branch.out_channels(4)
    units = [build_unit(layout(unit, channels, 4)) for _ in range(length)]
    x = torch.randn(2, channels, 4, 4, dtype=torch.float64)
    return nn.Sequential(*units).double(), x.requires_grad_()


def silence(chained):
    """F = 0 in every unit: its weights and BN's are zero."""
    for unit in chained:
        for parameter in unit.F.parameters():
            nn.init.zeros_(parameter)
