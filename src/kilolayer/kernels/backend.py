"""The two families of kernels, native code on a CPU and Triton on a GPU: which of them serves where."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Literal

import torch

from kilolayer.kernels.native_build import NativeUnavailable
from kilolayer.kernels.native_library import load_native_library

Backend = Literal["native", "triton"]

MIN_COMPUTE_CAPABILITY = (8, 0)
"""Of NVIDIA GPUs that multiply bf16."""


def backend_for(device: torch.device) -> Backend:
    return "triton" if device.type == "cuda" else "native"


def is_interpreted() -> bool:
    """Whether Triton interprets its kernels on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def runs_on(backend: Backend, device: torch.device) -> bool:
    """Whether kernels of this family run on tensors that lie there."""
    return device.type == ("cuda" if backend == "triton" and not is_interpreted() else "cpu")


def unavailable_reason(device: torch.device | None = None, backend: Backend | None = None) -> str | None:
    """Why there are no kernels for `device`, the CPU without one, or None where there are.

    Native ones are built at the first time, Triton's at their first call.
    """
    device = device or torch.device("cpu")
    return (
        _triton_unavailable_reason(device)
        if (backend or backend_for(device)) == "triton"
        else _native_unavailable_reason()
    )


def _native_unavailable_reason() -> str | None:
    try:
        load_native_library()
    except NativeUnavailable as missing:
        return str(missing)
    except OSError as error:
        return f"the library cannot be loaded ({error})"
    return None


def _triton_unavailable_reason(device: torch.device) -> str | None:
    if find_spec("triton") is None:
        return "Triton is not installed"
    if is_interpreted():
        return None
    if device.type != "cuda":
        return "Triton's kernels are for a GPU"
    if torch.version.cuda is None:
        return "this PyTorch is not one for NVIDIA's GPUs"
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_COMPUTE_CAPABILITY:
        actual, required = (".".join(map(str, version)) for version in (capability, MIN_COMPUTE_CAPABILITY))
        return f"the GPU does not multiply bf16: compute capability {actual}, needed {required}"
    return None
