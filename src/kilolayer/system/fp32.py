"""The range of fp32, the type of the weights: other numbers become infinite or 0 in it."""

FP32_MIN_NORMAL = 2.0**-126
FP32_MAX = (2 - 2.0**-23) * 2.0**127
FP32_RANGE = f"0, or from {FP32_MIN_NORMAL:.2g} to {FP32_MAX:.2g}, the range of fp32"


def fits_fp32(value: float) -> bool:
    """Whether `value` is 0 or in fp32's normal range.

    >>> fits_fp32(0.1), fits_fp32(1e39)
    (True, False)
    """
    return value == 0 or FP32_MIN_NORMAL <= abs(value) <= FP32_MAX
