"""The order in which a model runs its units, and how to run it from one unit to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from kilolayer.errors import InputError
from kilolayer.measure.part_runs import CutPoint
from kilolayer.measure.residual_reading import ResidualReading, read_residuals
from kilolayer.measure.residual_tracer import (
    SHAPE_FUNCTIONS,
    ResidualTracer,
    function_leaves,
    overwritten_tensor,
)
from kilolayer.measure.residual_tracer import function_name as name_of
from kilolayer.measure.self_checks import refuse
from kilolayer.measure.unit_selection import NamedModules
from kilolayer.units import ResidualUnit
from kilolayer.units.layer_modules import ZeroModule


@dataclass(frozen=True)
class ModuleCall:
    """One module of a model, as the model calls it on a batch: one unit, or several in turn.

    `first` is the number of its first unit, `cuts` the places between its units. `other_arguments` and
    `options` are the arguments behind the signal.
    """

    name: str
    module: nn.Module
    first: int
    input: torch.Size
    cuts: tuple[CutPoint, ...]
    other_arguments: tuple[Any, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def units(self) -> int:
        """The number of its units."""
        return len(self.cuts) + 1

    def run(self, signal: Tensor) -> Tensor:
        """The module's output."""
        return self.with_module(self.module)(signal)

    def with_module(self, function: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        """`function` of the signal and of the other arguments of the call."""
        return lambda signal: function(signal, *self.other_arguments, **dict(self.options))


@dataclass(frozen=True)
class ExecutionOrder:
    """The units as the model runs them on a batch of shape `batch`.

    `inputs[l]` and `outputs[l]` are the shapes of unit l's input and output. `feeds_next[l]`: its output is
    the very tensor that unit l+1 reads, with nothing between them. A module of several units stands in
    `units` several times, and its units are called `name[1]`, `name[2]`, …
    """

    batch: torch.Size
    names: tuple[str, ...]
    units: tuple[nn.Module, ...]
    inputs: tuple[torch.Size, ...]
    outputs: tuple[torch.Size, ...]
    feeds_next: tuple[bool, ...]
    modules: tuple[ModuleCall, ...] = ()
    places: tuple[tuple[int, int], ...] = ()
    """Of every unit, the number of its module, and its own number in there."""

    @cached_property
    def stages(self) -> tuple[int, ...]:
        """Every unit's stage, from 1. A new stage begins wherever the shape changes."""
        stage, stages = 1, []
        for index, (before, after) in enumerate(zip(self.inputs, self.outputs, strict=True)):
            stage += index > 0 and not before == after == self.outputs[index - 1]
            stages.append(stage)
        return tuple(stages)

    def of_units(self, numbers: Sequence[int]) -> ExecutionOrder:
        """The same with these units alone; `modules` stay all of them."""
        if len(numbers) == len(self.names):
            return self
        feeds = [
            self.feeds_next[number] and following == number + 1
            for number, following in pairwise((*numbers, len(self.names)))
        ]
        return replace(
            self,
            names=tuple(self.names[number] for number in numbers),
            units=tuple(self.units[number] for number in numbers),
            inputs=tuple(self.inputs[number] for number in numbers),
            outputs=tuple(self.outputs[number] for number in numbers),
            feeds_next=tuple(feeds),
            places=tuple(self.places[number] for number in numbers),
        )


@dataclass
class _OrderRecord:
    units: NamedModules
    sources: _SignalSources
    trace: Callable[[nn.Module, Tensor, Callable[[Tensor], Tensor]], tuple[Tensor, list[ResidualReading]]]
    calls: list[ModuleCall] = field(default_factory=list)
    inputs: list[torch.Size] = field(default_factory=list)
    outputs: list[torch.Size] = field(default_factory=list)
    feeds_next: list[bool] = field(default_factory=list)
    inside: str | None = None
    last: Tensor | None = None


class _SignalSources(TorchFunctionMode):
    """Follows, while active, which units' outputs a tensor is computed from."""

    def __init__(self) -> None:
        super().__init__()
        self._sources: Any = WeakIdKeyDictionary()

    def of(self, tensor: Any) -> frozenset[int]:
        """The numbers of the modules whose outputs took part; -1 stands for the first one's input."""
        producers: frozenset[int] = self._sources.get(tensor, frozenset())
        return producers

    def set(self, tensor: Tensor, sources: frozenset[int]) -> None:
        self._sources[tensor] = sources

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if name_of(func) in SHAPE_FUNCTIONS:
            return out
        sources: frozenset[int] = frozenset()
        for leaf in function_leaves(args, kwargs):
            if isinstance(leaf, Tensor) and leaf in self._sources:
                sources |= self._sources[leaf]
        if sources:
            written = overwritten_tensor(name_of(func), args, kwargs)
            for leaf in (*function_leaves((out,), {}), written):
                if isinstance(leaf, Tensor):
                    self._sources[leaf] = sources
            if written is not None and written._base is not None:
                self._sources[written._base] = self.of(written._base) | sources
        return out


def record_execution_order(
    model: nn.Module,
    units: NamedModules,
    x: Tensor,
    trace: Callable[[nn.Module, Tensor, Callable[[Tensor], Tensor]], tuple[Tensor, list[ResidualReading]]],
) -> ExecutionOrder:
    """Runs the model once on `x`, reads every unit, and proves that they form a chain.

    Args:
        model: the model.
        units: its units.
        x: a batch.
        trace: runs a module on a signal, and returns its output with its reading.

    Raises:
        InputError: a unit is unused, used twice, inside another, does not map one tensor to one tensor, or
            cannot be read exactly; or something reads the output of an earlier unit beside the last one's.
    """
    sources = _SignalSources()
    record = _OrderRecord(units, sources, trace)
    with ExitStack() as exchanged:
        for name, unit in units:
            exchanged.enter_context(replace_forward(unit, _traced_forward(record, name, unit)))
        with sources:
            out = model(x)
    used = {call.name for call in record.calls}
    if missing := [name for name, _ in units if name not in used]:
        raise InputError(f"the network does not use {', '.join(map(repr, missing[:3]))} on this batch")
    _check_head(record, out)
    return _order(record, x.shape)


def _check_head(record: _OrderRecord, out: Any) -> None:
    """The model's output must come from the last unit's alone."""
    producers: frozenset[int] = frozenset()
    for leaf in function_leaves((out,), {}):
        producers |= record.sources.of(leaf)
    last = len(record.calls) - 1
    if not producers:
        raise InputError(
            f"the network's output cannot be followed back to its last unit, {record.calls[last].name!r}: "
            f"it is "
            "computed by code whose operations cannot be seen (compiled, scripted, or an extension)"
        )
    if earlier := sorted(producers - {last}):
        raise InputError(
            f"the network's output also reads {_names(record, earlier)}, beside the output of its last unit, "
            f"{record.calls[last].name!r}: paths around units cannot be read yet"
        )


def _names(record: _OrderRecord, numbers: Sequence[int]) -> str:
    names = [
        "the first unit's input" if n < 0 else f"the output of {record.calls[n].name!r}" for n in numbers
    ]
    return ", ".join(names[:3]) + (f" and of {len(names) - 3} more" if len(names) > 3 else "")


def _order(record: _OrderRecord, batch: torch.Size) -> ExecutionOrder:
    names, modules, feeds, places = [], [], [], []
    for number, (call, joined) in enumerate(zip(record.calls, (*record.feeds_next, False), strict=True)):
        for part in range(call.units):
            names.append(f"{call.name}[{part + 1}]" if call.units > 1 else call.name)
            modules.append(call.module)
            feeds.append(part + 1 < call.units or joined)
            places.append((number, part))
    return ExecutionOrder(
        batch,
        tuple(names),
        tuple(modules),
        tuple(record.inputs),
        tuple(record.outputs),
        tuple(feeds),
        tuple(record.calls),
        tuple(places),
    )


def _traced_forward(record: _OrderRecord, name: str, unit: nn.Module) -> Callable[..., Tensor]:
    original = unit.forward

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        if record.inside is not None:
            raise InputError(f"{name!r} lies inside {record.inside!r}; units must follow one another")
        if any(call.name == name for call in record.calls):
            raise InputError(f"{name!r} is used twice; a unit must be used once")
        extra = function_leaves(args[1:], kwargs)
        if not args or not isinstance(args[0], Tensor) or any(isinstance(leaf, Tensor) for leaf in extra):
            raise InputError(f"{name!r} is not a unit: it takes more than one tensor, or none")
        signal, number = args[0], len(record.calls)
        if number:
            _check_feeds(record, name, signal)
            record.feeds_next.append(signal is record.last)
        else:
            record.sources.set(signal, frozenset((-1,)))
        expected = record.sources.of(signal)
        record.inside = name
        out, readings = record.trace(unit, signal, lambda x: original(x, *args[1:], **kwargs))
        record.inside = None
        if earlier := sorted(record.sources.of(out) - expected):
            raise refuse(name, f"it also reads {_names(record, earlier)}, beside its input")
        cuts = tuple(CutPoint.of(reading.out) for reading in readings[:-1])
        first = sum(call.units for call in record.calls)
        other_arguments = tuple(sorted(kwargs.items()))
        record.calls.append(
            ModuleCall(name, unit, first, signal.shape, cuts, tuple(args[1:]), other_arguments)
        )
        record.inputs += [reading.x.shape for reading in readings]
        record.outputs += [reading.out.shape for reading in readings]
        result = out.detach()
        record.sources.set(result, frozenset((number,)))
        record.last = result
        return result

    return forward


def _check_feeds(record: _OrderRecord, name: str, signal: Tensor) -> None:
    producers, last = record.sources.of(signal), len(record.calls) - 1
    if not producers:
        raise refuse(
            name,
            f"its input cannot be followed back to the unit before it, {record.calls[last].name!r}; "
            f"units must "
            "follow one another",
        )
    if earlier := sorted(producers - {last}):
        raise refuse(
            name,
            f"its input also reads {_names(record, earlier)}"
            + (f", beside the output of {record.calls[last].name!r}" if last in producers else "")
            + ": weighted sums over earlier outputs, and skips around units, cannot be read yet",
        )


def trace_unit(
    unit: nn.Module, signal: Tensor, run: Callable[[Tensor], Tensor], name: str
) -> tuple[Tensor, list[ResidualReading]]:
    """Runs a unit's module on `signal`: (its output, its readings).

    Raises:
        InputError: the module does not return one tensor, or cannot be read exactly.
    """
    unit_input = signal.clone()  # a unit may begin with an in-place operation
    tracer = ResidualTracer(unit_input)
    with tracer:
        out = run(unit_input)
    if not isinstance(out, Tensor):
        raise InputError(f"{name!r} is not a unit: it returns {type(out).__name__}, not one tensor")
    try:
        readings = read_residuals(tracer, out, is_plain=_is_plain(unit))
    except InputError as error:
        raise refuse(name, str(error)) from None
    if torch.is_grad_enabled() and unit_input.requires_grad:
        for reading in readings:
            if gap := reading.gap():
                raise refuse(name, gap)
    return out, readings


def _is_plain(unit: nn.Module) -> bool:
    return isinstance(unit, ResidualUnit) and any(isinstance(part, ZeroModule) for part in unit.h)


class _ReachedUnit(BaseException):
    """Leaves the model's code at a unit. A BaseException, so that no `except Exception` there stops it."""

    def __init__(self, signal: Tensor) -> None:
        super().__init__()
        self.signal = signal


def run_from_unit(model: nn.Module, order: ExecutionOrder, x: Tensor, index: int, out: Tensor) -> Tensor:
    """Runs the model's code from unit `index` (-1: from the model's input) to the next module, or to its end.

    The module of unit `index` returns `out`; modules before it return zeros.
    """
    current = -1 if index < 0 else order.places[index][0]

    def stand_in(number: int) -> Callable[..., Tensor]:
        def forward(signal: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if number == current:
                return out
            if number > current:
                raise _ReachedUnit(signal)
            call = order.modules[number]
            return signal.new_zeros(order.outputs[call.first + call.units - 1])

        return forward

    with ExitStack() as exchanged:
        for number, call in enumerate(order.modules):
            exchanged.enter_context(replace_forward(call.module, stand_in(number)))
        try:
            result: Tensor = model(x)
        except _ReachedUnit as arrived:
            return arrived.signal
    return result


@contextmanager
def replace_forward(unit: nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Replaces `unit.forward` by `forward` while the context is open."""
    had = unit.__dict__.get("forward")
    unit.__dict__["forward"] = forward
    try:
        yield
    finally:
        del unit.__dict__["forward"]
        if had is not None:
            unit.__dict__["forward"] = had
