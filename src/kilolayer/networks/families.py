"""The CIFAR and the ImageNet family, by rules for their depth (P1, Sec. 4.2 and Table 1; PX, Table 1)."""

from __future__ import annotations

from typing import Any

from kilolayer.errors import InputError
from kilolayer.networks.description import Network, Stage, Stem, outer_layers
from kilolayer.units.branch import Aggregated
from kilolayer.units.unit import BASIC, Unit


def cifar(depth: int, unit: Unit = BASIC, **options: Any) -> Network:
    """The CIFAR network of `depth` layers: three stages of n units, with widths 16, 32 and 64 (P1, Sec. 4.2).

        depth = 3·layers·n + 2      (6n+2 basic, 9n+2 bottleneck, 3n+2 one-layer)

    In wide networks three projections count too: depth = 6n+4. ResNeXt's widths are 64, 128 and 256.
    `options` are fields of `Network` (`num_classes`, `in_chans`, `image_size`, …).

    >>> [stage.units for stage in cifar(110).stages]
    [18, 18, 18]
    >>> cifar(100)
    Traceback (most recent call last):
    kilolayer.errors.InputError: depth 100 is not 6n+2; nearest: 98, 104

    Raises:
        InputError: no n gives this depth; the message names the nearest depths.
    """
    n = _units_per_stage(depth, 3 * unit.branch.layers, outer_layers(unit))
    width = 64 if isinstance(unit.branch, Aggregated) else 16
    stages = tuple(Stage(n, width * 2**i, stride=1 if i == 0 else 2) for i in range(3))
    return Network(Stem(width), stages, unit, **options)


def _units_per_stage(depth: int, step: int, edges: int) -> int:
    n, remainder = divmod(depth - edges, step)
    if remainder or n < 1:
        below = step * n + edges
        nearest = [d for d in (below, below + step) if d >= step + edges] or [step + edges]
        raise InputError(f"depth {depth} is not {step}n+{edges}; nearest: {', '.join(map(str, nearest))}")
    return n


IMAGENET_UNITS = {
    2: {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)},
    3: {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)},
}
"""Units of each stage, by layers per unit and by depth (P1, Table 1; depth 200: P2, Sec. 5)."""


def imagenet(depth: int, unit: Unit, **options: Any) -> Network:
    """The ImageNet network of `depth` layers: four stages with widths 64, 128, 256 and 512 (P1, Table 1).

    Depths 18 and 34 have units of two layers; depths 50, 101, 152 and 200 have units of three. `options` are
    fields of `Network`; the defaults are 1000 classes and images of 224 pixels.

    >>> from kilolayer.units import BOTTLENECK
    >>> imagenet(50, BOTTLENECK).parameters
    25557032

    Raises:
        InputError: the family has no network of this depth with such units.
    """
    depths = IMAGENET_UNITS.get(unit.branch.layers, {})
    if depth not in depths:
        allowed = ", ".join(map(str, depths)) or "none with one-layer units"
        kind = type(unit.branch).__name__.lower()
        raise InputError(f"depth {depth} is not an ImageNet depth of {kind} units; allowed: {allowed}")
    stages = tuple(
        Stage(units, 64 * 2**i, stride=1 if i == 0 else 2) for i, units in enumerate(depths[depth])
    )
    return Network(
        Stem(64, 7, 2, pool=True), stages, unit, **{"num_classes": 1000, "image_size": 224} | options
    )
