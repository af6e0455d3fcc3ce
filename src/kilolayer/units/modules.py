"""Residual units as PyTorch modules, built from a `Layout`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kilolayer.units.layer_modules import sequence
from kilolayer.units.unit import Layout

BatchNorm = nn.BatchNorm2d
"""The name that earlier releases gave to a class of theirs: pickles of networks from then refer to it."""


class ResidualUnit(nn.Module):
    """y = h(p(x)) + F(p(x)), x' = f(y) (P2, Eq. 1 and 2).

    (N, in, H, W) → (N, out, ⌈H/stride⌉, ⌈W/stride⌉). The submodules have the equation's letters: p, h, F, f.
    p is the activation that both paths share, else the identity.

    >>> from kilolayer.units import BASIC, layout
    >>> unit = ResidualUnit(layout(BASIC, 16, 32, stride=2))
    >>> unit(torch.zeros(2, 16, 8, 8)).shape
    torch.Size([2, 32, 4, 4])
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        # λ where E[h(x)] = λ·x at the start of training, without the gate, as the description states it.
        # It has no annotation in the class: TorchScript cannot read one.
        self.shortcut_factor = layout.shortcut_factor
        self.p = sequence(layout.p)
        self.h = sequence(layout.h)
        self.F = sequence(layout.F)
        self.f = sequence(layout.f)

    def forward(self, x: Tensor) -> Tensor:
        x = self.p(x)
        y = self.h(x) + self.F(x)
        out: Tensor = self.f(y)
        return out


class GatedUnit(ResidualUnit):
    """A unit with a gate g = σ(W_g x + b_g) (P2, Sec. 3.1).

    Exclusive gating computes y = (1−g)·h(x) + g·F(x), shortcut-only gating y = (1−g)·h(x) + F(x).
    The submodule `g` computes W_g x + b_g.

    >>> from dataclasses import replace
    >>> from kilolayer.units import BASIC, ShortcutGate, layout
    >>> unit = build_unit(layout(replace(BASIC, h=ShortcutGate(-6.0)), 16, 16))
    >>> type(unit).__name__, unit.gates_branch, unit.gate_bias
    ('GatedUnit', False, -6.0)
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        self.g = sequence(layout.g)
        self.gates_branch = layout.gates_branch
        self.gate_bias = layout.gate_bias

    def forward(self, x: Tensor) -> Tensor:
        x = self.p(x)
        g = torch.sigmoid(self.g(x))
        F = self.F(x)
        y = (1 - g) * self.h(x) + (g * F if self.gates_branch else F)
        out: Tensor = self.f(y)
        return out


def build_unit(layout: Layout) -> ResidualUnit:
    """The module of one unit, with PyTorch's default initialisation.

    A network initialises its units as the papers do (`kilolayer.networks.build`).

    >>> from kilolayer.units import BOTTLENECK, layout
    >>> unit = build_unit(layout(BOTTLENECK, 64, 16))
    >>> list(unit.state_dict())[:2]
    ['F.conv1.weight', 'F.bn1.weight']
    """
    return GatedUnit(layout) if layout.g else ResidualUnit(layout)
