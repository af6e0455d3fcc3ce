"""A whole residual unit as one operation on a CPU with AVX-512, forward and backward.

BN and ReLU are computed while a convolution reads its input and writes its output (native/forward.h). Only x
and the outputs of F's inner convolutions are saved, in bf16. `reference` has the same steps in plain PyTorch.
"""

from __future__ import annotations

from ctypes import POINTER, byref, pointer
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kilolayer.kernels.conv_chain import ConvChain
from kilolayer.kernels.dispatch import (
    attach_channel_sums,
    batch_struct,
    channel_sums_of,
    count_batch,
    empty_map_like,
    norm_structs,
    scatter_strided,
    subsample,
)
from kilolayer.kernels.native_library import (
    ConvStruct,
    NormStruct,
    UnitStruct,
    WeightsStruct,
    load_native_library,
)

_LAST = torch.channels_last


def run_native_unit(chain: ConvChain, x: Tensor, parameters: list[Tensor]) -> Tensor:
    """x' of `x`, both (N, C, H, W) in bf16, channels last; in training, with the statistics of the batch.

    `parameters` are those of the chain, in fp32. The running averages are updated. The channel sums that the
    next unit's first BN needs are attached to x'.
    """
    sums = torch.empty(2 * chain.out_channels, dtype=torch.float64)
    y: Tensor = _NativeUnitFunction.apply(chain, channel_sums_of(x), sums, x, *parameters)  # type: ignore[no-untyped-call]
    count_batch(chain.norms())
    if chain.final_norm is None:
        attach_channel_sums(y, sums)
    return y


class _NativeUnitFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, chain: ConvChain, channel_sums: Tensor | None, sums: Tensor, x: Tensor, *parameters: Tensor
    ) -> Tensor:
        ctx.size, full_x = x.shape, x
        x = subsample(chain.input_stride, full_x)
        projection_input = (
            x
            if chain.projection is None or chain.input_stride == chain.shortcut_stride
            else subsample(chain.shortcut_stride, full_x)
        )
        outputs, like = [], x
        for link, stride in zip(chain.links, chain.conv_strides(), strict=True):
            like = empty_map_like(like[:, :, ::stride, ::stride], link.conv.out_channels)
            outputs.append(like)
        # Without a final BN the last convolution writes x' itself.
        y = outputs.pop() if chain.final_norm is None else torch.empty_like(like)
        if chain.padding is not None:
            y.zero_()[:, : ctx.size[1]] = full_x[:, :, :: chain.shortcut_stride, :: chain.shortcut_stride]
        if chain.projection_norm is not None:
            outputs.append(torch.empty_like(y))
        statistics = torch.empty(2 * sum(norm.num_features for norm in chain.norms()))
        call = _UnitCall(chain, x, projection_input, y, outputs, statistics, parameters, update_running=True)
        load_native_library().kilolayer_unit_forward(
            byref(call.batch),
            byref(call.unit),
            None if channel_sums is None else channel_sums.data_ptr(),
            sums.data_ptr(),
        )
        ctx.chain = chain
        # The backward pass of an original unit needs x' to see where the last ReLU was open; others do not.
        ctx.save_for_backward(
            x, projection_input, x if chain.final_norm is None else y, statistics, *outputs, *parameters
        )
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        chain: ConvChain = ctx.chain
        x, projection_input, y, statistics, *saved = ctx.saved_tensors
        saved_outputs = len(chain.saved_links) + (chain.projection_norm is not None)
        outputs, parameters = saved[:saved_outputs], saved[saved_outputs:]
        gradients = [torch.empty_like(parameter) for parameter in parameters]
        dx = torch.empty_like(x)
        dread = None if projection_input.shape == x.shape else torch.empty_like(projection_input)
        dy = dy.to(x.dtype).contiguous(memory_format=_LAST)
        call = _UnitCall(chain, x, projection_input, y, outputs, statistics, parameters, gradients, dread)
        load_native_library().kilolayer_unit_backward(
            byref(call.batch), byref(call.unit), dy.data_ptr(), dx.data_ptr()
        )
        if dread is not None:
            dx[:, :, :: chain.shortcut_stride, :: chain.shortcut_stride] += dread
        return None, None, None, scatter_strided(chain.input_stride, dx, ctx.size), *gradients


class _UnitCall:
    """The argument structures of one unit; the tensors have to outlive them."""

    def __init__(
        self,
        chain: ConvChain,
        x: Tensor,
        projection_input: Tensor,
        y: Tensor,
        outputs: list[Tensor],
        statistics: Tensor,
        parameters: Any,
        gradients: list[Tensor] | None = None,
        dread: Tensor | None = None,
        *,
        update_running: bool = False,
    ) -> None:
        depth, conv_count = len(chain.links), len(chain.convs())
        affine, norm_gradients = parameters[conv_count:], (gradients or [])[conv_count:]
        self.norms = list(
            norm_structs(chain.norms(), statistics, affine, norm_gradients, update_running=update_running)
        )
        remaining_norms = iter(self.norms)
        maps = [x, *outputs[: len(chain.saved_links)], y]

        def take_norm(norm: nn.BatchNorm2d | None) -> Any:
            return POINTER(NormStruct)() if norm is None else pointer(next(remaining_norms))

        def conv(
            i: int, norm: nn.BatchNorm2d | None, source: Tensor, target: Tensor, stride: int = 1
        ) -> ConvStruct:
            return ConvStruct(
                WeightsStruct.of(parameters[i]),
                gradients[i].data_ptr() if gradients else None,
                take_norm(norm),
                source.data_ptr(),
                target.data_ptr(),
                stride,
            )

        convs = (ConvStruct * depth)()
        for i, (link, stride) in enumerate(zip(chain.links, chain.conv_strides(), strict=True)):
            convs[i] = conv(i, link.norm, maps[i], maps[i + 1], stride)
        final_norm, projection = take_norm(chain.final_norm), POINTER(ConvStruct)()
        # If h is not x, it lies in the memory of x', unless a BN follows it.
        h = x if chain.has_identity_shortcut else y
        if chain.projection is not None:
            projection_output = h if chain.projection_norm is None else outputs[-1]
            projection = pointer(conv(depth, chain.projection_norm, projection_input, projection_output))
        dread_address = None if dread is None else dread.data_ptr()
        padded = 0 if chain.padding is None else chain.shortcut_stride // chain.input_stride
        self.unit = UnitStruct(
            depth, convs, final_norm, h.data_ptr(), y.data_ptr(), projection, dread_address, padded
        )
        self.batch = batch_struct(x)
