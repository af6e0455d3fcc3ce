"""A network cut at its residual units, ours or anybody's, and passed through one unit at a time.

    chain = Chain(model)                            # or Chain(foreign, ["layer?.*"])
    for unit in chain.forward(x):                   # from the first unit to the last
        unit.name, unit.x, unit.h, unit.F, unit.y, unit.out
    for unit in chain.backward(x, labels):          # from the last unit to the first
        unit.gradient, unit.at_input, unit.whole(v), unit.shortcut(v), unit.branch(v)

The model's own code is run, so that whatever stands before, between and behind the units is part of it.
Forward holds one unit's activations; backward keeps the input of every √L-th unit and computes the rest
again, so of L units it never holds more than 2√L inputs and one unit's activations. Between two units the
model is as it was: weights, gradients, running statistics, modes and the generators of random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from kilolayer.analysis.addition import Addition, Watch
from kilolayer.analysis.linear import UnitGradient
from kilolayer.analysis.order import Order, find_order, model_from
from kilolayer.analysis.undisturbed import undisturbed
from kilolayer.analysis.units import residual_units

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class UnitPass:
    """A unit at work on a batch: y = h + F, out = f(y).

    `x` is its input and `out` its output. `h` and `F` are the two sides of its addition as they enter
    it (gated, scaled, normalised); in a plain net `h` is None and F = y. `index` counts from 0, `stage`
    from 1: a new one begins wherever the shape changes.
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
    h_weights: tuple[nn.Parameter, ...] = ()
    """The weights that the shortcut goes through."""
    h_is_input: bool = False
    """Whether h is x itself."""

    @property
    def keeps_shape(self) -> bool:
        """Whether the unit stands inside a stage: its input and output have one shape."""
        return self.x.shape == self.out.shape


class Chain:
    """The units of `model` as a chain, in training mode (batch statistics) unless `training` is off.

    `units`: which modules they are, in a model that is not ours (see `residual_units`). Each must take
    one tensor, return one, and be used once, one after the other; `InputError` says which does not.
    """

    def __init__(self, model: nn.Module, units: Sequence[str] = (), *, training: bool = True) -> None:
        # A compiled model would not see that its units are exchanged.
        self.model: nn.Module = getattr(model, "_orig_mod", model)
        self.training = training
        self._named = residual_units(self.model, units)
        self._order: Order | None = None

    def __len__(self) -> int:
        return len(self._named)

    def order(self, x: Tensor) -> Order:
        """The units in the order in which the model uses them on `x`."""
        if self._order is None or self._order.batch != x.shape:
            with self._quiet(self.model, 0), torch.no_grad():
                self._order = find_order(self.model, self._named, x)
        return self._order

    @property
    def names(self) -> tuple[str, ...]:
        """The units' names: in the order of use once a batch was seen, before in that of registration."""
        return self._order.names if self._order else tuple(name for name, _ in self._named)

    def forward(self, x: Tensor) -> Iterator[UnitPass]:
        """Every unit's pass on the batch `x`, from the first to the last, without gradients."""
        signal = self.enter(x)
        for index in range(len(self)):
            passed = self._passed(index, signal)
            yield passed
            if index + 1 < len(self):
                with torch.no_grad():
                    signal = self.leave(x, index, passed.out)

    def backward(
        self, x: Tensor, labels: Tensor, loss: Loss = functional.cross_entropy
    ) -> Iterator[UnitGradient]:
        """Every unit linearised where the batch `x` meets it, with ∂ε/∂x', from the last to the first."""
        count = len(self)
        stride = math.isqrt(count - 1) + 1 if count > 1 else 1
        kept, out = self._checkpoints(x, stride)
        gradient = self.loss_gradient(x, out, labels, loss)
        for first in reversed(range(0, count, stride)):
            inputs = self._inputs(x, first, min(first + stride, count), kept.pop())
            for index in reversed(range(first, first + len(inputs))):
                unit = self._linear(x, index, inputs.pop(), gradient)
                yield unit
                gradient = unit.at_input
                del unit

    def loss_gradient(
        self, x: Tensor, out: Tensor, labels: Tensor, loss: Loss = functional.cross_entropy
    ) -> Tensor:
        """∂ε/∂x_L where the last unit puts out `out`."""
        leaf = out.detach().requires_grad_()
        with torch.enable_grad():
            error = loss(self.leave(x, len(self) - 1, leaf), labels)
            return torch.autograd.grad(error, leaf)[0]

    def enter(self, x: Tensor) -> Tensor:
        """The input of the first unit."""
        with torch.no_grad():
            return self._model_from(x, -1, x)

    def leave(self, x: Tensor, index: int, out: Tensor) -> Tensor:
        """From the output of unit `index` to the next one's input, or to the model's output.

        Mostly they are one tensor; where something stands between, the model's own code computes it.
        """
        return out if self.order(x).joined[index] else self._model_from(x, index, out)

    def run(self, x: Tensor, index: int, signal: Tensor) -> Tensor:
        """Unit `index` on its input, with or without gradients as the caller has set."""
        unit = self.order(x).units[index]
        with self._quiet(unit, index + 1):
            out: Tensor = unit(signal)
        return out

    def _quiet(self, module: nn.Module, seed: int) -> AbstractContextManager[None]:
        return undisturbed(module, training=self.training, seed=seed)

    def _model_from(self, x: Tensor, place: int, out: Tensor) -> Tensor:
        order = self.order(x)
        with self._quiet(self.model, len(self) + 2 + place):
            return model_from(self.model, order, x, place, out)

    @torch.no_grad()
    def _passed(self, index: int, signal: Tensor) -> UnitPass:
        out, found = self._watched(index, signal)
        if found is None or found.y is None or found.F.value is None:
            return UnitPass(*self._place(index), signal, None, out, out, out)
        h, F, y = found.h, found.F.value, out if found.is_result(out) else found.y
        return UnitPass(*self._place(index), signal, h.value, F, y, out, h.way.weights, h.is_input)

    def _place(self, index: int) -> tuple[int, str, int, nn.Module]:
        assert self._order is not None  # noqa: S101 - a batch was seen
        return index, self._order.names[index], self._order.stages[index], self._order.units[index]

    def _watched(self, index: int, signal: Tensor) -> tuple[Tensor, Addition | None]:
        unit = self._place(index)[3]
        fed = signal.clone()  # a unit may begin in place
        watch = Watch(fed)
        with self._quiet(unit, index + 1), watch:
            out: Tensor = unit(fed)
        return out, watch.addition(out.shape)

    def _linear(self, x: Tensor, index: int, signal: Tensor, gradient: Tensor) -> UnitGradient:
        """`gradient` is ∂ε/∂x of the next unit, or ∂ε/∂x_L."""
        leaf = signal.detach().requires_grad_()
        with torch.enable_grad():
            out, found = self._watched(index, leaf)
        arrive = self._arrival(x, index, out)
        return UnitGradient(*self._place(index), leaf, out, arrive(gradient), found, arrive)

    def _arrival(self, x: Tensor, index: int, out: Tensor) -> Callable[[Tensor], Tensor]:
        if index + 1 == len(self) or self.order(x).joined[index]:
            return lambda vector: vector
        leaf = out.detach().requires_grad_()
        with torch.enable_grad():
            signal = self._model_from(x, index, leaf)
        return lambda vector: torch.autograd.grad(signal, leaf, vector, retain_graph=True)[0]

    @torch.no_grad()
    def _checkpoints(self, x: Tensor, stride: int) -> tuple[list[Tensor], Tensor]:
        """The input of every `stride`-th unit, and the last one's output."""
        signal, kept = self.enter(x), []
        for index in range(len(self)):
            if index % stride == 0:
                kept.append(signal)
            out = self.run(x, index, signal)
            signal = out if index + 1 == len(self) else self.leave(x, index, out)
        return kept, signal

    @torch.no_grad()
    def _inputs(self, x: Tensor, first: int, end: int, signal: Tensor) -> list[Tensor]:
        """The inputs of units `first` … `end`-1."""
        inputs = [signal]
        for index in range(first, end - 1):
            signal = self.leave(x, index, self.run(x, index, signal))
            inputs.append(signal)
        return inputs
