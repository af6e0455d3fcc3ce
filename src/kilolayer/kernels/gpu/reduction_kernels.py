"""Sums over all pixels of a batch in a fixed order: one partial sum per program, then all of them in turn.

There are no atomics, and the number of programs depends on shapes alone: equal tensors give equal bits.
"""

import triton
import triton.language as tl

from kilolayer.kernels.gpu.bf16_math import relu


@triton.jit
def channel_sums_kernel(t, partials, M, C, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    """Σ t and Σ t² of every channel: partials (programs, 2, C)."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    valid_channels = channels < C
    first_sum = tl.zeros([BLOCK_C], tl.float32)
    second_sum = tl.zeros([BLOCK_C], tl.float32)
    for tile in range(program, tl.cdiv(M, BLOCK_M), programs):
        rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        offset = rows.to(tl.int64)[:, None] * C + channels[None, :]
        value = tl.load(t + offset, (rows < M)[:, None] & valid_channels[None, :], 0.0).to(tl.float32)
        first_sum += tl.sum(value, 0)
        second_sum += tl.sum(value * value, 0)
    store_partial_sums(partials, program, C, channels, valid_channels, first_sum, second_sum)


@triton.jit
def store_partial_sums(partials, program, C, channels, valid_channels, first_sum, second_sum):
    """Stores a program's two sums."""
    tl.store(partials + program * 2 * C + channels, first_sum, valid_channels)
    tl.store(partials + program * 2 * C + C + channels, second_sum, valid_channels)


@triton.jit
def _reduce_partials(
    partials, programs, C, channels, valid_channels, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr
):
    first_sum = tl.zeros([BLOCK_C], tl.float64)
    second_sum = tl.zeros([BLOCK_C], tl.float64)
    for start in range(0, programs, BLOCK_P):
        index = start + tl.arange(0, BLOCK_P)
        valid = (index < programs)[:, None] & valid_channels[None, :]
        offset = partials + index[:, None] * 2 * C + channels[None, :]
        first_sum += tl.sum(tl.load(offset, valid, 0.0).to(tl.float64), 0)
        second_sum += tl.sum(tl.load(offset + C, valid, 0.0).to(tl.float64), 0)
    return first_sum, second_sum


@triton.jit(do_not_specialize=["programs", "count"])
def bn_finalize_kernel(
    partials, programs, weight, bias, running_mean, running_var, statistics, count, C, momentum, epsilon,
    UPDATE_RUNNING: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """BN's statistics (4, C) from Σ t and Σ t²: mean, 1/√(var + ε), scale and shift.

    BN(t) = scale·t + shift. With UPDATE_RUNNING the running averages are updated, with the unbiased variance.
    """
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    valid_channels = channels < C
    first_sum, second_sum = _reduce_partials(
        partials, programs, C, channels, valid_channels, BLOCK_P, BLOCK_C
    )
    batch_mean = first_sum / count
    var = relu(second_sum / count - batch_mean * batch_mean)
    mean = batch_mean.to(tl.float32)
    inverse = (1.0 / tl.sqrt(var + epsilon)).to(tl.float32)
    scale = tl.load(weight + channels, valid_channels, 0.0) * inverse
    shift = tl.load(bias + channels, valid_channels, 0.0) - mean * scale
    tl.store(statistics + channels, mean, valid_channels)
    tl.store(statistics + C + channels, inverse, valid_channels)
    tl.store(statistics + 2 * C + channels, scale, valid_channels)
    tl.store(statistics + 3 * C + channels, shift, valid_channels)
    if UPDATE_RUNNING:
        unbiased = (var * (count / (count - 1.0))).to(tl.float32)
        before = tl.load(running_mean + channels, valid_channels, 0.0)
        tl.store(running_mean + channels, before + momentum * (mean - before), valid_channels)
        before = tl.load(running_var + channels, valid_channels, 0.0)
        tl.store(running_var + channels, before + momentum * (unbiased - before), valid_channels)


@triton.jit(do_not_specialize=["programs", "count"])
def bn_backward_finalize_kernel(
    partials, programs, weight, statistics, coefficients, dweight, dbias, count, C,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """From Σ g and Σ g·(t − mean), g the gradient of BN(t): coefficients (3, C) α, β and γ, and dw, db.

    The gradient of t is α·g + β·t + γ, as in `kernels.reference`.
    """
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    valid_channels = channels < C
    g_sum, gt_sum = _reduce_partials(partials, programs, C, channels, valid_channels, BLOCK_P, BLOCK_C)
    mean = tl.load(statistics + channels, valid_channels, 0.0).to(tl.float64)
    inverse = tl.load(statistics + C + channels, valid_channels, 0.0).to(tl.float64)
    alpha = tl.load(weight + channels, valid_channels, 0.0).to(tl.float64) * inverse
    beta = -alpha * inverse * inverse * gt_sum / count
    gamma = -alpha * g_sum / count - beta * mean
    tl.store(coefficients + channels, alpha.to(tl.float32), valid_channels)
    tl.store(coefficients + C + channels, beta.to(tl.float32), valid_channels)
    tl.store(coefficients + 2 * C + channels, gamma.to(tl.float32), valid_channels)
    tl.store(dweight + channels, (gt_sum * inverse).to(tl.float32), valid_channels)
    tl.store(dbias + channels, g_sum.to(tl.float32), valid_channels)


@triton.jit(do_not_specialize=["splits"])
def split_reduction_kernel(
    partials, dweight, splits, SIZE, IN, TAPS, SIDE, s_out, s_in, s_row, s_column,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """A weight gradient from its partial sums (splits, OUT, TAPS, IN), added in their order."""
    offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = offset < SIZE
    weight_sum = tl.zeros([BLOCK], tl.float32)
    for split in range(splits):
        weight_sum += tl.load(partials + split * SIZE + offset, valid, 0.0)
    channel, tap, out = offset % IN, offset // IN % TAPS, offset // (IN * TAPS)
    target = out * s_out + channel * s_in + tap // SIDE * s_row + tap % SIDE * s_column
    tl.store(dweight + target, weight_sum, valid)
