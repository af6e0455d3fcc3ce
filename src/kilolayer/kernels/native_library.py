"""The functions of the native library and their argument structures, called with plain addresses.

No header of PyTorch is compiled in, so one library serves every PyTorch version.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_double, c_float, c_int32, c_int64, c_void_p
from functools import cache
from typing import Any

from torch import Tensor

from kilolayer.kernels.compute_dtype import load_unit_library


class WeightsStruct(Structure):
    """The fp32 weights of a convolution: address; strides of output, input, row and column; sizes."""

    _fields_ = (
        ("data", c_void_p), ("out", c_int64), ("in", c_int64), ("row", c_int64), ("column", c_int64),
        ("outputs", c_int32), ("inputs", c_int32), ("kernel", c_int32),
    )  # fmt: skip

    @classmethod
    def of(cls, weight: Tensor) -> WeightsStruct:
        outputs, inputs, kernel, _ = weight.shape
        return cls(weight.data_ptr(), *weight.stride(), outputs, inputs, kernel)


class NormStruct(Structure):
    """A BN: parameters, running averages, the batch's mean and 1/√(var + ε), gradients; all fp32."""

    _fields_ = (
        ("weight", c_void_p), ("bias", c_void_p), ("running_mean", c_void_p), ("running_var", c_void_p),
        ("mean", c_void_p), ("inverse", c_void_p), ("dweight", c_void_p), ("dbias", c_void_p),
        ("momentum", c_double), ("epsilon", c_double),
    )  # fmt: skip


class ConvStruct(Structure):
    """A convolution, the BN before it (or null), its input and output, and its stride if it is 3×3."""

    _fields_ = (
        ("weights", WeightsStruct), ("dweight", c_void_p), ("norm", POINTER(NormStruct)),
        ("input", c_void_p), ("output", c_void_p), ("stride", c_int32),
    )  # fmt: skip


class UnitStruct(Structure):
    """F's convolutions, the BN behind the last (or null), h and x', the shortcut's convolution (or null).

    `dread` receives the gradient of the projection's input if that is not x; `padded` is a zero-padded
    shortcut's stride, or 0.
    """

    _fields_ = (
        ("depth", c_int32), ("convs", POINTER(ConvStruct)), ("final_norm", POINTER(NormStruct)),
        ("h", c_void_p), ("y", c_void_p), ("projection", POINTER(ConvStruct)),
        ("dread", c_void_p), ("padded", c_int32),
    )  # fmt: skip


class FoldedConvStruct(Structure):
    """A convolution at inference: packed weights, fp32 bias, sizes, stride, the factor that unscales sums."""

    _fields_ = (
        ("packed", c_void_p), ("bias", c_void_p),
        ("outputs", c_int32), ("inputs", c_int32), ("kernel", c_int32), ("stride", c_int32),
        ("unscale", c_float),
    )  # fmt: skip


class FoldedUnitStruct(Structure):
    """A unit at inference: F's convolutions, the shortcut's, and scale and shift of the BN before them.

    The shortcut's convolution and that BN may be null. The flags say whether the unit ends in a ReLU, whether
    the shortcut reads the output of that BN-ReLU, and whether the shortcut pads its channels.
    """

    _fields_ = (
        ("depth", c_int32), ("convs", POINTER(FoldedConvStruct)), ("projection", POINTER(FoldedConvStruct)),
        ("scale", c_void_p), ("shift", c_void_p),
        ("has_relu", c_int32), ("activated", c_int32), ("padded", c_int32),
    )  # fmt: skip


class ImagesStruct(Structure):
    """The input of a convolution with few channels, and the size, stride and padding of its kernel."""

    _fields_ = (
        ("data", c_void_p), ("height", c_int32), ("width", c_int32), ("channels", c_int32),
        ("kernel", c_int32), ("stride", c_int32), ("padding", c_int32),
    )  # fmt: skip


class BatchStruct(Structure):
    _fields_ = (("images", c_int32), ("height", c_int32), ("width", c_int32), ("threads", c_int32))


@cache
def load_native_library() -> ctypes.CDLL:
    """The loaded library. Raises `NativeUnavailable`."""
    library = load_unit_library()
    for name, arguments in _ARGUMENTS.items():
        function = getattr(library, f"kilolayer_{name}")
        function.argtypes = arguments
        function.restype = c_float if name == "pack" else None
    return library


_BATCH, _UNIT, _NORM, _CONV = map(POINTER, (BatchStruct, UnitStruct, NormStruct, ConvStruct))
_IMAGES, _WEIGHTS, _FOLDED = map(POINTER, (ImagesStruct, WeightsStruct, FoldedUnitStruct))
_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "unit_forward": (_BATCH, _UNIT, c_void_p, c_void_p),
    "unit_backward": (_BATCH, _UNIT, c_void_p, c_void_p),
    "bn_relu_forward": (_BATCH, _NORM, c_int32, c_void_p, c_void_p, c_void_p),
    "bn_relu_backward": (_BATCH, _NORM, c_int32, c_void_p, c_void_p, c_void_p),
    "conv_forward": (_BATCH, _CONV),
    "conv_backward": (_BATCH, _CONV, c_void_p, c_void_p),
    "im2col_forward": (_BATCH, _IMAGES, _WEIGHTS, c_void_p, c_void_p),
    "im2col_backward": (_BATCH, _IMAGES, _WEIGHTS, c_void_p, c_void_p),
    "im2col_infer": (_BATCH, _IMAGES, _WEIGHTS, c_void_p, c_int32, c_void_p),
    "pack": (_WEIGHTS, c_void_p),
    "infer": (_BATCH, _FOLDED, c_int32, c_void_p, c_void_p),
}  # fmt: skip
"""The functions of the library and the types of their arguments; maps are plain addresses."""
