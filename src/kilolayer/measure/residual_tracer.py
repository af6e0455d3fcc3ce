"""Where a unit adds: y = h(x) + F(x), found by watching its operations, in any module's code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

Edge = Tensor | GradientEdge


@dataclass(frozen=True)
class Lineage:
    """How a tensor came from the unit's input: through which weights, and how many operations."""

    weights: tuple[nn.Parameter, ...] = ()
    operations: int = 0

    @property
    def length(self) -> tuple[int, int]:
        """The sum of the kernels' sides, then the operations: a shortcut has less of it than a branch."""
        sides = (weight.shape[-1] if weight.ndim == 4 else 1 for weight in self.weights)
        return sum(sides), self.operations


@dataclass(frozen=True)
class Operand:
    """One side of an addition: its value (None where only its place in the graph is kept), and its way."""

    value: Tensor | None
    edge: Edge | None
    lineage: Lineage
    is_input: bool


@dataclass(frozen=True)
class Addition:
    """y = h + F. `y` is None where only its place in the graph is kept."""

    shortcut: Operand
    branch: Operand
    y: Tensor | None
    edge: Edge | None
    result: Tensor
    version: int

    def is_result(self, out: Tensor) -> bool:
        """Whether `out` is y itself, so that f is the identity."""
        return out is self.result and out._version == self.version


class ResidualTracer(TorchFunctionMode):
    """Within, every addition of two tensors that come from `x` is noted; the last of a shape is y.

    Without gradients the values of both sides are kept, with gradients their places in the graph.
    """

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self._x, self._version = x, x._version
        self._lineages: Any = WeakIdKeyDictionary()
        self._lineages[x] = Lineage()
        self._additions: dict[torch.Size, Addition] = {}

    def addition(self, shape: torch.Size) -> Addition | None:
        """The last addition whose result has this shape; None where there is none, as in a plain net."""
        return self._additions.get(shape)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _ADD_FUNCTIONS:
            return self._add(func, args, kwargs)
        lineage = self._lineage_of(args, kwargs)
        out = func(*args, **kwargs)
        if lineage is not None:
            self._record(out, lineage)
        return out

    def _add(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        lineage, sides = self._lineage_of(args, kwargs), [arg for arg in args if isinstance(arg, Tensor)]
        are_both_traced = len(sides) == 2 and not kwargs and all(side in self._lineages for side in sides)
        operands = [self._operand(side) for side in sides] if are_both_traced else []
        out = func(*args, **kwargs)
        if lineage is not None:
            self._record(out, lineage)
        if operands:
            h, F = sorted(operands, key=lambda term: term.lineage.length)
            value, edge = _snapshot(out)
            self._additions[out.shape] = Addition(h, F, value, edge, out, out._version)
        return out

    def _operand(self, side: Tensor) -> Operand:
        value, edge = _snapshot(side)
        is_input = side is self._x and side._version == self._version
        return Operand(value, edge, self._lineages[side], is_input)

    def _lineage_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Lineage | None:
        """The longest way among the arguments, one operation longer, through the weights among them."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        lineages = [self._lineages[tensor] for tensor in tensors if tensor in self._lineages]
        if not lineages:
            return None
        longest: Lineage = max(lineages, key=lambda way: way.length)
        weights = (leaf for leaf in tensors if isinstance(leaf, nn.Parameter) and leaf.ndim >= 2)
        return replace(longest, weights=(*longest.weights, *weights), operations=longest.operations + 1)

    def _record(self, out: Any, lineage: Lineage) -> None:
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._lineages[tensor] = lineage


_ADD_FUNCTIONS = ("add", "add_", "__add__", "__radd__", "__iadd__")


def _snapshot(tensor: Tensor) -> tuple[Tensor | None, Edge | None]:
    """A copy, which later operations in place cannot change, or the place in the graph."""
    if not torch.is_grad_enabled():
        return tensor.clone(), None
    return None, get_gradient_edge(tensor) if tensor.requires_grad else None
