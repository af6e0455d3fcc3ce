"""What a paper prints in one place: a value, of how many runs, and with what spread."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Statistic:
    """How a paper made one figure of its runs."""

    kind: Literal["median", "mean", "best", "single"]
    runs: int

    def __str__(self) -> str:
        return "a single run" if self.kind == "single" else f"{self.kind} of {self.runs} runs"


SINGLE_RUN = Statistic("single", 1)


@dataclass(frozen=True)
class PublishedResult:
    """A figure as printed; an error is in percent.

    `value` is None where the paper draws a curve, or where it only says that the error lies
    `above` a bound: P2 prints "fail" for an error above 20 %. `mean` and `std` are those of the same
    runs, where the paper gives them beside the value. `digits` are printed behind the point.
    """

    value: float | None = None
    statistic: Statistic = SINGLE_RUN
    mean: float | None = None
    std: float | None = None
    above: float | None = None
    digits: int = 2

    @property
    def failed(self) -> bool:
        return self.above is not None

    @property
    def rank_value(self) -> float | None:
        """The value for ordering: a failure is worse than every number; None where nothing is said."""
        return math.inf if self.failed else self.value

    def __str__(self) -> str:
        if self.above is not None:
            return f"above {self.above:g}"
        if self.value is None:
            return ""
        text = f"{self.value:.{self.digits}f}"
        if self.mean is not None and self.std is not None:
            return f"{text} ({self.mean:.{self.digits}f}±{self.std:.{self.digits}f})"
        return text if self.std is None else f"{text}±{self.std:.{self.digits}f}"
