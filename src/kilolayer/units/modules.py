"""Residual units as PyTorch modules, built from a `Layout`."""

from __future__ import annotations

from collections import Counter, OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from kilolayer.units import ops as op
from kilolayer.units.ops import Op, Ops
from kilolayer.units.unit import Layout

BatchNorm = nn.BatchNorm2d
"""The name that earlier releases gave to a class of theirs: pickles of networks from then refer to it."""


class ScaleModule(nn.Module):
    """x ↦ factor · x."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x

    def extra_repr(self) -> str:
        return str(self.factor)


class PadChannelsModule(nn.Module):
    """Every stride-th pixel, with `extra` channels of zeros appended."""

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.extra, self.stride = extra, stride

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x[..., :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))

    def extra_repr(self) -> str:
        return f"extra={self.extra}, stride={self.stride}"


class ZeroModule(nn.Module):
    """x ↦ 0, as a single number."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(())


class ParallelPathsModule(nn.Module):
    """The sum or the concatenation of paths with the same input."""

    def __init__(self, spec: op.ParallelPaths) -> None:
        super().__init__()
        self.paths = nn.ModuleList(sequence(path) for path in spec.paths)
        self.join = spec.join

    def forward(self, x: Tensor) -> Tensor:
        outputs = [path(x) for path in self.paths]
        return torch.cat(outputs, 1) if self.join == "concatenate" else torch.stack(outputs).sum(0)


def named_ops(ops: Ops) -> list[tuple[str, Op]]:
    """Every layer with its name in a state dict, its kind and its number: conv1, bn1, relu1, conv2, …"""
    counts: Counter[str] = Counter()
    pairs = []
    for spec in ops:
        kind = spec.name or type(spec).__name__.lower()
        counts[kind] += 1
        pairs.append((f"{kind}{counts[kind]}", spec))
    return pairs


def sequence(ops: Ops) -> nn.Sequential:
    """The modules of `ops`, applied in order, with the names of `named_ops`."""
    return nn.Sequential(OrderedDict((name, _module(spec)) for name, spec in named_ops(ops)))


def _module(spec: Op) -> nn.Module:
    module = spec.module()
    # `draws_random_numbers` knows dropout by its class; only modules of other people need this mark.
    if spec.is_random and not isinstance(module, nn.Dropout | ParallelPathsModule):
        module.draws = True  # type: ignore[assignment]
    return module


def draws_random_numbers(module: nn.Module) -> bool:
    """Whether this module itself, not one of its children, may draw random numbers in its present mode."""
    return module.training and (isinstance(module, nn.Dropout) or bool(getattr(module, "draws", False)))


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
