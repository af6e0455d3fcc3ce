"""BN folded into the convolution before it, exactly; ReLU and addition joined to the convolution they follow.

Of a full pre-activation bottleneck's three BNs two can be folded; the first stands behind the addition and
is joined with its ReLU. Of an original (v1) network all can.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn

from kilolayer.inference.layers import FoldedConv, FoldedNorm
from kilolayer.kernels import refusal
from kilolayer.kernels.chain import computes_as
from kilolayer.kernels.convolution import NativeConv
from kilolayer.kernels.inference import (
    NativeRun,
    Step,
    folded_weights,
    is_affine,
    scale_and_shift,
    step_of,
)
from kilolayer.kernels.patches import FoldedStem, PatchConv, pays
from kilolayer.kernels.widened import WidenedConv
from kilolayer.networks import ResidualNetwork
from kilolayer.units import GatedUnit, ResidualUnit
from kilolayer.units.modules import Paths


def fold(model: ResidualNetwork, dtype: torch.dtype | None = None) -> ResidualNetwork:
    """A copy of `model` for inference alone, in `dtype` if one is given: equal to rounding, in fewer passes.

    Its weights are those of `model` now. It is meant for channels-last input of its own dtype, and gives
    logits of that dtype. In bf16 on a CPU that has the kernels, units are computed whole, run by run, an
    image at a time.

    Weights that are not finite, or variances below 0, stay in plain layers: their NaNs must reach the logits,
    and the joined ReLU of oneDNN makes each a 0.
    """
    found = copy.deepcopy(model).eval().requires_grad_(False)
    if not _is_finite(found):
        return found.to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
    on_cpu = next(found.parameters()).device.type == "cpu"
    native = dtype is torch.bfloat16 and on_cpu and refusal() is None
    for name in found.stage_names:
        stage = cast(nn.Sequential, found.get_submodule(name))
        found.set_submodule(name, nn.Sequential(OrderedDict(_runs(stage, native=native))))
    found.stem, found.final = _folded(found.stem, native=native), _folded(found.final)
    return found.to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _is_finite(model: nn.Module) -> bool:
    norms = (layer for layer in model.modules() if is_affine(layer))
    scaled = (part for norm in norms for part in scale_and_shift(cast(nn.BatchNorm2d, norm)))
    return all(bool(tensor.isfinite().all()) for tensor in (*model.state_dict().values(), *scaled))


def _runs(stage: nn.Sequential, *, native: bool) -> Iterator[tuple[str, nn.Module]]:
    """A stage's units, neighbours of which the kernels compute as one run, by the name of the first."""
    run: list[tuple[str, Step]] = []

    def ended() -> Iterator[tuple[str, nn.Module]]:
        if run:
            yield run[0][0], NativeRun([step for _, step in run])
        run.clear()

    for name, unit in stage.named_children():
        step = step_of(unit) if native else None
        # What changes shape, or does not take what the unit before it gives, can only begin a run.
        if step is None or not step.chain.identity or (run and run[-1][1].chain.outputs != step.chain.inputs):
            yield from ended()
        if step is None:
            yield name, _folded_unit(cast(ResidualUnit, unit))
        else:
            run.append((name, step))
    yield from ended()


def _folded_unit(unit: ResidualUnit) -> nn.Module:
    for letter in ("p", "h", "F", "f", "g"):
        if hasattr(unit, letter):
            setattr(unit, letter, _folded(getattr(unit, letter)))
    return unit if isinstance(unit, GatedUnit) else FoldedUnit(unit)


class FoldedUnit(nn.Module):
    """x' = f(h(x) + F(x)), the addition in F's last convolution where F ends in one, and f's ReLU with it."""

    def __init__(self, unit: ResidualUnit) -> None:
        super().__init__()
        self.p, self.h, self.F, self.f = unit.p, unit.h, unit.F, unit.f
        self.last: FoldedConv | None = None
        *first, last = unit.F
        # oneDNN joins no addition to a convolution of each channel by itself, as a BN alone is.
        if isinstance(last, FoldedConv) and not isinstance(last, FoldedNorm) and not last.relu:
            self.F, self.last = nn.Sequential(*first), last
            if list(map(type, unit.f)) == [nn.ReLU]:
                last.relu, self.f = True, nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        x = self.p(x)
        h, F = self.h(x), self.F(x)
        y = self.last.add(F, h) if self.last is not None and h.ndim else h + self._whole(F)
        out: Tensor = self.f(y)
        return out

    def _whole(self, F: Tensor) -> Tensor:
        # A plain net's h is the number 0, to which a convolution cannot add; its ReLU stands in `last`.
        return F if self.last is None else cast(Tensor, self.last(F))


def _folded(layers: nn.Sequential, *, native: bool = False) -> nn.Sequential:
    """The same layers with each conv-BN-ReLU, conv-BN, conv-ReLU, BN-ReLU or BN as one.

    Where `native`, a stem's convolution is the kernels' if they compute it.
    """
    found: OrderedDict[str, nn.Module] = OrderedDict()
    left = list(layers.named_children())
    while left:
        name, layer = left.pop(0)
        if _is_convolution(layer):
            norm, relu = _next(left, is_affine), _next(left, _is_relu) is not None
            if native and pays(layer):
                found[name] = FoldedStem(layer, *folded_weights(layer, norm), relu=relu)
            else:
                found[name] = FoldedConv(layer, norm, relu)
        elif is_affine(layer):
            found[name] = FoldedNorm(cast(nn.BatchNorm2d, layer), relu=_next(left, _is_relu) is not None)
        else:
            if isinstance(layer, Paths):
                layer.paths = nn.ModuleList(_folded(cast(nn.Sequential, path)) for path in layer.paths)
            found[name] = layer
    return nn.Sequential(found)


def _next(left: list[tuple[str, nn.Module]], is_kind: Callable[[nn.Module], bool]) -> Any:
    """The next layer, taken, where it is of this kind."""
    return left.pop(0)[1] if left and is_kind(left[0][1]) else None


def _is_convolution(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether it is one with zeros around its input, by PyTorch or by our kernels."""
    known = computes_as(layer, nn.Conv2d, NativeConv, PatchConv, WidenedConv)
    return known and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _is_relu(layer: nn.Module) -> bool:
    return computes_as(layer, nn.ReLU)
