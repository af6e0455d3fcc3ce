"""A unit's vector-Jacobian products, split into shortcut and branch (P2, Eq. 5 and 8)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor, nn

from kilolayer.measure.residual_reading import Edges, ResidualReading
from kilolayer.measure.self_checks import check_gradient

Pullback = Callable[[Tensor], Tensor]
"""u ↦ Jᵀu."""


class UnitVJP:
    """Unit y = h(x) + F(x), x' = f(y), linearised at its input on a batch.

    With J the Jacobian of a part at this input, and any v of the output's shape:

        total(v)    = (J_h + J_F)ᵀ J_fᵀ v
        shortcut(v) =  J_hᵀ J_fᵀ v              the direct term: v itself where h and f are the identity
        branch(v)   =  J_Fᵀ J_fᵀ v              the term through the weights

    All results have the shape of x. `UnitChain.backward` yields one for every unit.

    Attributes:
        index: the unit's number from 0; `name`, `stage` (from 1) and `module` belong to it.
        output_gradient: ∂ε/∂x', at the unit's output.
        to_output: maps a gradient at the next unit's input to this unit's output. Mostly the two are one
            tensor.
    """

    def __init__(
        self,
        index: int,
        name: str,
        stage: int,
        module: nn.Module,
        reading: ResidualReading,
        output_gradient: Tensor,
        to_output: Pullback,
    ) -> None:
        self.index, self.name, self.stage, self.module = index, name, stage, module
        self.output_gradient, self.to_output = output_gradient, to_output
        self._reading = reading

    @property
    def x(self) -> Tensor:
        """The unit's input."""
        return self._reading.x.value().detach()

    @property
    def out(self) -> Tensor:
        """The unit's output x'."""
        return self._reading.out.value().detach()

    @property
    def keeps_shape(self) -> bool:
        """Whether input and output have one shape."""
        return self._reading.x.shape == self._reading.out.shape

    @cached_property
    def input_gradient(self) -> Tensor:
        """∂ε/∂x, at the unit's input."""
        return self.total(self.output_gradient)

    @property
    def h_is_input(self) -> bool:
        """Whether h(x) is x itself."""
        return self._reading.h_is_input

    @property
    def has_shortcut(self) -> bool:
        """Whether there is a shortcut; a plain unit has none."""
        return not self._reading.is_plain

    def total(self, vector: Tensor) -> Tensor:
        """(J_h + J_F)ᵀ J_fᵀ v."""
        return self._back_to_input([(self._reading.out, vector)])

    def through_f(self, vector: Tensor) -> Tensor:
        """J_fᵀ v, at y."""
        out, y = self._reading.out, self._reading.y
        if out is y:
            return vector
        (gradient,) = torch.autograd.grad(out.edge(), y.edge(), vector, retain_graph=True, allow_unused=True)
        return torch.zeros_like(y.tensor) if gradient is None else gradient

    def shortcut(self, vector: Tensor) -> Tensor:
        """J_hᵀ J_fᵀ v; zero in a unit without a shortcut."""
        if self._reading.is_plain:
            return torch.zeros_like(self._reading.x.tensor)
        return self._back_to_input(self._reading.split(self.through_f(vector))[0])

    def branch(self, vector: Tensor) -> Tensor:
        """J_Fᵀ J_fᵀ v; everything in a unit without a shortcut."""
        if self._reading.is_plain:
            return self.total(vector)
        return self._back_to_input(self._reading.split(self.through_f(vector))[1])

    def check(self) -> None:
        """Checks that the two terms of ∂ε/∂x are autograd's whole one. Raises `InputError`."""
        if not self._reading.is_plain:
            gradient = self.output_gradient
            check_gradient(self.name, self.shortcut(gradient), self.branch(gradient), self.input_gradient)

    def _back_to_input(self, gradients: Edges) -> Tensor:
        """The sum of gradients at some of the unit's tensors, taken back to its input."""
        x = self._reading.x
        here = [vector for traced, vector in gradients if traced is x]
        others = [(traced, vector) for traced, vector in gradients if traced is not x and traced.has_gradient]
        total = sum(here[1:], here[0]) if here else None
        if others:
            (back,) = torch.autograd.grad(
                [traced.edge() for traced, _ in others],  # type: ignore[arg-type]
                x.edge(),
                [vector for _, vector in others],
                retain_graph=True,
                allow_unused=True,
            )
            if back is not None:
                total = back if total is None else total + back
        return torch.zeros_like(x.tensor) if total is None else total
