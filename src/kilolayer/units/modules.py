"""Residual units as PyTorch modules, built from their layouts."""

from __future__ import annotations

from collections import Counter, OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from kilolayer.units import ops as op
from kilolayer.units.ops import Op, Ops
from kilolayer.units.unit import Layout

BatchNorm = nn.BatchNorm2d
"""As earlier releases called a class of ours, whose networks may lie in pickles."""


class ScaleModule(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x

    def extra_repr(self) -> str:
        return str(self.factor)


class PadChannelsModule(nn.Module):
    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.extra, self.stride = extra, stride

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x[..., :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))

    def extra_repr(self) -> str:
        return f"extra={self.extra}, stride={self.stride}"


class ZeroModule(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(())


class ParallelPathsModule(nn.Module):
    def __init__(self, spec: op.ParallelPaths) -> None:
        super().__init__()
        self.paths = nn.ModuleList(sequence(path) for path in spec.paths)
        self.join = spec.join

    def forward(self, x: Tensor) -> Tensor:
        outputs = [path(x) for path in self.paths]
        return torch.cat(outputs, 1) if self.join == "concatenate" else torch.stack(outputs).sum(0)


def named_ops(ops: Ops) -> list[tuple[str, Op]]:
    """`ops` with their names, by kind and place among their kind: conv1, bn1, relu1, conv2 …"""
    counts: Counter[str] = Counter()
    pairs = []
    for spec in ops:
        kind = spec.name or type(spec).__name__.lower()
        counts[kind] += 1
        pairs.append((f"{kind}{counts[kind]}", spec))
    return pairs


def sequence(ops: Ops) -> nn.Sequential:
    """The modules of `ops`, applied in order, under their names."""
    return nn.Sequential(OrderedDict((name, _module(spec)) for name, spec in named_ops(ops)))


def _module(spec: Op) -> nn.Module:
    module = spec.module()
    # Set on those of others alone: PyTorch's own know no such mark, and dropout is known by its class.
    if spec.is_random and not isinstance(module, nn.Dropout | ParallelPathsModule):
        module.draws = True  # type: ignore[assignment]
    return module


def draws_random_numbers(module: nn.Module) -> bool:
    """Whether it may draw random numbers now, itself and not in what it is made of."""
    return module.training and (isinstance(module, nn.Dropout) or bool(getattr(module, "draws", False)))


class ResidualUnit(nn.Module):
    """y = h(x) + F(x), x' = f(y), on p(x) where both paths share an activation (P2, Eq. 1 and 2).

    (N, in, H, W) → (N, out, ⌈H/stride⌉, ⌈W/stride⌉). Submodules carry the equation's letters: p, h, F, f.
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
    """y = (1−g)·h(x) + g·F(x) with exclusive gating, (1−g)·h(x) + F(x) with shortcut-only gating.

    g = σ(W_g x + b_g), element-wise (P2, Sec. 3.1). The submodule `g` is W_g x + b_g.
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
    """The module of one unit, with PyTorch's default initialisation (networks initialise as the papers)."""
    return GatedUnit(layout) if layout.g else ResidualUnit(layout)
