"""Learning rates as values that can be called: `Steps(0.1, ((32_000, 0.01),))(t)`; sizes and depths too.

Every rate has its highest value as `peak`, and as `changes_until` the iteration of its last change;
`stretched(f)` is f times as long, `times(f)` f times as high.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from kilolayer.errors import InputError
from kilolayer.system.fp32 import FP32_MAX


def _check_rate(schedule: str, **rates: float) -> None:
    for name, rate in rates.items():
        number = isinstance(rate, int | float) and not isinstance(rate, bool)
        if not number or not 0 <= rate <= FP32_MAX:
            raise InputError(
                f"{schedule}.{name} is {rate!r}; allowed: a learning rate from 0 to {FP32_MAX:.2g}"
            )


def _check_iteration(name: str, iteration: int, minimum: int = 0) -> None:
    if isinstance(iteration, bool) or not isinstance(iteration, int) or iteration < minimum:
        raise InputError(f"{name} is {iteration!r}; allowed: a whole number from {minimum}")


@dataclass(frozen=True)
class Steps:
    """Piecewise constant: `start`, then each `rate` from its iteration on (P1 and P2, Sec. 4)."""

    start: float
    drops: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        _check_rate("Steps", start=self.start)
        for iteration, rate in self.drops:
            _check_iteration("an iteration of Steps.drops", iteration)
            _check_rate("Steps", **{f"drops[{iteration}]": rate})
        if list(self.drops) != sorted(self.drops, key=lambda drop: drop[0]):
            raise InputError("Steps.drops are not in the order of their iterations")

    def __call__(self, iteration: int) -> float:
        rate = self.start
        for begins, dropped in self.drops:
            if iteration >= begins:
                rate = dropped
        return rate

    @property
    def peak(self) -> float:
        return max(self.start, *(rate for _, rate in self.drops), 0.0)

    @property
    def last_change(self) -> int:
        return self.drops[-1][0] if self.drops else 0

    def scale_length(self, factor: float) -> Steps:
        return replace(self, drops=tuple((round(at * factor), rate) for at, rate in self.drops))

    def scale_rate(self, factor: float) -> Steps:
        return Steps(self.start * factor, tuple((at, rate * factor) for at, rate in self.drops))


@dataclass(frozen=True)
class Warmup:
    """`rate` for the first `until` iterations, then `then` (P1, Sec. 4.2: 0.01 for 400 iterations)."""

    rate: float
    until: int
    then: Steps

    def __post_init__(self) -> None:
        _check_rate("Warmup", rate=self.rate)
        _check_iteration("Warmup.until", self.until)

    def __call__(self, iteration: int) -> float:
        return self.rate if iteration < self.until else self.then(iteration)

    @property
    def peak(self) -> float:
        return self.then.peak

    @property
    def last_change(self) -> int:
        return max(self.until, self.then.last_change)

    def scale_length(self, factor: float) -> Warmup:
        return replace(self, until=round(self.until * factor), then=self.then.scale_length(factor))

    def scale_rate(self, factor: float) -> Warmup:
        return replace(self, rate=self.rate * factor, then=self.then.scale_rate(factor))


@dataclass(frozen=True)
class OneCycle:
    """Linear from 0 up to `peak` at the share `rise` of `iterations`, then linear down to 0."""

    peak: float
    iterations: int
    rise: float = 0.25

    def __post_init__(self) -> None:
        _check_rate("OneCycle", peak=self.peak)
        _check_iteration("OneCycle.iterations", self.iterations, minimum=1)
        if not 0 < self.rise < 1:
            raise InputError(f"OneCycle.rise is {self.rise!r}; allowed: between 0 and 1")

    def __call__(self, iteration: int) -> float:
        # The first and the last step get a rate above 0.
        progress = (iteration + 1) / (self.iterations + 1)
        return self.peak * min(progress / self.rise, (1 - progress) / (1 - self.rise))

    @property
    def last_change(self) -> int:
        return self.iterations

    def scale_length(self, factor: float) -> OneCycle:
        return replace(self, iterations=max(1, round(self.iterations * factor)))

    def scale_rate(self, factor: float) -> OneCycle:
        return replace(self, peak=self.peak * factor)


Schedule = Steps | Warmup | OneCycle


def check_schedule_length(schedule: Schedule, iterations: int) -> None:
    """Raises `InputError` where a run of so many iterations has no room for `schedule`, or ends elsewhere."""
    last, name = schedule.last_change, type(schedule).__name__
    if isinstance(schedule, OneCycle) and last != iterations:
        why = f"its {name} is of {last:,}; allowed: one length"
    elif last > iterations:
        why = f"its {name} changes at {last:,}; allowed: changes up to the end"
    else:
        return
    raise InputError(
        f"the recipe has {iterations:,} iterations, but {why}; for another length use "
        f"recipe.shortened(iterations), which brings the schedule along"
    )


@dataclass(frozen=True)
class _ProgressiveShare:
    """A share of something whole: `start`, then each of `changes` from its share of the steps on."""

    start: float = 1.0
    changes: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        name = type(self).__name__
        for scale in (self.start, *(scale for _, scale in self.changes)):
            if not _is_number(scale) or not 0 < scale <= 1:
                raise InputError(f"a scale of {name} is {scale!r}; allowed: above 0, up to 1")
        for share, _ in self.changes:
            if not _is_number(share) or not 0 < share < 1:
                raise InputError(f"a share of {name}.changes is {share!r}; allowed: between 0 and 1")
        if any(first >= second for (first, _), (second, _) in pairwise(self.changes)):
            raise InputError(f"{name}.changes are not in the order of their shares")

    def phases(self, iterations: int) -> Iterator[tuple[int, float]]:
        """(first iteration, share) of every part of a run."""
        yield 0, self.start
        for share, scale in self.changes:
            yield round(share * iterations), scale

    def share_at(self, iteration: int, iterations: int) -> float:
        """The share at one iteration."""
        return [scale for first, scale in self.phases(iterations) if first <= iteration][-1]


@dataclass(frozen=True)
class ProgressiveResize(_ProgressiveShare):
    """The side of the training images as a share of their own.

    Resolution(0.5, ((0.4, 0.75), (0.7, 1.0))) trains images of 32 pixels at 16, from 40 % of the steps on at
    24, and from 70 % on whole. Evaluation is always at full size. Sides are rounded to whole pixels.
    """

    def phase_sides(self, full_side: int, iterations: int) -> Iterator[tuple[int, int]]:
        """(first iteration, side in pixels) of every part of a run, for images of `full` pixels a side."""
        for first, scale in self.phases(iterations):
            yield first, _side(scale, full_side)

    def side_at(self, full_side: int, iteration: int, iterations: int) -> int:
        """The side in pixels at one iteration."""
        return _side(self.share_at(iteration, iterations), full_side)


@dataclass(frozen=True)
class ProgressiveDepth(_ProgressiveShare):
    """The share of every stage's units that are at work in training; the others rest, and are identities.

    Growth(1 / 3, ((0.4, 2 / 3), (0.7, 1.0))) trains the first third of every stage's units, from 40 % of the
    steps on two thirds, and from 70 % on all. Unit counts are rounded, and are at least 1. A unit's F is 0
    until it is at work, so the network computes the same function in the step before it and the step after.
    Shares do not fall, for a unit does not unlearn.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = [self.start, *(share for _, share in self.changes)]
        if shares != sorted(shares) or shares[-1] != 1:
            raise InputError(f"the scales of ProgressiveDepth are {shares}; allowed: rising, to 1 at the end")


def _side(scale: float, full: int) -> int:
    return max(1, round(scale * full))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
