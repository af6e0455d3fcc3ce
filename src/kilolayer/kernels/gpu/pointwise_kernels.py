"""BN with ReLU, its backward pass, and the residual addition: one pass over memory each."""

import triton
import triton.language as tl

from kilolayer.kernels.gpu.bf16_math import at_least_zero, bf16
from kilolayer.kernels.gpu.reduction_kernels import keep


@triton.jit
def activate(
    t, measured, residual, out, M, C,
    RESIDUAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """ReLU(BN(t)); with RESIDUAL ReLU(x + BN(t)), the end of the original unit."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channels < C
    there = (rows < M)[:, None] & inside[None, :]
    at = rows.to(tl.int64)[:, None] * C + channels[None, :]
    scale = tl.load(measured + 2 * C + channels, inside, 0.0)
    shift = tl.load(measured + 3 * C + channels, inside, 0.0)
    z = tl.load(t + at, there, 0.0).to(tl.float32) * scale[None, :] + shift[None, :]
    if RESIDUAL:
        z += tl.load(residual + at, there, 0.0).to(tl.float32)
    tl.store(out + at, bf16(at_least_zero(z)), there)


@triton.jit
def mask(
    da, t, measured, gate, g, partials, M, C,
    GATED: tl.constexpr, STORED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """g = da where the ReLU was open, and of every channel Σ g and Σ g·(t − mean).

    It was open where BN(t) > 0; with GATED where `gate`, the ReLU's output, is.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channels < C
    mean = tl.load(measured + channels, inside, 0.0)
    scale = tl.load(measured + 2 * C + channels, inside, 0.0)
    shift = tl.load(measured + 3 * C + channels, inside, 0.0)
    one = tl.zeros([BLOCK_C], tl.float32)
    two = tl.zeros([BLOCK_C], tl.float32)
    for tile in range(program, tl.cdiv(M, BLOCK_M), programs):
        rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        there = (rows < M)[:, None] & inside[None, :]
        at = rows.to(tl.int64)[:, None] * C + channels[None, :]
        value = tl.load(t + at, there, 0.0).to(tl.float32)
        if GATED:  # noqa: SIM108 - compiled by Triton
            z = tl.load(gate + at, there, 0.0).to(tl.float32)
        else:
            z = value * scale[None, :] + shift[None, :]
        gradient = tl.where(z > 0, tl.load(da + at, there, 0.0).to(tl.float32), 0.0)
        if STORED:
            tl.store(g + at, bf16(gradient), there)
        one += tl.sum(gradient, 0)
        two += tl.sum(gradient * (value - mean[None, :]), 0)
    keep(partials, program, C, channels, inside, one, two)


@triton.jit
def spread(
    g, t, measured, coefficients, residual, out, M, C,
    MASKED: tl.constexpr, RESIDUAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The gradient of t, α·g + β·t + γ, and with RESIDUAL the shortcut's beside it.

    With MASKED g is that of the ReLU's output: the mask is computed again from t.
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channels < C
    there = (rows < M)[:, None] & inside[None, :]
    at = rows.to(tl.int64)[:, None] * C + channels[None, :]
    alpha = tl.load(coefficients + channels, inside, 0.0)
    beta = tl.load(coefficients + C + channels, inside, 0.0)
    gamma = tl.load(coefficients + 2 * C + channels, inside, 0.0)
    gradient = tl.load(g + at, there, 0.0).to(tl.float32)
    value = tl.load(t + at, there, 0.0).to(tl.float32)
    if MASKED:
        scale = tl.load(measured + 2 * C + channels, inside, 0.0)
        shift = tl.load(measured + 3 * C + channels, inside, 0.0)
        gradient = tl.where(value * scale[None, :] + shift[None, :] > 0, gradient, 0.0)
    dt = alpha[None, :] * gradient + beta[None, :] * value + gamma[None, :]
    if RESIDUAL:
        dt += tl.load(residual + at, there, 0.0).to(tl.float32)
    tl.store(out + at, bf16(dt), there)


@triton.jit
def add(x, t, out, partials, M, C, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    """x + t, and of every channel its Σ and Σ² for the BN that comes next."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channels < C
    one = tl.zeros([BLOCK_C], tl.float32)
    two = tl.zeros([BLOCK_C], tl.float32)
    for tile in range(program, tl.cdiv(M, BLOCK_M), programs):
        rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        there = (rows < M)[:, None] & inside[None, :]
        at = rows.to(tl.int64)[:, None] * C + channels[None, :]
        total = tl.load(x + at, there, 0.0).to(tl.float32) + tl.load(t + at, there, 0.0).to(tl.float32)
        stored = bf16(total)
        tl.store(out + at, stored, there)
        # What is stored is what the next BN reads, so its sums are taken.
        value = stored.to(tl.float32)
        one += tl.sum(value, 0)
        two += tl.sum(value * value, 0)
    keep(partials, program, C, channels, inside, one, two)
