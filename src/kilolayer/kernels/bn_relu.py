"""BN and ReLU as one operation, for stems, final activations and units that cannot be fused as a whole."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import byref
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kilolayer.kernels.backend import Backend
from kilolayer.kernels.conv_chain import LANES, has_forward_of
from kilolayer.kernels.dispatch import (
    batch_struct,
    can_run,
    channel_sums_of,
    count_batch,
    fits_kernel,
    is_transformed,
    norm_structs,
)
from kilolayer.kernels.native_library import load_native_library


class FusedSequence(nn.Sequential):
    """Layers in order; a BN and the ReLU behind it are one operation wherever the kernels can run it."""

    backend: Backend = "native"

    def forward(self, x: Tensor) -> Tensor:
        layers = [] if is_transformed() else list(self)
        if not layers:
            return super().forward(x)  # type: ignore[no-any-return, no-untyped-call]
        while layers:
            layer = layers.pop(0)
            if is_bn_relu(layer, *layers[:1]) and _can_run(self.backend, layer, layers[0], x):
                x = _bn_relu_of(self.backend)(layer, x)
                del layers[0]
            else:
                x = layer(x)
        return x


def has_bn_relu(sequence: nn.Module) -> bool:
    """Whether `sequence` is a plain `nn.Sequential` that holds a BN and a ReLU which a kernel can compute."""
    return type(sequence) is nn.Sequential and any(is_bn_relu(*pair) for pair in pairwise(sequence))


def is_bn_relu(*layers: nn.Module) -> bool:
    """Whether these two layers are a BN and a ReLU which a kernel can compute as one operation."""
    match layers:
        case [nn.BatchNorm2d(num_features=channels) as norm, nn.ReLU() as relu]:
            standard_forward = has_forward_of(norm, nn.BatchNorm2d) and has_forward_of(relu, nn.ReLU)
            return standard_forward and channels % LANES == 0
        case _:
            return False


def _can_run(backend: Backend, norm: Any, relu: nn.Module, x: Tensor) -> bool:
    if not can_run(backend, x, (norm, relu)):
        return False
    tensors = [norm.weight, norm.bias, norm.running_mean, norm.running_var]
    tensors = [tensor for tensor in tensors if tensor is not None]
    return fits_kernel(x, norm.num_features, tensors, [(norm.num_features,)] * 4)


def _bn_relu_of(backend: Backend) -> Callable[[nn.Module, Tensor], Tensor]:
    if backend == "native":
        return native_bn_relu
    from kilolayer.kernels.gpu import triton_bn_relu as gpu  # Triton may be missing

    return gpu.triton_bn_relu


def native_bn_relu(norm: Any, x: Tensor) -> Tensor:
    """a = ReLU(BN(x)), with the statistics of the batch.

    `x` and a are (N, C, H, W) in bf16, channels last. The backward pass saves x only and recomputes the mask.
    """
    out: Tensor = _BnRelu.apply(norm, channel_sums_of(x), x, norm.weight, norm.bias)  # type: ignore[no-untyped-call]
    count_batch([norm])
    return out


class _BnRelu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, norm: nn.BatchNorm2d, channel_sums: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor
    ) -> Tensor:
        statistics, out = torch.empty(2 * norm.num_features), torch.empty_like(x)
        (norm_struct,) = norm_structs([norm], statistics, [weight, bias], [], update_running=True)
        load_native_library().kilolayer_bn_relu_forward(
            byref(batch_struct(x)),
            byref(norm_struct),
            norm.num_features,
            x.data_ptr(),
            None if channel_sums is None else channel_sums.data_ptr(),
            out.data_ptr(),
        )
        ctx.norm = norm
        ctx.save_for_backward(x, statistics, weight, bias)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        x, statistics, weight, bias = ctx.saved_tensors
        gradients = [torch.empty_like(weight), torch.empty_like(bias)]
        dx = torch.empty_like(x)
        da = da.to(x.dtype).contiguous(memory_format=torch.channels_last)
        (norm_struct,) = norm_structs([ctx.norm], statistics, [weight, bias], gradients, update_running=False)
        load_native_library().kilolayer_bn_relu_backward(
            byref(batch_struct(x)), byref(norm_struct), x.shape[1], x.data_ptr(), da.data_ptr(), dx.data_ptr()
        )
        return None, None, dx, *gradients
