"""What each operator does, in the words of `kilolayer.units.ops`: told by its arguments, or by feeding it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kilolayer.audit.graph import Graph, Node
from kilolayer.units import ops as op
from kilolayer.units.ops import Op


@dataclass(frozen=True)
class Linear:
    """A fully-connected layer."""

    in_features: int
    out_features: int
    bias: bool


@dataclass(frozen=True)
class Other:
    """A layer that the papers' units do not have, in words."""

    what: str


Step = Op | Linear | Other
Steps = tuple[Step, ...]

AVERAGE = Other("average pooling")
POOLS = ("avg_pool2d", "_adaptive_avg_pool2d", "adaptive_avg_pool2d", "mean")


def probe(shape: tuple[int, ...]) -> Tensor:
    """A signal of both signs to feed; the same each time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


class Reader:
    """Reads single operators of one graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._measured: dict[Any, Step | None] = {}

    def step(self, node: Node) -> Step | None:
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
        if node.op in POOLS:
            return AVERAGE
        if node.op == "native_dropout":
            return op.Dropout(float(producer_args(node)[1]))
        if any(self.graph.is_random(each) for each in args):
            return op.Dropout(self._dropped(node))
        return self._measure(node)

    def _convolution(self, node: Node) -> Step:
        arguments: tuple[Any, ...] = node.fx.args
        _, weight, bias, stride, padding, dilation, transposed, _, groups = arguments
        out, inner, *kernel = _size(weight)
        simple = len(kernel) == 2 and not transposed and set(dilation) == {1} and len({*stride}) == 1
        if simple and kernel[0] == kernel[1] and set(padding) == {kernel[0] // 2}:
            return op.Conv(inner * groups, out, kernel[0], stride[0], groups, bias is not None)
        size = "×".join(map(str, kernel))
        return Other(f"{size} convolution with stride {stride}, padding {padding}, dilation {dilation}")

    def _linear(self, node: Node) -> Step:
        out = node.shape[-1]
        return Linear(node.inputs[0].shape[-1], out, node.op != "mm")

    def _dropped(self, node: Node) -> float:
        """The share of zeros that the drawn mask has: 1 − the probability it was drawn with."""
        mask = next(each for each in node.fx.args if self.graph.is_random(each))
        values = self.graph.constant(mask)
        kept = float(values.max())
        return round(1 - 1 / kept, 6) if kept > 1 else float((values == 0).float().mean())

    def _measure(self, node: Node) -> Step | None:
        """By feeding a signal: handed on, rectified, scaled, or else something of its own name."""
        [source] = node.inputs
        constants = [each for each in node.fx.args if each is not source.fx]
        key = (node.op, str(constants), str(node.fx.kwargs), source.shape)
        known = not any(isinstance(each, torch.fx.Node) for each in constants)
        if known and key in self._measured:
            return self._measured[key]
        signal = probe(source.shape)
        found = told(signal, self.graph.replay(node, {source: signal}), node.op)
        self._measured[key] = found
        return found


def told(signal: Tensor, response: Tensor, name: str) -> Step | None:
    """The layer that turns `signal` into `response`."""
    if response.numel() != signal.numel():
        return Other(name.replace("_", " ").strip())
    before, after = signal.flatten(), response.flatten()
    if torch.equal(before, after):
        return None
    if torch.equal(before.relu(), after):
        return op.ReLU()
    factor = factor_between(before, after)
    return Other(name.replace("_", " ").strip()) if factor is None else op.Scale(factor)


def factor_between(signal: Tensor, response: Tensor) -> float | None:
    """λ where response = λ·signal, to six digits; None where there is no such λ."""
    factor = float((signal * response).sum() / (signal * signal).sum())
    close = torch.allclose(response, factor * signal, rtol=1e-4, atol=1e-5)
    return float(f"{factor:.6g}") if close else None


def _max_pool(args: tuple[Any, ...]) -> Step:
    kernel, stride, padding = (_one(args[i]) if len(args) > i else None for i in (1, 2, 3))
    if (kernel, stride, padding) == (3, 2, 1):
        return op.MaxPool()
    return Other(f"{kernel}×{kernel} max-pooling, stride {stride or kernel}")


def _one(value: Any) -> Any:
    return value[0] if isinstance(value, (list, tuple)) and len(set(value)) == 1 else value


def producer_args(node: Node) -> tuple[Any, ...]:
    """The arguments of an operator with several outputs, whose first the node stands for."""
    made = node.fx
    if made.op == "call_function" and getattr(made.target, "__name__", "") == "getitem":
        producer = made.args[0]
        assert isinstance(producer, torch.fx.Node)  # noqa: S101 - getitem's own signature
        made = producer
    return tuple(made.args)


def _size(weight: Any) -> tuple[int, ...]:
    return tuple(weight.meta["shape"])
