"""Runs of residual units at inference as one native operation, one image at a time (native/inference.h)."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref, pointer
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kilolayer.kernels.compute_dtype import MUL_DTYPES, mul_dtype
from kilolayer.kernels.conv_chain import ConvChain, chain_of_unit
from kilolayer.kernels.dispatch import batch_struct, empty_map_like
from kilolayer.kernels.folded_layers import folded_weights, is_affine, scale_and_shift
from kilolayer.kernels.native_library import (
    FoldedConvStruct,
    FoldedUnitStruct,
    WeightsStruct,
    load_native_library,
)
from kilolayer.units.modules import ResidualUnit


@dataclass(frozen=True)
class FoldableUnit:
    """A unit that can be part of a run: its chain, and `input_norm` of the BN-ReLU before it.

    With `preactivated_shortcut` the shortcut reads the output of that BN-ReLU too.
    """

    chain: ConvChain
    input_norm: nn.BatchNorm2d | None
    preactivated_shortcut: bool = False


def foldable_unit(unit: nn.Module) -> FoldableUnit | None:
    """The unit as part of a run, or None if the kernels do not support it."""
    chain = chain_of_unit(unit)
    if isinstance(chain, ConvChain) and all(map(is_affine, chain.norms())):
        assert isinstance(unit, ResidualUnit)  # noqa: S101 - no other has a chain
        match list(unit.p):
            case []:
                return FoldableUnit(chain, chain.links[0].norm)
            case [nn.BatchNorm2d(num_features=chain.in_channels) as input_norm, nn.ReLU()] if is_affine(
                input_norm
            ):
                return FoldableUnit(chain, input_norm, preactivated_shortcut=True)
    return None


class NativeUnitRun(nn.Module):
    """Consecutive residual units at inference; a BN behind a convolution is folded into it.

    Input and output are (N, C, H, W) in bf16, channels last, on a CPU. Only the first unit may change the
    shape. The packed weights belong to this module and are no parameters.
    """

    def __init__(self, units: Sequence[FoldableUnit]) -> None:
        super().__init__()
        first = units[0].chain
        # If the first convolution is a strided 1×1 one, nothing reads the pixels that it skips.
        self.input_stride, self.stride = first.input_stride, first.shortcut_stride // first.input_stride
        self.in_channels, self.out_channels = first.in_channels, first.out_channels
        self.units = [_pack_unit(unit) for unit in units]

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != self.in_channels or x.dtype is not torch.bfloat16 or not x.is_cpu:
            raise RuntimeError(
                f"a run of folded units expected (N, {self.in_channels}, H, W) in {torch.bfloat16} "
                "on the CPU, "
                f"but got {tuple(x.shape)} in {x.dtype} on {x.device}"
            )
        x = x[:, :, :: self.input_stride, :: self.input_stride].contiguous(memory_format=torch.channels_last)
        y = empty_map_like(x[:, :, :: self.stride, :: self.stride], self.out_channels)
        # Addresses do not survive a copy or a pickle, so every call collects them: microseconds per unit.
        structs = (FoldedUnitStruct * len(self.units))(*map(_unit_struct, self.units))
        load_native_library().kilolayer_infer(
            byref(batch_struct(x)), structs, len(structs), x.data_ptr(), y.data_ptr()
        )
        return y

    def extra_repr(self) -> str:
        return f"{len(self.units)} units"


def _pack_unit(unit: FoldableUnit) -> dict[str, Any]:
    """The tensors of a unit: packed weights, biases, and the scale and shift of its first BN."""
    chain = unit.chain
    norms = [*(link.norm for link in chain.links[1:]), chain.final_norm]
    convs = zip(chain.links, norms, chain.conv_strides(), strict=True)
    return {
        "convs": [_pack_conv(link.conv, norm, stride) for link, norm, stride in convs],
        "projection": None
        if chain.projection is None
        else _pack_conv(chain.projection, chain.projection_norm),
        "before": None
        if unit.input_norm is None
        else [part.float() for part in scale_and_shift(unit.input_norm)],
        "flags": (chain.final_norm is not None, unit.preactivated_shortcut, chain.padding is not None),
    }


def _pack_conv(conv: nn.Conv2d, norm: nn.BatchNorm2d | None, stride: int = 1) -> dict[str, Any]:
    folded, shift = folded_weights(conv, norm)
    weight, bias = folded.float(), torch.zeros(conv.out_channels) if shift is None else shift.float()
    packed = torch.empty(weight.numel(), dtype=MUL_DTYPES[mul_dtype()])
    unscale = load_native_library().kilolayer_pack(byref(WeightsStruct.of(weight)), packed.data_ptr())
    return {
        "packed": packed,
        "bias": bias,
        "sizes": (conv.out_channels, conv.in_channels, conv.kernel_size[0], stride, unscale),
    }


def _unit_struct(unit: dict[str, Any]) -> FoldedUnitStruct:
    convs = (FoldedConvStruct * len(unit["convs"]))(*map(_conv_struct, unit["convs"]))
    projection = unit["projection"] and pointer(_conv_struct(unit["projection"]))
    before = [part.data_ptr() for part in unit["before"] or ()] or [None, None]
    return FoldedUnitStruct(len(convs), convs, projection, *before, *unit["flags"])


def _conv_struct(conv: dict[str, Any]) -> FoldedConvStruct:
    return FoldedConvStruct(conv["packed"].data_ptr(), conv["bias"].data_ptr(), *conv["sizes"])
