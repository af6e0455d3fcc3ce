"""Conversion of weights between ResNeXt's three equivalent forms (PX, Fig. 3).

The forms hold the same numbers in the same order. The first convolution of the grouped form is the first
convolutions of all paths, joined along the output channels; its last is the last ones, joined along the input
channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kilolayer.errors import InputError
from kilolayer.units import ops as op
from kilolayer.units.layer_modules import named_ops
from kilolayer.units.ops import Ops
from kilolayer.units.unit import Layout


@dataclass(frozen=True)
class _TensorSlices:
    """One tensor of a unit: the keys of its parts in the state dict, and the dimension that joins them."""

    keys: tuple[str, ...]
    dim: int = 0


def convert_unit_form(state: Mapping[str, Tensor], source: Layout, target: Layout) -> dict[str, Tensor]:
    """The weights `state` of the unit `source`, with the keys and shapes of the unit `target`.

    `state` is the state dict of `build_unit(source)`. Both units compute the same function, up to rounding.

    >>> from dataclasses import replace
    >>> from kilolayer.units import AGGREGATED, Aggregated, build_unit, layout
    >>> grouped, split = (
    ...     layout(replace(AGGREGATED, branch=Aggregated(2, 16, form=form)), 64, 16)
    ...     for form in ("grouped", "split")
    ... )
    >>> state = convert_unit_form(build_unit(grouped).state_dict(), grouped, split)
    >>> build_unit(split).load_state_dict(state)
    <All keys matched successfully>

    Raises:
        InputError: the layouts are not two forms of one unit.
    """
    sources, targets = list(_slices(source)), list(_slices(target))
    if len(sources) != len(targets) or source.parameters != target.parameters:
        sizes = f"{source.parameters} parameters against {target.parameters}"
        raise InputError(f"not two forms of one unit: {sizes}")
    converted: dict[str, Tensor] = {}
    for old, new in zip(sources, targets, strict=True):
        joined = torch.cat([state[key] for key in old.keys], old.dim)
        parts = joined.chunk(len(new.keys), new.dim)
        converted |= {key: part.clone() for key, part in zip(new.keys, parts, strict=True)}
    return converted


def _slices(layout: Layout) -> Iterator[_TensorSlices]:
    for letter in "phFfg":
        yield from _op_slices(getattr(layout, letter), f"{letter}.")


def _op_slices(ops: Ops, prefix: str) -> Iterator[_TensorSlices]:
    for name, spec in named_ops(ops):
        if isinstance(spec, op.ParallelPaths):
            yield from _path_slices(spec, f"{prefix}{name}.paths")
        else:
            for tensor in spec.module().state_dict():
                yield _TensorSlices((f"{prefix}{name}.{tensor}",))


def _path_slices(spec: op.ParallelPaths, prefix: str) -> Iterator[_TensorSlices]:
    path = named_ops(spec.paths[0])
    for name, layer in path:
        sums = spec.join == "sum" and name == path[-1][0]
        for tensor in layer.module().state_dict():
            keys = (f"{prefix}.{i}.{name}.{tensor}" for i in range(len(spec.paths)))
            yield _TensorSlices(tuple(keys), dim=1 if sums else 0)
