"""bf16 rounding and products that are the same whether Triton compiles or interprets.

Triton's interpreter truncates when it converts to bf16, and multiplies bf16 numbers as the integers that hold
them (seen in 3.6 to 3.9). A GPU rounds to nearest, ties to even; these functions do so in both cases.
"""

import triton
import triton.language as tl
from triton import knobs

INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))


@triton.jit
def to_bf16(value):
    """fp32 `value` rounded to the nearest bf16."""
    if INTERPRETED:
        bits = value.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        value = bits.to(tl.float32, bitcast=True)
    return value.to(tl.bfloat16)


@triton.jit
def relu(value):
    """max(value, 0), which keeps NaN; a GPU's own maximum would drop it."""
    return tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def dot(a, b, accumulator):
    """accumulator + a·b, in fp32 from bf16."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), accumulator)
    else:
        return tl.dot(a, b, accumulator)
