"""A figure as a paper prints it: its value, the number of runs behind it, and their spread."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Statistic:
    """The statistic that a paper prints of its runs, and their number; 0 where it does not state it.

    >>> str(Statistic("median", 5))
    'median of 5 runs'
    """

    kind: Literal["median", "mean", "best", "single"]
    runs: int

    def __str__(self) -> str:
        if self.kind == "single":
            return "a single run"
        return f"{self.kind} of {self.runs} runs" if self.runs else f"{self.kind} of several runs"


SINGLE_RUN = Statistic("single", 1)


@dataclass(frozen=True)
class PublishedResult:
    """A test error in percent, as printed.

    >>> str(PublishedResult(6.61, Statistic("best", 5), mean=6.43, std=0.08))
    '6.61 (6.43±0.08)'
    >>> str(PublishedResult(above=20))
    'above 20'
    """

    value: float | None = None
    """None where the paper draws a curve only, or says that the error lies above a bound."""
    statistic: Statistic = SINGLE_RUN
    mean: float | None = None
    """The mean of the same runs, where the paper prints it beside the value."""
    std: float | None = None
    """Their standard deviation."""
    above: float | None = None
    """The bound of a failure: P2 prints "fail" for an error above 20 %."""
    digits: int = 2
    """Digits behind the decimal point."""

    @property
    def failed(self) -> bool:
        """Whether the paper says that training failed."""
        return self.above is not None

    @property
    def rank_value(self) -> float | None:
        """The value for ranking. A failure is worse than every number; None without a figure."""
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
