"""Residual units as PyTorch modules, built from their layouts."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kilolayer.units import ops as op
from kilolayer.units.ops import Op, Ops
from kilolayer.units.unit import Layout


class BatchNorm(nn.BatchNorm2d):
    """BN (ε = 1e-5, running average 0.1) without PyTorch's batch counter, which nothing here reads.

    `tracks` = False leaves the running statistics as they are, as the second forward pass of a
    checkpointed unit must.
    """

    tracks = True

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.num_batches_tracked = None

    def forward(self, x: Tensor) -> Tensor:
        momentum = (self.momentum or 0.0) if self.tracks else 0.0
        statistics = self.running_mean, self.running_var
        return functional.batch_norm(
            x, *statistics, self.weight, self.bias, self.training, momentum, self.eps
        )

    def reset_running_stats(self) -> None:
        # The parent would reset the counter too.
        if self.running_mean is not None and self.running_var is not None:
            self.running_mean.zero_()
            self.running_var.fill_(1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)
        # The parent would put the missing counter back where a file has no version mark.
        nn.Module._load_from_state_dict(self, state_dict, prefix, *args)


@contextmanager
def running_statistics_kept(*modules: nn.Module) -> Iterator[None]:
    """Within, the BNs of `modules` use a batch's statistics without a trace in their running ones."""
    parts = (part for module in modules for part in module.modules())
    norms = [(part, part.tracks) for part in parts if isinstance(part, BatchNorm)]
    for norm, _ in norms:
        norm.tracks = False
    try:
        yield
    finally:
        for norm, tracked in norms:
            norm.tracks = tracked


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x

    def extra_repr(self) -> str:
        return str(self.factor)


class PadChannels(nn.Module):
    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.extra, self.stride = extra, stride

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x[..., :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))

    def extra_repr(self) -> str:
        return f"extra={self.extra}, stride={self.stride}"


class Zero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(())


class Paths(nn.Module):
    def __init__(self, spec: op.Paths) -> None:
        super().__init__()
        self.paths = nn.ModuleList(sequence(path) for path in spec.paths)
        self.join = spec.join

    def forward(self, x: Tensor) -> Tensor:
        outputs = [path(x) for path in self.paths]
        return torch.cat(outputs, 1) if self.join == "concatenate" else torch.stack(outputs).sum(0)


def layer(spec: Op) -> nn.Module:
    """The module of one layer."""
    match spec:
        case op.Conv(in_channels, out, kernel, stride, groups, bias):
            return nn.Conv2d(in_channels, out, kernel, stride, kernel // 2, groups=groups, bias=bias)
        case op.BatchNorm(channels):
            return BatchNorm(channels)
        case op.ReLU():
            return nn.ReLU()
        case op.MaxPool():
            return nn.MaxPool2d(3, 2, 1)
        case op.Dropout(p):
            return nn.Dropout(p)
        case op.Scale(factor):
            return Scale(factor)
        case op.PadChannels(extra, stride):
            return PadChannels(extra, stride)
        case op.Zero():
            return Zero()
        case op.Paths():
            return Paths(spec)


_NAMES: dict[type, str] = {
    op.Conv: "conv", op.BatchNorm: "bn", op.ReLU: "relu", op.MaxPool: "pool", op.Dropout: "dropout",
    op.Scale: "scale", op.PadChannels: "pad", op.Zero: "zero", op.Paths: "aggregated",
}  # fmt: skip


def named(ops: Ops) -> list[tuple[str, Op]]:
    """`ops` with their names, by kind and place among their kind: conv1, bn1, relu1, conv2 …"""
    seen: Counter[str] = Counter()
    pairs = []
    for spec in ops:
        kind = _NAMES[type(spec)]
        seen[kind] += 1
        pairs.append((f"{kind}{seen[kind]}", spec))
    return pairs


def sequence(ops: Ops) -> nn.Sequential:
    """The modules of `ops`, applied in order, under their names."""
    return nn.Sequential(OrderedDict((name, layer(spec)) for name, spec in named(ops)))


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
