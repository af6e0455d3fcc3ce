"""What each operator does, in the words of `kilolayer.units.ops`: told by its arguments, or by feeding it."""

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
    """A layer that the papers' units do not have, in words."""

    what: str


AuditLayer = Op | LinearLayer | OtherLayer
AuditLayers = tuple[AuditLayer, ...]

AVERAGE_POOLING = OtherLayer("average pooling")
AVERAGE_POOL_OPS = ("avg_pool2d", "_adaptive_avg_pool2d", "adaptive_avg_pool2d", "mean")


def probe_signal(shape: tuple[int, ...]) -> Tensor:
    """A signal of both signs to feed; the same each time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


class LayerReader:
    """Reads single operators of one graph."""

    def __init__(self, graph: DataflowGraph) -> None:
        self.graph = graph
        self._probe_cache: dict[Any, AuditLayer | None] = {}

    def read_layer(self, node: GraphNode) -> AuditLayer | None:
        """The layer that a node with one input is; None where it hands its input on."""
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
        if any(self.graph.is_random(each) for each in args):
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
        """The share of zeros that the drawn mask has: 1 − the probability it was drawn with."""
        mask = next(each for each in node.fx.args if self.graph.is_random(each))
        values = self.graph.constant(mask)
        kept = float(values.max())
        return round(1 - 1 / kept, 6) if kept > 1 else float((values == 0).float().mean())

    def _read_by_probing(self, node: GraphNode) -> AuditLayer | None:
        """By feeding a signal: handed on, rectified, scaled, or else something of its own name."""
        [source] = node.inputs
        constants = [each for each in node.fx.args if each is not source.fx]
        key = (node.op, str(constants), str(node.fx.kwargs), source.shape)
        known = not any(isinstance(each, torch.fx.Node) for each in constants)
        if known and key in self._probe_cache:
            return self._probe_cache[key]
        signal = probe_signal(source.shape)
        found = layer_from_response(signal, self.graph.replay(node, {source: signal}), node.op)
        self._probe_cache[key] = found
        return found


def layer_from_response(signal: Tensor, response: Tensor, name: str) -> AuditLayer | None:
    """The layer that turns `signal` into `response`."""
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
    """λ where response = λ·signal, to six digits; None where there is no such λ."""
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
    """The arguments of an operator with several outputs, whose first the node stands for."""
    made = node.fx
    if made.op == "call_function" and getattr(made.target, "__name__", "") == "getitem":
        producer = made.args[0]
        assert isinstance(producer, torch.fx.Node)  # noqa: S101 - getitem's own signature
        made = producer
    return tuple(made.args)


def _weight_shape(weight: Any) -> tuple[int, ...]:
    return tuple(weight.meta["shape"])
