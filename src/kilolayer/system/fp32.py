"""Which numbers fp32 can hold, in which weights are kept: others become infinite in it, or nothing."""

FP32_MIN_NORMAL = 2.0**-126
FP32_MAX = (2 - 2.0**-23) * 2.0**127
FP32_RANGE = f"0, or from {FP32_MIN_NORMAL:.2g} to {FP32_MAX:.2g}, which is what fp32 can hold"


def fits_fp32(value: float) -> bool:
    """Whether `value` is 0, or a number of fp32's range."""
    return value == 0 or FP32_MIN_NORMAL <= abs(value) <= FP32_MAX
