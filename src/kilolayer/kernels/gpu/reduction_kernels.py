"""Sums over all pixels of a batch, in a fixed order: one partial sum a program, then all of them in turn.

No atomics, and the number of programs depends on shapes alone, so that equal tensors give equal bits.
"""

import triton
import triton.language as tl

from kilolayer.kernels.gpu.bf16_math import at_least_zero


@triton.jit
def measure(t, partials, M, C, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    """Σ t and Σ t² of every channel: partials (programs, 2, C)."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channels < C
    one = tl.zeros([BLOCK_C], tl.float32)
    two = tl.zeros([BLOCK_C], tl.float32)
    for tile in range(program, tl.cdiv(M, BLOCK_M), programs):
        rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        at = rows.to(tl.int64)[:, None] * C + channels[None, :]
        value = tl.load(t + at, (rows < M)[:, None] & inside[None, :], 0.0).to(tl.float32)
        one += tl.sum(value, 0)
        two += tl.sum(value * value, 0)
    keep(partials, program, C, channels, inside, one, two)


@triton.jit
def keep(partials, program, C, channels, inside, one, two):
    """A program's two sums into its own place."""
    tl.store(partials + program * 2 * C + channels, one, inside)
    tl.store(partials + program * 2 * C + C + channels, two, inside)


@triton.jit
def _totals(partials, programs, C, channels, inside, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    one = tl.zeros([BLOCK_C], tl.float64)
    two = tl.zeros([BLOCK_C], tl.float64)
    for start in range(0, programs, BLOCK_P):
        which = start + tl.arange(0, BLOCK_P)
        there = (which < programs)[:, None] & inside[None, :]
        at = partials + which[:, None] * 2 * C + channels[None, :]
        one += tl.sum(tl.load(at, there, 0.0).to(tl.float64), 0)
        two += tl.sum(tl.load(at + C, there, 0.0).to(tl.float64), 0)
    return one, two


@triton.jit(do_not_specialize=["programs", "count"])
def settle(
    partials, programs, weight, bias, running_mean, running_var, measured, count, C, momentum, epsilon,
    TRACKED: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """BN's four numbers a channel from Σ t and Σ t²: measured (4, C) is mean, 1/√(var + ε), scale, shift.

    BN(t) = scale·t + shift. The running averages follow where TRACKED, with the unbiased variance.
    """
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channels < C
    one, two = _totals(partials, programs, C, channels, inside, BLOCK_P, BLOCK_C)
    wide = one / count
    var = at_least_zero(two / count - wide * wide)
    mean = wide.to(tl.float32)
    inverse = (1.0 / tl.sqrt(var + epsilon)).to(tl.float32)
    scale = tl.load(weight + channels, inside, 0.0) * inverse
    shift = tl.load(bias + channels, inside, 0.0) - mean * scale
    tl.store(measured + channels, mean, inside)
    tl.store(measured + C + channels, inverse, inside)
    tl.store(measured + 2 * C + channels, scale, inside)
    tl.store(measured + 3 * C + channels, shift, inside)
    if TRACKED:
        unbiased = (var * (count / (count - 1.0))).to(tl.float32)
        before = tl.load(running_mean + channels, inside, 0.0)
        tl.store(running_mean + channels, before + momentum * (mean - before), inside)
        before = tl.load(running_var + channels, inside, 0.0)
        tl.store(running_var + channels, before + momentum * (unbiased - before), inside)


@triton.jit(do_not_specialize=["programs", "count"])
def settle_backward(
    partials, programs, weight, measured, coefficients, dweight, dbias, count, C,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """From Σ g and Σ g·(t − mean), g the gradient of BN(t): coefficients (3, C) α, β and γ, and dw, db.

    The gradient of t is α·g + β·t + γ, as in `kernels.reference`.
    """
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channels < C
    total, product = _totals(partials, programs, C, channels, inside, BLOCK_P, BLOCK_C)
    mean = tl.load(measured + channels, inside, 0.0).to(tl.float64)
    inverse = tl.load(measured + C + channels, inside, 0.0).to(tl.float64)
    alpha = tl.load(weight + channels, inside, 0.0).to(tl.float64) * inverse
    beta = -alpha * inverse * inverse * product / count
    gamma = -alpha * total / count - beta * mean
    tl.store(coefficients + channels, alpha.to(tl.float32), inside)
    tl.store(coefficients + C + channels, beta.to(tl.float32), inside)
    tl.store(coefficients + 2 * C + channels, gamma.to(tl.float32), inside)
    tl.store(dweight + channels, (product * inverse).to(tl.float32), inside)
    tl.store(dbias + channels, total.to(tl.float32), inside)


@triton.jit(do_not_specialize=["splits"])
def add_up(
    partials, dweight, splits, SIZE, IN, TAPS, SIDE, s_out, s_in, s_row, s_column,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """A convolution's weight gradient from its partial ones, (splits, OUT, TAPS, IN), in their order."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = at < SIZE
    total = tl.zeros([BLOCK], tl.float32)
    for split in range(splits):
        total += tl.load(partials + split * SIZE + at, there, 0.0)
    channel, tap, out = at % IN, at // IN % TAPS, at // (IN * TAPS)
    where = out * s_out + channel * s_in + tap // SIDE * s_row + tap % SIDE * s_column
    tl.store(dweight + where, total, there)
