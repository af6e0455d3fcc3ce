"""Runs of residual units at inference in one native operation: an image at a time, between convolutions in
the cache (native/infer.h)."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref, pointer
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kilolayer.kernels import library
from kilolayer.kernels.arithmetic import PRODUCTS, products
from kilolayer.kernels.calls import batch_of, map_like
from kilolayer.kernels.chain import Chain, Link, chain_of, links_of, no_kernel_for
from kilolayer.units.modules import BatchNorm, GatedUnit, ResidualUnit


@dataclass(frozen=True)
class Step:
    """A unit as a run computes it: F's links, the BN behind them, the shortcut's convolution and its BN.

    That convolution and F's first one read the same, behind the BN `before` and ReLU where there is one.
    """

    links: tuple[Link, ...]
    end: BatchNorm | None
    before: BatchNorm | None
    projection: nn.Conv2d | None = None
    behind: BatchNorm | None = None

    @property
    def stride(self) -> int:
        return self.links[0].conv.stride[0]

    @property
    def changes(self) -> bool:
        """Whether its output has another shape, so that a run can only begin with it."""
        return self.projection is not None


def step_of(unit: nn.Module) -> Step | None:
    """The unit as a step of a run, or None where it is none."""
    chain = chain_of(unit)
    if isinstance(chain, Chain):
        return Step(chain.links, chain.end, chain.links[0].norm)
    if isinstance(unit, GatedUnit) or not isinstance(unit, ResidualUnit):
        return None
    layers = list(unit.F)
    links = links_of(layers)
    before: BatchNorm | None = None
    end: BatchNorm | None = None
    behind: BatchNorm | None = None
    match list(unit.p):
        case []:
            pass
        case [BatchNorm() as before, nn.ReLU()]:
            pass
        case _:
            return None
    match list(unit.h):
        case [nn.Conv2d() as h]:
            pass
        case [nn.Conv2d() as h, BatchNorm() as behind]:
            pass
        case _:
            return None
    match [*layers, *unit.f]:
        case []:
            pass
        case [BatchNorm() as end, nn.ReLU()] if len(unit.f) == 1:
            pass
        case _:
            return None
    if links is None or links[0].norm is not None:
        return None
    first, *rest = links
    convs = [first.conv, *(link.conv for link in rest)]
    if no_kernel_for([*convs, h]) or h.kernel_size != (1, 1) or h.stride != first.conv.stride:
        return None
    # A convolution of one pixel sees no others: with a stride it is one of every other pixel.
    if any(conv.stride != (1, 1) for conv in convs[first.conv.kernel_size == (1, 1) :]):
        return None
    return Step((first, *rest), end, before, h, behind)


class NativeRun(nn.Module):
    """Units one behind the other, their BNs folded where a convolution stands before them.

    Takes and gives (N, C, H, W) in bf16 and channels last, on a CPU. All keep the shape, but for the first,
    which may have a convolution on its shortcut and a stride. Its tensors are its own, in the kernels'
    order, and no parameters.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        super().__init__()
        self.stride = steps[0].stride
        self.channels = steps[0].links[-1].conv.out_channels
        self.units = [_folded(step) for step in steps]

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride].contiguous(memory_format=torch.channels_last)
        y = map_like(x, self.channels)
        # Addresses do not survive a copy or a pickle, so they are gathered anew: microseconds a unit.
        called = (library.FoldedUnit * len(self.units))(*map(_called, self.units))
        library.native().kilolayer_infer(byref(batch_of(x)), called, len(called), x.data_ptr(), y.data_ptr())
        return y

    def extra_repr(self) -> str:
        return f"{len(self.units)} units"


def scale_and_shift(norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """BN(x) = scale·x + shift, with its running statistics."""
    assert norm.running_mean is not None and norm.running_var is not None  # noqa: S101, PT018 - ours always have them
    scale = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
    return scale, norm.bias.detach() - norm.running_mean * scale


def _folded(step: Step) -> dict[str, Any]:
    """The tensors of a unit: packed weights and biases, and the first BN's scale and shift."""
    behind = [*(link.norm for link in step.links[1:]), step.end]
    return {
        "convs": [_conv(link.conv, norm) for link, norm in zip(step.links, behind, strict=True)],
        "projection": None if step.projection is None else _conv(step.projection, step.behind),
        "before": None if step.before is None else [part.float() for part in scale_and_shift(step.before)],
        "rectified": step.end is not None,
    }


def _conv(conv: nn.Conv2d, norm: BatchNorm | None) -> dict[str, Any]:
    weight = conv.weight.detach().float()
    bias = torch.zeros(conv.out_channels)
    if norm is not None:
        scale, shift = scale_and_shift(norm)
        weight, bias = weight * scale.float().view(-1, 1, 1, 1), shift.float()
    packed = torch.empty(weight.numel(), dtype=PRODUCTS[products()])
    unscaled = library.native().kilolayer_pack(byref(library.Weights.of(weight)), packed.data_ptr())
    return {
        "packed": packed,
        "bias": bias,
        "sizes": (conv.out_channels, conv.in_channels, conv.kernel_size[0], unscaled),
    }


def _called(unit: dict[str, Any]) -> library.FoldedUnit:
    convs = (library.FoldedConv * len(unit["convs"]))(*map(_called_conv, unit["convs"]))
    projection = unit["projection"] and pointer(_called_conv(unit["projection"]))
    before = [part.data_ptr() for part in unit["before"] or ()] or [None, None]
    return library.FoldedUnit(len(convs), convs, projection, *before, unit["rectified"])


def _called_conv(conv: dict[str, Any]) -> library.FoldedConv:
    return library.FoldedConv(conv["packed"].data_ptr(), conv["bias"].data_ptr(), *conv["sizes"])
