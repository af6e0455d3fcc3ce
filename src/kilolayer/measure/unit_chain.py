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

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from kilolayer.measure.execution_order import ExecutionOrder
from kilolayer.measure.module_chain import Loss, ModuleChain, UnitPass
from kilolayer.measure.unit_selection import check_additions, find_residual_units, named_additions
from kilolayer.measure.unit_vjp import Pullback, UnitVJP

__all__ = ["Loss", "UnitChain", "UnitPass"]


class UnitChain:
    """The residual units of a model, to be run forward or backward one at a time.

    Units that were not asked for, as the second addition of a block of which only `blocks.3[1]` is named,
    stand between the others like any layer of the model. They are read and checked all the same.

    Args:
        model: any module; it is left as it was.
        units: the names of the modules that are its units, or patterns such as "layer?.*", or some additions
            of theirs, as "blocks.3[1]" or "blocks.*[2]"; needed in a model without Kilolayer's
            `ResidualUnit` modules (see `find_residual_units`).
        training: run in training mode, where BN uses the batch's statistics; off, BN uses its running ones.

    Raises:
        InputError: there are no units, or one of them takes or returns anything but one tensor, is used
            twice, not at all, or inside another; or it cannot be read exactly (see `read_residuals`), or
            something reads the output of an earlier unit; or the numbers break one of the laws that hold
            for units (see `kilolayer.measure.self_checks`).

    >>> from kilolayer.networks import build, describe
    >>> chain = UnitChain(build(describe("preact_resnet8_cifar")))
    >>> [(unit.stage, tuple(unit.out.shape)) for unit in chain.forward(torch.zeros(2, 3, 32, 32))]
    [(1, (2, 16, 32, 32)), (2, (2, 32, 16, 16)), (3, (2, 64, 8, 8))]
    """

    def __init__(self, model: nn.Module, units: Sequence[str] = (), *, training: bool = True) -> None:
        # A compiled model would not notice that its units' forward is replaced.
        self.model: nn.Module = getattr(model, "_orig_mod", model)
        self.training = training
        self._named = find_residual_units(self.model, units)
        self._additions = named_additions(self.model, units)
        self._all = ModuleChain(self.model, self._named, training=training)
        self._order: ExecutionOrder | None = None
        self._numbers: tuple[int, ...] = ()

    def __len__(self) -> int:
        """The number of units; before the first batch, of the modules that hold them."""
        return len(self._order.names if self._order else self._named)

    def execution_order(self, x: Tensor) -> ExecutionOrder:
        """The units in the order in which the model runs them on `x`; a module can hold several."""
        order = self._all.execution_order(x)
        if self._order is None or self._order.batch != order.batch:
            check_additions(self._additions, {call.name: call.units for call in order.modules})
            self._numbers = tuple(
                index
                for index, (number, part) in enumerate(order.places)
                if part + 1 in self._additions.get(order.modules[number].name, (part + 1,))
            )
            self._order = order.of_units(self._numbers)
        return self._order

    @property
    def names(self) -> tuple[str, ...]:
        """The units' names in execution order; before the first batch, in the order of registration."""
        return self._order.names if self._order else tuple(name for name, _ in self._named)

    def forward(self, x: Tensor) -> Iterator[UnitPass]:
        """Yields every unit's tensors on a batch `x`, (N, C, H, W), from the first unit on, without graph."""
        order = self.execution_order(x)
        places = {number: index for index, number in enumerate(self._numbers)}
        for unit in self._all.forward(x):
            index = places.get(unit.index)
            if index is not None:
                yield replace(unit, index=index, stage=order.stages[index])

    def backward(self, x: Tensor, labels: Tensor, loss: Loss = functional.cross_entropy) -> Iterator[UnitVJP]:
        """Yields every unit's vector-Jacobian products on a batch, from the last unit to the first.

        `x` is (N, C, H, W) and `labels` (N,); ε is `loss` of the model's output and the labels. Every unit is
        checked: its gradient's two terms must be the whole one. After the last one the gradient at its input
        must be that of the whole model at once.
        """
        order = self.execution_order(x)
        places = {number: index for index, number in enumerate(self._numbers)}
        between: list[UnitVJP] = []
        for unit in self._all.backward(x, labels, loss):
            index = places.get(unit.index)
            if index is None:
                between.append(unit)
                continue
            if between:
                unit.to_output = _through(between, unit)
                between = []
            unit.index, unit.stage = index, order.stages[index]
            yield unit
            del unit

    def first_input(self, x: Tensor) -> Tensor:
        """x_0, the input of the first unit."""
        self.execution_order(x)
        signal = self._all.first_input(x)
        with torch.no_grad():
            return self._run_to(x, self._numbers[0], 0, signal)

    def next_input(self, x: Tensor, index: int, out: Tensor) -> Tensor:
        """The next unit's input, where unit `index` puts out `out`; at the end, the model's output.

        Mostly output and next input are one tensor. Where something stands between, the model's code runs.
        """
        self.execution_order(x)
        number = self._numbers[index]
        following = (*self._numbers, len(self._all))[index + 1]
        return self._run_to(x, following, number + 1, self._all.next_input(x, number, out))

    def run_unit(self, x: Tensor, index: int, signal: Tensor) -> Tensor:
        """The output of unit `index` on its input `signal`, with gradients if the caller has enabled them."""
        self.execution_order(x)
        return self._all.run_unit(x, self._numbers[index], signal)

    def _run_to(self, x: Tensor, number: int, first: int, signal: Tensor) -> Tensor:
        """The input of unit `number` of all, where that of unit `first` is `signal`."""
        for between in range(first, number):
            signal = self._all.next_input(x, between, self._all.run_unit(x, between, signal))
        return signal


def _through(between: Sequence[UnitVJP], unit: UnitVJP) -> Pullback:
    """Takes a gradient at the input of the unit behind `between`, the last one first, to `unit`'s output."""
    steps, to_output = tuple(between), unit.to_output

    def pullback(vector: Tensor) -> Tensor:
        for step in steps:
            vector = step.total(step.to_output(vector))
        return to_output(vector)

    return pullback
