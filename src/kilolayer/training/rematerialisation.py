"""How to divide a chain of units so that its training fits into a given memory, at the least recomputation.

What is alive while segment s runs backward: everything kept before s, all that s keeps inside, and the
gradients of the weights after s. A chain's early segments can therefore be longer than its late ones, and
its last units need no recomputation at all: with equal units the least is √2 below that of equal segments.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from kilolayer.networks.recompute import Segment, Segments

MAX_LEVELS = 2
"""Segments within segments save little more beyond this, and each level costs another forward pass."""


@dataclass(frozen=True)
class UnitCost:
    """A unit of the chain: bytes of its input, of what it keeps besides, of its weights' gradients.

    `keeps_input`: its own gradients need the input. `first`: it begins a stage, where segments end.
    """

    input_bytes: int
    inner_bytes: int
    gradient_bytes: int = 0
    keeps_input: bool = True
    starts_stage: bool = False

    @property
    def saved_bytes(self) -> int:
        return self.inner_bytes + (self.input_bytes if self.keeps_input else 0)


def plan_segments(costs: Sequence[UnitCost], budget: int, levels: int = MAX_LEVELS) -> Segments | None:
    """The cheapest division of `chain` that never holds more than `budget` bytes; None where there is none.

    The first units are recomputed, as few as will do, with as few levels of segments as will do; the last
    ones are kept. A segment ends where a stage ends.
    """
    for level in range(levels + 1):
        found = _SegmentSearch(costs, budget).cheapest(level)
        if found is not None:
            return found
    return None


def min_budget(costs: Sequence[UnitCost], levels: int) -> int:
    """The least budget that can be kept with so many levels of segments, to the last byte."""
    low, high = 0, sum(link.saved_bytes + link.input_bytes + link.gradient_bytes for link in costs)
    while low < high:
        middle = (low + high) // 2
        if _SegmentSearch(costs, middle).cheapest(levels) is None:
            low = middle + 1
        else:
            high = middle
    return low


def peak_bytes(costs: Sequence[UnitCost], segments: Segments) -> int:
    """The bytes that `chain` holds at the most when it is trained in these segments."""
    after = [*accumulate((link.gradient_bytes for link in reversed(costs)), initial=0)][::-1]
    return max(after[0], _peak_from(costs, segments, 0, 0, after))


def _peak_from(
    costs: Sequence[UnitCost], segments: Segments, start: int, held: int, after: Sequence[int]
) -> int:
    """Of the segments from unit `start` on, with `held` bytes kept before them."""
    most, place = held, start
    begins = []
    for segment in segments:
        begins.append((segment, place, held))
        links = costs[place : place + segment.units]
        held += links[0].input_bytes if segment.recomputed else sum(link.saved_bytes for link in links)
        place += segment.units
    # The gradients of everything behind the segment are there when it runs backward.
    for segment, place, before in begins:
        end = place + segment.units
        if not segment.recomputed:
            most = max(most, before + sum(link.saved_bytes for link in costs[place:end]) + after[end])
        elif segment.parts:
            *early, last = segment.parts
            parts = (*map(Segment, early), Segment(last, recomputed=False))
            most = max(most, _peak_from(costs, parts, place, before, after))
        else:
            whole = sum(link.saved_bytes for link in costs[place:end])
            most = max(most, before + max(whole, costs[place].input_bytes) + after[end])
    return most


class _SegmentSearch:
    """The search for one budget: from the front, every segment as long as fits."""

    def __init__(self, costs: Sequence[UnitCost], budget: int) -> None:
        self.costs, self.budget = costs, budget
        self.saved_before = [0, *accumulate(link.saved_bytes for link in costs)]
        self.gradients_after = [*accumulate((link.gradient_bytes for link in reversed(costs)), initial=0)][
            ::-1
        ]
        self.stage_ends = _stage_ends(costs)

    def cheapest(self, level: int) -> Segments | None:
        """The least prefix recomputed at `level`, the rest kept."""
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
        """The first `recomputed` units in segments, the others kept; None where it does not fit."""
        segments, held, place = [], 0, 0
        while place < num_recomputed:
            segment = self._longest_segment(place, num_recomputed, held, level)
            if segment is None:
                return None
            segments.append(segment)
            held += self.costs[place].input_bytes
            place += segment.units
        for end in sorted({*self.stage_ends, len(self.costs)}):
            if end > place:
                segments.append(Segment(end - place, recomputed=False))
                place = end
        rest = self.saved_before[-1] - self.saved_before[num_recomputed]
        # Behind the kept units there are no gradients yet.
        return (
            tuple(segments) if held + rest <= self.budget and self._tail_fits(num_recomputed, held) else None
        )

    def _tail_fits(self, start: int, held: int) -> bool:
        """Whether gradients arrive no faster than the kept units go."""
        return all(
            held + self.saved_before[end] - self.saved_before[start] + self.gradients_after[end]
            <= self.budget
            for end in range(start, len(self.costs) + 1)
        )

    def _longest_segment(self, start: int, stop: int, held: int, level: int) -> Segment | None:
        """The longest recomputed segment from `start` on, with `held` bytes kept before it."""
        stop = min(stop, next(end for end in self.stage_ends if end > start))
        parts, place, inside = [], start, held
        while place < stop and (units := self._longest_run(place, stop, inside)):
            parts.append(units)
            inside += self.costs[place].input_bytes
            place += units
            if level == 1:
                break
        return Segment(place - start, parts=tuple(parts) if len(parts) > 1 else ()) if parts else None

    def _longest_run(self, start: int, stop: int, held: int) -> int:
        """How many units from `start` on can run backward together."""
        low, high = start, stop
        while low < high:
            middle = (low + high + 1) // 2
            inside = max(self.saved_before[middle] - self.saved_before[start], self.costs[start].input_bytes)
            if held + inside + self.gradients_after[middle] <= self.budget:
                low = middle
            else:
                high = middle - 1
        return low - start


def _stage_ends(costs: Sequence[UnitCost]) -> list[int]:
    return [*_stage_starts(costs), len(costs)]


def _stage_starts(costs: Sequence[UnitCost]) -> Iterator[int]:
    return (place for place, link in enumerate(costs) if link.starts_stage and place)
