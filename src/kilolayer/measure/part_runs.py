"""Runs a part of a module that holds several units: from one of its tensors to another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from kilolayer.errors import InputError
from kilolayer.measure.residual_tracer import TracedTensor, function_name, overwritten_tensor


@dataclass(frozen=True)
class CutPoint:
    """A tensor inside a module: the number of the function call that makes it, and that function's name.

    Call 0 is the module's input; the module's output has no cut point.
    """

    call: int
    function: str
    shape: torch.Size

    @classmethod
    def of(cls, traced: TracedTensor) -> CutPoint:
        """The place of a traced tensor."""
        return cls(traced.call, traced.function, traced.shape)


class _Arrived(BaseException):
    """Leaves the module's code. A BaseException, so that no `except Exception` there stops it."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


class PartialRun(TorchFunctionMode):
    """While active: cut point `start` yields `signal`, and the run ends at `stop`.

    Calls are counted as `ResidualTracer` counts them. Raises `InputError` where another call is met.
    """

    def __init__(self, start: CutPoint | None, signal: Tensor, stop: CutPoint | None) -> None:
        super().__init__()
        self._start, self._signal, self._stop, self._calls = start, signal, stop, 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self._calls += 1
        kwargs = kwargs or {}
        if self._start is not None and self._calls == self._start.call:
            _check(self._start, func, self._signal)
            return _with_signal(self._signal, func, args, kwargs)
        out = func(*args, **kwargs)
        if self._stop is not None and self._calls == self._stop.call:
            _check(self._stop, func, out)
            raise _Arrived(out)
        return out


class Detour(TorchFunctionMode):
    """While active: each cut point in `changes` yields a function of the tensor at an earlier one.

    `x` is the module's input, which call 0 stands for. `last` is the tensor at the cut point `keep`.
    """

    def __init__(
        self,
        x: Tensor,
        changes: Mapping[CutPoint, tuple[CutPoint, Callable[[Tensor], Tensor]]],
        keep: CutPoint,
    ) -> None:
        super().__init__()
        self._changes = {end.call: (end, *change) for end, change in changes.items()}
        self._replayed_calls = {begin.call for begin, _ in changes.values()} | {keep.call}
        self._outputs, self._calls, self._last = {0: x}, 0, keep.call

    @property
    def last(self) -> Tensor:
        """The tensor at the cut point that was to be kept."""
        return self._outputs[self._last]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self._calls += 1
        kwargs, call = kwargs or {}, self._calls
        if call in self._changes:
            end, begin, change = self._changes[call]
            value = change(self._outputs[begin.call])
            _check(end, func, value)
            out = _with_signal(value, func, args, kwargs)
        else:
            out = func(*args, **kwargs)
        if call in self._replayed_calls:
            self._outputs[call] = out.clone()
        return out


def run_part(
    module: Callable[[Tensor], Tensor],
    x: Tensor,
    start: CutPoint | None,
    signal: Tensor,
    stop: CutPoint | None,
) -> Tensor:
    """The module's tensor at `stop`, where the one at `start` is `signal`; None: its output, its input.

    What the module computes before `start` it computes from `x`, in vain.
    """
    with PartialRun(start, signal, stop):
        try:
            return module(signal if start is None else x)
        except _Arrived as arrived:
            return arrived.value


def _with_signal(
    value: Tensor, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    """The result of a call that yields `value`; one in place leaves it in its tensor."""
    target = overwritten_tensor(function_name(func), args, kwargs)
    return value if target is None else target.copy_(value)


def _check(point: CutPoint, func: Callable[..., Any], value: Any) -> None:
    shape = getattr(value, "shape", (None,))
    if function_name(func) != point.function or tuple(shape[1:]) != tuple(point.shape[1:]):
        raise InputError(
            f"its operations differ from one run to the next: call {point.call} was {point.function}(), "
            f"now it is "
            f"{function_name(func)}()"
        )
