"""Kilolayer: the laboratory for residual networks a thousand layers deep.

import kilolayer
model = kilolayer.create_model("preact_resnet110_cifar", num_classes=10)
kilolayer.list_models("preact*")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kilolayer.lazy import lazy_attributes

__version__ = "0.1.0"

if TYPE_CHECKING:
    from kilolayer.networks import create_model, describe, list_models
    from kilolayer.runs import Run
    from kilolayer.training import Experiment

_HOMES = {
    "create_model": "networks",
    "describe": "networks",
    "list_models": "networks",
    "Run": "runs",
    "Experiment": "training",
}

_FOLDERS = (
    "analysis", "audit", "data", "errors", "kernels", "measure", "networks", "papers", "report", "runs",
    "statistics", "sweep", "theory", "training", "units", "weights",
)  # fmt: skip

_attribute, __dir__ = lazy_attributes(__name__, _HOMES, _FOLDERS)


def __getattr__(name: str) -> Any:
    if name == "inference":
        raise AttributeError(
            "kilolayer.inference is gone: fold is kilolayer.kernels.fold, and ONNX and OpenVINO are in "
            "kilolayer.weights.onnx and kilolayer.weights.openvino"
        )
    return _attribute(name)


__all__ = ["Experiment", "Run", "__version__", "create_model", "describe", "list_models"]
