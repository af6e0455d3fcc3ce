"""The two backends, native code on a CPU and Triton on a GPU, and why one of them may be unavailable."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Literal

import torch

from kilolayer.kernels.native_cache import NativeUnavailable
from kilolayer.kernels.native_library import load_native_library

Backend = Literal["native", "triton"]

MIN_COMPUTE_CAPABILITY = (8, 0)
"""The first NVIDIA GPUs that multiply bf16."""


def backend_for(device: torch.device) -> Backend:
    """The backend that serves tensors on `device`."""
    return "triton" if device.type == "cuda" else "native"


def is_interpreted() -> bool:
    """Whether Triton interprets its kernels on the CPU (TRITON_INTERPRET=1) instead of compiling them."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def runs_on(backend: Backend, device: torch.device) -> bool:
    """Whether the kernels of this backend run on tensors of this device."""
    return device.type == ("cuda" if backend == "triton" and not is_interpreted() else "cpu")


def unavailable_reason(
    device: torch.device | None = None,
    backend: Backend | None = None,
    *,
    precision: str = "bf16",
    channels_last: bool = True,
    is_compiled: bool = False,
    trunk_frozen: bool = False,
) -> str | None:
    """Why the kernels cannot compute a training on `device` (by default the CPU), or None if they can.

    They compute units that learn, in bf16 with channels last, outside torch.compile. The native kernels are
    compiled by the first call; Triton compiles its kernels when they first run.

    >>> unavailable_reason(precision="fp32")
    'they compute in bf16 with channels last'
    """
    if trunk_frozen:
        return "the trunk is frozen, and they compute units that learn"
    if precision != "bf16" or not channels_last:
        return "they compute in bf16 with channels last"
    if is_compiled:
        return "torch.compile generates its own kernels"
    device = device or torch.device("cpu")
    is_triton = (backend or backend_for(device)) == "triton"
    return _triton_unavailable_reason(device) if is_triton else _native_unavailable_reason()


def _native_unavailable_reason() -> str | None:
    try:
        load_native_library()
    except NativeUnavailable as missing:
        return str(missing)
    return None


def _triton_unavailable_reason(device: torch.device) -> str | None:
    if find_spec("triton") is None:
        return "Triton is not installed"
    if is_interpreted():
        return None
    if device.type != "cuda":
        return "Triton's kernels are for a GPU"
    if torch.version.cuda is None:
        return "this PyTorch is not built for NVIDIA GPUs"
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_COMPUTE_CAPABILITY:
        actual, required = (".".join(map(str, version)) for version in (capability, MIN_COMPUTE_CAPABILITY))
        return f"the GPU does not multiply bf16: compute capability {actual}, needed {required}"
    return None
