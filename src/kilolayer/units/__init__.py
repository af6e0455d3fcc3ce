"""The residual unit y = h(x) + F(x), x' = f(y): described as values, built as modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kilolayer.lazy import lazy_attributes
from kilolayer.units.arrangement import (
    ARRANGEMENTS,
    BN,
    BN_AFTER_ADDITION,
    FULL_PREACT,
    ORIGINAL,
    RELU,
    RELU_BEFORE_ADDITION,
    RELU_ONLY_PREACT,
    Activation,
    Arrangement,
)
from kilolayer.units.branch import Aggregated, Basic, Bottleneck, Branch, OneLayer
from kilolayer.units.extensions import load_unit_file
from kilolayer.units.ops import CustomLayer, Op
from kilolayer.units.readings import NoReading
from kilolayer.units.shortcut import (
    Downsample,
    Dropout,
    ExclusiveGate,
    Identity,
    Projection,
    Scaled,
    Shortcut,
    ShortcutGate,
    Zero,
    ZeroPad,
    parse_shortcut,
)
from kilolayer.units.unit import AGGREGATED, BASIC, BOTTLENECK, ONE_LAYER, Layout, Unit, layout

if TYPE_CHECKING:
    from kilolayer.units.modules import BatchNorm, GatedUnit, ResidualUnit, build_unit
    from kilolayer.units.resnext_forms import convert_unit_form

_WITH_TORCH = {
    "convert_unit_form": "resnext_forms",
    "BatchNorm": "modules",
    "GatedUnit": "modules",
    "ResidualUnit": "modules",
    "build_unit": "modules",
}

__getattr__, __dir__ = lazy_attributes(__name__, _WITH_TORCH)

__all__ = [
    "AGGREGATED",
    "ARRANGEMENTS",
    "BASIC",
    "BN",
    "BN_AFTER_ADDITION",
    "BOTTLENECK",
    "FULL_PREACT",
    "ONE_LAYER",
    "ORIGINAL",
    "RELU",
    "RELU_BEFORE_ADDITION",
    "RELU_ONLY_PREACT",
    "Activation",
    "Aggregated",
    "Arrangement",
    "Basic",
    "BatchNorm",
    "Bottleneck",
    "Branch",
    "CustomLayer",
    "Downsample",
    "Dropout",
    "ExclusiveGate",
    "GatedUnit",
    "Identity",
    "Layout",
    "NoReading",
    "OneLayer",
    "Op",
    "Projection",
    "ResidualUnit",
    "Scaled",
    "Shortcut",
    "ShortcutGate",
    "Unit",
    "Zero",
    "ZeroPad",
    "build_unit",
    "convert_unit_form",
    "layout",
    "load_unit_file",
    "parse_shortcut",
]
