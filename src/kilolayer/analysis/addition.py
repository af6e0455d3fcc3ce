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
class Way:
    """How a tensor came from the unit's input: through which weights, and how many operations."""

    weights: tuple[nn.Parameter, ...] = ()
    operations: int = 0

    @property
    def length(self) -> tuple[int, int]:
        """The sum of the kernels' sides, then the operations: a shortcut has less of it than a branch."""
        sides = (weight.shape[-1] if weight.ndim == 4 else 1 for weight in self.weights)
        return sum(sides), self.operations


@dataclass(frozen=True)
class Term:
    """One side of an addition: its value (None where only its place in the graph is kept), and its way."""

    value: Tensor | None
    edge: Edge | None
    way: Way
    is_input: bool


@dataclass(frozen=True)
class Addition:
    """y = h + F. `y` is None where only its place in the graph is kept."""

    h: Term
    F: Term
    y: Tensor | None
    edge: Edge | None
    result: Tensor
    version: int

    def is_result(self, out: Tensor) -> bool:
        """Whether `out` is y itself, so that f is the identity."""
        return out is self.result and out._version == self.version


class Watch(TorchFunctionMode):
    """Within, every addition of two tensors that come from `x` is noted; the last of a shape is y.

    Without gradients the values of both sides are kept, with gradients their places in the graph.
    """

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self._x, self._version = x, x._version
        self._ways: Any = WeakIdKeyDictionary()
        self._ways[x] = Way()
        self._found: dict[torch.Size, Addition] = {}

    def addition(self, shape: torch.Size) -> Addition | None:
        """The last addition whose result has this shape; None where there is none, as in a plain net."""
        return self._found.get(shape)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _ADDITIONS:
            return self._add(func, args, kwargs)
        way = self._way(args, kwargs)
        out = func(*args, **kwargs)
        if way is not None:
            self._note(out, way)
        return out

    def _add(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        way, sides = self._way(args, kwargs), [arg for arg in args if isinstance(arg, Tensor)]
        both = len(sides) == 2 and not kwargs and all(side in self._ways for side in sides)
        terms = [self._term(side) for side in sides] if both else []
        out = func(*args, **kwargs)
        if way is not None:
            self._note(out, way)
        if terms:
            h, F = sorted(terms, key=lambda term: term.way.length)
            value, edge = _kept(out)
            self._found[out.shape] = Addition(h, F, value, edge, out, out._version)
        return out

    def _term(self, side: Tensor) -> Term:
        value, edge = _kept(side)
        is_input = side is self._x and side._version == self._version
        return Term(value, edge, self._ways[side], is_input)

    def _way(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Way | None:
        """The longest way among the arguments, one operation longer, through the weights among them."""
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        ways = [self._ways[tensor] for tensor in tensors if tensor in self._ways]
        if not ways:
            return None
        longest: Way = max(ways, key=lambda way: way.length)
        weights = (each for each in tensors if isinstance(each, nn.Parameter) and each.ndim >= 2)
        return replace(longest, weights=(*longest.weights, *weights), operations=longest.operations + 1)

    def _note(self, out: Any, way: Way) -> None:
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._ways[tensor] = way


_ADDITIONS = ("add", "add_", "__add__", "__radd__", "__iadd__")


def _kept(tensor: Tensor) -> tuple[Tensor | None, Edge | None]:
    """A copy, which later operations in place cannot change, or the place in the graph."""
    if not torch.is_grad_enabled():
        return tensor.clone(), None
    return None, get_gradient_edge(tensor) if tensor.requires_grad else None
