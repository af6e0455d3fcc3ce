"""Divides a chain of units so that its training fits into a given memory with the least recomputation.

While segment s runs backward, memory holds the saved activations before s, all activations inside s, and the
gradients of the weights after s. Early segments can therefore be longer than late ones, and the last units
need no recomputation at all: with equal units the least memory is √2 below that of equal segments.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from kilolayer.networks.recompute import Segment, Segments

MAX_LEVELS = 2
"""Deeper nesting of segments saves little more memory, and each level costs another forward pass."""


@dataclass(frozen=True)
class UnitCost:
    """A unit of the chain in bytes: its input, its other saved activations, the gradients of its weights.

    keeps_input: its own gradients need the input.
    starts_stage: it begins a stage; a segment ends where a stage ends.
    """

    input_bytes: int
    inner_bytes: int
    gradient_bytes: int = 0
    keeps_input: bool = True
    starts_stage: bool = False

    @property
    def saved_bytes(self) -> int:
        """Bytes that the unit saves for its backward pass."""
        return self.inner_bytes + (self.input_bytes if self.keeps_input else 0)


def plan_segments(costs: Sequence[UnitCost], budget: int, max_levels: int = MAX_LEVELS) -> Segments | None:
    """The cheapest division of a chain that never holds more than `budget` bytes; None if there is none.

    It recomputes as few units as possible, the first ones, with as few levels of segments as possible, and
    saves the activations of the others.

    >>> units = [UnitCost(input_bytes=1, inner_bytes=3)] * 6
    >>> [(segment.units, segment.recomputed) for segment in plan_segments(units, budget=15)]
    [(3, True), (3, False)]
    """
    for level in range(max_levels + 1):
        segments = _SegmentSearch(costs, budget).cheapest(level)
        if segments is not None:
            return segments
    return None


def min_budget(costs: Sequence[UnitCost], levels: int) -> int:
    """The smallest budget, to the byte, for which so many levels of segments have a division."""
    low, high = 0, sum(cost.saved_bytes + cost.input_bytes + cost.gradient_bytes for cost in costs)
    while low < high:
        middle = (low + high) // 2
        if _SegmentSearch(costs, middle).cheapest(levels) is None:
            low = middle + 1
        else:
            high = middle
    return low


def peak_bytes(costs: Sequence[UnitCost], segments: Segments) -> int:
    """The most bytes that a chain holds while it is trained in these segments."""
    gradients_after = [*accumulate((cost.gradient_bytes for cost in reversed(costs)), initial=0)][::-1]
    return max(gradients_after[0], _peak_from(costs, segments, 0, 0, gradients_after))


def _peak_from(
    costs: Sequence[UnitCost], segments: Segments, start: int, held_bytes: int, gradients_after: Sequence[int]
) -> int:
    """The peak of the segments from unit `start` on, with `held_bytes` saved before them."""
    highest, position = held_bytes, start
    begins = []
    for segment in segments:
        begins.append((segment, position, held_bytes))
        segment_costs = costs[position : position + segment.units]
        held_bytes += (
            segment_costs[0].input_bytes
            if segment.recomputed
            else sum(cost.saved_bytes for cost in segment_costs)
        )
        position += segment.units
    # When a segment runs backward, the gradients of all units after it exist.
    for segment, position, held_before in begins:
        end = position + segment.units
        if not segment.recomputed:
            highest = max(
                highest,
                held_before + sum(cost.saved_bytes for cost in costs[position:end]) + gradients_after[end],
            )
        elif segment.parts:
            *early, last = segment.parts
            parts = (*map(Segment, early), Segment(last, recomputed=False))
            highest = max(highest, _peak_from(costs, parts, position, held_before, gradients_after))
        else:
            saved_bytes = sum(cost.saved_bytes for cost in costs[position:end])
            highest = max(
                highest, held_before + max(saved_bytes, costs[position].input_bytes) + gradients_after[end]
            )
    return highest


class _SegmentSearch:
    """The search for one budget: from the front, every segment is as long as fits."""

    def __init__(self, costs: Sequence[UnitCost], budget: int) -> None:
        self.costs, self.budget = costs, budget
        self.saved_before = [0, *accumulate(cost.saved_bytes for cost in costs)]
        self.gradients_after = [*accumulate((cost.gradient_bytes for cost in reversed(costs)), initial=0)][
            ::-1
        ]
        self.stage_ends = _stage_ends(costs)

    def cheapest(self, level: int) -> Segments | None:
        """The division that recomputes the shortest prefix at `level` and saves the rest."""
        if self.gradients_after[0] > self.budget:
            return None
        count = len(self.costs)
        low, high = 0, count if level else 0
        if self._recompute_prefix(high, level) is None:
            return None
        while low < high:
            middle = (low + high) // 2
            if self._recompute_prefix(middle, level) is None:
                low = middle + 1
            else:
                high = middle
        return self._recompute_prefix(low, level)

    def _recompute_prefix(self, num_recomputed: int, level: int) -> Segments | None:
        """The first `num_recomputed` units in segments, the others saved; None where that does not fit."""
        segments, held_bytes, position = [], 0, 0
        while position < num_recomputed:
            segment = self._longest_segment(position, num_recomputed, held_bytes, level)
            if segment is None:
                return None
            segments.append(segment)
            held_bytes += self.costs[position].input_bytes
            position += segment.units
        for end in sorted({*self.stage_ends, len(self.costs)}):
            if end > position:
                segments.append(Segment(end - position, recomputed=False))
                position = end
        tail_bytes = self.saved_before[-1] - self.saved_before[num_recomputed]
        # While the last units run forward, there are no gradients yet.
        return (
            tuple(segments)
            if held_bytes + tail_bytes <= self.budget and self._tail_fits(num_recomputed, held_bytes)
            else None
        )

    def _tail_fits(self, start: int, held_bytes: int) -> bool:
        """Whether the saved units fit at every moment of their backward pass, as their gradients appear."""
        return all(
            held_bytes + self.saved_before[end] - self.saved_before[start] + self.gradients_after[end]
            <= self.budget
            for end in range(start, len(self.costs) + 1)
        )

    def _longest_segment(self, start: int, stop: int, held_bytes: int, level: int) -> Segment | None:
        """The longest recomputed segment from `start` on, with `held_bytes` saved before it."""
        stop = min(stop, next(end for end in self.stage_ends if end > start))
        parts, position, inside = [], start, held_bytes
        while position < stop and (units := self._longest_run(position, stop, inside)):
            parts.append(units)
            inside += self.costs[position].input_bytes
            position += units
            if level == 1:
                break
        return Segment(position - start, parts=tuple(parts) if len(parts) > 1 else ()) if parts else None

    def _longest_run(self, start: int, stop: int, held_bytes: int) -> int:
        """How many units from `start` on fit while they run backward together."""
        low, high = start, stop
        while low < high:
            middle = (low + high + 1) // 2
            inside = max(self.saved_before[middle] - self.saved_before[start], self.costs[start].input_bytes)
            if held_bytes + inside + self.gradients_after[middle] <= self.budget:
                low = middle
            else:
                high = middle - 1
        return low - start


def _stage_ends(costs: Sequence[UnitCost]) -> list[int]:
    return [*_stage_starts(costs), len(costs)]


def _stage_starts(costs: Sequence[UnitCost]) -> Iterator[int]:
    return (index for index, cost in enumerate(costs) if cost.starts_stage and index)
