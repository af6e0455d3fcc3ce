"""torch.compile over the whole network, or over each kind of unit: then its cost does not grow with depth."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from kilolayer.units.modules import GatedUnit, ResidualUnit

MIN_RECOMPILE_LIMIT = 64
"""More kinds of units than a network has (shapes, first units of stages); PyTorch gives up after 8."""


@cache
def _compile_forward(forward: Any) -> Any:
    # One function for all units, whose weights are its arguments: equal units share what was compiled.
    return torch.compile(forward, dynamic=False)


class CompiledUnit(ResidualUnit):
    """A residual unit that is compiled in training. A class decides only what forward() does."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or torch.compiler.is_compiling():
            return super().forward(x)
        out: Tensor = _compile_forward(ResidualUnit.forward)(self, x)
        return out


class CompiledGatedUnit(GatedUnit):
    """As `CompiledUnit`, with gated paths."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or torch.compiler.is_compiling():
            return super().forward(x)
        out: Tensor = _compile_forward(GatedUnit.forward)(self, x)
        return out


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {ResidualUnit: CompiledUnit, GatedUnit: CompiledGatedUnit}


def compile_units(model: nn.Module) -> int:
    """Compiles the units of `model`, each kind once, at the first step; says how many units there are."""
    from torch import _dynamo

    _dynamo.config.recompile_limit = max(_dynamo.config.recompile_limit, MIN_RECOMPILE_LIMIT)
    units = [module for module in model.modules() if type(module) in _CLASSES]
    for unit in units:
        unit.__class__ = _CLASSES[type(unit)]
    return len(units)
