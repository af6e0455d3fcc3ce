"""A network, or an ONNX file, run by OpenVINO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from kilolayer.errors import InputError
from kilolayer.weights.onnx import LogitsFunction

MISSING = "OpenVINO is not installed: pip install 'kilolayer[export]'"


def openvino_session(module: nn.Module, x: Tensor, threads: int, precision: str = "auto") -> LogitsFunction:
    """`module` run by OpenVINO: a function from images shaped like `x` to logits.

    `precision` "fp32" forbids bf16.

    Raises `InputError` if OpenVINO is not installed.
    """
    openvino = _import_openvino()
    example = x.detach().float().cpu().contiguous()
    with torch.no_grad():
        converted = openvino.convert_model(
            module.eval().float().cpu(), example_input=example, input=list(x.shape)
        )
    return _compile_model(converted, threads, precision)


def openvino_file_session(path: Path, x: Tensor, threads: int, precision: str = "auto") -> LogitsFunction:
    """A function from images shaped like `x` to logits, by the network in an ONNX file."""
    converted = _import_openvino().convert_model(str(path), input=list(x.shape))
    return _compile_model(converted, threads, precision)


def _import_openvino() -> Any:
    try:
        import openvino
    except ImportError:
        raise InputError(MISSING) from None
    return openvino


def _compile_model(converted: Any, threads: int, precision: str) -> LogitsFunction:
    hints: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
    }
    if precision != "auto":
        hints["INFERENCE_PRECISION_HINT"] = {"fp32": "f32", "bf16": "bf16"}[precision]
    request = _import_openvino().Core().compile_model(converted, "CPU", hints).create_infer_request()

    def run(images: Tensor) -> numpy.ndarray[Any, Any]:
        outputs = request.infer([images.detach().float().contiguous().numpy()])
        # The next request overwrites this memory.
        answer: numpy.ndarray[Any, Any] = next(iter(outputs.values())).copy()
        return answer

    return run
