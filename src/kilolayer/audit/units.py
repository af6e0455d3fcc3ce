"""The residual units of a graph: its additions on the trunk, and the paths that meet in them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from kilolayer.audit.graph import Graph, Node
from kilolayer.audit.paths import Paths
from kilolayer.audit.shortcuts import Shortcuts
from kilolayer.audit.steps import Steps
from kilolayer.units import ops as op


@dataclass(frozen=True)
class FoundUnit:
    """y = h(x) + F(x) as found; `edge` is what stands between the addition before and the split.

    `name` is what its weights' names have in common. `remarks`: what measuring said besides.
    """

    name: str
    edge: Steps
    h: Steps
    F: Steps
    g: Steps = ()
    gates_branch: bool = False
    gate_bias: float = 0.0
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class FoundNetwork:
    """Units in order; `end`: everything after the last addition."""

    units: tuple[FoundUnit, ...]
    end: Steps


def find_units(graph: Graph) -> FoundNetwork:
    """Splits a graph at those additions that every way from image to logits passes."""
    finder = _Finder(graph)
    additions = [node for node in graph.trunk if finder.is_residual(node)]
    units, at = [], graph.trunk[0]
    for node in additions:
        units.append(finder.unit(at, node))
        at = node
    return FoundNetwork(tuple(units), finder.paths.steps(at, graph.trunk[-1]))


class _Finder:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.paths = Paths(graph)
        self.shortcuts = Shortcuts(self.paths)

    def is_residual(self, node: Node) -> bool:
        if node.op != "add" or len(node.shape) < 3:
            return False
        return len(self._addends(node)) > 1 or self._adds_zero(node)

    def _addends(self, node: Node) -> list[Node]:
        """What is summed, additions of additions taken apart where nothing else reads them."""
        found = []
        for each in node.inputs:
            inner = each.op == "add" and len(each.inputs) > 1 and len(each.users) == 1
            found.extend(self._addends(each) if inner and each is not node.dominator else [each])
        return found

    def _adds_zero(self, node: Node) -> bool:
        """A plain net's unit: h(x) = 0 is made and added."""
        made = [each for each in node.fx.args if isinstance(each, fx.Node) and each not in self.graph.nodes]
        return bool(made) and all(not torch.any(self.graph.constant(each)) for each in made)

    def unit(self, before: Node, addition: Node) -> FoundUnit:
        addends = self._addends(addition)
        if len(addends) == 1:
            return self._plain(before, addends[0])
        split = addition.dominator
        assert split is not None  # noqa: S101 - only the image has none
        edge = self.paths.steps(before, split)
        name = self._name(split, addition)
        shortcut, *branches = sorted(addends, key=lambda each: _weight(split, each))
        alpha = float(addition.fx.kwargs.get("alpha", 1))  # type: ignore[arg-type]
        found = self.shortcuts.read(split, shortcut, branches[0])
        F = self._branch(split, branches if found.branch is None else [found.branch])
        h = found.h
        if alpha != 1:
            second = self.graph.nodes.get(addition.fx.args[1])  # type: ignore[arg-type]
            h, F = ((*h, op.Scale(alpha)), F) if second is shortcut else (h, (*F, op.Scale(alpha)))
        return FoundUnit(name, edge, h, F, found.g, found.gates_branch, found.gate_bias, found.remarks)

    def _branch(self, split: Node, branches: list[Node]) -> Steps:
        paths = tuple(self.paths.steps(split, each) for each in branches)
        return paths[0] if len(paths) == 1 else (op.Paths(paths, "sum"),)  # type: ignore[arg-type]

    def _plain(self, before: Node, branch: Node) -> FoundUnit:
        """Everything since the addition before; where the stem is in it, `identify` takes it out."""
        F = self.paths.steps(before, branch)
        return FoundUnit(self._name(before, branch), (), (op.Zero(),), F)

    def _name(self, start: Node, end: Node) -> str:
        names = [
            name
            for node in between(start, end)
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


def between(start: Node, end: Node) -> list[Node]:
    """The nodes on the ways from `start` to `end`, without `start`, in their order."""
    seen: dict[Node, None] = {}
    waiting = [end]
    while waiting:
        at = waiting.pop()
        if at is start or at in seen:
            continue
        seen[at] = None
        waiting.extend(at.inputs)
    return sorted(seen, key=lambda node: node.index)


def _weight(split: Node, end: Node) -> tuple[int, int, int]:
    """How much a path computes: the shortcut is the one with the least."""
    nodes = between(split, end)
    kernels = [node.fx.args[1].meta["shape"][-1] for node in nodes if node.op == "convolution"]  # type: ignore[union-attr]
    return len(kernels), sum(kernels), len(nodes)
