"""The shortcut h of a unit, measured: a signal is fed where the paths part, and read where they meet."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from kilolayer.audit.graph import Node
from kilolayer.audit.paths import Paths
from kilolayer.audit.steps import Steps, factor_between, probe, producer_args
from kilolayer.units import ops as op

OPEN = 50.0


@dataclass(frozen=True)
class Shortcut:
    """h, and g where it is gated; `branch`: where F ends, if it is not the other addend itself."""

    h: Steps
    g: Steps = ()
    gates_branch: bool = False
    gate_bias: float = 0.0
    branch: Node | None = None
    remarks: tuple[str, ...] = ()


class Shortcuts:
    """Reads the shortcuts of one graph."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.graph = paths.graph

    def read(self, split: Node, addend: Node, branch: Node) -> Shortcut:
        """The shortcut that ends in `addend`; `branch` is the addend beside it."""
        gate = _sigmoid(split, addend) if addend.op == "mul" and len(addend.inputs) == 2 else None
        if gate is not None:
            return self._gated(split, addend, branch, gate)
        remarks: list[str] = []
        return Shortcut(self._measured(split, addend, remarks), remarks=tuple(remarks))

    def _gated(self, split: Node, addend: Node, branch: Node, gate: Node) -> Shortcut:
        """y = (1−g)·h + …: which factor is h, whether g multiplies F too, and which way it opens."""
        value = next(
            (each for each in addend.inputs if gate not in _ancestors(split, each)), addend.inputs[0]
        )
        [logits] = gate.inputs
        both = branch.op == "mul" and gate in _ancestors(split, branch)
        end = (
            next((each for each in branch.inputs if gate not in _ancestors(split, each)), None)
            if both
            else None
        )
        remarks: list[str] = []
        if not self._closes(split, addend, logits, value):
            remarks.append("its gate does not close the shortcut as it opens")
        h = self._measured(split, value, remarks)
        bias = self._gate_bias(logits)
        return Shortcut(h, self.paths.steps(split, logits), both, bias, end, tuple(remarks))

    def _closes(self, split: Node, addend: Node, logits: Node, value: Node) -> bool:
        """Whether W_g x + b_g → ∞ shuts the shortcut, and → −∞ leaves it as it is."""
        fed, opened = {split: probe(split.shape)}, torch.full(logits.shape, OPEN)
        shut = self.graph.replay(addend, fed | {logits: opened})
        whole = self.graph.replay(addend, fed | {logits: -opened})
        return not torch.any(shut.abs() > 1e-6) and torch.allclose(whole, self.graph.replay(value, fed))

    def _gate_bias(self, logits: Node) -> float:
        # Convolutions and BN alike take their bias third.
        bias = producer_args(logits)[2] if logits.op == "convolution" or "batch_norm" in logits.op else None
        return round(self.graph.constant(bias).detach().mean().item(), 4) if bias is not None else 0.0

    def _measured(self, start: Node, end: Node, remarks: list[str]) -> Steps:
        nodes = [] if start is end else _path_nodes(start, end)
        if any(node.op == "convolution" for node in nodes):
            return self.paths.steps(start, end)
        for node in nodes:
            if len(node.inputs) == 1 and isinstance(step := self.paths.reader.step(node), op.Dropout):
                [source] = node.inputs
                return (
                    *self._measured(start, source, remarks), step, *self._measured(node, end, remarks)
                )  # fmt: skip
        if not nodes:
            return ()
        signal = probe(start.shape)
        found = as_copy(signal, self.graph.replay(end, {start: signal}), remarks)
        return self.paths.steps(start, end) if found is None else found


def as_copy(signal: Tensor, response: Tensor, remarks: list[str]) -> Steps | None:
    """h where it copies x: whole, scaled, zero, or strided with zero channels added; None otherwise.

    What the description does not hold is put into `remarks`.
    """
    if not torch.any(response):
        return (op.Zero(),)
    if signal.shape == response.shape:
        factor = factor_between(signal, response)
        return None if factor is None else _scale(factor)
    if signal.ndim != 4 or response.ndim != 4 or response.shape[1] < signal.shape[1]:
        return None
    return _padded(signal, response, remarks)


def _padded(signal: Tensor, response: Tensor, remarks: list[str]) -> Steps | None:
    extra = response.shape[1] - signal.shape[1]
    stride = -(-signal.shape[-1] // response.shape[-1])
    present = response.abs().amax((0, 2, 3)).nonzero().flatten()
    first = int(present[0])
    kept = response[:, first : first + signal.shape[1]]
    if present.numel() > signal.shape[1] or kept.shape[1] != signal.shape[1]:
        return None
    kinds = {"": signal[..., ::stride, ::stride], "averages": functional.avg_pool2d(signal, stride)}
    for how, expected in kinds.items():
        factor = factor_between(expected, kept) if expected.shape == kept.shape else None
        if factor is None:
            continue
        if how:
            remarks.append("its shortcut averages pixels where option A takes every second")
        if first:
            remarks.append("its zero channels stand on both sides, not behind")
        return (op.PadChannels(extra, stride), *_scale(factor))
    return None


def _scale(factor: float) -> Steps:
    return () if factor == 1 else (op.Scale(factor),)


def _path_nodes(start: Node, end: Node) -> list[Node]:
    return sorted(_ancestors(start, end), key=lambda node: node.index)


def _ancestors(start: Node, end: Node) -> set[Node]:
    """The nodes on the ways from `start` to `end`, `end` among them."""
    seen: set[Node] = set()
    waiting = [end]
    while waiting:
        at = waiting.pop()
        if at is not start and at not in seen:
            seen.add(at)
            waiting.extend(at.inputs)
    return seen


def _without(gate: Node, split: Node, product: Node) -> Node | None:
    """The factor that the gate has no part in."""
    return next((each for each in product.inputs if gate not in _ancestors(split, each)), None)


def _sigmoid(split: Node, addend: Node) -> Node | None:
    """The sigmoid that multiplies the shortcut, reading a layer as large as the shortcut itself."""
    found = [node for node in _ancestors(split, addend) if node.op == "sigmoid"]
    return found[0] if len(found) == 1 and found[0].shape == addend.shape else None
