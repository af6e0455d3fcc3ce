"""BN-ReLU, its backward pass and the residual addition, each in one pass over memory."""

import triton
import triton.language as tl

from kilolayer.kernels.gpu.bf16_math import relu, to_bf16
from kilolayer.kernels.gpu.reduction_kernels import store_partial_sums


@triton.jit
def bn_relu_kernel(
    t, statistics, residual, out, M, C,
    RESIDUAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """ReLU(BN(t)); with RESIDUAL ReLU(x + BN(t)), the end of the original unit."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    valid_channels = channels < C
    valid = (rows < M)[:, None] & valid_channels[None, :]
    offset = rows.to(tl.int64)[:, None] * C + channels[None, :]
    scale = tl.load(statistics + 2 * C + channels, valid_channels, 0.0)
    shift = tl.load(statistics + 3 * C + channels, valid_channels, 0.0)
    z = tl.load(t + offset, valid, 0.0).to(tl.float32) * scale[None, :] + shift[None, :]
    if RESIDUAL:
        z += tl.load(residual + offset, valid, 0.0).to(tl.float32)
    tl.store(out + offset, to_bf16(relu(z)), valid)


@triton.jit
def relu_backward_kernel(
    da, t, statistics, gate, g, partials, M, C,
    GATED: tl.constexpr, STORED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """g = da where the ReLU was open, and Σ g and Σ g·(t − mean) of every channel.

    The ReLU was open where BN(t) > 0; with GATED, where `gate`, the ReLU's output, is positive.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    valid_channels = channels < C
    mean = tl.load(statistics + channels, valid_channels, 0.0)
    scale = tl.load(statistics + 2 * C + channels, valid_channels, 0.0)
    shift = tl.load(statistics + 3 * C + channels, valid_channels, 0.0)
    first_sum = tl.zeros([BLOCK_C], tl.float32)
    second_sum = tl.zeros([BLOCK_C], tl.float32)
    for tile in range(program, tl.cdiv(M, BLOCK_M), programs):
        rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        valid = (rows < M)[:, None] & valid_channels[None, :]
        offset = rows.to(tl.int64)[:, None] * C + channels[None, :]
        value = tl.load(t + offset, valid, 0.0).to(tl.float32)
        if GATED:
            z = tl.load(gate + offset, valid, 0.0).to(tl.float32)
        else:
            z = value * scale[None, :] + shift[None, :]
        gradient = tl.where(z > 0, tl.load(da + offset, valid, 0.0).to(tl.float32), 0.0)
        if STORED:
            tl.store(g + offset, to_bf16(gradient), valid)
        first_sum += tl.sum(gradient, 0)
        second_sum += tl.sum(gradient * (value - mean[None, :]), 0)
    store_partial_sums(partials, program, C, channels, valid_channels, first_sum, second_sum)


@triton.jit
def bn_backward_kernel(
    g, t, statistics, coefficients, residual, out, M, C,
    MASKED: tl.constexpr, RESIDUAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The gradient of t, α·g + β·t + γ; with RESIDUAL plus the gradient of the shortcut.

    With MASKED g is the gradient of the ReLU's output, and the mask is recomputed from t.
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    valid_channels = channels < C
    valid = (rows < M)[:, None] & valid_channels[None, :]
    offset = rows.to(tl.int64)[:, None] * C + channels[None, :]
    alpha = tl.load(coefficients + channels, valid_channels, 0.0)
    beta = tl.load(coefficients + C + channels, valid_channels, 0.0)
    gamma = tl.load(coefficients + 2 * C + channels, valid_channels, 0.0)
    gradient = tl.load(g + offset, valid, 0.0).to(tl.float32)
    value = tl.load(t + offset, valid, 0.0).to(tl.float32)
    if MASKED:
        scale = tl.load(statistics + 2 * C + channels, valid_channels, 0.0)
        shift = tl.load(statistics + 3 * C + channels, valid_channels, 0.0)
        gradient = tl.where(value * scale[None, :] + shift[None, :] > 0, gradient, 0.0)
    dt = alpha[None, :] * gradient + beta[None, :] * value + gamma[None, :]
    if RESIDUAL:
        dt += tl.load(residual + offset, valid, 0.0).to(tl.float32)
    tl.store(out + offset, to_bf16(dt), valid)


@triton.jit
def add_kernel(x, t, out, partials, M, C, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    """x + t, with Σ and Σ² of every channel for the BN that follows."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    valid_channels = channels < C
    first_sum = tl.zeros([BLOCK_C], tl.float32)
    second_sum = tl.zeros([BLOCK_C], tl.float32)
    for tile in range(program, tl.cdiv(M, BLOCK_M), programs):
        rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        valid = (rows < M)[:, None] & valid_channels[None, :]
        offset = rows.to(tl.int64)[:, None] * C + channels[None, :]
        y = tl.load(x + offset, valid, 0.0).to(tl.float32) + tl.load(t + offset, valid, 0.0).to(tl.float32)
        stored = to_bf16(y)
        tl.store(out + offset, stored, valid)
        # The next BN reads the rounded values, so their sums are taken.
        value = stored.to(tl.float32)
        first_sum += tl.sum(value, 0)
        second_sum += tl.sum(value * value, 0)
    store_partial_sums(partials, program, C, channels, valid_channels, first_sum, second_sum)
