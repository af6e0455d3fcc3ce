"""The order in which a model runs its units, and how to run it from one unit to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from kilolayer.errors import InputError
from kilolayer.measure.unit_selection import NamedModules


@dataclass(frozen=True)
class ExecutionOrder:
    """The units as the model runs them on a batch of shape `batch`.

    `inputs[l]` and `outputs[l]` are the shapes of unit l's input and output. `feeds_next[l]`: its output is
    the very tensor that unit l+1 reads, with nothing between them.
    """

    batch: torch.Size
    names: tuple[str, ...]
    units: tuple[nn.Module, ...]
    inputs: tuple[torch.Size, ...]
    outputs: tuple[torch.Size, ...]
    feeds_next: tuple[bool, ...]

    @cached_property
    def stages(self) -> tuple[int, ...]:
        """Every unit's stage, from 1. A new stage begins wherever the shape changes."""
        stage, stages = 1, []
        for index, (before, after) in enumerate(zip(self.inputs, self.outputs, strict=True)):
            stage += index > 0 and not before == after == self.outputs[index - 1]
            stages.append(stage)
        return tuple(stages)


@dataclass
class _OrderRecord:
    names: list[str] = field(default_factory=list)
    units: list[nn.Module] = field(default_factory=list)
    inputs: list[torch.Size] = field(default_factory=list)
    outputs: list[torch.Size] = field(default_factory=list)
    joined: list[bool] = field(default_factory=list)
    inside: str | None = None
    last: Tensor | None = None


def record_execution_order(model: nn.Module, units: NamedModules, x: Tensor) -> ExecutionOrder:
    """Runs the model once on `x` and records its units.

    Raises:
        InputError: a unit is unused, used twice, inside another, or does not map one tensor to one tensor.
    """
    record = _OrderRecord()
    with ExitStack() as hooks:
        for name, unit in units:
            handles = unit.register_forward_pre_hook(_enter_hook(record, name), with_kwargs=True)
            hooks.callback(handles.remove)
            hooks.callback(unit.register_forward_hook(_exit_hook(record, name)).remove)
        model(x)
    if missing := [name for name, _ in units if name not in record.names]:
        raise InputError(f"the network does not use {', '.join(map(repr, missing[:3]))} on this batch")
    shapes = tuple(record.inputs), tuple(record.outputs)
    return ExecutionOrder(x.shape, tuple(record.names), tuple(record.units), *shapes, (*record.joined, False))


def _enter_hook(record: _OrderRecord, name: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if record.inside is not None:
            raise InputError(f"{name!r} lies inside {record.inside!r}; units must follow one another")
        if name in record.names:
            raise InputError(f"{name!r} is used twice; a unit must be used once")
        if kwargs or len(args) != 1 or not isinstance(args[0], Tensor):
            raise InputError(f"{name!r} is not a unit: it takes more than one tensor")
        if record.names:
            record.joined.append(args[0] is record.last)
        record.inside = name
        record.names.append(name)
        record.inputs.append(args[0].shape)
        record.units.append(module)

    return hook


def _exit_hook(record: _OrderRecord, name: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        if not isinstance(out, Tensor):
            raise InputError(f"{name!r} is not a unit: it returns {type(out).__name__}, not one tensor")
        record.inside, record.last = None, out
        record.outputs.append(out.shape)

    return hook


class _ReachedUnit(BaseException):
    """Leaves the model's code at a unit. A BaseException, so that no `except Exception` there stops it."""

    def __init__(self, signal: Tensor) -> None:
        super().__init__()
        self.signal = signal


def run_from_unit(model: nn.Module, order: ExecutionOrder, x: Tensor, index: int, out: Tensor) -> Tensor:
    """Runs the model's code from unit `index` (-1: from the model's input) to the next unit, or to its end.

    Unit `index` returns `out`; units before it return zeros.
    """

    def stand_in(number: int) -> Callable[[Tensor], Tensor]:
        def forward(signal: Tensor) -> Tensor:
            if number == index:
                return out
            if number > index:
                raise _ReachedUnit(signal)
            return signal.new_zeros(order.outputs[number])

        return forward

    with ExitStack() as exchanged:
        for number, unit in enumerate(order.units):
            exchanged.enter_context(replace_forward(unit, stand_in(number)))
        try:
            result: Tensor = model(x)
        except _ReachedUnit as arrived:
            return arrived.signal
    return result


@contextmanager
def replace_forward(unit: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replaces `unit.forward` by `forward` while the context is open."""
    had = unit.__dict__.get("forward")
    unit.__dict__["forward"] = forward
    try:
        yield
    finally:
        del unit.__dict__["forward"]
        if had is not None:
            unit.__dict__["forward"] = had
