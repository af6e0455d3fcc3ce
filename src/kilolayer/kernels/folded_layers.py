"""The layers of a folded network: convolution, bias, addition and ReLU in one pass over memory.

On a CPU this is oneDNN's convolution with fused post-ops, called as PyTorch's compiler calls it. On other
devices, and with a PyTorch that lacks the call, the same is computed layer by layer.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from kilolayer.kernels.conv_chain import has_forward_of


class FoldedConv(nn.Module):
    """y = relu(W∗x + b), or without the ReLU. `add` adds y to another tensor in the same pass.

    A BN behind the convolution is part of W and b.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None, relu: bool) -> None:
        super().__init__()
        weight, bias = folded_weights(conv, norm)
        self.register_buffer("weight", weight.contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias)
        self.relu = relu
        self.sizes = _int_list(conv.padding), _int_list(conv.stride), _int_list(conv.dilation)
        self.groups = conv.groups

    weight: Tensor
    bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        if _has_fused_kernel(x, self.weight):
            output: Tensor = torch.ops.mkldnn._convolution_pointwise(
                x, self.weight, self.bias, *self.sizes, self.groups, "relu" if self.relu else "none", [], ""
            )
            return output
        y = self._conv2d(x)
        return y.relu_() if self.relu else y

    def add(self, x: Tensor, summand: Tensor) -> Tensor:
        """summand + W∗x + b, followed by the ReLU if there is one."""
        if _has_fused_kernel(x, self.weight) and summand.shape[1] == self.weight.shape[0]:
            output: Tensor = torch.ops.mkldnn._convolution_pointwise.binary(
                x,
                summand,
                self.weight,
                self.bias,
                *self.sizes,
                self.groups,
                "add",
                1.0,
                "relu" if self.relu else None,
                [],
                None,
            )
            return output
        y = summand + self._conv2d(x)
        return y.relu_() if self.relu else y

    def _conv2d(self, x: Tensor) -> Tensor:
        padding, stride, dilation = self.sizes
        return functional.conv2d(x, self.weight, self.bias, stride, padding, dilation, self.groups)


class FoldedNorm(FoldedConv):
    """BN, with the ReLU behind it if there is one, as a depthwise 1×1 convolution: one pass, not two."""

    def __init__(self, norm: nn.BatchNorm2d, relu: bool) -> None:
        channels = norm.num_features
        depthwise = nn.Conv2d(channels, channels, 1, groups=channels, bias=False)
        nn.init.ones_(depthwise.weight)
        super().__init__(depthwise.to(norm.running_mean), norm, relu)


def _int_list(sizes: object) -> list[int]:
    return [int(size) for size in cast(tuple[int, ...], sizes)]


def _has_fused_kernel(x: Tensor, weight: Tensor) -> bool:
    # An exporter does not know the call; PyTorch's layer refuses or converts dtypes that do not match.
    return (
        _HAS_MKLDNN_POINTWISE
        and not torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        and x.device.type == "cpu"
        and x.dtype is weight.dtype
        and x.dtype in (torch.bfloat16, torch.float32)
    )


def _has_mkldnn_pointwise() -> bool:
    names: Any = getattr(torch.ops, "mkldnn", None)
    has_mkldnn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    has_pointwise = has_mkldnn and hasattr(names, "_convolution_pointwise")
    return has_pointwise and "binary" in names._convolution_pointwise.overloads()


_HAS_MKLDNN_POINTWISE = _has_mkldnn_pointwise()


def is_affine(layer: nn.Module) -> bool:
    """Whether `layer` is a BN with running statistics: at inference an affine map of each channel."""
    standard_forward = has_forward_of(layer, nn.BatchNorm2d, nn.SyncBatchNorm)
    return standard_forward and layer.running_mean is not None and layer.running_var is not None


def scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The scale and shift of BN(x) = scale·x + shift, with its running statistics."""
    assert norm.running_mean is not None and norm.running_var is not None  # noqa: S101, PT018 - `is_affine`
    weight = 1.0 if norm.weight is None else norm.weight.detach()
    bias = 0.0 if norm.bias is None else norm.bias.detach()
    scale = weight / torch.sqrt(norm.running_var + norm.eps)
    return scale, bias - norm.running_mean * scale


def folded_weights(conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor | None]:
    """W and b of BN(W∗x + b), or of the convolution itself if `norm` is None."""
    weight, bias = conv.weight.detach(), None if conv.bias is None else conv.bias.detach()
    if norm is None:
        return weight, bias
    scale, shift = scale_and_shift(norm)
    return weight * scale.view(-1, 1, 1, 1), shift if bias is None else bias * scale + shift
