"""The layers' responses: their deviations (P1, Fig. 7), BN's statistics, and channels that are dead."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from kilolayer.errors import InputError
from kilolayer.measure.layer_responses import LayerResponse, LayerResponses, NormStatistics, ReluActivity
from kilolayer.measure.preservation import preserve_state
from kilolayer.measure.scalars import rms

__all__ = ["LayerResponse", "LayerResponses", "NormStatistics", "ReluActivity", "measure_layer_responses"]


@torch.no_grad()
def measure_layer_responses(
    model: nn.Module, x: Tensor, *, network: str = "", training: bool = True
) -> LayerResponses:
    """Measures every layer in one pass of the batch `x` (N, C, H, W); nothing of it is kept but numbers.

    Any module will do; its units need no naming. `training`: BN uses the batch's statistics, as P1's
    figure does. Raises `InputError` where the module runs no convolution.
    """
    seen = _ResponseRecord()
    with preserve_state(model, training=training), _hooks_on(model, seen), _ReluRecorder(seen):
        model(x)
    if not seen.layers:
        raise InputError(f"{type(model).__name__} runs no convolution, so it has no layer responses")
    return LayerResponses(
        network or type(model).__name__, tuple(seen.layers), tuple(seen.norms), tuple(seen.relus)
    )


class _ResponseRecord:
    """What has run so far; `last` is the newest convolution's output, until something else has read it."""

    def __init__(self) -> None:
        self.layers: list[LayerResponse] = []
        self.norms: list[NormStatistics] = []
        self.relus: list[ReluActivity] = []
        self.last: Tensor | None = None
        self.version = 0


@contextmanager
def _hooks_on(model: nn.Module, record: _ResponseRecord) -> Iterator[None]:
    with ExitStack() as watched:
        for name, part in model.named_modules():
            note = _recorder_of(part)
            if note is not None:
                watched.callback(part.register_forward_hook(note(record, name)).remove)
        yield


HookFactory = Callable[[_ResponseRecord, str], Callable[..., None]]


def _recorder_of(part: nn.Module) -> HookFactory | None:
    match part:
        case nn.Conv2d():
            return _record_convolution
        case _BatchNorm():
            return _record_norm
        case _:
            return None


def _record_convolution(record: _ResponseRecord, name: str) -> Callable[..., None]:
    def hook(module: nn.Conv2d, args: tuple[Tensor, ...], out: Tensor) -> None:
        record.last, record.version = out, out._version
        record.layers.append(
            LayerResponse(
                name,
                int(module.kernel_size[0]),
                False,
                _std(out),
                _predicted_without_norm(module, args[0]),
                out.shape[-1],
            )
        )

    return hook


def _record_norm(record: _ResponseRecord, name: str) -> Callable[..., None]:
    def hook(module: _BatchNorm, args: tuple[Tensor, ...], out: Tensor) -> None:
        record.norms.append(_norm_statistics(name, module, args[0]))
        # The same tensor can be another by then: out += shortcut.
        if args[0] is record.last and args[0]._version == record.version:
            read = record.layers.pop()
            record.layers.append(
                replace(read, normalised=True, std=_std(out), predicted=_predicted_after_norm(module))
            )
        record.last = None

    return hook


def _norm_statistics(name: str, module: _BatchNorm, z: Tensor) -> NormStatistics:
    over = [dimension for dimension in range(z.ndim) if dimension != 1]
    mean, variance = z.double().mean(over), z.double().var(over, unbiased=False)
    scale, shift = (rms(module.weight), rms(module.bias)) if module.affine else (1.0, 0.0)
    return NormStatistics(name, rms(mean), float(variance.mean().sqrt()), scale, shift, _side(z))


def _predicted_after_norm(norm: _BatchNorm) -> float:
    """The deviation of γ ẑ + β over all channels, ẑ of mean 0 and variance 1 in each."""
    if not norm.affine:
        return 1.0
    scale, shift = norm.weight.double(), norm.bias.double()
    return float((scale.square().mean() + shift.var(unbiased=False)).sqrt())


def _predicted_without_norm(convolution: nn.Conv2d, x: Tensor) -> float:
    """The deviation of W x where W's entries know nothing of x; the zeros of the padding are counted in."""
    squares = x.double().square().sum(1, keepdim=True) / convolution.groups
    window = squares.new_ones(1, 1, *convolution.kernel_size)
    seen = functional.conv2d(
        squares, window, None, convolution.stride, convolution.padding, convolution.dilation
    )
    return rms(convolution.weight) * math.sqrt(float(seen.mean()))


class _ReluRecorder(TorchFunctionMode):
    """Sees every ReLU, be it a module or a function."""

    def __init__(self, record: _ResponseRecord) -> None:
        super().__init__()
        self._record = record

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in ("relu", "relu_") and isinstance(out, Tensor) and out.ndim > 1:
            quiet = (out == 0).transpose(0, 1).flatten(1)
            zeros, dead = float(quiet.double().mean()), float(quiet.all(1).double().mean())
            self._record.relus.append(ReluActivity(len(quiet), zeros, dead, _side(out)))
        return out


def _side(tensor: Tensor) -> int:
    """Pixels a side; 1 for a vector."""
    return int(tensor.shape[-1]) if tensor.ndim > 2 else 1


def _std(tensor: Tensor) -> float:
    return float(tensor.double().std(unbiased=False))
