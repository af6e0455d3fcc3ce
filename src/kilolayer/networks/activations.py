"""What a network keeps in memory from its forward to its backward pass, by its description."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kilolayer.networks.description import Network
from kilolayer.units import ops as op
from kilolayer.units.ops import Ops
from kilolayer.units.unit import Layout


@dataclass(frozen=True)
class Kept:
    """What autograd keeps of some layers, in numbers for one image.

    `input` is the size of what they read, which they keep where `keeps_input`; `inside` is all else that
    they keep; `largest` is the largest of all their maps, kept or not.
    """

    input: int
    keeps_input: bool
    inside: int
    largest: int

    @property
    def all(self) -> int:
        return self.inside + (self.input if self.keeps_input else 0)


class _Map:
    """A feature map under way, and whether a layer keeps it for its backward pass."""

    def __init__(self, channels: int, side: int, kept: bool = False) -> None:
        self.channels, self.side, self.kept = channels, side, kept

    @property
    def numbers(self) -> int:
        return self.channels * self.side**2


def kept_by_unit(layout: Layout, channels: int, side: int) -> Kept:
    """Of one residual unit that reads `channels` × `side` × `side`; its output is the next one's input."""
    x = _Map(channels, side)
    maps = [x]
    shared = _through(layout.p, x, maps)
    h, F = _through(layout.h, shared, maps), _through(layout.F, shared, maps)
    if layout.g:
        # σ(…) keeps its own result; a product keeps both of its factors.
        g = _through(layout.g, shared, maps)
        maps += [_Map(g.channels, g.side, kept=True), _Map(g.channels, g.side, kept=True)]
        h.kept, F.kept = True, F.kept or layout.gates_branch
    y = _Map(F.channels, F.side)
    maps.append(y)
    out = _through(layout.f, y, maps)
    return _counted(maps, x, out)


def kept_at_edges(network: Network) -> tuple[Kept, Kept]:
    """Of the stem, and of the layers after the last unit."""
    x = _Map(network.in_chans, network.image_size)
    maps = [x]
    stem = _counted(maps, x, _through(network.stem_ops, x, maps))
    last = network.units()[-1]
    y = _Map(network.channels, last.layout.output_side(last.side))
    maps = [y]
    _through(network.final_ops, y, maps)
    return stem, _counted(maps, y, y)


def kept_by_units(network: Network) -> Iterator[Kept]:
    """Of every unit in order."""
    channels = network.stem.channels
    for placed in network.units():
        yield kept_by_unit(placed.layout, channels, placed.side)
        channels = _channels_out(placed.layout, channels)


def _channels_out(layout: Layout, channels: int) -> int:
    return _through(layout.F, _through(layout.p, _Map(channels, 1), []), []).channels


def _counted(maps: list[_Map], x: _Map, out: _Map) -> Kept:
    inside = sum(one.numbers for one in maps if one.kept and one is not x and one is not out)
    return Kept(x.numbers, x.kept, inside, max(one.numbers for one in maps))


def _through(ops: Ops, x: _Map, maps: list[_Map]) -> _Map:
    """The map behind `ops`; marks and collects what they keep."""
    for one in ops:
        x = _after(one, x, maps)
        maps.append(x)
    return x


def _after(one: op.Op, x: _Map, maps: list[_Map]) -> _Map:
    if isinstance(one, op.Paths):
        for path in one.paths:
            _through(path, x, maps)
        return _Map(*one.output(x.channels, x.side))
    saved = one.saved(x.channels, x.side)
    x.kept = x.kept or saved.input
    if saved.beside:
        maps.append(_Map(saved.beside, 1, kept=True))
    return _Map(*one.output(x.channels, x.side), kept=saved.output)
