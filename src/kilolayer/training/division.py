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

DEEPEST = 2
"""Segments within segments save little more beyond this, and each level costs another forward pass."""


@dataclass(frozen=True)
class Link:
    """A unit of the chain: bytes of its input, of what it keeps besides, of its weights' gradients.

    `keeps_input`: its own gradients need the input. `first`: it begins a stage, where segments end.
    """

    input: int
    inside: int
    gradients: int = 0
    keeps_input: bool = True
    first: bool = False

    @property
    def kept(self) -> int:
        return self.inside + (self.input if self.keeps_input else 0)


def divide(chain: Sequence[Link], budget: int, levels: int = DEEPEST) -> Segments | None:
    """The cheapest division of `chain` that never holds more than `budget` bytes; None where there is none.

    The first units are recomputed, as few as will do, with as few levels of segments as will do; the last
    ones are kept. A segment ends where a stage ends.
    """
    for level in range(levels + 1):
        found = _Division(chain, budget).cheapest(level)
        if found is not None:
            return found
    return None


def least(chain: Sequence[Link], levels: int) -> int:
    """The least budget that can be kept with so many levels of segments, to the last byte."""
    low, high = 0, sum(link.kept + link.input + link.gradients for link in chain)
    while low < high:
        middle = (low + high) // 2
        if _Division(chain, middle).cheapest(levels) is None:
            low = middle + 1
        else:
            high = middle
    return low


def peak(chain: Sequence[Link], segments: Segments) -> int:
    """The bytes that `chain` holds at the most when it is trained in these segments."""
    after = [*accumulate((link.gradients for link in reversed(chain)), initial=0)][::-1]
    return max(after[0], _peak(chain, segments, 0, 0, after))


def _peak(chain: Sequence[Link], segments: Segments, start: int, held: int, after: Sequence[int]) -> int:
    """Of the segments from unit `start` on, with `held` bytes kept before them."""
    most, place = held, start
    begins = []
    for segment in segments:
        begins.append((segment, place, held))
        links = chain[place : place + segment.units]
        held += links[0].input if segment.recomputed else sum(link.kept for link in links)
        place += segment.units
    # The gradients of everything behind the segment are there when it runs backward.
    for segment, place, before in begins:
        end = place + segment.units
        if not segment.recomputed:
            most = max(most, before + sum(link.kept for link in chain[place:end]) + after[end])
        elif segment.parts:
            *early, last = segment.parts
            parts = (*map(Segment, early), Segment(last, recomputed=False))
            most = max(most, _peak(chain, parts, place, before, after))
        else:
            whole = sum(link.kept for link in chain[place:end])
            most = max(most, before + max(whole, chain[place].input) + after[end])
    return most


class _Division:
    """The search for one budget: from the front, every segment as long as fits."""

    def __init__(self, chain: Sequence[Link], budget: int) -> None:
        self.chain, self.budget = chain, budget
        self.kept = [0, *accumulate(link.kept for link in chain)]
        self.after = [*accumulate((link.gradients for link in reversed(chain)), initial=0)][::-1]
        self.ends = _stage_ends(chain)

    def cheapest(self, level: int) -> Segments | None:
        """The least prefix recomputed at `level`, the rest kept."""
        if self.after[0] > self.budget:
            return None
        count = len(self.chain)
        low, high = 0, count if level else 0
        if self._prefix(high, level) is None:
            return None
        while low < high:
            middle = (low + high) // 2
            if self._prefix(middle, level) is None:
                low = middle + 1
            else:
                high = middle
        return self._prefix(low, level)

    def _prefix(self, recomputed: int, level: int) -> Segments | None:
        """The first `recomputed` units in segments, the others kept; None where it does not fit."""
        segments, held, place = [], 0, 0
        while place < recomputed:
            segment = self._longest(place, recomputed, held, level)
            if segment is None:
                return None
            segments.append(segment)
            held += self.chain[place].input
            place += segment.units
        for end in sorted({*self.ends, len(self.chain)}):
            if end > place:
                segments.append(Segment(end - place, recomputed=False))
                place = end
        rest = self.kept[-1] - self.kept[recomputed]
        # Behind the kept units there are no gradients yet.
        return tuple(segments) if held + rest <= self.budget and self._fits_kept(recomputed, held) else None

    def _fits_kept(self, start: int, held: int) -> bool:
        """Whether gradients arrive no faster than the kept units go."""
        return all(
            held + self.kept[end] - self.kept[start] + self.after[end] <= self.budget
            for end in range(start, len(self.chain) + 1)
        )

    def _longest(self, start: int, stop: int, held: int, level: int) -> Segment | None:
        """The longest recomputed segment from `start` on, with `held` bytes kept before it."""
        stop = min(stop, next(end for end in self.ends if end > start))
        parts, place, inside = [], start, held
        while place < stop and (units := self._count(place, stop, inside)):
            parts.append(units)
            inside += self.chain[place].input
            place += units
            if level == 1:
                break
        return Segment(place - start, parts=tuple(parts) if len(parts) > 1 else ()) if parts else None

    def _count(self, start: int, stop: int, held: int) -> int:
        """How many units from `start` on can run backward together."""
        low, high = start, stop
        while low < high:
            middle = (low + high + 1) // 2
            inside = max(self.kept[middle] - self.kept[start], self.chain[start].input)
            if held + inside + self.after[middle] <= self.budget:
                low = middle
            else:
                high = middle - 1
        return low - start


def _stage_ends(chain: Sequence[Link]) -> list[int]:
    return [*_firsts(chain), len(chain)]


def _firsts(chain: Sequence[Link]) -> Iterator[int]:
    return (place for place, link in enumerate(chain) if link.first and place)
