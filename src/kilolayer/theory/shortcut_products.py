"""Shortcut products: the factor Π h'(x_i) of P2's Eq. 8, from the shortcuts' layers and moments of a batch.

    ∂ε/∂x_l = ∂ε/∂x_L · (Π_{i=l}^{L−1} h'(x_i) + ∂/∂x_l Σ F̂(x_i))          (P2, Eq. 8)

Most factors follow from a layer's description alone. BN's and a gate's follow from what the layer meets, so
they are recorded while the network runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kilolayer.units import GatedUnit, ResidualUnit
from kilolayer.units.layer_modules import ScaleModule, ZeroModule

LAYERS_WITH_GAIN = (ScaleModule, nn.Dropout, nn.ReLU, ZeroModule, nn.BatchNorm2d, nn.Conv2d)
"""The layers of a shortcut for which theory has a gain."""


@dataclass(frozen=True)
class ShortcutFactor:
    """h'(x_l) in the product of Eq. 8: a scalar gain and, for a gate, a factor 1−g for every element.

        layer of the shortcut         its gain
        constant λ                    abs(λ)
        1×1 convolution W             ‖W‖_F / √outputs, for a vector without a preferred direction
        BN                            root mean square of γ/σ over channels
        ReLU                          √½
        dropout with probability p    (1−p)^−½, the root mean square over masks

    >>> import torch
    >>> ShortcutFactor(gain=0.5).apply(torch.ones(2))
    tensor([0.5000, 0.5000])
    """

    gain: float = 1.0
    openness: Tensor | None = None
    """1−g, of the shape of x; None where no gate multiplies the shortcut."""

    def apply(self, vector: Tensor) -> Tensor:
        """h'(x_l)ᵀ · vector, as Eq. 8 has it."""
        open_part = vector if self.openness is None else vector * self.openness
        return open_part if self.gain == 1 else open_part * self.gain


class ShortcutTheory:
    """Predicts the factor of every `ResidualUnit` from its layers, and from its last run where it must.

    For a layer outside `LAYERS_WITH_GAIN` the factor is the one that the shortcut's description states.

    >>> import torch
    >>> from kilolayer.networks import build, describe
    >>> from kilolayer.units import Scaled
    >>> model = build(describe("resnet8_cifar", unit={"h": Scaled(0.5)}))
    >>> unit = next(module for module in model.modules() if isinstance(module, ResidualUnit))
    >>> with ShortcutTheory().recording([unit]) as theory:
    ...     _ = unit(torch.zeros(2, 16, 8, 8))
    >>> theory.factor(unit).gain
    0.5
    """

    def __init__(self) -> None:
        self._deviations: dict[nn.Module, Tensor] = {}
        self._gate_outputs: dict[nn.Module, Tensor] = {}

    def factor(self, unit: nn.Module) -> ShortcutFactor | None:
        """h' of the unit; None for a foreign module, a factor that nobody states, or a change of shape."""
        if not isinstance(unit, ResidualUnit):
            return None
        if not all(isinstance(layer, LAYERS_WITH_GAIN) for layer in [*unit.p, *unit.h]):
            stated = unit.shortcut_factor
            return None if stated is None else ShortcutFactor(abs(stated), self.openness(unit))
        if any(isinstance(layer, nn.Conv2d) and layer.stride != (1, 1) for layer in unit.h):
            return None
        gain = math.prod(self._gains([*unit.p])) * math.prod(self._gains([*unit.h]))
        return ShortcutFactor(gain, self.openness(unit))

    def openness(self, unit: nn.Module) -> Tensor | None:
        """1−g of a gated unit on its last batch; None for a unit without a gate."""
        return 1 - self._gate_outputs[unit] if unit in self._gate_outputs else None

    def _gains(self, layers: list[nn.Module]) -> Iterator[float]:
        # From the end, since a BN scales the rows of the convolution that stands before it.
        scale: Tensor | None = None
        for layer in reversed(layers):
            if isinstance(layer, nn.BatchNorm2d):
                scale = layer.weight.detach() / self._deviations[layer]
            elif isinstance(layer, nn.Conv2d):
                yield _isotropic(layer.weight.detach().flatten(1), scale)
                scale = None
            else:
                yield _gain(layer)
        if scale is not None:
            yield float(scale.square().mean().sqrt())

    @contextmanager
    def recording(self, units: Iterable[nn.Module]) -> Iterator[ShortcutTheory]:
        """Records, while the context is open, σ of every BN on a shortcut and the output of every gate."""
        with ExitStack() as hooks:
            for unit in units:
                if isinstance(unit, GatedUnit):
                    hooks.callback(unit.g.register_forward_hook(self._record_gate(unit)).remove)
                if isinstance(unit, ResidualUnit):
                    for layer in [*unit.p, *unit.h]:
                        if isinstance(layer, nn.BatchNorm2d):
                            hooks.callback(layer.register_forward_pre_hook(self._record_deviation).remove)
            yield self

    def _record_gate(self, unit: nn.Module) -> Any:
        def hook(module: nn.Module, args: Any, out: Tensor) -> None:
            self._gate_outputs.clear()  # a thousand gates' outputs would fill the memory
            self._gate_outputs[unit] = torch.sigmoid(out.detach())

        return hook

    def _record_deviation(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.BatchNorm2d)  # noqa: S101
        if module.training or module.running_var is None:
            variance = args[0].detach().var((0, 2, 3), unbiased=False)
        else:
            variance = module.running_var
        self._deviations[module] = (variance + module.eps).sqrt()


def _isotropic(weight: Tensor, scale: Tensor | None) -> float:
    """‖diag(scale) W‖_F / √outputs."""
    scaled = weight if scale is None else scale[:, None] * weight
    return float(scaled.norm()) / math.sqrt(len(weight))


def _gain(layer: nn.Module) -> float:
    match layer:
        case ScaleModule():
            return abs(layer.factor)
        case nn.Dropout():
            return float((1 - layer.p) ** -0.5)
        case nn.ReLU():
            return math.sqrt(0.5)
        case ZeroModule():
            return 0.0
        case _:
            raise TypeError(f"theory has no gain for {type(layer).__name__} on a shortcut")
