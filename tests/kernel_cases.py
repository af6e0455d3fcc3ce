"""Units that kernels compute whole, and what the tests of kernels draw and compare."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from kilolayer import kernels
from kilolayer.networks import Network, ResidualNetwork, Stage, Stem, build
from kilolayer.units import (
    BASIC,
    BOTTLENECK,
    FULL_PREACT,
    ONE_LAYER,
    ORIGINAL,
    ResidualUnit,
    Unit,
    build_unit,
    layout,
)

CASES = {
    "basic 16, 32×32": (BASIC, 16, (2, 32, 32)),
    "basic 32, 16×16": (BASIC, 32, (3, 16, 16)),
    "basic 64, 8×8": (BASIC, 64, (5, 8, 8)),
    "basic 48, 28×28": (BASIC, 48, (1, 28, 28)),
    "basic 32, 7×7": (BASIC, 32, (3, 7, 7)),
    "basic 16, 5×9": (BASIC, 16, (3, 5, 9)),
    "basic 16, 1×1": (BASIC, 16, (7, 1, 1)),
    "one layer 16, 8×3": (ONE_LAYER, 16, (2, 8, 3)),
    "bottleneck 64, 8×8": (BOTTLENECK, 64, (3, 8, 8)),
    "bottleneck 128, 14×14": (BOTTLENECK, 128, (2, 14, 14)),
    "bottleneck 192, 5×9": (BOTTLENECK, 192, (1, 5, 9)),
    "bottleneck 256, 7×7": (BOTTLENECK, 256, (3, 7, 7)),
}
"""Widths and shapes (images, height, width) that try the edges."""

needs_kernels = pytest.mark.skipif(
    kernels.unavailable_reason() is not None, reason=str(kernels.unavailable_reason())
)
PREACT = replace(BASIC, arrangement=FULL_PREACT)
ARRANGEMENTS = {"pre-activated": FULL_PREACT, "original": ORIGINAL}


def made(unit: Unit, channels: int, *, activated: bool = False) -> ResidualUnit:
    """A unit that keeps its shape, its BNs' parameters drawn at random."""
    torch.manual_seed(0)
    width = channels // unit.branch.out_channels(1)
    return drawn_norms(build_unit(layout(unit, channels, width, activated=activated)))


def drawn_norms(module: ResidualUnit) -> ResidualUnit:
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight, 1.0, 0.3)
            nn.init.normal_(norm.bias, 0.0, 0.3)
    return module


def drawn(*shape: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """x and the gradient of x', each a number that bf16 holds."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator).bfloat16().float() for _ in range(2))


def gradients(module: nn.Module, y: torch.Tensor, x: torch.Tensor, dy: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(y, [x, *module.parameters()], dy))


def running(module: nn.Module) -> list[torch.Tensor]:
    """BN's running figures, without its count of batches, which is no figure."""
    return [buffer for buffer in module.buffers() if buffer.is_floating_point()]


def errors(found: list[torch.Tensor], exact: list[torch.Tensor]) -> list[float]:
    pairs = zip(found, exact, strict=True)
    return [((one.double() - other).norm() / other.norm()).item() for one, other in pairs]


def fresh(unit: Unit, stem: Stem = Stem(16)) -> ResidualNetwork:  # noqa: B008 - a value
    """A small network, channels last, always of the same weights."""
    torch.manual_seed(0)
    described = Network(stem, (Stage(2, 16), Stage(2, 32, 2)), unit, image_size=8)
    return build(described).to(memory_format=torch.channels_last)
