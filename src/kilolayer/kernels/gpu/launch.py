"""Launching the Triton kernels on tensors: blocks, grids and outputs.

Maps are bf16 (N, C, H, W), channels last; sums, coefficients and weights are fp32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor, nn

from kilolayer.kernels.gpu import conv_kernels, pointwise_kernels, reduction_kernels

PLAIN, BN_RELU, BN_BACKWARD = (
    mode.value for mode in (conv_kernels.PLAIN, conv_kernels.BN_RELU, conv_kernels.BN_BACKWARD)
)
WITH_SUMS, RELU_BACKWARD = conv_kernels.WITH_SUMS.value, conv_kernels.RELU_BACKWARD.value

PROGRAMS = 264
"""Programs of a kernel that sums: two per multiprocessor of an H100 or H200.

It is the same number on every GPU, because the order of the sums, and so every bit, depends on it."""
ROWS = 128
"""Pixels in a block."""
COLUMNS = 64
"""Channels in a block, at most."""
STAGES = 2
"""Blocks of operands that are loaded ahead of a product."""
_CHANNELS_PER_BLOCK = 16
_PARTIALS_PER_BLOCK = 64
_WEIGHTS_PER_BLOCK = 256


@dataclass(frozen=True)
class MapLoad:
    """A map and how a convolution loads it: unchanged, as ReLU(BN(t)), or as BN's gradient from g and t."""

    mode: int
    first: Tensor
    second: Tensor | None = None
    coefficients: Tensor | None = None

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        # A mode without a second map or coefficients ignores them: any tensor serves as a placeholder.
        return self.first, _tensor_or(self.second, self.first), _tensor_or(self.coefficients, self.first)


def identity_load(t: Tensor) -> MapLoad:
    """The map itself."""
    return MapLoad(PLAIN, t)


def bn_relu_load(t: Tensor, statistics: Tensor) -> MapLoad:
    """ReLU(BN(t)), from BN's `statistics`."""
    return MapLoad(BN_RELU, t, None, statistics)


def bn_gradient_load(g: Tensor, t: Tensor, coefficients: Tensor) -> MapLoad:
    """The gradient of BN's input t from g, that of its output."""
    return MapLoad(BN_BACKWARD, g, t, coefficients)


def channel_sums(t: Tensor) -> Tensor:
    """Σ t and Σ t² of every channel as partial sums, (programs, 2, C)."""
    grid, blocks = _reduction_grid(t)
    partials = _empty_partials(t, grid)
    reduction_kernels.channel_sums_kernel[grid](t, partials, *_matrix_shape(t), **blocks)
    return partials


def bn_finalize(norm: nn.BatchNorm2d, weight: Tensor, bias: Tensor, partials: Tensor, count: int) -> Tensor:
    """BN's statistics (4, C) over `count` pixels: mean, 1/√(var + ε), scale, shift.

    The running averages are updated, unless their momentum is 0.
    """
    channels = norm.num_features
    statistics = torch.empty((4, channels), device=partials.device)
    update_running = bool(norm.momentum)
    running = (norm.running_mean, norm.running_var) if update_running else (statistics, statistics)
    reduction_kernels.bn_finalize_kernel[(triton.cdiv(channels, _CHANNELS_PER_BLOCK),)](
        partials, len(partials), weight, bias, *running, statistics, count, channels,
        norm.momentum or 0.0, norm.eps, UPDATE_RUNNING=update_running,
        BLOCK_P=_PARTIALS_PER_BLOCK, BLOCK_C=_CHANNELS_PER_BLOCK,
    )  # fmt: skip
    return statistics


def bn_backward_finalize(
    partials: Tensor, weight: Tensor, statistics: Tensor, dweight: Tensor, dbias: Tensor, count: int
) -> Tensor:
    """The coefficients α, β, γ (3, C) of BN's gradient; fills `dweight` and `dbias`."""
    channels = len(weight)
    coefficients = torch.empty((3, channels), device=partials.device)
    reduction_kernels.bn_backward_finalize_kernel[(triton.cdiv(channels, _CHANNELS_PER_BLOCK),)](
        partials, len(partials), weight, statistics, coefficients, dweight, dbias, count, channels,
        BLOCK_P=_PARTIALS_PER_BLOCK, BLOCK_C=_CHANNELS_PER_BLOCK,
    )  # fmt: skip
    return coefficients


def bn_relu_forward(t: Tensor, statistics: Tensor, residual: Tensor | None = None) -> Tensor:
    """ReLU(BN(t)), or ReLU(residual + BN(t))."""
    out = torch.empty_like(t)
    grid, blocks = _pointwise_grid(t)
    pointwise_kernels.bn_relu_kernel[grid](
        t,
        statistics,
        _tensor_or(residual, t),
        out,
        *_matrix_shape(t),
        RESIDUAL=residual is not None,
        **blocks,
    )
    return out


def relu_backward(
    da: Tensor, t: Tensor, statistics: Tensor, gate: Tensor | None = None, *, stored: bool = True
) -> tuple[Tensor, Tensor]:
    """The gradient behind a ReLU of BN(t), or of the ReLU whose output is `gate`; and BN's two backward sums.

    Without `stored` only the sums are computed, and `da` itself is returned first.
    """
    grid, blocks = _reduction_grid(t)
    g, partials = torch.empty_like(t) if stored else da, _empty_partials(t, grid)
    pointwise_kernels.relu_backward_kernel[grid](
        da, t, statistics, _tensor_or(gate, t), g, partials, *_matrix_shape(t),
        GATED=gate is not None, STORED=stored, **blocks,
    )  # fmt: skip
    return g, partials


def bn_backward(
    g: Tensor,
    t: Tensor,
    coefficients: Tensor,
    *,
    residual: Tensor | None = None,
    statistics: Tensor | None = None,
) -> Tensor:
    """α·g + β·t + γ, plus `residual`; with `statistics` g counts only where ReLU(BN(t)) is open."""
    out = torch.empty_like(t)
    grid, blocks = _pointwise_grid(t)
    pointwise_kernels.bn_backward_kernel[grid](
        g, t, _tensor_or(statistics, coefficients), coefficients, _tensor_or(residual, t), out,
        *_matrix_shape(t), MASKED=statistics is not None, RESIDUAL=residual is not None, **blocks,
    )  # fmt: skip
    return out


def materialize(load: MapLoad, residual: Tensor | None = None) -> Tensor:
    """What a convolution would load, as a map in memory; `residual` is added to a gradient."""
    first, second, coefficients = load.tensors()
    if load.mode == BN_RELU:
        return bn_relu_forward(first, coefficients)
    return bn_backward(first, second, coefficients, residual=residual) if load.mode == BN_BACKWARD else first


def add_with_sums(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """x + t, with its sums as `channel_sums` gives them."""
    out = torch.empty_like(x)
    grid, blocks = _reduction_grid(x)
    partials = _empty_partials(x, grid)
    pointwise_kernels.add_kernel[grid](x, t, out, partials, *_matrix_shape(x), **blocks)
    return out, partials


def conv_forward(load: MapLoad, weight: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The convolution of the map that `load` reads, plus `residual`, and the sums of `channel_sums`."""
    out, partials = _launch_conv(load, weight, weight.stride(1), weight.stride(0), weight.shape[0], residual)
    return out, partials


def conv_dgrad(
    load: MapLoad,
    weight: Tensor,
    t: Tensor | None = None,
    statistics: Tensor | None = None,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The gradient of a convolution's input from the gradient of its output, which is loaded.

    With `t` and `statistics` of the BN-ReLU before the convolution: the gradient of BN(t), with BN's two
    backward sums. Otherwise: the gradient of the input itself.
    """
    return _launch_conv(
        load, weight, weight.stride(0), weight.stride(1), weight.shape[1], residual,
        flipped=True, like=t, statistics=statistics,
    )  # fmt: skip


def conv_wgrad(load: MapLoad, source: MapLoad, weight: Tensor) -> Tensor:
    """The gradient of a convolution's weights: `load` is the gradient of its output, `source` its input."""
    outputs, inputs, side, _ = weight.shape
    rows, _ = _matrix_shape(load.first)
    block_in, block_out = _channel_block(inputs), _channel_block(outputs)
    blocks = triton.cdiv(inputs, block_in) * triton.cdiv(outputs, block_out)
    splits = max(1, min(triton.cdiv(rows, ROWS), PROGRAMS // (side * side * blocks)))
    partials = torch.empty((splits, outputs, side * side, inputs), device=weight.device)
    conv_kernels.wgrad_kernel[(splits, side * side, blocks)](
        *load.tensors(), source.first, source.tensors()[2], partials, rows, *load.first.shape[2:],
        inputs, outputs, SIDE=side, LOAD=load.mode, SOURCE=source.mode,
        BLOCK_M=ROWS, BLOCK_IN=block_in, BLOCK_OUT=block_out, **_launch_options(block_out),
    )  # fmt: skip
    dweight = torch.empty_like(weight)
    reduction_kernels.split_reduction_kernel[(triton.cdiv(weight.numel(), _WEIGHTS_PER_BLOCK),)](
        partials, dweight, splits, weight.numel(), inputs, side * side, side, *dweight.stride(),
        BLOCK=_WEIGHTS_PER_BLOCK,
    )  # fmt: skip
    return dweight


def _launch_conv(
    load: MapLoad,
    weight: Tensor,
    s_in: int,
    s_out: int,
    outputs: int,
    residual: Tensor | None,
    *,
    flipped: bool = False,
    like: Tensor | None = None,
    statistics: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    images, inputs, height, width = load.first.shape
    out = torch.empty(
        (images, outputs, height, width),
        dtype=load.first.dtype,
        device=load.first.device,
        memory_format=torch.channels_last,
    )
    rows, columns = images * height * width, _channel_block(outputs)
    grid = (min(triton.cdiv(rows, ROWS), PROGRAMS), triton.cdiv(outputs, columns))
    partials = _empty_partials(out, grid)
    store = WITH_SUMS if not flipped else PLAIN if like is None else RELU_BACKWARD
    conv_kernels.conv_kernel[grid](
        *load.tensors(), weight, s_in, s_out, *weight.stride()[2:],
        out, _tensor_or(residual, out), _tensor_or(like, out), _tensor_or(statistics, partials), partials,
        rows, height, width, inputs, outputs,
        SIDE=weight.shape[2], FLIPPED=flipped, LOAD=load.mode, STORE=store, RESIDUAL=residual is not None,
        BLOCK_M=ROWS, BLOCK_IN=_channel_block(inputs), BLOCK_OUT=columns, **_launch_options(columns),
    )  # fmt: skip
    return out, partials


def _matrix_shape(t: Tensor) -> tuple[int, int]:
    """Pixels and channels of a map."""
    return t.numel() // t.shape[1], t.shape[1]


def _channel_block(channels: int) -> int:
    return min(COLUMNS, int(triton.next_power_of_2(channels)))


def _launch_options(columns: int) -> dict[str, int]:
    """Warps per block of a matrix product, so that its sums stay in registers, and loads ahead."""
    return {"num_warps": 8 if columns == COLUMNS else 4, "num_stages": STAGES}


def _reduction_grid(t: Tensor) -> tuple[tuple[int, int], dict[str, Any]]:
    """Grid and blocks of a pass that sums: every program takes many blocks of pixels."""
    (tiles, columns), blocks = _pointwise_grid(t)
    return (min(tiles, PROGRAMS), columns), blocks


def _pointwise_grid(t: Tensor) -> tuple[tuple[int, int], dict[str, Any]]:
    """Grid and blocks of a pass with one program per block."""
    rows, channels = _matrix_shape(t)
    block = _channel_block(channels)
    return (triton.cdiv(rows, ROWS), triton.cdiv(channels, block)), {"BLOCK_M": ROWS, "BLOCK_C": block}


def _empty_partials(t: Tensor, grid: tuple[int, int]) -> Tensor:
    return torch.empty((grid[0], 2, t.shape[1]), device=t.device)


def _tensor_or(tensor: Tensor | None, placeholder: Tensor) -> Tensor:
    return placeholder if tensor is None else tensor
