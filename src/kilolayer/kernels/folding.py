"""Folding for inference: BN becomes part of the convolution before it; ReLU and addition are fused into it.

In a full pre-activation bottleneck two of three BNs can be folded; the first follows the addition and is
fused with its ReLU. In an original (v1) network all BNs can be folded.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn

from kilolayer.kernels.backend import unavailable_reason
from kilolayer.kernels.conv_chain import has_forward_of
from kilolayer.kernels.folded_layers import FoldedConv, FoldedNorm, folded_weights, is_affine, scale_and_shift
from kilolayer.kernels.im2col import FoldedStemConv, Im2colConv
from kilolayer.kernels.native_conv import NativeConv
from kilolayer.kernels.native_run import FoldableUnit, NativeUnitRun, foldable_unit
from kilolayer.kernels.upcast_conv import UpcastConv
from kilolayer.networks import ResidualNetwork
from kilolayer.units import GatedUnit, ResidualUnit
from kilolayer.units.layer_modules import ParallelPathsModule


def fold(model: ResidualNetwork, dtype: torch.dtype | None = None) -> ResidualNetwork:
    """A copy of `model` for inference, equal to it up to rounding, which needs fewer passes over memory.

    A BN at inference is scale·x + shift, so BN(W∗x + b) is one convolution with other weights. The copy has
    the weights that `model` has now. Give it channels-last images of `dtype` (by default the model's own); it
    returns logits of that dtype. In bf16 on a CPU with native kernels, runs of units are single operations,
    one image at a time.

    Weights that are not finite, or variances below 0, leave the network unfolded: their NaNs must reach the
    logits, and oneDNN's fused ReLU would turn them into zeros.

    >>> import torch
    >>> from kilolayer.networks import build, describe
    >>> model = build(describe("resnet8_cifar")).eval()
    >>> images = torch.randn(2, 3, 32, 32)
    >>> torch.allclose(fold(model)(images), model(images), atol=1e-4)
    True
    """
    folded = copy.deepcopy(model).eval().requires_grad_(False)
    if not _is_finite(folded):
        return folded.to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
    on_cpu = next(folded.parameters()).device.type == "cpu"
    native = dtype is torch.bfloat16 and on_cpu and unavailable_reason() is None
    for name in folded.stage_names:
        stage = cast(nn.Sequential, folded.get_submodule(name))
        folded.set_submodule(name, nn.Sequential(OrderedDict(_native_runs(stage, native=native))))
    folded.stem, folded.final = _fold_layers(folded.stem, native=native), _fold_layers(folded.final)
    return folded.to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _is_finite(model: nn.Module) -> bool:
    norms = (layer for layer in model.modules() if is_affine(layer))
    scaled = (part for norm in norms for part in scale_and_shift(cast(nn.BatchNorm2d, norm)))
    return all(bool(tensor.isfinite().all()) for tensor in (*model.state_dict().values(), *scaled))


def _native_runs(stage: nn.Sequential, *, native: bool) -> Iterator[tuple[str, nn.Module]]:
    """The units of a stage by name; neighbours that the kernels can compute as one run are one module."""
    run_units: list[tuple[str, FoldableUnit]] = []

    def flush() -> Iterator[tuple[str, nn.Module]]:
        if run_units:
            yield run_units[0][0], NativeUnitRun([step for _, step in run_units])
        run_units.clear()

    for name, unit in stage.named_children():
        foldable = foldable_unit(unit) if native else None
        # A unit that changes shape, or whose input width differs from the last output, can only start a run.
        if (
            foldable is None
            or not foldable.chain.has_identity_shortcut
            or (run_units and run_units[-1][1].chain.out_channels != foldable.chain.in_channels)
        ):
            yield from flush()
        if foldable is None:
            yield name, _fold_unit(cast(ResidualUnit, unit))
        else:
            run_units.append((name, foldable))
    yield from flush()


def _fold_unit(unit: ResidualUnit) -> nn.Module:
    for letter in ("p", "h", "F", "f", "g"):
        if hasattr(unit, letter):
            setattr(unit, letter, _fold_layers(getattr(unit, letter)))
    return unit if isinstance(unit, GatedUnit) else FoldedResidualUnit(unit)


class FoldedResidualUnit(nn.Module):
    """x' = f(h(x) + F(x)). F's last convolution also adds h(x) and applies f's ReLU."""

    def __init__(self, unit: ResidualUnit) -> None:
        super().__init__()
        self.p, self.h, self.F, self.f = unit.p, unit.h, unit.F, unit.f
        self.last_conv: FoldedConv | None = None
        *first, last = unit.F
        # oneDNN cannot fuse an addition into a depthwise convolution, which is what a single BN becomes.
        if isinstance(last, FoldedConv) and not isinstance(last, FoldedNorm) and not last.relu:
            self.F, self.last_conv = nn.Sequential(*first), last
            if list(map(type, unit.f)) == [nn.ReLU]:
                last.relu, self.f = True, nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        x = self.p(x)
        h, F = self.h(x), self.F(x)
        y = self.last_conv.add(F, h) if self.last_conv is not None and h.ndim else h + self._branch_output(F)
        out: Tensor = self.f(y)
        return out

    def _branch_output(self, F: Tensor) -> Tensor:
        # A plain net's h is the number 0, to which a convolution cannot add; `last_conv` applies the ReLU.
        return F if self.last_conv is None else cast(Tensor, self.last_conv(F))


def _fold_layers(layers: nn.Sequential, *, native: bool = False) -> nn.Sequential:
    """The same layers, with each conv-BN-ReLU, conv-BN, conv-ReLU, BN-ReLU or BN as one layer.

    With `native` the kernels compute a stem's convolution if they support it.
    """
    folded: OrderedDict[str, nn.Module] = OrderedDict()
    remaining = list(layers.named_children())
    while remaining:
        name, layer = remaining.pop(0)
        if _is_convolution(layer):
            norm, relu = _take_next(remaining, is_affine), _take_next(remaining, _is_relu) is not None
            if native and Im2colConv.is_faster(layer):
                folded[name] = FoldedStemConv(layer, *folded_weights(layer, norm), relu=relu)
            else:
                folded[name] = FoldedConv(layer, norm, relu)
        elif is_affine(layer):
            folded[name] = FoldedNorm(
                cast(nn.BatchNorm2d, layer), relu=_take_next(remaining, _is_relu) is not None
            )
        else:
            if isinstance(layer, ParallelPathsModule):
                layer.paths = nn.ModuleList(_fold_layers(cast(nn.Sequential, path)) for path in layer.paths)
            folded[name] = layer
    return nn.Sequential(folded)


def _take_next(remaining: list[tuple[str, nn.Module]], is_kind: Callable[[nn.Module], bool]) -> Any:
    """Removes and returns the next layer if it is of this kind."""
    return remaining.pop(0)[1] if remaining and is_kind(remaining[0][1]) else None


def _is_convolution(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a layer is a zero-padded convolution, of PyTorch's class or one of ours."""
    standard_forward = has_forward_of(layer, nn.Conv2d, NativeConv, Im2colConv, UpcastConv)
    return standard_forward and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _is_relu(layer: nn.Module) -> bool:
    return has_forward_of(layer, nn.ReLU)
