"""Weights from elsewhere: files of others read without running what is in them, and fitted to a network.

state = read_state_dict("resnet20.pt")      # or .pth, .tar, .bin, .ckpt, .safetensors
print(fit(model, state))                    # matched 101 of 101 tensors
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kilolayer.lazy import lazily

if TYPE_CHECKING:
    from kilolayer.weights.beginning import begin, initial, initial_network
    from kilolayer.weights.fitting import Fit, compare, fit
    from kilolayer.weights.reading import read_state_dict

_HOMES = {
    "begin": "beginning", "initial": "beginning", "initial_network": "beginning",
    "Fit": "fitting", "compare": "fitting", "fit": "fitting",
    "read_state_dict": "reading",
}  # fmt: skip

__all__ = ["Fit", "begin", "compare", "fit", "initial", "initial_network", "read_state_dict"]


__getattr__, __dir__ = lazily(__name__, _HOMES)
