"""Schedules as values: learning rates that you call with the iteration, image sizes and depths.

Every learning-rate schedule has `peak`, its highest rate, and `last_change`, the iteration of its last
change. `scale_length(f)` makes it f times as long, `scale_rate(f)` f times as high.

>>> rate = Steps(0.1, ((32_000, 0.01),))
>>> rate(0), rate(31_999), rate(32_000)
(0.1, 0.1, 0.01)
>>> rate.scale_length(0.5).drops, rate.scale_rate(2).peak
(((16000, 0.01),), 0.2)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from kilolayer.errors import InputError
from kilolayer.system.fp32 import FP32_MAX

MAX_CHANGES = 10_000
"""Each step of a run looks at all of them."""


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


def _check_changes(name: str, changes: Sequence[object]) -> None:
    if len(changes) > MAX_CHANGES:
        raise InputError(f"{name} holds {len(changes):,} changes; allowed: up to {MAX_CHANGES:,}")


@dataclass(frozen=True)
class Steps:
    """A piecewise constant rate: `start`, then the rate of each of `drops` from its iteration on.

    drops: (iteration, rate) in the order of the iterations (P1 and P2, Sec. 4: 0.1, then 0.01 from 32,000
        and 0.001 from 48,000). Raises `InputError` for negative rates or another order.
    """

    start: float
    drops: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        _check_rate("Steps", start=self.start)
        _check_changes("Steps.drops", self.drops)
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
        """The highest rate."""
        return max(self.start, *(rate for _, rate in self.drops), 0.0)

    @property
    def last_change(self) -> int:
        """The iteration of the last change."""
        return self.drops[-1][0] if self.drops else 0

    def scale_length(self, factor: float) -> Steps:
        """The same schedule, `factor` times as long."""
        return replace(self, drops=tuple((round(at * factor), rate) for at, rate in self.drops))

    def scale_rate(self, factor: float) -> Steps:
        """The same schedule, with `factor` times the rates."""
        return Steps(self.start * factor, tuple((at, rate * factor) for at, rate in self.drops))


@dataclass(frozen=True)
class Warmup:
    """`rate` for the first `until` iterations, then the schedule `then` (P1, Sec. 4.2: 0.01 for 400).

    >>> Warmup(0.01, 400, Steps(0.1))(399), Warmup(0.01, 400, Steps(0.1))(400)
    (0.01, 0.1)
    """

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
        """The highest rate."""
        return self.then.peak

    @property
    def last_change(self) -> int:
        """The iteration of the last change."""
        return max(self.until, self.then.last_change)

    def scale_length(self, factor: float) -> Warmup:
        """The same schedule, `factor` times as long."""
        return replace(self, until=round(self.until * factor), then=self.then.scale_length(factor))

    def scale_rate(self, factor: float) -> Warmup:
        """The same schedule, with `factor` times the rates."""
        return replace(self, rate=self.rate * factor, then=self.then.scale_rate(factor))


@dataclass(frozen=True)
class OneCycle:
    """One linear cycle: from 0 up to `peak` at the share `rise` of `iterations`, then down to 0.

    rate(t) = peak · min(s/rise, (1−s)/(1−rise)) with s = (t+1)/(iterations+1).

    >>> [round(OneCycle(0.1, 7, rise=0.5)(t), 3) for t in (0, 3, 6)]
    [0.025, 0.1, 0.025]
    """

    peak: float
    iterations: int
    rise: float = 0.25

    def __post_init__(self) -> None:
        _check_rate("OneCycle", peak=self.peak)
        _check_iteration("OneCycle.iterations", self.iterations, minimum=1)
        if not 0 < self.rise < 1:
            raise InputError(f"OneCycle.rise is {self.rise!r}; allowed: between 0 and 1")

    def __call__(self, iteration: int) -> float:
        # Counting from 1 gives the first and the last step a rate above 0.
        progress = (iteration + 1) / (self.iterations + 1)
        return self.peak * min(progress / self.rise, (1 - progress) / (1 - self.rise))

    @property
    def last_change(self) -> int:
        """The iteration of the last change."""
        return self.iterations

    def scale_length(self, factor: float) -> OneCycle:
        """The same schedule, `factor` times as long."""
        return replace(self, iterations=max(1, round(self.iterations * factor)))

    def scale_rate(self, factor: float) -> OneCycle:
        """The same schedule, with `factor` times the rates."""
        return replace(self, peak=self.peak * factor)


Schedule = Steps | Warmup | OneCycle


def check_schedule_length(schedule: Schedule, iterations: int) -> None:
    """Raises `InputError` where `schedule` changes after the last iteration, or ends at another one."""
    last, name = schedule.last_change, type(schedule).__name__
    if isinstance(schedule, OneCycle) and last != iterations:
        why = f"its {name} has {last:,}; allowed: one length"
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
    """A share that changes during a run: `start`, then each of `changes` from its share of the steps on.

    changes: (share of the steps in 0 … 1, new share), in order.
    """

    start: float = 1.0
    changes: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        name = type(self).__name__
        _check_changes(f"{name}.changes", self.changes)
        for scale in (self.start, *(scale for _, scale in self.changes)):
            if not _is_number(scale) or not 0 < scale <= 1:
                raise InputError(f"a scale of {name} is {scale!r}; allowed: above 0, up to 1")
        for share, _ in self.changes:
            if not _is_number(share) or not 0 < share < 1:
                raise InputError(f"a share of {name}.changes is {share!r}; allowed: between 0 and 1")
        if any(first >= second for (first, _), (second, _) in pairwise(self.changes)):
            raise InputError(f"{name}.changes are not in the order of their shares")

    def phases(self, iterations: int) -> Iterator[tuple[int, float]]:
        """The first iteration and the share of every phase of a run."""
        yield 0, self.start
        for share, scale in self.changes:
            yield round(share * iterations), scale

    def share_at(self, iteration: int, iterations: int) -> float:
        """The share at one iteration."""
        return [scale for first, scale in self.phases(iterations) if first <= iteration][-1]


@dataclass(frozen=True)
class ProgressiveResize(_ProgressiveShare):
    """The side of the training images, as a share of their full side; evaluation is always at full size.

    Images of 32 pixels train at 16 pixels, at 24 from 40 % of the steps on, and at 32 from 70 % on:

    >>> sizes = ProgressiveResize(0.5, ((0.4, 0.75), (0.7, 1.0)))
    >>> list(sizes.phase_sides(full_side=32, iterations=1000))
    [(0, 16), (400, 24), (700, 32)]
    """

    def phase_sides(self, full_side: int, iterations: int) -> Iterator[tuple[int, int]]:
        """The first iteration and the side in pixels of every phase of a run."""
        for first, scale in self.phases(iterations):
            yield first, _side(scale, full_side)

    def side_at(self, full_side: int, iteration: int, iterations: int) -> int:
        """The side in pixels at one iteration."""
        return _side(self.share_at(iteration, iterations), full_side)


@dataclass(frozen=True)
class ProgressiveDepth(_ProgressiveShare):
    """The share of every stage's units that are active in training; inactive units are identities.

    A stage of 6 units trains its first 2, its first 4 from 40 % of the steps on, and all from 70 % on:

    >>> depth = ProgressiveDepth(1 / 3, ((0.4, 2 / 3), (0.7, 1.0)))
    >>> [(first, round(6 * share)) for first, share in depth.phases(iterations=1000)]
    [(0, 2), (400, 4), (700, 6)]

    Numbers of units are rounded, and are at least 1. F of a unit is 0 until the unit is active, so that the
    network computes the same function in the step before and the step after. Raises `InputError` where shares
    fall, since a unit does not unlearn, or do not end at 1.
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
