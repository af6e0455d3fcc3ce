"""Runs of residual units at inference in one native operation: an image at a time, between convolutions in
the cache (native/infer.h)."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref, pointer
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kilolayer.kernels.compute_dtype import MUL_DTYPES, mul_dtype
from kilolayer.kernels.conv_chain import ConvChain, has_forward_of, unit_chain
from kilolayer.kernels.dispatch import batch_struct, empty_map_like
from kilolayer.kernels.native_library import (
    FoldedConvStruct,
    FoldedUnitStruct,
    WeightsStruct,
    load_native_library,
)
from kilolayer.units.modules import ResidualUnit


@dataclass(frozen=True)
class FoldableUnit:
    """A unit as a run computes it, and the BN `before` it; its ReLU gives what F's first convolution reads.

    Where `activated`, the shortcut reads that too.
    """

    chain: ConvChain
    input_norm: nn.BatchNorm2d | None
    preactivated_shortcut: bool = False


def foldable_unit(unit: nn.Module) -> FoldableUnit | None:
    """The unit as a step of a run, or None where it is none."""
    chain = unit_chain(unit)
    if isinstance(chain, ConvChain) and all(map(is_affine, chain.norms())):
        assert isinstance(unit, ResidualUnit)  # noqa: S101 - no other has a chain
        match list(unit.p):
            case []:
                return FoldableUnit(chain, chain.links[0].norm)
            case [nn.BatchNorm2d(num_features=chain.in_channels) as before, nn.ReLU()] if is_affine(before):
                return FoldableUnit(chain, before, preactivated_shortcut=True)
    return None


class NativeUnitRun(nn.Module):
    """Units one behind the other, their BNs folded where a convolution stands before them.

    Takes and gives (N, C, H, W) in bf16, channels last, on a CPU. All keep the shape, but for the first,
    which may change it. Its tensors are its own, in the kernels' order, and no parameters.
    """

    def __init__(self, units: Sequence[FoldableUnit]) -> None:
        super().__init__()
        first = units[0].chain
        # Of the pixels that a first 1×1 convolution skips nobody sees anything.
        self.skips, self.stride = first.input_stride, first.shortcut_stride // first.input_stride
        self.inputs, self.outputs = first.in_channels, first.out_channels
        self.units = [_pack_unit(step) for step in units]

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != self.inputs or x.dtype is not torch.bfloat16 or not x.is_cpu:
            raise RuntimeError(
                f"a run of folded units expected (N, {self.inputs}, H, W) in {torch.bfloat16} on the CPU, "
                f"but got {tuple(x.shape)} in {x.dtype} on {x.device}"
            )
        x = x[:, :, :: self.skips, :: self.skips].contiguous(memory_format=torch.channels_last)
        y = empty_map_like(x[:, :, :: self.stride, :: self.stride], self.outputs)
        # Addresses do not survive a copy or a pickle, so they are gathered anew: microseconds a unit.
        structs = (FoldedUnitStruct * len(self.units))(*map(_unit_struct, self.units))
        load_native_library().kilolayer_infer(
            byref(batch_struct(x)), structs, len(structs), x.data_ptr(), y.data_ptr()
        )
        return y

    def extra_repr(self) -> str:
        return f"{len(self.units)} units"


def is_affine(layer: nn.Module) -> bool:
    """Whether `layer` is a BN with running statistics, and so an affine map of each channel at inference."""
    standard_forward = has_forward_of(layer, nn.BatchNorm2d, nn.SyncBatchNorm)
    return standard_forward and layer.running_mean is not None and layer.running_var is not None


def scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """BN(x) = scale·x + shift, with its running statistics."""
    assert norm.running_mean is not None and norm.running_var is not None  # noqa: S101, PT018 - `is_affine`
    weight = 1.0 if norm.weight is None else norm.weight.detach()
    bias = 0.0 if norm.bias is None else norm.bias.detach()
    scale = weight / torch.sqrt(norm.running_var + norm.eps)
    return scale, bias - norm.running_mean * scale


def folded_weights(conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor | None]:
    """W and b of BN(W∗x + b), and of the convolution itself where there is no BN."""
    weight, bias = conv.weight.detach(), None if conv.bias is None else conv.bias.detach()
    if norm is None:
        return weight, bias
    scale, shift = scale_and_shift(norm)
    return weight * scale.view(-1, 1, 1, 1), shift if bias is None else bias * scale + shift


def _pack_unit(step: FoldableUnit) -> dict[str, Any]:
    """The tensors of a unit: packed weights and biases, and the first BN's scale and shift."""
    chain = step.chain
    norms = [*(link.norm for link in chain.links[1:]), chain.final_norm]
    convs = zip(chain.links, norms, chain.conv_strides(), strict=True)
    return {
        "convs": [_pack_conv(link.conv, norm, stride) for link, norm, stride in convs],
        "projection": None
        if chain.projection is None
        else _pack_conv(chain.projection, chain.projection_norm),
        "before": None
        if step.input_norm is None
        else [part.float() for part in scale_and_shift(step.input_norm)],
        "flags": (chain.final_norm is not None, step.preactivated_shortcut, chain.padding is not None),
    }


def _pack_conv(conv: nn.Conv2d, norm: nn.BatchNorm2d | None, stride: int = 1) -> dict[str, Any]:
    folded, shift = folded_weights(conv, norm)
    weight, bias = folded.float(), torch.zeros(conv.out_channels) if shift is None else shift.float()
    packed = torch.empty(weight.numel(), dtype=MUL_DTYPES[mul_dtype()])
    unscaled = load_native_library().kilolayer_pack(byref(WeightsStruct.of(weight)), packed.data_ptr())
    return {
        "packed": packed,
        "bias": bias,
        "sizes": (conv.out_channels, conv.in_channels, conv.kernel_size[0], stride, unscaled),
    }


def _unit_struct(unit: dict[str, Any]) -> FoldedUnitStruct:
    convs = (FoldedConvStruct * len(unit["convs"]))(*map(_conv_struct, unit["convs"]))
    projection = unit["projection"] and pointer(_conv_struct(unit["projection"]))
    before = [part.data_ptr() for part in unit["before"] or ()] or [None, None]
    return FoldedUnitStruct(len(convs), convs, projection, *before, *unit["flags"])


def _conv_struct(conv: dict[str, Any]) -> FoldedConvStruct:
    return FoldedConvStruct(conv["packed"].data_ptr(), conv["bias"].data_ptr(), *conv["sizes"])
