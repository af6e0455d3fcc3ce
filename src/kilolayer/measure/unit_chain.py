"""A network as a chain of residual units, Kilolayer's or anybody's, run one unit at a time.

    chain = UnitChain(model)                        # or UnitChain(model, ["layer?.*"]) for a foreign model
    for unit in chain.forward(x):                   # from the first unit to the last
        unit.name, unit.x, unit.h, unit.F, unit.y, unit.out
    for unit in chain.backward(x, labels):          # from the last unit to the first
        unit.output_gradient, unit.input_gradient, unit.total(v), unit.shortcut(v), unit.branch(v)

The model's own code runs, so whatever stands before, between and behind the units takes part. Memory:
forward holds one unit's activations; backward keeps the input of every √L-th unit and recomputes the others,
so of L units it holds at most 2√L inputs and one unit's activations. Between two units the model is
unchanged: weights, gradients, running statistics, modes and random number generators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from kilolayer.measure.execution_order import ExecutionOrder, record_execution_order, run_from_unit
from kilolayer.measure.preservation import preserve_state
from kilolayer.measure.residual_tracer import Addition, ResidualTracer, WeightUse
from kilolayer.measure.unit_selection import find_residual_units
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


class UnitChain:
    """The residual units of a model, to be run forward or backward one at a time.

    Args:
        model: any module; it is left as it was.
        units: the names of the modules that are its units, or patterns such as "layer?.*"; needed in a model
            without Kilolayer's `ResidualUnit` modules (see `find_residual_units`).
        training: run in training mode, where BN uses the batch's statistics; off, BN uses its running ones.

    Raises:
        InputError: there are no units, or one of them takes or returns anything but one tensor, is used
            twice, not at all, or inside another.

    >>> from kilolayer.networks import build, describe
    >>> chain = UnitChain(build(describe("preact_resnet8_cifar")))
    >>> [(unit.stage, tuple(unit.out.shape)) for unit in chain.forward(torch.zeros(2, 3, 32, 32))]
    [(1, (2, 16, 32, 32)), (2, (2, 32, 16, 16)), (3, (2, 64, 8, 8))]
    """

    def __init__(self, model: nn.Module, units: Sequence[str] = (), *, training: bool = True) -> None:
        # A compiled model would not notice that its units' forward is replaced.
        self.model: nn.Module = getattr(model, "_orig_mod", model)
        self.training = training
        self._named_units = find_residual_units(self.model, units)
        self._execution_order: ExecutionOrder | None = None

    def __len__(self) -> int:
        return len(self._named_units)

    def execution_order(self, x: Tensor) -> ExecutionOrder:
        """The units in the order in which the model runs them on `x`."""
        if self._execution_order is None or self._execution_order.batch != x.shape:
            with self._preserve(self.model, 0), torch.no_grad():
                self._execution_order = record_execution_order(self.model, self._named_units, x)
        return self._execution_order

    @property
    def names(self) -> tuple[str, ...]:
        """The units' names in execution order; before the first batch, in the order of registration."""
        return (
            self._execution_order.names
            if self._execution_order
            else tuple(name for name, _ in self._named_units)
        )

    def forward(self, x: Tensor) -> Iterator[UnitPass]:
        """Yields every unit's tensors on a batch `x`, (N, C, H, W), from the first unit on, without graph."""
        signal = self.first_input(x)
        for index in range(len(self)):
            unit_pass = self._unit_pass(index, signal)
            yield unit_pass
            if index + 1 < len(self):
                with torch.no_grad():
                    signal = self.next_input(x, index, unit_pass.out)

    def backward(self, x: Tensor, labels: Tensor, loss: Loss = functional.cross_entropy) -> Iterator[UnitVJP]:
        """Yields every unit's vector-Jacobian products on a batch, from the last unit to the first.

        `x` is (N, C, H, W) and `labels` (N,); ε is `loss` of the model's output and the labels.
        """
        count = len(self)
        stride = math.isqrt(count - 1) + 1 if count > 1 else 1
        checkpoints, out = self._checkpoints(x, stride)
        gradient = self.loss_gradient(x, out, labels, loss)
        for first in reversed(range(0, count, stride)):
            inputs = self._inputs(x, first, min(first + stride, count), checkpoints.pop())
            for index in reversed(range(first, first + len(inputs))):
                unit = self._unit_vjp(x, index, inputs.pop(), gradient)
                yield unit
                gradient = unit.input_gradient
                del unit

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
        unit = self.execution_order(x).units[index]
        with self._preserve(unit, index + 1):
            out: Tensor = unit(signal)
        return out

    def _preserve(self, module: nn.Module, seed: int) -> AbstractContextManager[None]:
        return preserve_state(module, training=self.training, seed=seed)

    def _run_from(self, x: Tensor, index: int, out: Tensor) -> Tensor:
        order = self.execution_order(x)
        with self._preserve(self.model, len(self) + 2 + index):
            return run_from_unit(self.model, order, x, index, out)

    @torch.no_grad()
    def _unit_pass(self, index: int, signal: Tensor) -> UnitPass:
        out, addition = self._run_traced(index, signal)
        if addition is None or addition.y is None or addition.branch.value is None:
            return UnitPass(*self._location(index), signal, None, out, out, out)
        h, F, y = addition.shortcut, addition.branch.value, out if addition.is_result(out) else addition.y
        return UnitPass(*self._location(index), signal, h.value, F, y, out, h.lineage.weights, h.is_input)

    def _location(self, index: int) -> tuple[int, str, int, nn.Module]:
        assert self._execution_order is not None  # noqa: S101 - a batch was seen
        return (
            index,
            self._execution_order.names[index],
            self._execution_order.stages[index],
            self._execution_order.units[index],
        )

    def _run_traced(self, index: int, signal: Tensor) -> tuple[Tensor, Addition | None]:
        unit = self._location(index)[3]
        unit_input = signal.clone()  # a unit may begin with an in-place operation
        tracer = ResidualTracer(unit_input)
        with self._preserve(unit, index + 1), tracer:
            out: Tensor = unit(unit_input)
        return out, tracer.addition(out.shape)

    def _unit_vjp(self, x: Tensor, index: int, signal: Tensor, gradient: Tensor) -> UnitVJP:
        """Unit `index` linearised; `gradient` is ∂ε/∂x of the next unit, or ∂ε/∂x_L."""
        leaf = signal.detach().requires_grad_()
        with torch.enable_grad():
            out, addition = self._run_traced(index, leaf)
        to_output = self._vjp_to_output(x, index, out)
        return UnitVJP(*self._location(index), leaf, out, to_output(gradient), addition, to_output)

    def _vjp_to_output(self, x: Tensor, index: int, out: Tensor) -> Callable[[Tensor], Tensor]:
        if index + 1 == len(self) or self.execution_order(x).feeds_next[index]:
            return lambda vector: vector
        leaf = out.detach().requires_grad_()
        with torch.enable_grad():
            signal = self._run_from(x, index, leaf)
        return lambda vector: torch.autograd.grad(signal, leaf, vector, retain_graph=True)[0]

    @torch.no_grad()
    def _checkpoints(self, x: Tensor, stride: int) -> tuple[list[Tensor], Tensor]:
        """The input of every `stride`-th unit, and the last unit's output."""
        signal, checkpoints = self.first_input(x), []
        for index in range(len(self)):
            if index % stride == 0:
                checkpoints.append(signal)
            out = self.run_unit(x, index, signal)
            signal = out if index + 1 == len(self) else self.next_input(x, index, out)
        return checkpoints, signal

    @torch.no_grad()
    def _inputs(self, x: Tensor, first: int, end: int, signal: Tensor) -> list[Tensor]:
        """The inputs of units `first` … `end`-1."""
        inputs = [signal]
        for index in range(first, end - 1):
            signal = self.next_input(x, index, self.run_unit(x, index, signal))
            inputs.append(signal)
        return inputs
