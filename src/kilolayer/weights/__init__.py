"""Weights in from other programs, read without running any code in them, and out to ONNX and OpenVINO.

>>> import tempfile, torch
>>> from kilolayer.networks import build, describe
>>> from kilolayer.weights import load_weights, read_state_dict
>>> model = build(describe("resnet8_cifar"))
>>> with tempfile.TemporaryDirectory() as folder:
...     torch.save(model.state_dict(), f"{folder}/weights.pt")
...     print(load_weights(model, read_state_dict(f"{folder}/weights.pt")))
matched 37 of 37 tensors
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kilolayer.lazy import lazy_attributes

if TYPE_CHECKING:
    from kilolayer.weights.initial_weights import init_from_file, initial_network, load_initial_weights
    from kilolayer.weights.matching import WeightMatch, load_weights, match_weights
    from kilolayer.weights.state_dicts import read_state_dict

_HOMES = {
    "load_initial_weights": "initial_weights",
    "init_from_file": "initial_weights",
    "initial_network": "initial_weights",
    "WeightMatch": "matching",
    "match_weights": "matching",
    "load_weights": "matching",
    "read_state_dict": "state_dicts",
}

__all__ = [
    "WeightMatch",
    "init_from_file",
    "initial_network",
    "load_initial_weights",
    "load_weights",
    "match_weights",
    "read_state_dict",
]


__getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
