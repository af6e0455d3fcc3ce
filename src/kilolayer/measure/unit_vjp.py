"""A unit's vector-Jacobian products, split into shortcut and branch (P2, Eq. 5 and 8)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor, nn

from kilolayer.measure.residual_tracer import Addition, Edge

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
        x: Tensor,
        out: Tensor,
        output_gradient: Tensor,
        addition: Addition | None,
        to_output: Pullback,
    ) -> None:
        self.index, self.name, self.stage, self.module = index, name, stage, module
        self.output_gradient, self.to_output = output_gradient, to_output
        self._x, self._out, self._addition = x, out, addition

    @property
    def x(self) -> Tensor:
        """The unit's input."""
        return self._x.detach()

    @property
    def out(self) -> Tensor:
        """The unit's output x'."""
        return self._out.detach()

    @property
    def keeps_shape(self) -> bool:
        """Whether input and output have one shape."""
        return self._x.shape == self._out.shape

    @cached_property
    def input_gradient(self) -> Tensor:
        """∂ε/∂x, at the unit's input."""
        return self.total(self.output_gradient)

    @property
    def h_is_input(self) -> bool:
        """Whether h(x) is x itself."""
        return self._addition is not None and self._addition.shortcut.is_input

    def total(self, vector: Tensor) -> Tensor:
        """(J_h + J_F)ᵀ J_fᵀ v."""
        return self._vjp(self._out, self._x, vector)

    def through_f(self, vector: Tensor) -> Tensor:
        """J_fᵀ v, at y."""
        addition = self._addition
        if addition is None or addition.edge is None or addition.is_result(self._out):
            return vector
        return self._vjp(self._out, addition.edge, vector)

    def shortcut(self, vector: Tensor) -> Tensor:
        """J_hᵀ J_fᵀ v; zero in a unit without a shortcut."""
        if self._addition is None or self._addition.shortcut.edge is None:
            return torch.zeros_like(self._x)
        at_y = self.through_f(vector)
        return at_y if self.h_is_input else self._vjp(self._addition.shortcut.edge, self._x, at_y)

    def branch(self, vector: Tensor) -> Tensor:
        """J_Fᵀ J_fᵀ v; everything in a unit without a shortcut."""
        if self._addition is None:
            return self.total(vector)
        if self._addition.branch.edge is None:
            return torch.zeros_like(self._x)
        return self._vjp(self._addition.branch.edge, self._x, self.through_f(vector))

    def _vjp(self, out: Edge, to: Edge, vector: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(out, to, vector, retain_graph=True, allow_unused=True)
        return torch.zeros_like(self._x) if gradient is None else gradient
