"""1×1 and 3×3 convolutions as matrix products, in whose loads and stores BN, ReLU and the addition happen.

Row m of a map is a pixel; tap (i, j) of a 3×3 kernel reads the row that lies i − 1 lines and j − 1 columns
from it, or zeros beyond the border.
"""

import triton
import triton.language as tl

from kilolayer.kernels.gpu.bf16_math import at_least_zero, bf16, multiply
from kilolayer.kernels.gpu.reduction_kernels import keep

PLAIN = tl.constexpr(0)
"""Read as it is; written as it is."""
ACTIVATED = tl.constexpr(1)
"""Read as ReLU(BN(t)): `coefficients` is `measured`."""
SPREAD = tl.constexpr(2)
"""Read as BN's gradient α·g + β·t + γ."""
SUMMED = tl.constexpr(1)
"""Written, with Σ and Σ² of every channel."""
MASKED = tl.constexpr(2)
"""Written where the ReLU before was open, with Σ g and Σ g·(t − mean)."""


@triton.jit
def _read(first, second, coefficients, rows, there, channels, C, LOAD: tl.constexpr):
    """Rows and channels of a map in bf16, transformed as LOAD says; zero where not `there`."""
    inside = channels < C
    taken = there[:, None] & inside[None, :]
    at = rows.to(tl.int64)[:, None] * C + channels[None, :]
    value = tl.load(first + at, taken, 0.0)
    if LOAD == ACTIVATED:
        scale = tl.load(coefficients + 2 * C + channels, inside, 0.0)
        shift = tl.load(coefficients + 3 * C + channels, inside, 0.0)
        z = at_least_zero(value.to(tl.float32) * scale[None, :] + shift[None, :])
        value = bf16(tl.where(taken, z, 0.0))
    if LOAD == SPREAD:
        alpha = tl.load(coefficients + channels, inside, 0.0)
        beta = tl.load(coefficients + C + channels, inside, 0.0)
        gamma = tl.load(coefficients + 2 * C + channels, inside, 0.0)
        t = tl.load(second + at, taken, 0.0).to(tl.float32)
        dt = alpha[None, :] * value.to(tl.float32) + beta[None, :] * t + gamma[None, :]
        value = bf16(tl.where(taken, dt, 0.0))
    return value


@triton.jit
def _shifted(rows, tap, M, HEIGHT, WIDTH, SIDE: tl.constexpr):
    """The rows that a tap reads, and which of them are within their images."""
    down, right = tap // SIDE - SIDE // 2, tap % SIDE - SIDE // 2
    line, column = rows // WIDTH % HEIGHT + down, rows % WIDTH + right
    there = (rows < M) & (line >= 0) & (line < HEIGHT) & (column >= 0) & (column < WIDTH)
    return rows + down * WIDTH + right, there


@triton.jit
def convolve(
    first, second, coefficients, weight, s_in, s_out, s_row, s_column,
    out, residual, like, measured, partials, M, HEIGHT, WIDTH, IN, OUT,
    SIDE: tl.constexpr, FLIPPED: tl.constexpr, LOAD: tl.constexpr, STORE: tl.constexpr,
    RESIDUAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    """out (M, OUT) = Σ over taps of the map that is read times the tap's weights, in fp32.

    FLIPPED turns the kernel by 180°, as the gradient of the input has it. The weights are fp32, and
    multiplied in bf16. With RESIDUAL a map is added to the sum; then STORE.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    columns = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    inside = columns < OUT
    one = tl.zeros([BLOCK_OUT], tl.float32)
    two = tl.zeros([BLOCK_OUT], tl.float32)
    blocks = tl.cdiv(IN, BLOCK_IN)
    for tile in range(program, tl.cdiv(M, BLOCK_M), programs):
        rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        product = tl.zeros([BLOCK_M, BLOCK_OUT], tl.float32)
        for step in range(SIDE * SIDE * blocks):
            tap = step // blocks
            channels = step % blocks * BLOCK_IN + tl.arange(0, BLOCK_IN)
            read, there = _shifted(rows, tap, M, HEIGHT, WIDTH, SIDE)
            a = _read(first, second, coefficients, read, there, channels, IN, LOAD)
            if FLIPPED:
                tap = SIDE * SIDE - 1 - tap
            at = weight + tap // SIDE * s_row + tap % SIDE * s_column
            b = tl.load(
                at + channels[:, None] * s_in + columns[None, :] * s_out,
                (channels < IN)[:, None] & inside[None, :],
                0.0,
            )
            product = multiply(a, bf16(b), product)
        there = (rows < M)[:, None] & inside[None, :]
        at = rows.to(tl.int64)[:, None] * OUT + columns[None, :]
        if RESIDUAL:
            product += tl.load(residual + at, there, 0.0).to(tl.float32)
        if STORE == MASKED:
            t = tl.load(like + at, there, 0.0).to(tl.float32)
            mean = tl.load(measured + columns, inside, 0.0)
            scale = tl.load(measured + 2 * OUT + columns, inside, 0.0)
            shift = tl.load(measured + 3 * OUT + columns, inside, 0.0)
            product = tl.where(t * scale[None, :] + shift[None, :] > 0, product, 0.0)
        stored = bf16(product)
        tl.store(out + at, stored, there)
        # What is stored is what comes next reads. Rows and columns beyond the map are zero in every sum.
        value = stored.to(tl.float32)
        if STORE == SUMMED:
            one += tl.sum(value, 0)
            two += tl.sum(value * value, 0)
        if STORE == MASKED:
            one += tl.sum(value, 0)
            two += tl.sum(value * (t - mean[None, :]), 0)
    if STORE != PLAIN:
        keep(partials, program, OUT, columns, inside, one, two)


@triton.jit
def weigh(
    g, t, coefficients, source, measured, partials, M, HEIGHT, WIDTH, IN, OUT,
    SIDE: tl.constexpr, LOAD: tl.constexpr, SOURCE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    """The weights' gradient, one partial sum a split of the pixels: partials (splits, OUT, taps, IN).

    The output's gradient is read as LOAD says, the convolution's input as SOURCE says.
    """
    split, splits = tl.program_id(0), tl.num_programs(0)
    tap = tl.program_id(1)
    blocks = tl.cdiv(IN, BLOCK_IN)
    outs = tl.program_id(2) // blocks * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    ins = tl.program_id(2) % blocks * BLOCK_IN + tl.arange(0, BLOCK_IN)
    product = tl.zeros([BLOCK_OUT, BLOCK_IN], tl.float32)
    for tile in range(split, tl.cdiv(M, BLOCK_M), splits):
        rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        read, there = _shifted(rows, tap, M, HEIGHT, WIDTH, SIDE)
        a = _read(source, source, measured, read, there, ins, IN, SOURCE)
        d = _read(g, t, coefficients, rows, rows < M, outs, OUT, LOAD)
        product = multiply(tl.trans(d), a, product)
    at = ((split * OUT + outs)[:, None] * SIDE * SIDE + tap) * IN + ins[None, :]
    tl.store(partials + at, product, (outs < OUT)[:, None] & (ins < IN)[None, :])
