"""The layers on the way from one node to another, with parallel paths joined again."""

from __future__ import annotations

import torch

from kilolayer.audit.dataflow import DataflowGraph, GraphNode
from kilolayer.audit.layer_reader import AuditLayer, AuditLayers, LayerReader, OtherLayer, probe_signal
from kilolayer.units import ops as op


class PathReader:
    """Reads whole paths of one graph."""

    def __init__(self, graph: DataflowGraph) -> None:
        self.graph = graph
        self.reader = LayerReader(graph)
        self._cache: dict[tuple[GraphNode, GraphNode], AuditLayers] = {}

    def layers(self, start: GraphNode, end: GraphNode) -> AuditLayers:
        """The layers from `start`, which dominates `end`, to `end`."""
        # Densely connected layers would else be walked once for every way through them.
        if (start, end) not in self._cache:
            self._cache[start, end] = self._read_path(start, end)
        return self._cache[start, end]

    def _read_path(self, start: GraphNode, end: GraphNode) -> AuditLayers:
        found: list[AuditLayer] = []
        at = end
        while at is not start:
            joined = self._join_of(at)
            if joined is not None:
                at_first, step = self._parallel(at, joined)
                found.append(step)
                at = at_first
                continue
            read = self.reader.read_layer(at)
            found.extend([read] if read else [])
            [at] = at.inputs
        return tuple(reversed(found))

    def _join_of(self, node: GraphNode) -> GraphNode | None:
        """The node where paths meet in `node`: itself, or the stack that it sums."""
        if len(node.inputs) > 1:
            return node
        if node.op == "sum" and len(node.inputs[0].inputs) > 1:
            return node.inputs[0]
        return None

    def _parallel(self, end: GraphNode, join: GraphNode) -> tuple[GraphNode, AuditLayer]:
        """Where the paths that meet in `join` part, and what they are together."""
        part = join.dominator
        assert part is not None  # noqa: S101 - only the image has none
        paths = tuple(self.layers(part, each) for each in join.inputs)
        known = all(_is_op(step) for path in paths for step in path)
        how = self._join_kind(end, join)
        if known and how and all(paths):
            return part, op.ParallelPaths(paths, how)  # type: ignore[arg-type]  # every step is an Op, as `known` says
        return part, OtherLayer(_join_text(join, paths))

    def _join_kind(self, end: GraphNode, join: GraphNode) -> str | None:
        signals = {node: probe_signal(node.shape) + i for i, node in enumerate(join.inputs)}
        response = self.graph.replay(end, signals)
        values = list(signals.values())
        same = len({value.shape for value in values}) == 1
        if same and response.numel() == values[0].numel():
            total = torch.stack(values).sum(0).flatten()
            return "sum" if torch.allclose(total, response.flatten(), atol=1e-4) else None
        if join.op == "cat" and response.ndim == 4 and response.shape[1] == sum(v.shape[1] for v in values):
            return "concatenate"
        return None


def _is_op(step: AuditLayer) -> bool:
    return isinstance(step, op.Op) and not isinstance(step, op.ParallelPaths)


def _join_text(join: GraphNode, paths: tuple[AuditLayers, ...]) -> str:
    if join.op == "mul" and () in paths:
        layers = sum(
            isinstance(step, op.Conv) or "Linear" in type(step).__name__ for path in paths for step in path
        )
        return f"multiplication by a branch of {layers} weight layers (as squeeze-and-excitation)"
    names = {"cat": "concatenation", "mul": "multiplication", "add": "addition"}
    return f"{names.get(join.op, join.op)} of {len(paths)} paths"
