"""A network as an ONNX file, checked against itself, and run by ONNX Runtime."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from kilolayer.errors import InputError

MISSING = "ONNX export and ONNX Runtime are not installed: pip install 'kilolayer[export]'"
TOLERANCE = 1e-3
"""Of the largest logit: what different orders of addition may do."""


def export(module: nn.Module, x: Tensor, path: Path) -> float:
    """Writes `module` for inputs shaped as `x`, any batch size, and returns its error in ONNX Runtime.

    The error is relative to the largest logit. Raises `InputError` where the packages are missing or the
    exported network does not compute the same; then no file is left.
    """
    example = x.detach().float().cpu().contiguous()
    module = module.eval().float().cpu()
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise InputError(MISSING) from None
    with _quietly(), torch.no_grad():
        batch = {0: torch.export.Dim("batch", min=1, max=65_536)}
        torch.onnx.export(
            module, (example,), str(path), dynamo=True, dynamic_shapes=(batch,), external_data=False
        )
        expected = module(example).numpy()
    found = run_file(path, 1)(example)
    error = float(numpy.abs(found - expected).max() / numpy.abs(expected).max())
    if not error < TOLERANCE:
        path.unlink(missing_ok=True)
        raise InputError(f"the exported network differs from its own by {error:.1e}; nothing was written")
    return error


def run_file(path: Path, threads: int) -> Callable[[Tensor], numpy.ndarray[Any, Any]]:
    """A function from images to logits by the network in an ONNX file."""
    try:
        import onnxruntime
    except ImportError:
        raise InputError(MISSING) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    made = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = made.get_inputs()[0].name

    def run(images: Tensor) -> numpy.ndarray[Any, Any]:
        found: numpy.ndarray[Any, Any] = made.run(None, {name: images.detach().float().contiguous().numpy()})[
            0
        ]
        return found

    return run


def session(module: nn.Module, x: Tensor, threads: int) -> Callable[[Tensor], numpy.ndarray[Any, Any]]:
    """`module` exported and run: a function from images shaped as `x` to logits."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        export(module, x, path)
        return run_file(path, threads)


@contextmanager
def _quietly() -> Any:
    """The exporter tells much of its own ways."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
