"""A network run by OpenVINO."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from kilolayer.errors import InputError

MISSING = "OpenVINO is not installed: pip install 'kilolayer[export]'"


def session(
    module: nn.Module, x: Tensor, threads: int, precision: str = "auto"
) -> Callable[[Tensor], numpy.ndarray[Any, Any]]:
    """A function from images shaped as `x` to logits. `precision` "fp32" forbids bf16.

    Raises `InputError` where OpenVINO is missing.
    """
    try:
        import openvino
    except ImportError:
        raise InputError(MISSING) from None
    example = x.detach().float().cpu().contiguous()
    with torch.no_grad():
        converted = openvino.convert_model(
            module.eval().float().cpu(), example_input=example, input=list(x.shape)
        )
    hints: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
    }
    if precision != "auto":
        hints["INFERENCE_PRECISION_HINT"] = {"fp32": "f32", "bf16": "bf16"}[precision]
    compiled = openvino.Core().compile_model(converted, "CPU", hints)
    request = compiled.create_infer_request()

    def run(images: Tensor) -> numpy.ndarray[Any, Any]:
        found = request.infer([images.detach().float().contiguous().numpy()])
        return next(iter(found.values()))

    return run
