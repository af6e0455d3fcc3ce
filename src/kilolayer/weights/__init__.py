"""Weights from elsewhere: files of others read without running what is in them, and fitted to a network.

state = read_state_dict("resnet20.pt")      # or .pth, .tar, .bin, .ckpt, .safetensors
print(fit(model, state))                    # matched 101 of 101 tensors
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
