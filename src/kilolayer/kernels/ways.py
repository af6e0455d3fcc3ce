"""The two families of kernels, native code on a CPU and Triton on a GPU: which of them serves where."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Literal

import torch

from kilolayer.kernels.compiled import Missing
from kilolayer.kernels.library import native

Way = Literal["native", "triton"]

LEAST_CAPABILITY = (8, 0)
"""Of NVIDIA GPUs that multiply bf16."""


def way_for(device: torch.device) -> Way:
    return "triton" if device.type == "cuda" else "native"


def interpreted() -> bool:
    """Whether Triton interprets its kernels on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def serves(way: Way, device: torch.device) -> bool:
    """Whether kernels of this family run on tensors that lie there."""
    return device.type == ("cuda" if way == "triton" and not interpreted() else "cpu")


def refusal(device: torch.device | None = None, way: Way | None = None) -> str | None:
    """Why there are no kernels for `device`, the CPU without one, or None where there are.

    Native ones are built at the first time, Triton's at their first call.
    """
    device = device or torch.device("cpu")
    return _no_triton(device) if (way or way_for(device)) == "triton" else _no_native()


def _no_native() -> str | None:
    try:
        native()
    except Missing as missing:
        return str(missing)
    except OSError as error:
        return f"the library cannot be loaded ({error})"
    return None


def _no_triton(device: torch.device) -> str | None:
    if find_spec("triton") is None:
        return "Triton is not installed"
    if interpreted():
        return None
    if device.type != "cuda":
        return "Triton's kernels are for a GPU"
    if torch.version.cuda is None:
        return "this PyTorch is not one for NVIDIA's GPUs"
    found = torch.cuda.get_device_capability(device)
    if found < LEAST_CAPABILITY:
        had, needed = (".".join(map(str, one)) for one in (found, LEAST_CAPABILITY))
        return f"the GPU does not multiply bf16: compute capability {had}, needed {needed}"
    return None
