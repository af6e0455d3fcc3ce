"""A network as a chain of modules, each of one residual unit or of several, run one unit at a time.

The model's own code runs, so whatever stands before, between and behind the units takes part. `UnitChain`
stands before this file: it knows which of the units were asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kilolayer.errors import InputError
from kilolayer.measure.execution_order import (
    ExecutionOrder,
    ModuleCall,
    record_execution_order,
    replace_forward,
    run_from_unit,
    trace_unit,
)
from kilolayer.measure.part_runs import CutPoint, run_part
from kilolayer.measure.preservation import preserve_state
from kilolayer.measure.residual_reading import ResidualReading
from kilolayer.measure.residual_tracer import WeightUse
from kilolayer.measure.self_checks import check_sum, check_whole_gradient, refuse
from kilolayer.measure.unit_selection import NamedModules
from kilolayer.measure.unit_vjp import UnitVJP

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class UnitPass:
    """One unit's tensors on a batch: y = h + F, out = f(y).

    `x` is the unit's input, (N, C, H, W), and `out` its output. `h` and `F` are the operands of its addition
    as they enter it (gated, scaled, normalised); in a plain network `h` is None and F = y. `index` counts
    units from 0 and `stage` from 1: a new stage begins wherever the shape changes.
    """

    index: int
    name: str
    stage: int
    module: nn.Module
    x: Tensor
    h: Tensor | None
    F: Tensor
    y: Tensor
    out: Tensor
    h_weights: tuple[WeightUse, ...] = ()
    """The weights on the shortcut's way, and the operations that applied them."""
    h_is_input: bool = False
    """Whether h(x) is x itself."""

    @property
    def keeps_shape(self) -> bool:
        """Whether input and output have one shape, as inside a stage."""
        return self.x.shape == self.out.shape


class ModuleChain:
    """All residual units of some modules of a model; `UnitChain` has the arguments and what it raises.

    >>> from kilolayer.networks import build, describe
    >>> model = build(describe("preact_resnet8_cifar"))
    >>> from kilolayer.measure.unit_selection import find_residual_units
    >>> chain = ModuleChain(model, find_residual_units(model))
    >>> len(list(chain.forward(torch.zeros(2, 3, 32, 32))))
    3
    """

    def __init__(self, model: nn.Module, modules: NamedModules, *, training: bool = True) -> None:
        self.model, self.training = model, training
        self._named_units = modules
        self._execution_order: ExecutionOrder | None = None

    def __len__(self) -> int:
        """The number of units; before the first batch, of the modules that hold them."""
        return len(self._execution_order.names if self._execution_order else self._named_units)

    def execution_order(self, x: Tensor) -> ExecutionOrder:
        """The units in the order in which the model runs them on `x`; a module can hold several."""
        if self._execution_order is None or self._execution_order.batch != x.shape:
            names = {id(unit): name for name, unit in self._named_units}

            def trace(
                unit: nn.Module, signal: Tensor, run: Callable[[Tensor], Tensor]
            ) -> tuple[Tensor, list[ResidualReading]]:
                # With gradients: what autograd sees of a unit must be what the record shows.
                with torch.enable_grad():
                    return trace_unit(unit, signal.detach().requires_grad_(), run, names[id(unit)])

            with self._preserve(self.model, 0), torch.no_grad():
                self._execution_order = record_execution_order(self.model, self._named_units, x, trace)
        return self._execution_order

    def forward(self, x: Tensor) -> Iterator[UnitPass]:
        """Yields every unit's tensors on a batch `x`, (N, C, H, W), from the first unit on, without graph."""
        signal = self.first_input(x)
        for number, call in enumerate(self.execution_order(x).modules):
            with torch.no_grad():
                passes, out = self._unit_passes(x, call, signal)
            while passes:
                yield passes.pop(0)
            if number + 1 < len(self.execution_order(x).modules):
                with torch.no_grad():
                    signal = self.next_input(x, call.first + call.units - 1, out)

    def backward(self, x: Tensor, labels: Tensor, loss: Loss = functional.cross_entropy) -> Iterator[UnitVJP]:
        """Yields every unit's vector-Jacobian products on a batch, from the last unit to the first.

        `x` is (N, C, H, W) and `labels` (N,); ε is `loss` of the model's output and the labels. Every unit is
        checked, its gradient's two terms against the whole one, and at the end the gradient at the first
        unit against the one that autograd finds in the whole model at once.
        """
        modules = self.execution_order(x).modules
        count, stride = len(modules), self._stride(x)
        checkpoints, out = self._checkpoints(x, stride)
        gradient = self.loss_gradient(x, out, labels, loss)
        del out
        for first in reversed(range(0, count, stride)):
            inputs = self._inputs(x, modules[first : first + stride], checkpoints.pop())
            for number in reversed(range(first, first + len(inputs))):
                units = self._unit_vjps(x, modules[number], inputs.pop(), gradient)
                for unit in units:
                    unit.check()
                    yield unit
                    gradient = unit.input_gradient
                    del unit
                del units
        check_whole_gradient(modules[0].name, gradient, self.whole_gradient(x, labels, loss))

    def whole_gradient(self, x: Tensor, labels: Tensor, loss: Loss = functional.cross_entropy) -> Tensor:
        """∂ε/∂x_0 by one backward pass through the whole model, which computes its units twice again.

        Modules that follow one another are recomputed together, and then one by one, so that no more inputs
        are in memory than `backward` keeps.
        """
        order, stride = self.execution_order(x), self._stride(x)
        leaf: list[Tensor] = []
        with ExitStack() as exchanged:
            for first in range(0, len(order.modules), stride):
                calls = order.modules[first : first + stride]
                joined = all(order.feeds_next[call.first + call.units - 1] for call in calls[:-1])
                for group in [calls] if joined else [[call] for call in calls]:
                    stand_ins = (self._recomputed(group, leaf), *[_first_argument] * (len(group) - 1))
                    for call, stand_in in zip(group, stand_ins, strict=True):
                        exchanged.enter_context(replace_forward(call.module, stand_in))
            with self._preserve(self.model, 0), torch.enable_grad():
                error = loss(self.model(x), labels)
                return torch.autograd.grad(error, leaf[0])[0]

    def _recomputed(self, calls: Sequence[ModuleCall], leaf: list[Tensor]) -> Callable[..., Tensor]:
        """The modules of `calls` in turn, computed again in the backward pass; `leaf` gets x_0."""
        runs = [partial(self._run_forward, call, call.module.forward) for call in calls]

        def forward(signal: Tensor, *_: Any, **__: Any) -> Tensor:
            if not leaf:
                leaf.append(signal.detach().requires_grad_())
                signal = leaf[0]
            out: Tensor = _Recomputed.apply(signal, runs)  # type: ignore[no-untyped-call]
            return out

        return forward

    def _run_forward(self, call: ModuleCall, forward: Callable[..., Tensor], signal: Tensor) -> Tensor:
        with self._preserve(call.module, self._number(call) + 1):
            return call.with_module(forward)(signal.clone())

    def _number(self, call: ModuleCall) -> int:
        assert self._execution_order is not None  # noqa: S101 - a batch was seen
        return self._execution_order.places[call.first][0]

    def _stride(self, x: Tensor) -> int:
        """√L, rounded up."""
        count = len(self.execution_order(x).modules)
        return math.isqrt(count - 1) + 1 if count > 1 else 1

    def loss_gradient(
        self, x: Tensor, out: Tensor, labels: Tensor, loss: Loss = functional.cross_entropy
    ) -> Tensor:
        """∂ε/∂x_L for x_L = `out`, the last unit's output."""
        leaf = out.detach().requires_grad_()
        with torch.enable_grad():
            error = loss(self.next_input(x, len(self) - 1, leaf), labels)
            return torch.autograd.grad(error, leaf)[0]

    def first_input(self, x: Tensor) -> Tensor:
        """x_0, the input of the first unit."""
        with torch.no_grad():
            return self._run_from(x, -1, x)

    def next_input(self, x: Tensor, index: int, out: Tensor) -> Tensor:
        """The next unit's input, where unit `index` puts out `out`; at the end, the model's output.

        Mostly output and next input are one tensor. Where something stands between, the model's code runs.
        """
        return out if self.execution_order(x).feeds_next[index] else self._run_from(x, index, out)

    def run_unit(self, x: Tensor, index: int, signal: Tensor) -> Tensor:
        """The output of unit `index` on its input `signal`, with gradients if the caller has enabled them."""
        order = self.execution_order(x)
        number, part = order.places[index]
        call = order.modules[number]
        with self._preserve(call.module, number + 1):
            if call.units == 1:
                return call.run(signal.clone())
            start, stop = (*call.cuts, None)[part - 1] if part else None, (*call.cuts, None)[part]
            try:
                return run_part(call.run, signal.new_zeros(call.input), start, signal.clone(), stop)
            except InputError as error:
                raise refuse(call.name, str(error)) from None

    def _preserve(self, module: nn.Module, seed: int) -> AbstractContextManager[None]:
        return preserve_state(module, training=self.training, seed=seed)

    def _run_from(self, x: Tensor, index: int, out: Tensor) -> Tensor:
        order = self.execution_order(x)
        with self._preserve(self.model, len(self) + 2 + index):
            return run_from_unit(self.model, order, x, index, out)

    def _unit_passes(self, x: Tensor, call: ModuleCall, signal: Tensor) -> tuple[list[UnitPass], Tensor]:
        """The units of one module, and its output."""
        out, readings = self._run_traced(call, signal)
        passes: list[UnitPass] = []
        try:
            for part, reading in enumerate(readings):
                unit_input = passes[-1].out if passes else signal
                h, F = reading.terms()
                y, output = reading.y.value(), reading.out.value()
                check_sum(self._location(call.first + part)[1], h, F, y)
                passes.append(
                    UnitPass(
                        *self._location(call.first + part),
                        unit_input,
                        h,
                        F,
                        output if reading.y is reading.out else y,
                        output,
                        reading.h_weights,
                        reading.h_is_input,
                    )
                )
        except InputError as error:
            raise error if str(error).startswith("'") else refuse(call.name, str(error)) from None
        return passes, out

    def _location(self, index: int) -> tuple[int, str, int, nn.Module]:
        assert self._execution_order is not None  # noqa: S101 - a batch was seen
        return (
            index,
            self._execution_order.names[index],
            self._execution_order.stages[index],
            self._execution_order.units[index],
        )

    def _run_traced(self, call: ModuleCall, signal: Tensor) -> tuple[Tensor, list[ResidualReading]]:
        """(the module's output, its readings)."""
        with self._preserve(call.module, self._number(call) + 1):
            out, readings = trace_unit(call.module, signal, call.run, call.name)
        if tuple(CutPoint.of(reading.out) for reading in readings[:-1]) != call.cuts:
            raise refuse(call.name, "its additions differ from one run to the next")
        return out, readings

    def _unit_vjps(self, x: Tensor, call: ModuleCall, signal: Tensor, gradient: Tensor) -> Iterator[UnitVJP]:
        """One module's units linearised, the last one first; `gradient` is at the next module's input."""
        leaf = signal.detach().requires_grad_()
        with torch.enable_grad():
            out, readings = self._run_traced(call, leaf)
        last = call.first + call.units - 1
        to_output = self._vjp_to_output(x, last, out)

        def units() -> Iterator[UnitVJP]:
            pullback, at_output = to_output, to_output(gradient)
            for part in reversed(range(len(readings))):
                unit = UnitVJP(*self._location(call.first + part), readings[part], at_output, pullback)
                yield unit
                pullback, at_output = _unchanged, unit.input_gradient

        return units()

    def _vjp_to_output(self, x: Tensor, index: int, out: Tensor) -> Callable[[Tensor], Tensor]:
        if index + 1 == len(self) or self.execution_order(x).feeds_next[index]:
            return _unchanged
        leaf = out.detach().requires_grad_()
        with torch.enable_grad():
            signal = self._run_from(x, index, leaf)
        return lambda vector: torch.autograd.grad(signal, leaf, vector, retain_graph=True)[0]

    @torch.no_grad()
    def _checkpoints(self, x: Tensor, stride: int) -> tuple[list[Tensor], Tensor]:
        """The input of every `stride`-th module, and the last unit's output."""
        signal, checkpoints = self.first_input(x), []
        modules = self.execution_order(x).modules
        for number, call in enumerate(modules):
            if number % stride == 0:
                checkpoints.append(signal)
            signal = self._run_module(number, call, signal)
            if number + 1 < len(modules):
                signal = self.next_input(x, call.first + call.units - 1, signal)
        return checkpoints, signal

    @torch.no_grad()
    def _inputs(self, x: Tensor, calls: Sequence[ModuleCall], signal: Tensor) -> list[Tensor]:
        """The inputs of modules that follow one another, of which the first has the input `signal`."""
        inputs = [signal]
        for call in calls[:-1]:
            out = self._run_module(self._number(call), call, signal)
            signal = self.next_input(x, call.first + call.units - 1, out)
            inputs.append(signal)
        return inputs

    def _run_module(self, number: int, call: ModuleCall, signal: Tensor) -> Tensor:
        with self._preserve(call.module, number + 1):
            return call.run(signal.clone())


def _unchanged(vector: Tensor) -> Tensor:
    return vector


def _first_argument(signal: Tensor, *_: Any, **__: Any) -> Tensor:
    return signal


class _Recomputed(torch.autograd.Function):
    """Functions in turn, of which the first one's input alone is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, signal: Tensor, runs: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
        ctx.save_for_backward(signal)
        ctx.runs = runs
        for run in runs:
            signal = run(signal)
        return signal

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,), inputs = gradients, list(ctx.saved_tensors)
        with torch.no_grad():
            for run in ctx.runs[:-1]:
                inputs.append(run(inputs[-1]))
        for run in reversed(ctx.runs):
            leaf = inputs.pop().detach().requires_grad_()
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(run(leaf), leaf, gradient)
        return gradient, None
