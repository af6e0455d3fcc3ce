"""Residual networks: descriptions, names, exact counts, and PyTorch modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kilolayer.lazy import lazy_attributes
from kilolayer.networks.description import Network, PlacedUnit, Stage, Stem
from kilolayer.networks.families import cifar, imagenet
from kilolayer.networks.names import describe, list_models

if TYPE_CHECKING:
    from kilolayer.networks.create import FeatureNetwork, convert_form, create_model
    from kilolayer.networks.model import ResidualNetwork, build

_HOMES = {
    "FeatureNetwork": "create",
    "convert_form": "create",
    "create_model": "create",
    "ResidualNetwork": "model",
    "build": "model",
}

__getattr__, __dir__ = lazy_attributes(__name__, _HOMES)

__all__ = [
    "FeatureNetwork",
    "Network",
    "PlacedUnit",
    "ResidualNetwork",
    "Stage",
    "Stem",
    "build",
    "cifar",
    "convert_form",
    "create_model",
    "describe",
    "imagenet",
    "list_models",
]
