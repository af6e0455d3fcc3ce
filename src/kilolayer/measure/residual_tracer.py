"""Finds the residual addition y = h(x) + F(x) of any module by tracing its operations.

A module's borders say nothing about where it adds, so the tracer follows every tensor that comes from the
input x and records the additions of two of them.
"""

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
class WeightUse:
    """A weight, and the function of PyTorch that applied it to a tensor: "conv2d", "linear", "mul", …"""

    weight: Tensor
    function: str
    groups: int = 1

    @property
    def kernel(self) -> int:
        """The side of the kernel; 1 for a weight that is no kernel."""
        return int(self.weight.shape[-1]) if self.function.startswith("conv") else 1

    @property
    def matrices(self) -> Tensor | None:
        """The diagonal blocks of the matrix of a 1×1 convolution or a linear layer, (groups, out, in).

        None for any other operation: a factor for every channel is no matrix, whatever its shape.

        >>> WeightUse(torch.ones(16, 4, 1, 1), "conv2d", groups=2).matrices.shape
        torch.Size([2, 8, 4])
        >>> WeightUse(torch.ones(16, 1, 1), "mul").matrices is None
        True
        """
        if self.function not in ("conv2d", "linear") or self.weight.shape[2:].numel() != 1:
            return None
        return self.weight.detach().reshape(self.groups, -1, self.weight.shape[1])


@dataclass(frozen=True)
class Lineage:
    """The way of a tensor from the unit's input: the weights and the number of operations on it."""

    weights: tuple[WeightUse, ...] = ()
    operations: int = 0

    @property
    def length(self) -> tuple[int, int]:
        """(Σ kernel sides, number of operations): the shortcut is the operand with the shorter lineage."""
        return sum(use.kernel for use in self.weights), self.operations


@dataclass(frozen=True)
class Operand:
    """One operand of an addition.

    Without gradients `value` is a copy of the tensor and `edge` is None; with gradients `value` is None and
    `edge` is the tensor's place in autograd's graph. `is_input`: the operand is x itself.
    """

    value: Tensor | None
    edge: Edge | None
    lineage: Lineage
    is_input: bool


@dataclass(frozen=True)
class Addition:
    """y = shortcut + branch: h(x) is the operand with the shorter lineage, F(x) the other.

    `y` and `edge` are the sum's value or edge, as in `Operand`. `result` and `version` are the tensor that
    the module went on with, and its version counter at that time.
    """

    shortcut: Operand
    branch: Operand
    y: Tensor | None
    edge: Edge | None
    result: Tensor
    version: int

    def is_result(self, out: Tensor) -> bool:
        """Whether `out` is y, unchanged since, so that f is the identity."""
        return out is self.result and out._version == self.version


class ResidualTracer(TorchFunctionMode):
    """Records, while the mode is active, every addition of two tensors that come from `x`.

    >>> x = torch.ones(2, 3)
    >>> with torch.no_grad(), ResidualTracer(x) as tracer:
    ...     y = x + torch.relu(x) * 2
    >>> addition = tracer.addition(y.shape)
    >>> addition.shortcut.is_input, addition.is_result(y), addition.branch.value.unique().item()
    (True, True, 2.0)
    """

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self._x, self._version = x, x._version
        self._lineages: Any = WeakIdKeyDictionary()
        self._lineages[x] = Lineage()
        self._additions: dict[torch.Size, Addition] = {}

    def addition(self, shape: torch.Size) -> Addition | None:
        """The last addition whose result has this shape; None where there is none, as in a plain network."""
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
        lineage = self._lineage_of(func, args, kwargs)
        out = func(*args, **kwargs)
        if lineage is not None:
            self._record(out, lineage)
        return out

    def _add(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        lineage, sides = (
            self._lineage_of(func, args, kwargs),
            [arg for arg in args if isinstance(arg, Tensor)],
        )
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

    def _lineage_of(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Lineage | None:
        """The longest lineage among the arguments, extended by this operation and its weights."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        lineages = [self._lineages[tensor] for tensor in tensors if tensor in self._lineages]
        if not lineages:
            return None
        longest: Lineage = max(lineages, key=lambda way: way.length)
        uses = self._weight_uses(getattr(func, "__name__", ""), args, kwargs, tensors)
        return replace(longest, weights=(*longest.weights, *uses), operations=longest.operations + 1)

    def _weight_uses(
        self, function: str, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]
    ) -> list[WeightUse]:
        """The weights of one operation; a convolution's may be computed from a parameter."""
        if function in _WEIGHT_FUNCTIONS:
            weight = kwargs.get("weight", args[1] if len(args) > 1 else None)
            if isinstance(weight, Tensor) and weight not in self._lineages:
                position = _GROUPS_POSITION.get(function, len(args))
                groups = kwargs.get("groups", args[position] if len(args) > position else 1)
                return [WeightUse(weight, function, groups)]
        return [
            WeightUse(leaf, function) for leaf in tensors if isinstance(leaf, nn.Parameter) and leaf.ndim >= 2
        ]

    def _record(self, out: Any, lineage: Lineage) -> None:
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._lineages[tensor] = lineage


_GROUPS_POSITION = {"conv1d": 6, "conv2d": 6, "conv3d": 6}
_WEIGHT_FUNCTIONS = (*_GROUPS_POSITION, "linear")
_ADD_FUNCTIONS = ("add", "add_", "__add__", "__radd__", "__iadd__")


def _snapshot(tensor: Tensor) -> tuple[Tensor | None, Edge | None]:
    """A copy, which no later in-place operation changes; with gradients, the place in autograd's graph."""
    if not torch.is_grad_enabled():
        return tensor.clone(), None
    return None, get_gradient_edge(tensor) if tensor.requires_grad else None
