"""The activations that autograd saves from a network's forward to its backward pass, from its description."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kilolayer.networks.description import Network
from kilolayer.units import ops as op
from kilolayer.units.ops import Ops
from kilolayer.units.unit import Layout


@dataclass(frozen=True)
class SavedActivations:
    """The activations that autograd saves for some layers, in numbers for one image.

    `input` is the size of their input, which is saved where `saves_input` is true. `inside` is the size of
    all other saved tensors. `largest` is the size of their largest feature map, saved or not.
    """

    input: int
    saves_input: bool
    inside: int
    largest: int

    @property
    def total(self) -> int:
        """All saved numbers, including the input where it is saved."""
        return self.inside + (self.input if self.saves_input else 0)


class _FeatureMap:
    """A feature map, and whether some layer saves it for the backward pass."""

    def __init__(self, channels: int, side: int, is_saved: bool = False) -> None:
        self.channels, self.side, self.is_saved = channels, side, is_saved

    @property
    def numbers(self) -> int:
        return self.channels * self.side**2


def unit_activations(layout: Layout, channels: int, side: int) -> SavedActivations:
    """Those of one unit, whose input is `channels` × `side` × `side`; its output belongs to the next unit."""
    x = _FeatureMap(channels, side)
    maps = [x]
    shared = _apply_ops(layout.p, x, maps)
    h, F = _apply_ops(layout.h, shared, maps), _apply_ops(layout.F, shared, maps)
    if layout.g:
        # σ(…) saves its own result; a product saves both of its factors.
        g = _apply_ops(layout.g, shared, maps)
        maps += [
            _FeatureMap(g.channels, g.side, is_saved=True),
            _FeatureMap(g.channels, g.side, is_saved=True),
        ]
        h.is_saved, F.is_saved = True, F.is_saved or layout.gates_branch
    y = _FeatureMap(F.channels, F.side)
    maps.append(y)
    out = _apply_ops(layout.f, y, maps)
    return _sum_saved(maps, x, out)


def stem_and_head_activations(network: Network) -> tuple[SavedActivations, SavedActivations]:
    """Those of the stem, and those of the layers after the last unit."""
    x = _FeatureMap(network.in_chans, network.image_size)
    maps = [x]
    stem = _sum_saved(maps, x, _apply_ops(network.stem_ops, x, maps))
    last = network.units()[-1]
    # A unit's output counts with whoever reads it, also where only the unit's own f saves it.
    f_saves_output = bool(last.layout.f) and last.layout.f[-1].saved(network.channels, last.side).output
    y = _FeatureMap(network.channels, last.layout.output_side(last.side), is_saved=f_saves_output)
    maps = [y]
    _apply_ops(network.final_ops, y, maps)
    return stem, _sum_saved(maps, y, y)


def network_activations(network: Network) -> Iterator[SavedActivations]:
    """Those of every unit, in order."""
    channels = network.stem.channels
    for placed in network.units():
        yield unit_activations(placed.layout, channels, placed.side)
        channels = _channels_out(placed.layout, channels)


def _channels_out(layout: Layout, channels: int) -> int:
    return _apply_ops(layout.F, _apply_ops(layout.p, _FeatureMap(channels, 1), []), []).channels


def _sum_saved(maps: list[_FeatureMap], x: _FeatureMap, out: _FeatureMap) -> SavedActivations:
    inside = sum(
        feature_map.numbers
        for feature_map in maps
        if feature_map.is_saved and feature_map is not x and feature_map is not out
    )
    return SavedActivations(x.numbers, x.is_saved, inside, max(feature_map.numbers for feature_map in maps))


def _apply_ops(ops: Ops, x: _FeatureMap, maps: list[_FeatureMap]) -> _FeatureMap:
    """The output of `ops` for input `x`. Marks the saved maps, and appends every new map to `maps`."""
    for layer in ops:
        x = _apply_op(layer, x, maps)
        maps.append(x)
    return x


def _apply_op(layer: op.Op, x: _FeatureMap, maps: list[_FeatureMap]) -> _FeatureMap:
    if isinstance(layer, op.ParallelPaths):
        for path in layer.paths:
            _apply_ops(path, x, maps)
        return _FeatureMap(*layer.output(x.channels, x.side))
    saved = layer.saved(x.channels, x.side)
    x.is_saved = x.is_saved or saved.input
    if saved.extra_numbers:
        maps.append(_FeatureMap(saved.extra_numbers, 1, is_saved=True))
    return _FeatureMap(*layer.output(x.channels, x.side), is_saved=saved.output)
