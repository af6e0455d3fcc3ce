"""Which numbers fp32 can hold, in which weights are kept: others become infinite in it, or nothing."""

SMALLEST = 2.0**-126
LARGEST = (2 - 2.0**-23) * 2.0**127
ALLOWED = f"0, or from {SMALLEST:.2g} to {LARGEST:.2g}, which is what fp32 can hold"


def is_in_fp32(value: float) -> bool:
    """Whether `value` is 0, or a number of fp32's range."""
    return value == 0 or SMALLEST <= abs(value) <= LARGEST
