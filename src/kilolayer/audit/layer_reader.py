"""Reads operators and paths of a graph as the layers of `kilolayer.units.ops`.

An operator is read from its arguments, or else by feeding it a signal and looking at the response.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kilolayer.audit.dataflow import DataflowGraph, GraphNode
from kilolayer.units import ops as op
from kilolayer.units.ops import Op


@dataclass(frozen=True)
class LinearLayer:
    """A fully-connected layer."""

    in_features: int
    out_features: int
    bias: bool


@dataclass(frozen=True)
class OtherLayer:
    """A layer that the papers' networks do not have, in words.

    `weights` counts the weight layers in it; `join` is the operator in which its paths meet, if it has paths.
    """

    text: str
    weights: int = 0
    join: str = ""


AuditLayer = Op | LinearLayer | OtherLayer
AuditLayers = tuple[AuditLayer, ...]

AVERAGE_POOLING = OtherLayer("average pooling")
AVERAGE_POOL_OPS = ("avg_pool2d", "_adaptive_avg_pool2d", "adaptive_avg_pool2d", "mean")
FROZEN_NORM = OtherLayer("frozen batch norm")
INSTANCE_NORM = OtherLayer("instance norm")
PART_WRITTEN = OtherLayer("parts written into a map (as circular padding does)")
CHANNEL_SCALE = OtherLayer("scale for each channel")
CHANNEL_SHIFT = OtherLayer("shift for each channel")

# Where an operator's name says less than the field's word for it.
OPERATOR_WORDS = {
    "native_layer_norm": "layer norm",
    "native_group_norm": "group norm",
    "_prelu_kernel": "prelu",
    "hardtanh": "relu6",
    "_softmax": "softmax",
    "_log_softmax": "log softmax",
    "as_strided_scatter": PART_WRITTEN.text,
    "mul": "multiplication by a tensor of the module's",
    "add": "addition of a tensor of the module's",
}
ATTENTION_OPS = "scaled_dot_product"


def operator_words(name: str) -> str:
    """An operator in words: "upsample bilinear2d"."""
    if ATTENTION_OPS in name:
        return "attention"
    return OPERATOR_WORDS.get(name) or name.replace("_", " ").strip()


def probe_signal(shape: tuple[int, ...]) -> Tensor:
    """A random signal with both signs, the same at every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def wide_signal(shape: tuple[int, ...]) -> Tensor:
    """A signal of both signs and of magnitudes from 1e-6 to 1e6: a bounded activation shows only far out."""
    generator = torch.Generator().manual_seed(1)
    exponents = torch.rand(shape, generator=generator) * 12 - 6
    return torch.randn(shape, generator=generator) * 10**exponents


class LayerReader:
    """Reads the operators of one graph."""

    def __init__(self, graph: DataflowGraph) -> None:
        self.graph = graph
        self._probe_cache: dict[Any, AuditLayer | None] = {}

    def read_layer(self, node: GraphNode) -> AuditLayer | None:
        """The layer of a node with one input; None if it returns its input unchanged."""
        args = node.fx.args
        if node.op == "convolution":
            return self._convolution(node)
        if node.op.endswith("batch_norm"):
            return self._batch_norm(node)
        if node.op in ("addmm", "mm", "linear"):
            return self._linear(node)
        if node.op.startswith("max_pool2d"):
            return _max_pool(producer_args(node))
        if node.op in AVERAGE_POOL_OPS:
            return _average_pool(node)
        if node.op == "native_dropout":
            return op.DropoutOp(float(producer_args(node)[1]))
        if any(self.graph.is_random(argument) for argument in args):
            return self._dropout(node)
        return self._read_by_probing(node)

    def _convolution(self, node: GraphNode) -> AuditLayer:
        arguments: tuple[Any, ...] = node.fx.args
        _, weight, bias, stride, padding, dilation, transposed, _, groups = arguments[:9]
        if weight in self.graph.nodes or not _has_shape(weight):
            return OtherLayer("convolution with a kernel computed from the image", weights=1)
        out, inner, *kernel = _weight_shape(weight)
        simple = len(kernel) == 2 and not transposed and set(dilation) == {1} and len({*stride}) == 1
        if simple and kernel[0] == kernel[1] and set(padding) == {kernel[0] // 2}:
            computed = self.graph.computed_by(weight)
            if computed:
                text = f"{kernel[0]}×{kernel[0]} convolution with a kernel computed by {computed}"
                return OtherLayer(text, weights=1)
            return op.Conv(inner * groups, out, kernel[0], stride[0], groups, bias is not None)
        size = "×".join(map(str, kernel))
        kind = "transposed convolution" if transposed else "convolution"
        usual = {"stride": 1, "padding": tuple(side // 2 for side in kernel), "dilation": 1}
        values = {"stride": stride, "padding": padding, "dilation": dilation}
        unusual = ", ".join(
            f"{name} {_single_value(value)}"
            for name, value in values.items()
            if usual[name] not in (_single_value(value), tuple(value))
        )
        return OtherLayer(f"{size} {kind}{f' with {unusual}' if unusual else ''}", weights=1)

    def _batch_norm(self, node: GraphNode) -> AuditLayer:
        """BN with running statistics; without them one image cannot tell BN from instance norm."""
        arguments = producer_args(node)
        weight, mean = arguments[1], arguments[3] if len(arguments) > 3 else None
        if mean is None and (weight is None or self.graph.computed_by(weight)):
            return INSTANCE_NORM
        if mean is None:
            return OtherLayer("batch norm without running statistics")
        return op.BatchNorm(node.shape[1])

    def _linear(self, node: GraphNode) -> AuditLayer:
        out = node.shape[-1]
        return LinearLayer(node.inputs[0].shape[-1], out, node.op != "mm")

    def _dropout(self, node: GraphNode) -> AuditLayer:
        """Dropout by its mask: of single values, of whole channels, or of whole samples."""
        mask = next(argument for argument in node.fx.args if self.graph.is_random(argument))
        values = self.graph.constant(mask)
        if not isinstance(values, Tensor) or node.op != "mul":
            return OtherLayer(f"random {operator_words(node.op)}")
        p = _dropout_probability(values)
        if values.numel() == node.inputs[0].shape[0]:
            return OtherLayer("stochastic depth")
        drops_channels = values.ndim == len(node.shape) and values.shape != node.shape
        return OtherLayer(f"dropout {p:g} of whole channels") if drops_channels else op.DropoutOp(p)

    def _read_by_probing(self, node: GraphNode) -> AuditLayer | None:
        """The layer by its response to a signal: identity, ReLU, a factor, or else an `OtherLayer`."""
        [source] = node.inputs
        constants = [argument for argument in node.fx.args if argument is not source.fx]
        if any(self.graph.tensor_name(argument) for argument in constants):
            return self._read_affine(node, constants)
        if not source.shape:  # an operator that puts out several tensors
            return OtherLayer(operator_words(source.op))
        key = (node.op, str(constants), str(node.fx.kwargs), source.shape)
        is_cacheable = not any(isinstance(argument, torch.fx.Node) for argument in constants)
        if is_cacheable and key in self._probe_cache:
            return self._probe_cache[key]
        signal = wide_signal(source.shape)
        layer = layer_from_response(signal, self.graph.replay(node, {source: signal}), node.op)
        self._probe_cache[key] = layer
        return layer

    def read_joined(self, start: GraphNode, join: GraphNode) -> AuditLayers | None:
        """What paths without weights are together, as x·(x > 0) is ReLU; None if it is no layer of ours."""
        reads_more = any(
            self.graph.tensor_name(argument) or self.graph.is_random(argument)
            for node in ancestors(start, join)
            for argument in node.fx.all_input_nodes
            if argument not in self.graph.nodes
        )
        if reads_more or len(start.shape) < 2:
            return None
        signal = wide_signal(start.shape)
        response = self.graph.replay(join, {start: signal})
        if response is None or response.shape != signal.shape:
            return None
        layer = layer_from_response(signal, response, join.op)
        if not isinstance(layer, OtherLayer):
            return (layer,) if layer else ()
        factor = factor_between(signal.relu(), response)
        return None if factor is None else (op.ReLU(), op.ScaleOp(factor))

    def _read_affine(self, node: GraphNode, constants: list[Any]) -> AuditLayer:
        """What the module's own tensors do to a signal. Their values say nothing: training changes them."""
        shapes = [_weight_shape(argument) for argument in constants if _has_shape(argument)]
        channels = node.shape[1] if len(node.shape) > 1 else 0
        is_by_channel = len(shapes) == 1 and channels > 1 and _count(shapes[0]) in (channels, node.shape[-1])
        if is_by_channel and node.op in ("mul", "add"):
            return CHANNEL_SCALE if node.op == "mul" else CHANNEL_SHIFT
        return OtherLayer(operator_words(node.op))


def ancestors(start: GraphNode | None, end: GraphNode) -> set[GraphNode]:
    """The nodes on the paths from `start` (or the input) to `end`, with `end` and without `start`."""
    visited: set[GraphNode] = set()
    waiting = [end]
    while waiting:
        at = waiting.pop()
        if at is not start and at not in visited:
            visited.add(at)
            waiting.extend(at.inputs)
    return visited


def _dropout_probability(mask: Tensor) -> float:
    """The probability p of dropout, from its mask: values 0 and 1/(1 − p), or the share of zeros."""
    scale = float(mask.max())
    return round(1 - 1 / scale, 6) if scale > 1 else float((mask == 0).float().mean())


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def layer_from_response(signal: Tensor, response: Tensor | None, name: str) -> AuditLayer | None:
    """The layer that maps `signal` to `response`; None for the identity, else an `OtherLayer`."""
    if response is None or response.numel() != signal.numel():
        return OtherLayer(operator_words(name))
    before, after = signal.flatten(), response.flatten()
    if torch.equal(before, after):
        return None
    if torch.equal(before.relu(), after):
        return op.ReLU()
    factor = factor_between(before, after)
    return OtherLayer(operator_words(name)) if factor is None else op.ScaleOp(factor)


def factor_between(signal: Tensor, response: Tensor) -> float | None:
    """λ with response = λ·signal, to six digits; None if there is no such λ.

    >>> factor_between(torch.tensor([1.0, -2.0]), torch.tensor([0.5, -1.0]))
    0.5
    """
    response = response.to(signal.dtype)
    factor = float((signal * response).sum() / (signal * signal).sum())
    close = torch.allclose(response, factor * signal, rtol=1e-4, atol=1e-5)
    return float(f"{factor:.6g}") if close else None


def _max_pool(args: tuple[Any, ...]) -> AuditLayer:
    kernel, stride, padding, dilation = (
        _single_value(args[i]) if len(args) > i else None for i in (1, 2, 3, 4)
    )
    rounds_up = len(args) > 5 and bool(args[5])
    if (kernel, stride, padding) == (3, 2, 1) and dilation in (None, 1) and not rounds_up:
        return op.MaxPool()
    rounding = ", rounded up" if rounds_up else ""
    return OtherLayer(
        f"{kernel}×{kernel} max-pooling, stride {stride or kernel}, padding {padding or 0}{rounding}"
    )


def _average_pool(node: GraphNode) -> AuditLayer:
    """Average pooling over the whole map, or of a window."""
    [source] = node.inputs
    if node.op == "mean":
        dims = node.fx.args[1] if len(node.fx.args) > 1 else None
        over = {dim % len(source.shape) for dim in dims} if isinstance(dims, (list, tuple)) else set()
        if (len(source.shape), over) in ((4, {2, 3}), (3, {2})):
            return AVERAGE_POOLING
        return OtherLayer(f"mean over dimension {', '.join(map(str, sorted(over)))}" if over else "mean")
    if node.op != "avg_pool2d":
        size = _single_value(node.shape[2:])
        return AVERAGE_POOLING if size == 1 else OtherLayer(f"average pooling to {size}×{size}")
    args: tuple[Any, ...] = node.fx.args
    kernel = _single_value(args[1])
    stride = _single_value(args[2]) if len(args) > 2 and args[2] else kernel
    padding = _single_value(args[3]) if len(args) > 3 else 0
    if node.shape[2:] == (1, 1) and not padding and {kernel} == {*source.shape[2:]}:
        return AVERAGE_POOLING
    return OtherLayer(f"{kernel}×{kernel} average pooling, stride {stride}")


def _single_value(value: Any) -> Any:
    return value[0] if isinstance(value, (list, tuple)) and len(set(value)) == 1 else value


def producer_args(node: GraphNode) -> tuple[Any, ...]:
    """The arguments of an operator; of one with several outputs, whose first output is the node."""
    fx_node = node.fx
    if fx_node.op == "call_function" and getattr(fx_node.target, "__name__", "") == "getitem":
        producer = fx_node.args[0]
        assert isinstance(producer, torch.fx.Node)  # noqa: S101 - getitem's own signature
        fx_node = producer
    return tuple(fx_node.args)


def _has_shape(weight: Any) -> bool:
    return isinstance(weight, torch.fx.Node) and "shape" in weight.meta


def _weight_shape(weight: Any) -> tuple[int, ...]:
    return tuple(weight.meta["shape"])


class PathReader:
    """Reads paths of one graph as layers, with parallel paths joined."""

    def __init__(self, graph: DataflowGraph) -> None:
        self.graph = graph
        self.reader = LayerReader(graph)
        self._cache: dict[tuple[GraphNode, GraphNode], AuditLayers] = {}

    def layers(self, start: GraphNode, end: GraphNode) -> AuditLayers:
        """The layers from `start`, which dominates `end`, to `end`."""
        # Without the cache densely connected layers would be read once for every path through them.
        if (start, end) not in self._cache:
            self._cache[start, end] = self._read_path(start, end)
        return self._cache[start, end]

    def _read_path(self, start: GraphNode, end: GraphNode) -> AuditLayers:
        layers: list[AuditLayer] = []
        at = end
        while at is not start:
            if len(at.inputs) > 1:
                at, steps = self._parallel(at)
                layers.extend(reversed(steps))
                continue
            layer = self.reader.read_layer(at)
            layers.extend([layer] if layer else [])
            [at] = at.inputs
        return _merged(tuple(reversed(layers)))

    def _parallel(self, join: GraphNode) -> tuple[GraphNode, AuditLayers]:
        """The node at which the paths that meet in `join` split, and the layers that they are together."""
        unit = join.dominator
        assert unit is not None  # noqa: S101 - only the image has none
        reading = self.reader.read_joined(unit, join)
        if reading is not None:
            return unit, reading
        paths = tuple(self.layers(unit, input_node) for input_node in join.inputs)
        are_all_ops = all(_is_op(layer) for path in paths for layer in path)
        join_kind = self._join_kind(join)
        if are_all_ops and join_kind and all(paths):
            return unit, (op.ParallelPaths(paths, join_kind),)  # type: ignore[arg-type]  # every layer is an Op
        return unit, (_join_layer(join, paths),)

    def _join_kind(self, join: GraphNode) -> str | None:
        if join.op not in ("add", "cat") or not all(node.shape for node in join.inputs):
            return None
        signals = {node: probe_signal(node.shape) + i for i, node in enumerate(join.inputs)}
        response = self.graph.replay(join, signals)
        if response is None:
            return None
        values = list(signals.values())
        have_one_shape = len({value.shape for value in values}) == 1
        if have_one_shape and response.numel() == values[0].numel():
            total = torch.stack(values).sum(0).flatten()
            return "sum" if torch.allclose(total, response.flatten(), atol=1e-4) else None
        if join.op == "cat" and response.ndim == 4 and response.shape[1] == sum(v.shape[1] for v in values):
            return "concatenate"
        return None


PAIRS: dict[tuple[AuditLayer, AuditLayer], AuditLayer] = {
    (PART_WRITTEN, PART_WRITTEN): PART_WRITTEN,
    (CHANNEL_SCALE, CHANNEL_SHIFT): FROZEN_NORM,
    (OtherLayer("mean over dimension 2"), AVERAGE_POOLING): AVERAGE_POOLING,
    (OtherLayer("mean over dimension 3"), AVERAGE_POOLING): AVERAGE_POOLING,
}


def _merged(layers: AuditLayers) -> AuditLayers:
    """`layers`, with two in a row as the one that they are, as a scale and a shift are a frozen BN."""
    merged: list[AuditLayer] = []
    for layer in layers:
        if merged and (merged[-1], layer) in PAIRS:
            merged[-1] = PAIRS[merged[-1], layer]
        elif isinstance(layer, op.ScaleOp) and merged and isinstance(merged[-1], op.ScaleOp):
            factor = float(f"{merged.pop().factor * layer.factor:.6g}")  # type: ignore[union-attr]  # a ScaleOp
            merged.extend([op.ScaleOp(factor)] if factor != 1 else [])
        else:
            merged.append(layer)
    return tuple(merged)


def _is_op(layer: AuditLayer) -> bool:
    return isinstance(layer, op.Op) and not isinstance(layer, op.ParallelPaths)


def weight_layers(layers: AuditLayers) -> int:
    """The number of weight layers in these, with those of parallel paths and those that others hide."""
    total = 0
    for layer in layers:
        if isinstance(layer, op.ParallelPaths):
            total += sum(map(weight_layers, layer.paths))
        elif isinstance(layer, OtherLayer):
            total += layer.weights
        else:
            total += isinstance(layer, (op.Conv, LinearLayer))
    return total


def _join_layer(join: GraphNode, paths: tuple[AuditLayers, ...]) -> OtherLayer:
    hidden = sum(map(weight_layers, paths))
    if join.op == "as_strided_scatter" and not hidden:
        return PART_WRITTEN
    if join.op == "mul" and () in paths and hidden:
        text = f"multiplication by a branch of {hidden} weight layers (as squeeze-and-excitation)"
        return OtherLayer(text, hidden, join.op)
    if join.op == "output":
        return OtherLayer(f"{len(paths)} outputs", hidden, join.op)
    names = {"cat": "concatenation", "mul": "multiplication", "add": "addition"}
    words = names.get(join.op, operator_words(join.op))
    return OtherLayer(f"{words} of {len(paths)} paths", hidden, join.op)
