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
    """A layer that the papers' networks do not have, in words."""

    text: str


AuditLayer = Op | LinearLayer | OtherLayer
AuditLayers = tuple[AuditLayer, ...]

AVERAGE_POOLING = OtherLayer("average pooling")
AVERAGE_POOL_OPS = ("avg_pool2d", "_adaptive_avg_pool2d", "adaptive_avg_pool2d", "mean")


def probe_signal(shape: tuple[int, ...]) -> Tensor:
    """A random signal with both signs, the same at every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


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
        if "batch_norm" in node.op:
            return op.BatchNorm(node.shape[1])
        if node.op in ("addmm", "mm", "linear"):
            return self._linear(node)
        if node.op.startswith("max_pool2d"):
            return _max_pool(producer_args(node))
        if node.op in AVERAGE_POOL_OPS:
            return AVERAGE_POOLING
        if node.op == "native_dropout":
            return op.DropoutOp(float(producer_args(node)[1]))
        if any(self.graph.is_random(argument) for argument in args):
            return op.DropoutOp(self._dropout_probability(node))
        return self._read_by_probing(node)

    def _convolution(self, node: GraphNode) -> AuditLayer:
        arguments: tuple[Any, ...] = node.fx.args
        _, weight, bias, stride, padding, dilation, transposed, _, groups = arguments
        out, inner, *kernel = _weight_shape(weight)
        simple = len(kernel) == 2 and not transposed and set(dilation) == {1} and len({*stride}) == 1
        if simple and kernel[0] == kernel[1] and set(padding) == {kernel[0] // 2}:
            return op.Conv(inner * groups, out, kernel[0], stride[0], groups, bias is not None)
        size = "×".join(map(str, kernel))
        return OtherLayer(f"{size} convolution with stride {stride}, padding {padding}, dilation {dilation}")

    def _linear(self, node: GraphNode) -> AuditLayer:
        out = node.shape[-1]
        return LinearLayer(node.inputs[0].shape[-1], out, node.op != "mm")

    def _dropout_probability(self, node: GraphNode) -> float:
        """The probability p of dropout, from its mask: values 0 and 1/(1 − p), or the share of zeros."""
        mask = next(argument for argument in node.fx.args if self.graph.is_random(argument))
        values = self.graph.constant(mask)
        scale = float(values.max())
        return round(1 - 1 / scale, 6) if scale > 1 else float((values == 0).float().mean())

    def _read_by_probing(self, node: GraphNode) -> AuditLayer | None:
        """The layer by its response to a signal: identity, ReLU, a factor, or else an `OtherLayer`."""
        [source] = node.inputs
        constants = [argument for argument in node.fx.args if argument is not source.fx]
        key = (node.op, str(constants), str(node.fx.kwargs), source.shape)
        is_cacheable = not any(isinstance(argument, torch.fx.Node) for argument in constants)
        if is_cacheable and key in self._probe_cache:
            return self._probe_cache[key]
        signal = probe_signal(source.shape)
        layer = layer_from_response(signal, self.graph.replay(node, {source: signal}), node.op)
        self._probe_cache[key] = layer
        return layer


def layer_from_response(signal: Tensor, response: Tensor, name: str) -> AuditLayer | None:
    """The layer that maps `signal` to `response`; None for the identity, else an `OtherLayer`."""
    if response.numel() != signal.numel():
        return OtherLayer(name.replace("_", " ").strip())
    before, after = signal.flatten(), response.flatten()
    if torch.equal(before, after):
        return None
    if torch.equal(before.relu(), after):
        return op.ReLU()
    factor = factor_between(before, after)
    return OtherLayer(name.replace("_", " ").strip()) if factor is None else op.ScaleOp(factor)


def factor_between(signal: Tensor, response: Tensor) -> float | None:
    """λ with response = λ·signal, to six digits; None if there is no such λ.

    >>> factor_between(torch.tensor([1.0, -2.0]), torch.tensor([0.5, -1.0]))
    0.5
    """
    factor = float((signal * response).sum() / (signal * signal).sum())
    close = torch.allclose(response, factor * signal, rtol=1e-4, atol=1e-5)
    return float(f"{factor:.6g}") if close else None


def _max_pool(args: tuple[Any, ...]) -> AuditLayer:
    kernel, stride, padding = (_single_value(args[i]) if len(args) > i else None for i in (1, 2, 3))
    if (kernel, stride, padding) == (3, 2, 1):
        return op.MaxPool()
    return OtherLayer(f"{kernel}×{kernel} max-pooling, stride {stride or kernel}")


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
            joined = self._join_of(at)
            if joined is not None:
                at_first, step = self._parallel(at, joined)
                layers.append(step)
                at = at_first
                continue
            layer = self.reader.read_layer(at)
            layers.extend([layer] if layer else [])
            [at] = at.inputs
        return tuple(reversed(layers))

    def _join_of(self, node: GraphNode) -> GraphNode | None:
        """The node at which paths meet in `node`: itself, or the stack that it sums; None if none meet."""
        if len(node.inputs) > 1:
            return node
        if node.op == "sum" and len(node.inputs[0].inputs) > 1:
            return node.inputs[0]
        return None

    def _parallel(self, end: GraphNode, join: GraphNode) -> tuple[GraphNode, AuditLayer]:
        """The node at which the paths that meet in `join` split, and the layer that they are together."""
        unit = join.dominator
        assert unit is not None  # noqa: S101 - only the image has none
        paths = tuple(self.layers(unit, input_node) for input_node in join.inputs)
        are_all_ops = all(_is_op(layer) for path in paths for layer in path)
        join_kind = self._join_kind(end, join)
        if are_all_ops and join_kind and all(paths):
            return unit, op.ParallelPaths(paths, join_kind)  # type: ignore[arg-type]  # every layer is an Op here
        return unit, OtherLayer(_join_text(join, paths))

    def _join_kind(self, end: GraphNode, join: GraphNode) -> str | None:
        signals = {node: probe_signal(node.shape) + i for i, node in enumerate(join.inputs)}
        response = self.graph.replay(end, signals)
        values = list(signals.values())
        have_one_shape = len({value.shape for value in values}) == 1
        if have_one_shape and response.numel() == values[0].numel():
            total = torch.stack(values).sum(0).flatten()
            return "sum" if torch.allclose(total, response.flatten(), atol=1e-4) else None
        if join.op == "cat" and response.ndim == 4 and response.shape[1] == sum(v.shape[1] for v in values):
            return "concatenate"
        return None


def _is_op(layer: AuditLayer) -> bool:
    return isinstance(layer, op.Op) and not isinstance(layer, op.ParallelPaths)


def _join_text(join: GraphNode, paths: tuple[AuditLayers, ...]) -> str:
    if join.op == "mul" and () in paths:
        layers = sum(
            isinstance(layer, op.Conv) or "Linear" in type(layer).__name__ for path in paths for layer in path
        )
        return f"multiplication by a branch of {layers} weight layers (as squeeze-and-excitation)"
    names = {"cat": "concatenation", "mul": "multiplication", "add": "addition"}
    return f"{names.get(join.op, join.op)} of {len(paths)} paths"
