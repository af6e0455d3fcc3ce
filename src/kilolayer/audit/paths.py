"""The layers on the way from one node to another, with parallel paths joined again."""

from __future__ import annotations

import torch

from kilolayer.audit.graph import Graph, Node
from kilolayer.audit.steps import Other, Reader, Step, Steps, probe
from kilolayer.units import ops as op


class Paths:
    """Reads whole paths of one graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.reader = Reader(graph)
        self._known: dict[tuple[Node, Node], Steps] = {}

    def steps(self, start: Node, end: Node) -> Steps:
        """The layers from `start`, which dominates `end`, to `end`."""
        # Densely connected layers would else be walked once for every way through them.
        if (start, end) not in self._known:
            self._known[start, end] = self._walked(start, end)
        return self._known[start, end]

    def _walked(self, start: Node, end: Node) -> Steps:
        found: list[Step] = []
        at = end
        while at is not start:
            joined = self._joined(at)
            if joined is not None:
                at_first, step = self._parallel(at, joined)
                found.append(step)
                at = at_first
                continue
            read = self.reader.step(at)
            found.extend([read] if read else [])
            [at] = at.inputs
        return tuple(reversed(found))

    def _joined(self, node: Node) -> Node | None:
        """The node where paths meet in `node`: itself, or the stack that it sums."""
        if len(node.inputs) > 1:
            return node
        if node.op == "sum" and len(node.inputs[0].inputs) > 1:
            return node.inputs[0]
        return None

    def _parallel(self, end: Node, join: Node) -> tuple[Node, Step]:
        """Where the paths that meet in `join` part, and what they are together."""
        part = join.dominator
        assert part is not None  # noqa: S101 - only the image has none
        paths = tuple(self.steps(part, each) for each in join.inputs)
        known = all(_is_op(step) for path in paths for step in path)
        how = self._how(end, join)
        if known and how and all(paths):
            return part, op.Paths(paths, how)  # type: ignore[arg-type]  # every step is an Op, as `known` says
        return part, Other(_words(join, paths))

    def _how(self, end: Node, join: Node) -> str | None:
        signals = {node: probe(node.shape) + i for i, node in enumerate(join.inputs)}
        response = self.graph.replay(end, signals)
        values = list(signals.values())
        same = len({value.shape for value in values}) == 1
        if same and response.numel() == values[0].numel():
            total = torch.stack(values).sum(0).flatten()
            return "sum" if torch.allclose(total, response.flatten(), atol=1e-4) else None
        if join.op == "cat" and response.ndim == 4 and response.shape[1] == sum(v.shape[1] for v in values):
            return "concatenate"
        return None


def _is_op(step: Step) -> bool:
    return isinstance(step, op.Op) and not isinstance(step, op.Paths)


def _words(join: Node, paths: tuple[Steps, ...]) -> str:
    if join.op == "mul" and () in paths:
        layers = sum(
            isinstance(step, op.Conv) or "Linear" in type(step).__name__ for path in paths for step in path
        )
        return f"multiplication by a branch of {layers} weight layers (as squeeze-and-excitation)"
    names = {"cat": "concatenation", "mul": "multiplication", "add": "addition"}
    return f"{names.get(join.op, join.op)} of {len(paths)} paths"
