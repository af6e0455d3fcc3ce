"""ResNeXt's three equivalent forms, converted into one another weight for weight (PX, Fig. 3).

The forms hold the same numbers in the same order: the grouped form's first convolution is the paths'
stacked along the output channels, its last is theirs side by side along the input channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kilolayer.errors import InputError
from kilolayer.units import ops as op
from kilolayer.units.modules import named_ops
from kilolayer.units.ops import Ops
from kilolayer.units.unit import Layout


@dataclass(frozen=True)
class _TensorSlices:
    """One tensor of a unit: the keys it is stored under, to be joined along `dim`."""

    keys: tuple[str, ...]
    dim: int = 0


def convert_unit_form(state: Mapping[str, Tensor], source: Layout, target: Layout) -> dict[str, Tensor]:
    """The weights of a unit laid out as `source`, under the keys and shapes of `target`.

    `state` maps keys of `build_unit(source)` to tensors. The unit computed is the same one up to
    rounding. Raises `InputError` where the layouts are not two forms of one unit.
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
