"""1×1 and 3×3 convolutions as matrix products, with BN, ReLU and the addition in their loads and stores.

Row m of a map is a pixel. Tap (i, j) of a 3×3 kernel reads the row that lies i − 1 lines and j − 1 columns
away, or zeros beyond the border.
"""

import triton
import triton.language as tl

from kilolayer.kernels.gpu.bf16_math import dot, relu, to_bf16
from kilolayer.kernels.gpu.reduction_kernels import store_partial_sums

PLAIN = tl.constexpr(0)
"""Load or store the numbers unchanged."""
BN_RELU = tl.constexpr(1)
"""Load ReLU(BN(t)); `coefficients` are BN's statistics (mean, 1/σ, scale, shift)."""
BN_BACKWARD = tl.constexpr(2)
"""Load α·g + β·t + γ, the gradient of BN's input."""
WITH_SUMS = tl.constexpr(1)
"""Store, and sum Σ and Σ² of every channel."""
RELU_BACKWARD = tl.constexpr(2)
"""Store the gradient where the ReLU before was open, with Σ g and Σ g·(t − mean)."""


@triton.jit
def _load_map(first, second, coefficients, rows, valid_rows, channels, C, LOAD: tl.constexpr):
    """Rows and channels of a map in bf16, transformed as LOAD says; zero outside `valid_rows`."""
    valid_channels = channels < C
    valid = valid_rows[:, None] & valid_channels[None, :]
    offset = rows.to(tl.int64)[:, None] * C + channels[None, :]
    value = tl.load(first + offset, valid, 0.0)
    if LOAD == BN_RELU:
        scale = tl.load(coefficients + 2 * C + channels, valid_channels, 0.0)
        shift = tl.load(coefficients + 3 * C + channels, valid_channels, 0.0)
        z = relu(value.to(tl.float32) * scale[None, :] + shift[None, :])
        value = to_bf16(tl.where(valid, z, 0.0))
    if LOAD == BN_BACKWARD:
        alpha = tl.load(coefficients + channels, valid_channels, 0.0)
        beta = tl.load(coefficients + C + channels, valid_channels, 0.0)
        gamma = tl.load(coefficients + 2 * C + channels, valid_channels, 0.0)
        t = tl.load(second + offset, valid, 0.0).to(tl.float32)
        dt = alpha[None, :] * value.to(tl.float32) + beta[None, :] * t + gamma[None, :]
        value = to_bf16(tl.where(valid, dt, 0.0))
    return value


@triton.jit
def _tap_rows(rows, tap, M, HEIGHT, WIDTH, SIDE: tl.constexpr):
    """The rows that a tap reads, and which of them lie within their images."""
    down, across = tap // SIDE - SIDE // 2, tap % SIDE - SIDE // 2
    line, column = rows // WIDTH % HEIGHT + down, rows % WIDTH + across
    valid_rows = (rows < M) & (line >= 0) & (line < HEIGHT) & (column >= 0) & (column < WIDTH)
    return rows + down * WIDTH + across, valid_rows


@triton.jit
def conv_kernel(
    first, second, coefficients, weight, s_in, s_out, s_row, s_column,
    out, residual, like, statistics, partials, M, HEIGHT, WIDTH, IN, OUT,
    SIDE: tl.constexpr, FLIPPED: tl.constexpr, LOAD: tl.constexpr, STORE: tl.constexpr,
    RESIDUAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    """out (M, OUT) = Σ over taps of the loaded map times the tap's weights, in fp32.

    FLIPPED turns the kernel by 180°, which gives the gradient of the input (dgrad). The weights are fp32 and
    are multiplied in bf16. RESIDUAL adds a map to the sum; STORE says how the result is stored.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    columns = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    valid_channels = columns < OUT
    first_sum = tl.zeros([BLOCK_OUT], tl.float32)
    second_sum = tl.zeros([BLOCK_OUT], tl.float32)
    blocks = tl.cdiv(IN, BLOCK_IN)
    for tile in range(program, tl.cdiv(M, BLOCK_M), programs):
        rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        product = tl.zeros([BLOCK_M, BLOCK_OUT], tl.float32)
        for step in range(SIDE * SIDE * blocks):
            tap = step // blocks
            channels = step % blocks * BLOCK_IN + tl.arange(0, BLOCK_IN)
            tap_rows, valid_rows = _tap_rows(rows, tap, M, HEIGHT, WIDTH, SIDE)
            a = _load_map(first, second, coefficients, tap_rows, valid_rows, channels, IN, LOAD)
            if FLIPPED:
                tap = SIDE * SIDE - 1 - tap
            tap_weight = weight + tap // SIDE * s_row + tap % SIDE * s_column
            b = tl.load(
                tap_weight + channels[:, None] * s_in + columns[None, :] * s_out,
                (channels < IN)[:, None] & valid_channels[None, :],
                0.0,
            )
            product = dot(a, to_bf16(b), product)
        valid = (rows < M)[:, None] & valid_channels[None, :]
        offset = rows.to(tl.int64)[:, None] * OUT + columns[None, :]
        if RESIDUAL:
            product += tl.load(residual + offset, valid, 0.0).to(tl.float32)
        if STORE == RELU_BACKWARD:
            t = tl.load(like + offset, valid, 0.0).to(tl.float32)
            mean = tl.load(statistics + columns, valid_channels, 0.0)
            scale = tl.load(statistics + 2 * OUT + columns, valid_channels, 0.0)
            shift = tl.load(statistics + 3 * OUT + columns, valid_channels, 0.0)
            product = tl.where(t * scale[None, :] + shift[None, :] > 0, product, 0.0)
        stored = to_bf16(product)
        tl.store(out + offset, stored, valid)
        # The next layer reads the rounded values, so their sums are taken; rows beyond the map add zero.
        value = stored.to(tl.float32)
        if STORE == WITH_SUMS:
            first_sum += tl.sum(value, 0)
            second_sum += tl.sum(value * value, 0)
        if STORE == RELU_BACKWARD:
            first_sum += tl.sum(value, 0)
            second_sum += tl.sum(value * (t - mean[None, :]), 0)
    if STORE != PLAIN:
        store_partial_sums(partials, program, OUT, columns, valid_channels, first_sum, second_sum)


@triton.jit
def wgrad_kernel(
    g, t, coefficients, source, statistics, partials, M, HEIGHT, WIDTH, IN, OUT,
    SIDE: tl.constexpr, LOAD: tl.constexpr, SOURCE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    """The gradient of the weights (wgrad), one partial sum per split of the pixels.

    partials (splits, OUT, taps, IN).

    The gradient of the output is loaded as LOAD says, the input of the convolution as SOURCE says.
    """
    split, splits = tl.program_id(0), tl.num_programs(0)
    tap = tl.program_id(1)
    blocks = tl.cdiv(IN, BLOCK_IN)
    outs = tl.program_id(2) // blocks * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    ins = tl.program_id(2) % blocks * BLOCK_IN + tl.arange(0, BLOCK_IN)
    product = tl.zeros([BLOCK_OUT, BLOCK_IN], tl.float32)
    for tile in range(split, tl.cdiv(M, BLOCK_M), splits):
        rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        tap_rows, valid_rows = _tap_rows(rows, tap, M, HEIGHT, WIDTH, SIDE)
        a = _load_map(source, source, statistics, tap_rows, valid_rows, ins, IN, SOURCE)
        d = _load_map(g, t, coefficients, rows, rows < M, outs, OUT, LOAD)
        product = dot(tl.trans(d), a, product)
    offset = ((split * OUT + outs)[:, None] * SIDE * SIDE + tap) * IN + ins[None, :]
    tl.store(partials + offset, product, (outs < OUT)[:, None] & (ins < IN)[None, :])
