"""Records what a module does with its input: every operation, and what each tensor is made of.

A module's borders say nothing about where it adds, so the tracer follows every tensor that comes from the
input x. `kilolayer.measure.residual_reading` finds the residual additions y = h(x) + F(x) in the record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from kilolayer.errors import InputError

Edge = Tensor | GradientEdge
Kind = Literal["input", "sum", "linear", "random", "other"]
"""What an operation is for the signal that it reads: a sum of terms; a linear map without weights, as a view
or a factor; dropout, linear with a mask of chance; or any other function."""


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


class TracedTensor:
    """One tensor that comes from the input, at one moment: an operation in place makes another of it.

    Attributes:
        call: the number of the function call that made it; 0 for the input.
        function: that function's name.
        sources: the traced tensors that it read.
        terms: of a "sum", its terms with their factors.
        again: of a "linear" one, the same operation on another tensor.
        weights: the weights that the operation applied.
        hidden: why a gradient, or the record, has a gap here; "" without one.
        is_single: the call returned this one tensor alone.
    """

    __slots__ = (
        "_edge", "_value", "_version", "again", "call", "function", "hidden", "in_place", "is_single", "kind",
        "number", "shape", "sources", "tensor", "terms", "weights",
    )  # fmt: skip

    def __init__(
        self,
        tensor: Tensor,
        number: int,
        call: int,
        function: str,
        sources: tuple[TracedTensor, ...] = (),
        kind: Kind = "input",
        terms: tuple[Term, ...] = (),
        again: Callable[[Tensor], Tensor] | None = None,
        weights: tuple[WeightUse, ...] = (),
        hidden: str = "",
    ) -> None:
        self.tensor, self.number, self.call, self.function = tensor, number, call, function
        self.sources, self.kind, self.terms, self.again, self.weights = sources, kind, terms, again, weights
        self.hidden, self.shape, self.is_single, self.in_place = hidden, tensor.shape, True, False
        self._version = tensor._version
        self._value: Tensor | None = None
        self._edge: Edge | None = None

    @property
    def is_current(self) -> bool:
        """Whether the tensor still holds this value."""
        return self.tensor._version == self._version

    @property
    def has_gradient(self) -> bool:
        """Whether autograd knows the tensor."""
        return self._edge is not None or self.tensor.requires_grad

    def keep(self, *, whatever: bool = False) -> None:
        """Keeps the place in autograd's graph, and the value, before the tensor is overwritten.

        A copy is made of what can be a term of a sum or a unit's output only, or `whatever` it is.
        """
        if not self.is_current or self._value is not None:
            return
        if self._edge is None and self.tensor.requires_grad and torch.is_grad_enabled():
            self._edge = get_gradient_edge(self.tensor)
        if whatever or self.kind != "other":
            self._value = self.tensor.detach().clone()

    def keep_edge(self) -> None:
        """Keeps the place in autograd's graph."""
        self._edge = get_gradient_edge(self.tensor)

    def value(self) -> Tensor:
        """The tensor's value. Raises `InputError` where it was overwritten and not kept."""
        if self._value is not None:
            return self._value
        if not self.is_current:
            raise InputError(f"the result of {self.function}() is overwritten before it can be read")
        return self.tensor

    def edge(self) -> Edge:
        """The tensor's place in autograd's graph. Raises `InputError` where there is none."""
        if self._edge is not None:
            return self._edge
        if not self.is_current:
            raise InputError(f"the result of {self.function}() is overwritten before it can be read")
        return get_gradient_edge(self.tensor)


@dataclass(frozen=True)
class Term:
    """One term of a sum: `factor` times a traced tensor, or times a constant (a tensor or a number)."""

    value: TracedTensor | Tensor | float
    factor: float = 1.0


class ResidualTracer(TorchFunctionMode):
    """Records, while the mode is active, every operation on tensors that come from `x`.

    >>> x = torch.ones(2, 3)
    >>> with torch.no_grad(), ResidualTracer(x) as tracer:
    ...     y = x + torch.relu(x) * 2
    >>> [traced.function for traced in tracer.record], tracer.find(y).kind
    (['input', 'relu', 'mul', 'add'], 'sum')
    """

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self._calls, self._with_gradient = 0, torch.is_grad_enabled() and x.requires_grad
        self.input = TracedTensor(x, 0, 0, "input")
        if self._with_gradient:
            self.input.keep_edge()
        self.record = [self.input]
        self._by_id: dict[int, TracedTensor] = {id(x): self.input}
        self._constants: dict[int, Tensor] = {}
        self.escapes: list[str] = []
        """Functions through which the signal left PyTorch, as numpy()."""

    def find(self, tensor: Tensor) -> TracedTensor | None:
        """The newest entry of `tensor`; None for one that does not come from the input."""
        traced = self._by_id.get(id(tensor))
        if traced is None or traced.is_current:
            return traced
        # Another tensor with the same memory was overwritten: what is in this one now is not known.
        writers = [entry for entry in self.record if _share_memory(entry.tensor, tensor)]
        name, hidden = "an operation in place on a view", "is overwritten through a view"
        return self._add(tensor, name, tuple(writers), hidden=hidden)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self._calls += 1
        kwargs = kwargs or {}
        name = function_name(func)
        tensors = [leaf for leaf in function_leaves(args, kwargs) if isinstance(leaf, Tensor)]
        if not tensors or name in _SILENT:
            return func(*args, **kwargs)
        sources = tuple(traced for tensor in tensors if (traced := self._traced(tensor)) is not None)
        if not sources or name in SHAPE_FUNCTIONS:
            out = func(*args, **kwargs)
            for leaf in function_leaves((out,), {}):
                if isinstance(leaf, Tensor):
                    self._constants[id(leaf)] = leaf
            return out
        target = overwritten_tensor(name, args, kwargs)
        kind, terms, again = self._read_operation(func, name, args, kwargs, sources)
        if name in _ESCAPES:
            self.escapes.append(name)
        if target is not None:
            for traced in self.record:
                if traced.is_current and _share_memory(traced.tensor, target):
                    traced.keep(whatever=kind == "sum")
        before = [tensor._version for tensor in tensors]
        out = func(*args, **kwargs)
        weights = tuple(_weight_uses(name, args, kwargs, tensors, self._by_id))
        if out is None and target is not None:
            self._add(target, name, sources, "other", weights=weights)
            return out
        outputs = [leaf for leaf in function_leaves((out,), {}) if isinstance(leaf, Tensor)]
        for leaf in outputs:
            if any(leaf is t and leaf._version == v for t, v in zip(tensors, before, strict=True)):
                continue  # the operation had nothing to do: contiguous(), dropout() in evaluation
            traced = self._add(leaf, name, sources, kind, terms, again, weights, self._gap(name))
            traced.is_single, traced.in_place = len(outputs) == 1, target is not None
        return out

    def _gap(self, name: str) -> str:
        if name in _DETACHED:
            return f"is detached from the gradient ({name})"
        if self._with_gradient and not torch.is_grad_enabled():
            return "is computed without a gradient (torch.no_grad, or a custom autograd.Function)"
        return ""

    def _traced(self, tensor: Tensor) -> TracedTensor | None:
        traced = self.find(tensor)
        if traced is not None or id(tensor) in self._constants or tensor.grad_fn is None:
            return traced
        if not self._with_gradient:
            return None
        # Autograd knows where it comes from, the record does not.
        return self._add(tensor, "code that cannot be seen", (self.input,), hidden=UNSEEN)

    def _add(
        self,
        tensor: Tensor,
        name: str,
        sources: tuple[TracedTensor, ...],
        kind: Kind = "other",
        terms: tuple[Term, ...] = (),
        again: Callable[[Tensor], Tensor] | None = None,
        weights: tuple[WeightUse, ...] = (),
        hidden: str = "",
    ) -> TracedTensor:
        traced = TracedTensor(
            tensor, len(self.record), self._calls, name, sources, kind, terms, again, weights, hidden
        )
        self.record.append(traced)
        self._by_id[id(tensor)] = traced
        return traced

    def _read_operation(
        self,
        func: Callable[..., Any],
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        sources: tuple[TracedTensor, ...],
    ) -> tuple[Kind, tuple[Term, ...], Callable[[Tensor], Tensor] | None]:
        """(kind, terms of a sum, the same operation on another tensor)."""
        if name in _SIGNS and len(args) == 2 and not (kwargs.keys() - {"alpha"}):
            first, second = _SIGNS[name]
            alpha = kwargs.get("alpha", 1)
            if isinstance(alpha, (int, float)):
                factors = (first * alpha, second) if name.endswith("rsub__") else (first, second * alpha)
                terms = tuple(
                    Term(self._operand(value), factor) for value, factor in zip(args, factors, strict=True)
                )
                return "sum", tuple(term for term in terms if term.value is not None), None
        if name in _LINEAR and len(sources) == 1 and args and self._is_traced(args[0]):
            if name in _DROPOUT and not _is_off(args, kwargs):
                return "random", (), None
            return "linear", (), _again(func, args, kwargs, 0)
        if name in _PRODUCTS and len(sources) == 1 and len(args) == 2 and not kwargs:
            position = 0 if self._is_traced(args[0]) else 1
            if position == 0 or name in _COMMUTATIVE:
                return "linear", (), _again(func, args, kwargs, position)
        if name in ("cat", "concat", "concatenate") and len(sources) == 1:
            return "linear", (), _again_in_list(func, args, kwargs, sources[0].tensor)
        return "other", (), None

    def _operand(self, value: Any) -> Any:
        return self._traced(value) or value if isinstance(value, Tensor) else value

    def _is_traced(self, value: Any) -> bool:
        return isinstance(value, Tensor) and id(value) in self._by_id


UNSEEN = "is computed by code whose operations cannot be seen (compiled, scripted, or an extension)"


def function_name(func: Callable[..., Any]) -> str:
    """The function's name as a reader knows it; of a property the property's."""
    name = getattr(func, "__name__", "")
    return str(getattr(getattr(func, "__self__", None), "__name__", name)) if name == "__get__" else name


def overwritten_tensor(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The tensor that the call overwrites; None for a call that overwrites none."""
    if isinstance(kwargs.get("out"), Tensor):
        return kwargs["out"]  # type: ignore[no-any-return]
    works_in_place = (
        (name.endswith("_") and not name.endswith("__"))
        or name in _IN_PLACE
        or bool(kwargs.get("inplace"))
        or (name in _TAKE_INPLACE and len(args) > 1 and args[-1] is True)
    )
    first = args[0] if args else kwargs.get("input")
    return first if works_in_place and isinstance(first, Tensor) else None


def function_leaves(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """All leaves of a call's arguments."""
    flat: list[Any] = []
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, (list, tuple, dict)):
            flat.extend(tree_leaves(value))
        else:
            flat.append(value)
    return flat


def _share_memory(a: Tensor, b: Tensor) -> bool:
    return a is b or a.untyped_storage()._cdata == b.untyped_storage()._cdata


def _is_off(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    names = ("input", "p", "training", "inplace")
    arguments = dict(zip(names, args, strict=False)) | kwargs
    return not arguments.get("training", True) or arguments.get("p", 0.5) == 0


def _again(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], position: int
) -> Callable[[Tensor], Tensor]:
    plain = _OUT_OF_PLACE.get(function_name(func), func)
    options = {key: value for key, value in kwargs.items() if key not in ("inplace", "out")}

    def again(other: Tensor) -> Tensor:
        replaced = list(args)
        replaced[position] = other
        result: Tensor = plain(*replaced, **options)
        return result

    return again


def _again_in_list(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], traced: Tensor
) -> Callable[[Tensor], Tensor]:
    """Padding by a concatenation with constants: of another tensor, with zeros in their place."""
    parts = args[0] if args else kwargs["tensors"]
    dimension = args[1] if len(args) > 1 else kwargs.get("dim", 0)

    def again(other: Tensor) -> Tensor:
        return torch.cat(
            [other if part is traced else torch.zeros_like(part, dtype=other.dtype) for part in parts],
            dimension,
        )

    return again


def _weight_uses(
    function: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    tensors: list[Tensor],
    traced: dict[int, TracedTensor],
) -> Iterator[WeightUse]:
    """The weights of one operation; those of a convolution or a product may be computed from a parameter."""
    if function in _WEIGHT_FUNCTIONS:
        weight = kwargs.get("weight", args[1] if len(args) > 1 else None)
        if isinstance(weight, Tensor) and id(weight) not in traced:
            position = _GROUPS_POSITION.get(function, len(args))
            groups = kwargs.get("groups", args[position] if len(args) > position else 1)
            yield WeightUse(weight, function, groups)
            return
    for leaf in tensors:
        is_weight = leaf.ndim >= 2 and (isinstance(leaf, nn.Parameter) or function in MATRIX_PRODUCTS)
        if is_weight and id(leaf) not in traced:
            yield WeightUse(leaf, function)


_GROUPS_POSITION = {"conv1d": 6, "conv2d": 6, "conv3d": 6}
_TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
_WEIGHT_FUNCTIONS = (*_GROUPS_POSITION, *_TRANSPOSED, "linear", "bilinear")
MATRIX_PRODUCTS = frozenset(
    [
        "matmul",
        "__matmul__",
        "__rmatmul__",
        "mm",
        "bmm",
        "mv",
        "einsum",
        "tensordot",
        "addmm",
        "baddbmm",
        "inner",
        "kron",
        "chain_matmul",
        "multi_dot",
    ]
)
_SIGNS = {
    **dict.fromkeys(("add", "add_", "__add__", "__radd__", "__iadd__"), (1.0, 1.0)),
    **dict.fromkeys(("sub", "sub_", "subtract", "subtract_", "__sub__", "__isub__"), (1.0, -1.0)),
    **dict.fromkeys(("rsub", "__rsub__"), (-1.0, 1.0)),
}
"""Sums, with the signs of their two terms."""
_DROPOUT = frozenset(("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"))
SAME_ELEMENTS = frozenset(
    [
        "view",
        "reshape",
        "view_as",
        "reshape_as",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
        "contiguous",
        "clone",
    ]
)
"""Functions that neither change nor reorder elements."""
_LINEAR = (
    _DROPOUT
    | SAME_ELEMENTS
    | frozenset(
        [
            "permute",
            "transpose",
            "t",
            "T",
            "mT",
            "swapaxes",
            "swapdims",
            "movedim",
            "moveaxis",
            "expand",
            "expand_as",
            "broadcast_to",
            "__getitem__",
            "narrow",
            "select",
            "roll",
            "flip",
            "rot90",
            "pad",
            "to",
            "type",
            "float",
            "double",
            "half",
            "bfloat16",
            "type_as",
            "cpu",
            "cuda",
            "neg",
            "__neg__",
            "negative",
            "positive",
            "avg_pool1d",
            "avg_pool2d",
            "avg_pool3d",
            "adaptive_avg_pool1d",
            "adaptive_avg_pool2d",
            "adaptive_avg_pool3d",
            "pixel_shuffle",
            "pixel_unshuffle",
            "channel_shuffle",
            "alias",
        ]
    )
)
"""Linear maps without weights of the first argument."""
_PRODUCTS = frozenset(
    [
        "mul",
        "mul_",
        "multiply",
        "multiply_",
        "__mul__",
        "__rmul__",
        "__imul__",
        "div",
        "div_",
        "divide",
        "true_divide",
        "__truediv__",
        "__itruediv__",
    ]
)
_COMMUTATIVE = frozenset(["mul", "multiply", "__mul__", "__rmul__"])
SHAPE_FUNCTIONS = frozenset(
    [
        "new_zeros",
        "new_ones",
        "new_empty",
        "new_full",
        "new_tensor",
        "zeros_like",
        "ones_like",
        "empty_like",
        "full_like",
        "rand_like",
        "randn_like",
        "randint_like",
    ]
)
"""Functions of a tensor's shape alone."""
_DETACHED = frozenset(("detach", "detach_", "data"))
_ESCAPES = frozenset(("numpy", "__array__", "tolist", "data_ptr", "__dlpack__", "untyped_storage"))
_SILENT = frozenset(
    [
        "shape",
        "dtype",
        "device",
        "ndim",
        "size",
        "dim",
        "numel",
        "stride",
        "is_contiguous",
        "requires_grad",
        "grad_fn",
        "is_cuda",
        "layout",
        "__len__",
        "is_floating_point",
        "is_complex",
        "get_device",
        "element_size",
        "storage_offset",
        "is_leaf",
        "names",
        "is_sparse",
        "is_nested",
        "register_hook",
        "retain_grad",
        "_version",
        "is_quantized",
        "is_mps",
        "is_cpu",
        "itemsize",
        "__hash__",
    ]
)
_IN_PLACE = frozenset(
    ("__iadd__", "__isub__", "__imul__", "__itruediv__", "__setitem__", "__iand__", "__ior__")
)
_TAKE_INPLACE = frozenset(
    [
        "relu",
        "relu6",
        "leaky_relu",
        "elu",
        "selu",
        "celu",
        "silu",
        "mish",
        "hardtanh",
        "hardswish",
        "hardsigmoid",
        "threshold",
        "dropout",
        "dropout1d",
        "dropout2d",
        "dropout3d",
    ]
)
_OUT_OF_PLACE: dict[str, Callable[..., Any]] = {
    "mul_": torch.mul,
    "multiply_": torch.mul,
    "__imul__": torch.mul,
    "div_": torch.div,
    "__itruediv__": torch.div,
}
