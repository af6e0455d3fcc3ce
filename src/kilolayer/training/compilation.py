"""torch.compile on each kind of unit, so that the time to compile does not grow with depth."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from kilolayer.units.modules import GatedUnit, ResidualUnit

MIN_RECOMPILE_LIMIT = 64
"""More kinds of units than any network has (shapes, first units of stages); PyTorch's own limit is 8."""


@cache
def _compile_forward(forward: Any) -> Any:
    # The weights are arguments of one function for all units, so that equal units share compiled code.
    return torch.compile(forward, dynamic=False)


class CompiledUnit(ResidualUnit):
    """A residual unit whose forward pass is compiled in training."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or torch.compiler.is_compiling():
            return super().forward(x)
        out: Tensor = _compile_forward(ResidualUnit.forward)(self, x)
        return out


class CompiledGatedUnit(GatedUnit):
    """A gated unit whose forward pass is compiled in training."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or torch.compiler.is_compiling():
            return super().forward(x)
        out: Tensor = _compile_forward(GatedUnit.forward)(self, x)
        return out


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {ResidualUnit: CompiledUnit, GatedUnit: CompiledGatedUnit}


def compile_units(model: nn.Module) -> int:
    """Compiles the units of `model`, each kind once, at the first step; returns the number of units."""
    from torch import _dynamo

    _dynamo.config.recompile_limit = max(_dynamo.config.recompile_limit, MIN_RECOMPILE_LIMIT)
    units = [module for module in model.modules() if type(module) in _CLASSES]
    for unit in units:
        unit.__class__ = _CLASSES[type(unit)]
    return len(units)
