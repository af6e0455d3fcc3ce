"""The residual units of a graph: its additions on the trunk, and the paths that meet in them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from kilolayer.audit.dataflow import DataflowGraph, GraphNode
from kilolayer.audit.layer_reader import AuditLayers
from kilolayer.audit.path_reader import PathReader
from kilolayer.audit.shortcut_reader import ShortcutReader
from kilolayer.units import ops as op


@dataclass(frozen=True)
class TracedUnit:
    """y = h(x) + F(x) as found; `edge` is what stands between the addition before and the split.

    `name` is what its weights' names have in common. `remarks`: what measuring said besides.
    """

    name: str
    edge: AuditLayers
    h: AuditLayers
    F: AuditLayers
    g: AuditLayers = ()
    gates_branch: bool = False
    gate_bias: float = 0.0
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class TracedNetwork:
    """Units in order; `end`: everything after the last addition."""

    units: tuple[TracedUnit, ...]
    tail: AuditLayers


def find_units(graph: DataflowGraph) -> TracedNetwork:
    """Splits a graph at those additions that every way from image to logits passes."""
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
        return len(self._addends(node)) > 1 or self._adds_constant_zero(node)

    def _addends(self, node: GraphNode) -> list[GraphNode]:
        """What is summed, additions of additions taken apart where nothing else reads them."""
        found = []
        for each in node.inputs:
            inner = each.op == "add" and len(each.inputs) > 1 and len(each.users) == 1
            found.extend(self._addends(each) if inner and each is not node.dominator else [each])
        return found

    def _adds_constant_zero(self, node: GraphNode) -> bool:
        """A plain net's unit: h(x) = 0 is made and added."""
        made = [each for each in node.fx.args if isinstance(each, fx.Node) and each not in self.graph.nodes]
        return bool(made) and all(not torch.any(self.graph.constant(each)) for each in made)

    def unit(self, before: GraphNode, addition: GraphNode) -> TracedUnit:
        addends = self._addends(addition)
        if len(addends) == 1:
            return self._plain(before, addends[0])
        split = addition.dominator
        assert split is not None  # noqa: S101 - only the image has none
        edge = self.paths.layers(before, split)
        name = self._name(split, addition)
        shortcut, *branches = sorted(addends, key=lambda each: _path_weight(split, each))
        alpha = float(addition.fx.kwargs.get("alpha", 1))  # type: ignore[arg-type]
        found = self.shortcuts.read(split, shortcut, branches[0])
        F = self._branch(split, branches if found.branch is None else [found.branch])
        h = found.h
        if alpha != 1:
            second = self.graph.nodes.get(addition.fx.args[1])  # type: ignore[arg-type]
            h, F = ((*h, op.ScaleOp(alpha)), F) if second is shortcut else (h, (*F, op.ScaleOp(alpha)))
        return TracedUnit(name, edge, h, F, found.g, found.gates_branch, found.gate_bias, found.remarks)

    def _branch(self, split: GraphNode, branches: list[GraphNode]) -> AuditLayers:
        paths = tuple(self.paths.layers(split, each) for each in branches)
        return paths[0] if len(paths) == 1 else (op.ParallelPaths(paths, "sum"),)  # type: ignore[arg-type]

    def _plain(self, before: GraphNode, branch: GraphNode) -> TracedUnit:
        """Everything since the addition before; where the stem is in it, `identify` takes it out."""
        F = self.paths.layers(before, branch)
        return TracedUnit(self._name(before, branch), (), (op.ZeroOp(),), F)

    def _name(self, start: GraphNode, end: GraphNode) -> str:
        names = [
            name
            for node in nodes_between(start, end)
            if node.op == "convolution" and (name := self.graph.parameter_name(node.fx.args[1]))
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
    """The nodes on the ways from `start` to `end`, without `start`, in their order."""
    seen: dict[GraphNode, None] = {}
    waiting = [end]
    while waiting:
        at = waiting.pop()
        if at is start or at in seen:
            continue
        seen[at] = None
        waiting.extend(at.inputs)
    return sorted(seen, key=lambda node: node.index)


def _path_weight(split: GraphNode, end: GraphNode) -> tuple[int, int, int]:
    """How much a path computes: the shortcut is the one with the least."""
    nodes = nodes_between(split, end)
    kernels = [node.fx.args[1].meta["shape"][-1] for node in nodes if node.op == "convolution"]  # type: ignore[union-attr]
    return len(kernels), sum(kernels), len(nodes)
