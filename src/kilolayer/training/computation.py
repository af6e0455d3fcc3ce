"""How an experiment is computed, chosen for a device: precision, memory format, kernels, evaluation."""

from __future__ import annotations

from typing import Any

import torch

from kilolayer.errors import InputError
from kilolayer.kernels import fastest_precision, unavailable_reason
from kilolayer.networks import Network
from kilolayer.training.experiment import EvaluationMode, Kernels, Precision, memory_format_for


def choose_precision(name: str, device: torch.device, network: Network | None = None) -> Precision:
    """The precision called `name`; "auto" is bf16 where that is faster than fp32, else fp32.

    `kernels.fastest_precision` decides, for a `network` if that is given. Raises `InputError` for an unknown
    name.

    >>> choose_precision("fp32", torch.device("cpu"))
    'fp32'
    """
    if name != "auto":
        if name not in ("fp32", "bf16"):
            raise InputError(f"precision is {name!r}; allowed: auto, fp32, bf16")
        return "bf16" if name == "bf16" else "fp32"
    return fastest_precision(device, network)


def choose_kernels(
    name: str,
    device: torch.device,
    precision: Precision,
    *,
    channels_last: bool,
    is_compiled: bool = False,
    trunk_frozen: bool = False,
) -> Kernels:
    """The kernels called `name`; "auto" is fused on a CPU that has kernels for it, else plain.

    Raises `InputError` for an unknown name, and where "fused" is impossible.
    """
    if name not in ("auto", "plain", "fused"):
        raise InputError(f"kernels is {name!r}; allowed: auto, plain, fused")
    if name == "plain":
        return "plain"
    if name == "auto" and device.type == "cuda":
        return "plain"  # until Triton's kernels have been measured on a GPU
    reason = unavailable_reason(
        device,
        precision=precision,
        channels_last=channels_last,
        is_compiled=is_compiled,
        trunk_frozen=trunk_frozen,
    )
    if reason and name == "fused":
        raise InputError(f"no fused kernels here: {reason}; use --kernels plain")
    return "plain" if reason else "fused"


def evaluation_mode_for(kernels: Kernels) -> EvaluationMode:
    """How a run with these kernels is evaluated: layer by layer, or with BN folded in, which is faster."""
    return "folded" if kernels == "fused" else "plain"


def computation_options(
    device: torch.device, precision: str = "auto", kernels: str = "auto"
) -> dict[str, Any]:
    """The fields of an `Experiment` that say how it is computed, as `kilolayer train` chooses them."""
    chosen = choose_precision(precision, device)
    memory_format = memory_format_for(chosen)
    chosen_kernels = choose_kernels(kernels, device, chosen, channels_last=memory_format == "channels_last")
    return {
        "precision": chosen,
        "memory_format": memory_format,
        "kernels": chosen_kernels,
        "evaluation": evaluation_mode_for(chosen_kernels),
    }
