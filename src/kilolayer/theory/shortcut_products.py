"""What Eq. 8 takes for the derivative of a unit's shortcut, from its layers and a few moments of a batch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kilolayer.units import GatedUnit, ResidualUnit
from kilolayer.units.modules import ScaleModule, ZeroModule

LAYERS_WITH_GAIN = (ScaleModule, nn.Dropout, nn.ReLU, ZeroModule, nn.BatchNorm2d, nn.Conv2d)
"""The layers of a shortcut that theory has a factor for."""


@dataclass(frozen=True)
class ShortcutFactor:
    """h'(x_l) in the product of Eq. 8: a `gain` of norms and, for a gate, 1−g for every element.

    The gain of λ is |λ|; of a 1×1 convolution W it is ‖W‖_F / √(outputs), what a vector without a
    preferred direction keeps; of BN the root mean square of γ/σ over channels; of a ReLU √½; of
    dropout with probability p it is (1−p)^−½, the expectation over masks.
    """

    gain: float = 1.0
    openness: Tensor | None = None

    def apply(self, vector: Tensor) -> Tensor:
        """The vector after this shortcut, as far as Eq. 8 knows."""
        open_part = vector if self.openness is None else vector * self.openness
        return open_part if self.gain == 1 else open_part * self.gain


class ShortcutTheory:
    """Reads units of ours as they run; of each only the last run is known."""

    def __init__(self) -> None:
        self._deviations: dict[nn.Module, Tensor] = {}
        self._gate_outputs: dict[nn.Module, Tensor] = {}

    def factor(self, unit: nn.Module) -> ShortcutFactor | None:
        """None where theory has nothing to say: in another's module, or where the shape changes."""
        if not isinstance(unit, ResidualUnit):
            return None
        if not all(isinstance(part, LAYERS_WITH_GAIN) for part in [*unit.p, *unit.h]):
            return None
        if any(isinstance(part, nn.Conv2d) and part.stride != (1, 1) for part in unit.h):
            return None
        gain = math.prod(self._gains([*unit.p])) * math.prod(self._gains([*unit.h]))
        return ShortcutFactor(gain, self.openness(unit))

    def openness(self, unit: nn.Module) -> Tensor | None:
        """1−g of a gated unit on its last batch; None in others."""
        return 1 - self._gate_outputs[unit] if unit in self._gate_outputs else None

    def _gains(self, layers: list[nn.Module]) -> Iterator[float]:
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
        """Within, every run of the units is noted: BN's deviations on the shortcut, and gates."""
        with ExitStack() as watched:
            for unit in units:
                if isinstance(unit, GatedUnit):
                    hook = unit.g.register_forward_hook(self._record_gate(unit))
                    watched.callback(hook.remove)
                if isinstance(unit, ResidualUnit):
                    for part in [*unit.p, *unit.h]:
                        if isinstance(part, nn.BatchNorm2d):
                            watched.callback(part.register_forward_pre_hook(self._record_deviation).remove)
            yield self

    def _record_gate(self, unit: nn.Module) -> Any:
        def hook(module: nn.Module, args: Any, out: Tensor) -> None:
            self._gate_outputs.clear()
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
            raise TypeError(f"no theory of {type(layer).__name__} on a shortcut")
