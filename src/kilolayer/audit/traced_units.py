"""Finds the residual units of a graph: additions on its trunk, and the paths that meet in them.

A shortcut is measured: a signal is fed where the paths split, and read where they meet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.nn import functional

from kilolayer.audit.dataflow import DataflowGraph, GraphNode
from kilolayer.audit.layer_reader import (
    AuditLayers,
    PathReader,
    ancestors,
    factor_between,
    probe_signal,
    producer_args,
)
from kilolayer.units import ops as op

OPEN_GATE_LOGIT = 50.0
WEIGHT_OPS = ("convolution", "addmm", "mm", "linear")
FAR_OUT = 1e6
"""A bounded shortcut shows only far from 0."""


@dataclass(frozen=True)
class ShortcutReading:
    """h, and the gate g if there is one.

    `branch` is the node at which F ends, if that is not the other addend itself. `remarks` say in words how
    the measured shortcut differs from the papers'.
    """

    h: AuditLayers
    g: AuditLayers = ()
    gates_branch: bool = False
    gate_bias: float = 0.0
    branch: GraphNode | None = None
    remarks: tuple[str, ...] = ()


class ShortcutReader:
    """Measures the shortcuts of one graph."""

    def __init__(self, paths: PathReader) -> None:
        self.paths = paths
        self.graph = paths.graph

    def read(self, split: GraphNode, addend: GraphNode, branch: GraphNode) -> ShortcutReading:
        """The shortcut that ends in `addend`; `branch` is the other addend."""
        gate = _gate_sigmoid(split, addend) if addend.op == "mul" and len(addend.inputs) == 2 else None
        if gate is not None:
            return self._read_gated(split, addend, branch, gate)
        remarks: list[str] = []
        return ShortcutReading(self._read_ungated(split, addend, remarks), remarks=tuple(remarks))

    def _read_gated(
        self, split: GraphNode, addend: GraphNode, branch: GraphNode, gate: GraphNode
    ) -> ShortcutReading:
        """The shortcut of y = (1−g)·h + …: h, whether g multiplies F too, and whether the gate closes h."""
        value = next(
            (factor for factor in addend.inputs if gate not in ancestors(split, factor)), addend.inputs[0]
        )
        logits = gate.inputs[0]
        gates_branch = branch.op == "mul" and gate in ancestors(split, branch)
        end = (
            next((factor for factor in branch.inputs if gate not in ancestors(split, factor)), None)
            if gates_branch
            else None
        )
        remarks: list[str] = []
        if not self._closes_shortcut(split, addend, logits, value):
            remarks.append("its gate does not close the shortcut as it opens")
        h = self._read_ungated(split, value, remarks)
        bias = self._gate_bias(logits)
        return ShortcutReading(h, self.paths.layers(split, logits), gates_branch, bias, end, tuple(remarks))

    def _closes_shortcut(
        self, split: GraphNode, addend: GraphNode, logits: GraphNode, value: GraphNode
    ) -> bool:
        """Whether the shortcut vanishes as W_g x + b_g → ∞, and is unchanged as W_g x + b_g → −∞."""
        inputs, open_logits = {split: probe_signal(split.shape)}, torch.full(logits.shape, OPEN_GATE_LOGIT)
        closed_output = self.graph.replay(addend, inputs | {logits: open_logits})
        open_output = self.graph.replay(addend, inputs | {logits: -open_logits})
        expected = self.graph.replay(value, inputs)
        if closed_output is None or open_output is None or expected is None:
            return False
        return not torch.any(closed_output.abs() > 1e-6) and torch.allclose(open_output, expected)

    def _gate_bias(self, logits: GraphNode) -> float:
        # The bias is the third argument of convolutions and of BN.
        bias = (
            producer_args(logits)[2]
            if logits.op == "convolution" or logits.op.endswith("batch_norm")
            else None
        )
        return round(self.graph.constant(bias).detach().mean().item(), 4) if bias is not None else 0.0

    def _read_ungated(self, start: GraphNode, end: GraphNode, remarks: list[str]) -> AuditLayers:
        nodes = [] if start is end else nodes_between(start, end)
        if any(node.op == "convolution" or self._reads_tensor(node) for node in nodes) or not start.shape:
            return self.paths.layers(start, end)
        for node in nodes:
            if len(node.inputs) == 1 and isinstance(
                layer := self.paths.reader.read_layer(node), op.DropoutOp
            ):
                [source] = node.inputs
                return (
                    *self._read_ungated(start, source, remarks),
                    layer,
                    *self._read_ungated(node, end, remarks),
                )  # fmt: skip
        if not nodes:
            return ()
        near, far = (self._copy(start, end, scale, remarks) for scale in (1.0, FAR_OUT))
        return self.paths.layers(start, end) if near is None or near != far else near

    def _reads_tensor(self, node: GraphNode) -> bool:
        """Whether a tensor of the module's takes part: its values of today say nothing."""
        return any(
            self.graph.tensor_name(argument) for argument in node.fx.args if argument not in self.graph.nodes
        )

    def _copy(self, start: GraphNode, end: GraphNode, scale: float, remarks: list[str]) -> AuditLayers | None:
        """What a path without weights does to a signal of that scale; None if it is no copy."""
        signal = scale * probe_signal(start.shape)
        response = self.graph.replay(end, {start: signal})
        new_remarks: list[str] = []
        layers = None if response is None else read_copy(signal, response, new_remarks)
        remarks.extend(remark for remark in new_remarks if remark not in remarks)
        return layers


def read_copy(signal: Tensor, response: Tensor, remarks: list[str]) -> AuditLayers | None:
    """h, if it copies x whole, scaled, as zero, or strided with zero channels added; None otherwise.

    Differences that a description cannot hold are appended to `remarks`.
    """
    if not torch.any(response):
        return (op.ZeroOp(),)
    if signal.shape == response.shape:
        factor = factor_between(signal, response)
        return None if factor is None else _scale_layers(factor)
    if signal.ndim != 4 or response.ndim != 4 or response.shape[1] < signal.shape[1]:
        return None
    return _read_padding(signal, response, remarks)


def _read_padding(signal: Tensor, response: Tensor, remarks: list[str]) -> AuditLayers | None:
    extra = response.shape[1] - signal.shape[1]
    stride = -(-signal.shape[-1] // response.shape[-1])
    present = response.abs().amax((0, 2, 3)).nonzero().flatten()
    first = int(present[0])
    copied = response[:, first : first + signal.shape[1]]
    if present.numel() > signal.shape[1] or copied.shape[1] != signal.shape[1]:
        return None
    kinds = {"": signal[..., ::stride, ::stride], "averages": functional.avg_pool2d(signal, stride)}
    for subsampling, expected in kinds.items():
        factor = factor_between(expected, copied) if expected.shape == copied.shape else None
        if factor is None:
            continue
        if subsampling:
            remarks.append("its shortcut averages pixels, while option A takes every second one")
        if first:
            remarks.append("its zero channels are added on both sides, not behind")
        return (op.PadChannels(extra, stride), *_scale_layers(factor))
    return None


def _scale_layers(factor: float) -> AuditLayers:
    return () if factor == 1 else (op.ScaleOp(factor),)


def _scaled(layers: AuditLayers, factor: float) -> AuditLayers:
    """`layers`, multiplied by `factor` behind."""
    match layers:
        case (*before, op.ScaleOp(scale)):
            return (*before, *_scale_layers(float(f"{scale * factor:.6g}")))
        case _:
            return (*layers, *_scale_layers(factor))


def joins_layers(graph: DataflowGraph, node: GraphNode) -> bool:
    """Whether paths meet in a node that hold tensors of the module's; else it is one function of one map."""
    between = ancestors(node.dominator, node) if len(node.inputs) > 1 else set()
    return any(
        inner.op in WEIGHT_OPS or any(map(graph.tensor_name, constants_of(graph, inner))) for inner in between
    )


def constants_of(graph: DataflowGraph, node: GraphNode) -> list[fx.Node]:
    """The arguments of an operator that do not depend on the image."""
    return [argument for argument in node.fx.all_input_nodes if argument not in graph.nodes]


def _gate_sigmoid(split: GraphNode, addend: GraphNode) -> GraphNode | None:
    """The sigmoid that multiplies the shortcut, if there is exactly one and it has the shortcut's shape."""
    sigmoids = [node for node in ancestors(split, addend) if node.op == "sigmoid"]
    return sigmoids[0] if len(sigmoids) == 1 and sigmoids[0].shape == addend.shape else None


@dataclass(frozen=True)
class TracedUnit:
    """y = h(x) + F(x) as traced; `edge` are the layers between the previous addition and the split.

    `name` is the common prefix of its weights' names. `remarks` are the shortcut's (see `ShortcutReading`).
    """

    name: str
    edge: AuditLayers
    h: AuditLayers
    F: AuditLayers
    g: AuditLayers = ()
    gates_branch: bool = False
    gate_bias: float = 0.0
    remarks: tuple[str, ...] = ()
    split: GraphNode | None = None
    addition: GraphNode | None = None


@dataclass(frozen=True)
class TracedNetwork:
    """Units in order, and all layers behind the last addition."""

    units: tuple[TracedUnit, ...]
    tail: AuditLayers


def find_units(graph: DataflowGraph) -> TracedNetwork:
    """Splits a graph at the additions that every path from image to logits passes."""
    finder = _UnitFinder(graph)
    additions = [node for node in graph.trunk if finder.is_residual(node)]
    units, at = [], graph.trunk[0]
    for node in additions:
        units.append(finder.unit(at, node))
        at = node
    return TracedNetwork(tuple(units), finder.paths.layers(at, graph.trunk[-1]))


class _UnitFinder:
    def __init__(self, graph: DataflowGraph) -> None:
        self.graph = graph
        self.paths = PathReader(graph)
        self.shortcuts = ShortcutReader(self.paths)

    def is_residual(self, node: GraphNode) -> bool:
        if node.op != "add" or len(node.shape) < 3:
            return False
        return joins_layers(self.graph, node) or self._adds_constant_zero(node)

    def _addends(self, node: GraphNode) -> dict[GraphNode, float]:
        """The addends and their factors; an inner sum of the same split that nothing else reads is divided.

        An inner sum of paths with a common beginning, as BN-ReLU, is a part of the branch.
        """
        addends: dict[GraphNode, float] = {}
        for addend, factor in zip(node.inputs, node.factors or (1.0,) * len(node.inputs), strict=True):
            is_inner_sum = addend.op == "add" and len(addend.inputs) > 1 and len(addend.users) == 1
            is_divided = is_inner_sum and addend.dominator is node.dominator
            inner = self._addends(addend) if is_divided else {addend: 1.0}
            for part, inner_factor in inner.items():
                addends[part] = addends.get(part, 0.0) + factor * inner_factor
        return addends

    def _adds_constant_zero(self, node: GraphNode) -> bool:
        """Whether the node adds a constant 0, as a plain network's unit does with h(x) = 0."""
        constants = [
            argument
            for argument in node.fx.args
            if isinstance(argument, fx.Node) and argument not in self.graph.nodes
        ]
        # A zero that the module keeps, as a fresh BN's shift, is no zero after training.
        return bool(constants) and not any(
            self.graph.tensor_name(argument) or torch.any(self.graph.constant(argument))
            for argument in constants
        )

    def unit(self, before: GraphNode, addition: GraphNode) -> TracedUnit:
        addends = self._addends(addition)
        if len(addends) == 1:
            return self._plain(before, next(iter(addends)))
        split = addition.dominator
        assert split is not None  # noqa: S101 - only the image has none
        edge = self.paths.layers(before, split)
        name = self._name(split, addition)
        shortcut, *branches = sorted(addends, key=lambda addend: _path_weight(split, addend))
        reading = self.shortcuts.read(split, shortcut, branches[0])
        ends = branches if reading.branch is None else [reading.branch]
        F = self._branch(split, ends, [addends[branch] for branch in branches])
        h = _scaled(reading.h, addends[shortcut])
        return TracedUnit(
            name, edge, h, F, reading.g, reading.gates_branch, reading.gate_bias, reading.remarks,
            split, addition,
        )  # fmt: skip

    def _branch(self, split: GraphNode, branches: list[GraphNode], factors: list[float]) -> AuditLayers:
        paths = tuple(
            _scaled(self.paths.layers(split, branch), factor)
            for branch, factor in zip(branches, factors, strict=True)
        )
        return paths[0] if len(paths) == 1 else (op.ParallelPaths(paths, "sum"),)  # type: ignore[arg-type]

    def _plain(self, before: GraphNode, branch: GraphNode) -> TracedUnit:
        """A plain unit: all layers since the previous addition; `canonical_trace` cuts off the stem."""
        F = self.paths.layers(before, branch)
        return TracedUnit(self._name(before, branch), (), (op.ZeroOp(),), F)

    def _name(self, start: GraphNode, end: GraphNode) -> str:
        names = [
            name
            for node in nodes_between(start, end)
            if node.op in WEIGHT_OPS
            for argument in node.fx.args[:3]
            if argument not in self.graph.nodes and (name := self.graph.parameter_name(argument))
        ]
        if not names:
            return "?"
        common = names[0].split(".")[:-1]
        for name in names[1:]:
            parts = name.split(".")
            while parts[: len(common)] != common:
                common.pop()
        return ".".join(common) or names[0].rpartition(".")[0]


def nodes_between(start: GraphNode, end: GraphNode) -> list[GraphNode]:
    """The nodes on the paths from `start` to `end`, with `end` and without `start`, in execution order."""
    return sorted(ancestors(start, end), key=lambda node: node.index)


def _path_weight(split: GraphNode, end: GraphNode) -> tuple[int, int, int]:
    """The computation on a path, for comparison: the shortcut is the addend with the least."""
    nodes = nodes_between(split, end)
    weights = [node for node in nodes if node.op in WEIGHT_OPS]
    kernels = [_kernel_side(node) for node in weights]
    return len(kernels), sum(kernels), len(nodes)


def _kernel_side(node: GraphNode) -> int:
    shape: tuple[int, ...] = getattr(node.fx.args[1], "meta", {}).get("shape", ())
    return shape[-1] if node.op == "convolution" and shape else 1
