"""A network as an ONNX file, in fp32 or int8: exported, checked and run by ONNX Runtime."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from kilolayer.errors import InputError
from kilolayer.kernels import fold
from kilolayer.networks import ResidualNetwork
from kilolayer.system import durable

MISSING = "ONNX export and ONNX Runtime are not installed: pip install 'kilolayer[export]'"
LogitsFunction = Callable[[Tensor], numpy.ndarray[Any, Any]]
"""A function from images to logits."""
CHUNK_IMAGES = 64
"""Images that are run at a time."""
TOLERANCE = 1e-3
"""Relative to the largest logit: what different orders of addition can cause."""


def export_onnx(module: nn.Module, x: Tensor, path: Path) -> float:
    """Writes `module` as an ONNX file for images shaped like `x`, in any batch size; returns its error.

    One of our networks is folded first (`kilolayer.kernels.fold`). The error is max |z' − z| / max |z| over
    the logits.

    Raises `InputError` if the packages are missing, `x` has no image, `path` cannot be written, or the
    exported network computes something else; then no file is left.
    """
    _check_images("x", x)
    path = Path(path)
    durable.check_writable(path)
    example = x.detach().float().cpu().contiguous()
    _check_installed()
    module = _inference_copy(module)
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / "network.onnx"
        with _silenced_exporter(), torch.no_grad():
            # PyTorch's newer exporter traces three times in Python: 48 s for 164 layers; this one takes 1 s.
            torch.onnx.export(
                module,
                (example,),
                str(temporary),
                dynamo=False,
                input_names=["images"],
                output_names=["logits"],
                dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
            )
            expected = module(example).numpy()
        computed = onnx_file_session(temporary, 1)(example)
        error = float(numpy.abs(computed - expected).max() / numpy.abs(expected).max())
        if not error < TOLERANCE:
            raise InputError(f"the exported network's logits differ by {error:.1e}; nothing was written")
        durable.write_file(path, temporary.read_bytes())
    return error


def _check_images(name: str, images: Tensor) -> None:
    if images.ndim != 4 or not len(images):
        raise InputError(f"{name} is of shape {tuple(images.shape)}; allowed: one or more images, N×C×H×W")


def _check_installed() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError:
        raise InputError(MISSING) from None


def _inference_copy(module: nn.Module) -> nn.Module:
    """The module in fp32 on the CPU; one of our networks as a folded copy."""
    if isinstance(module, ResidualNetwork):
        return fold(module, torch.float32).cpu()
    return module.eval().float().cpu()


@dataclass(frozen=True)
class LogitAgreement:
    """How two networks' logits agree on the same `images`.

    `logit_error`: ‖z' − z‖ / ‖z‖ over all logits. `same_class`: the percentage of images whose largest logit
    is the same.
    """

    images: int
    logit_error: float
    same_class: float


def logit_agreement(logits: numpy.ndarray[Any, Any], expected: numpy.ndarray[Any, Any]) -> LogitAgreement:
    """The agreement of `logits` (images, classes) with the `expected` ones.

    >>> logit_agreement(numpy.array([[3.0, 0.0]]), numpy.array([[4.0, 0.0]]))
    LogitAgreement(images=1, logit_error=0.25, same_class=100.0)
    """
    error = float(numpy.linalg.norm(logits - expected) / numpy.linalg.norm(expected))
    same_class = float((logits.argmax(1) == expected.argmax(1)).mean())
    return LogitAgreement(len(expected), error, 100 * same_class)


def quantize_onnx(
    module: nn.Module, calibration: Tensor, path: Path, test_images: Tensor | None = None
) -> LogitAgreement:
    """Writes `module` as an ONNX file with 8-bit integer weights and activations.

    A weight w ≈ s·q, q in −127 … 127, with a scale s per output channel. An activation ≈ s·(q − z), q in 0 …
    255, with the range that the images of `calibration` produce: a few hundred images of the training set,
    normalised as the network reads them. Returns how the file's logits agree with those of fp32 on
    `test_images`, or else on the calibration images. For untrained weights the result means nothing.

    The method is ONNX Runtime's static quantisation with pairs of QuantizeLinear and DequantizeLinear, which
    OpenVINO reads too.

    Raises `InputError` if packages are missing, there is no image, or `path` cannot be written.
    """
    checked_images = calibration if test_images is None else test_images
    _check_images("calibration", calibration)
    _check_images("check", checked_images)
    path = Path(path)
    durable.check_writable(path)
    _check_installed()
    with tempfile.TemporaryDirectory() as folder:
        fp32, int8 = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        export_onnx(module, calibration[:1], fp32)
        _quantize_file(fp32, int8, calibration)
        durable.write_file(path, int8.read_bytes())
        return logit_agreement(
            _logits_in_chunks(onnx_file_session(int8, 1), checked_images),
            _logits_in_chunks(onnx_file_session(fp32, 1), checked_images),
        )


def _quantize_file(exact: Path, path: Path, calibration: Tensor) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(torch.split(calibration.detach().float().cpu().contiguous(), CHUNK_IMAGES))

        def get_next(self) -> dict[str, Any] | None:
            part = next(self.left, None)
            return None if part is None else {"images": part.numpy()}

    with _silenced_exporter():
        quantize_static(
            str(exact),
            str(path),
            Images(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


def _logits_in_chunks(run: LogitsFunction, images: Tensor) -> numpy.ndarray[Any, Any]:
    return numpy.concatenate([run(part) for part in torch.split(images, CHUNK_IMAGES)])


def onnx_file_session(path: Path, threads: int) -> LogitsFunction:
    """A function from images to logits, by the network in an ONNX file."""
    try:
        import onnxruntime
    except ImportError:
        raise InputError(MISSING) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    runtime = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = runtime.get_inputs()[0].name

    def run(images: Tensor) -> numpy.ndarray[Any, Any]:
        logits: numpy.ndarray[Any, Any] = runtime.run(
            None, {name: images.detach().float().contiguous().numpy()}
        )[0]
        return logits

    return run


def onnx_session(module: nn.Module, x: Tensor, threads: int) -> LogitsFunction:
    """`module` exported and run by ONNX Runtime: a function from images shaped like `x` to logits."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        export_onnx(module, x, path)
        return onnx_file_session(path, threads)


@contextmanager
def _silenced_exporter() -> Any:
    """Silences the exporter, which reports much about its own methods."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
