"""The modules of single layers, and of layers in a row."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from kilolayer.units.readings import Layer

L = TypeVar("L", bound=Layer)


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

    def __init__(self, paths: Sequence[Sequence[Layer]], join: Literal["sum", "concatenate"]) -> None:
        super().__init__()
        self.paths = nn.ModuleList(sequence(path) for path in paths)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        outputs = [path(x) for path in self.paths]
        return torch.cat(outputs, 1) if self.join == "concatenate" else torch.stack(outputs).sum(0)


def named_ops(ops: Sequence[L]) -> list[tuple[str, L]]:
    """Every layer with its name in a state dict, its kind and its number: conv1, bn1, relu1, conv2, …"""
    counts: Counter[str] = Counter()
    pairs = []
    for spec in ops:
        kind = spec.name or type(spec).__name__.lower()
        counts[kind] += 1
        pairs.append((f"{kind}{counts[kind]}", spec))
    return pairs


def sequence(ops: Sequence[Layer]) -> nn.Sequential:
    """The modules of `ops`, applied in order, with the names of `named_ops`."""
    return nn.Sequential(OrderedDict((name, _module(spec)) for name, spec in named_ops(ops)))


def _module(spec: Layer) -> nn.Module:
    module = spec.module()
    # `draws_random_numbers` knows dropout by its class; only modules of other people need this mark.
    if spec.is_random and not isinstance(module, nn.Dropout | ParallelPathsModule):
        module.draws = True  # type: ignore[assignment]
    return module


def draws_random_numbers(module: nn.Module) -> bool:
    """Whether this module itself, not one of its children, may draw random numbers in its present mode."""
    return module.training and (isinstance(module, nn.Dropout) or bool(getattr(module, "draws", False)))
