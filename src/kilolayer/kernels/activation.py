"""BN and ReLU as one operation, for units that are not computed whole, the stem and the final activation."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import byref
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kilolayer.kernels import library
from kilolayer.kernels.calls import applies, batch_of, count_batch, fits, known_sums, norms_of, transformed
from kilolayer.kernels.chain import LANES, computes_as
from kilolayer.kernels.ways import Way


class FusedSequence(nn.Sequential):
    """Layers applied in order, in which a BN and the ReLU behind it are one operation where it applies."""

    way: Way = "native"

    def forward(self, x: Tensor) -> Tensor:
        layers = [] if transformed() else list(self)
        if not layers:
            return super().forward(x)  # type: ignore[no-any-return, no-untyped-call]
        while layers:
            layer = layers.pop(0)
            if is_activation(layer, *layers[:1]) and _applies(self.way, layer, layers[0], x):
                x = _of(self.way)(layer, x)
                del layers[0]
            else:
                x = layer(x)
        return x


def has_activation(sequence: nn.Module) -> bool:
    """Whether `sequence` is plain layers in order with a BN and a ReLU among them that a kernel can take."""
    return type(sequence) is nn.Sequential and any(is_activation(*pair) for pair in pairwise(sequence))


def is_activation(*layers: nn.Module) -> bool:
    match layers:
        case [nn.BatchNorm2d(num_features=channels) as norm, nn.ReLU() as relu]:
            own = computes_as(norm, nn.BatchNorm2d) and computes_as(relu, nn.ReLU)
            return own and channels % LANES == 0
        case _:
            return False


def _applies(way: Way, norm: Any, relu: nn.Module, x: Tensor) -> bool:
    if not applies(way, x, (norm, relu)):
        return False
    own = [norm.weight, norm.bias, norm.running_mean, norm.running_var]
    own = [tensor for tensor in own if tensor is not None]
    return fits(x, norm.num_features, own, [(norm.num_features,)] * 4)


def _of(way: Way) -> Callable[[nn.Module, Tensor], Tensor]:
    if way == "native":
        return activation
    from kilolayer.kernels.gpu import activation as gpu  # Triton need not be there

    return gpu.activation


def activation(norm: Any, x: Tensor) -> Tensor:
    """ReLU(BN(x)) of `x`, (N, C, H, W) in bf16 and channels last, with the batch's statistics."""
    out: Tensor = _Activation.apply(norm, known_sums(x), x, norm.weight, norm.bias)  # type: ignore[no-untyped-call]
    count_batch([norm])
    return out


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, norm: nn.BatchNorm2d, known: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor
    ) -> Tensor:
        measured, out = torch.empty(2 * norm.num_features), torch.empty_like(x)
        (called,) = norms_of([norm], measured, [weight, bias], [], tracked=True)
        library.native().kilolayer_activation_forward(
            byref(batch_of(x)),
            byref(called),
            norm.num_features,
            x.data_ptr(),
            None if known is None else known.data_ptr(),
            out.data_ptr(),
        )
        ctx.norm = norm
        ctx.save_for_backward(x, measured, weight, bias)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        x, measured, weight, bias = ctx.saved_tensors
        gradients = [torch.empty_like(weight), torch.empty_like(bias)]
        dx = torch.empty_like(x)
        da = da.to(x.dtype).contiguous(memory_format=torch.channels_last)
        (called,) = norms_of([ctx.norm], measured, [weight, bias], gradients, tracked=False)
        library.native().kilolayer_activation_backward(
            byref(batch_of(x)), byref(called), x.shape[1], x.data_ptr(), da.data_ptr(), dx.data_ptr()
        )
        return None, None, dx, *gradients
