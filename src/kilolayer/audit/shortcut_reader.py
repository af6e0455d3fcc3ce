"""The shortcut h of a unit, measured: a signal is fed where the paths part, and read where they meet."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from kilolayer.audit.dataflow import GraphNode
from kilolayer.audit.layer_reader import AuditLayers, factor_between, probe_signal, producer_args
from kilolayer.audit.path_reader import PathReader
from kilolayer.units import ops as op

OPEN_GATE_LOGIT = 50.0


@dataclass(frozen=True)
class ShortcutReading:
    """h, and g where it is gated; `branch`: where F ends, if it is not the other addend itself."""

    h: AuditLayers
    g: AuditLayers = ()
    gates_branch: bool = False
    gate_bias: float = 0.0
    branch: GraphNode | None = None
    remarks: tuple[str, ...] = ()


class ShortcutReader:
    """Reads the shortcuts of one graph."""

    def __init__(self, paths: PathReader) -> None:
        self.paths = paths
        self.graph = paths.graph

    def read(self, split: GraphNode, addend: GraphNode, branch: GraphNode) -> ShortcutReading:
        """The shortcut that ends in `addend`; `branch` is the addend beside it."""
        gate = _gate_sigmoid(split, addend) if addend.op == "mul" and len(addend.inputs) == 2 else None
        if gate is not None:
            return self._read_gated(split, addend, branch, gate)
        remarks: list[str] = []
        return ShortcutReading(self._read_ungated(split, addend, remarks), remarks=tuple(remarks))

    def _read_gated(
        self, split: GraphNode, addend: GraphNode, branch: GraphNode, gate: GraphNode
    ) -> ShortcutReading:
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
        if not self._closes_shortcut(split, addend, logits, value):
            remarks.append("its gate does not close the shortcut as it opens")
        h = self._read_ungated(split, value, remarks)
        bias = self._gate_bias(logits)
        return ShortcutReading(h, self.paths.layers(split, logits), both, bias, end, tuple(remarks))

    def _closes_shortcut(
        self, split: GraphNode, addend: GraphNode, logits: GraphNode, value: GraphNode
    ) -> bool:
        """Whether W_g x + b_g → ∞ shuts the shortcut, and → −∞ leaves it as it is."""
        fed, opened = {split: probe_signal(split.shape)}, torch.full(logits.shape, OPEN_GATE_LOGIT)
        shut = self.graph.replay(addend, fed | {logits: opened})
        whole = self.graph.replay(addend, fed | {logits: -opened})
        return not torch.any(shut.abs() > 1e-6) and torch.allclose(whole, self.graph.replay(value, fed))

    def _gate_bias(self, logits: GraphNode) -> float:
        # Convolutions and BN alike take their bias third.
        bias = producer_args(logits)[2] if logits.op == "convolution" or "batch_norm" in logits.op else None
        return round(self.graph.constant(bias).detach().mean().item(), 4) if bias is not None else 0.0

    def _read_ungated(self, start: GraphNode, end: GraphNode, remarks: list[str]) -> AuditLayers:
        nodes = [] if start is end else _nodes_on_path(start, end)
        if any(node.op == "convolution" for node in nodes):
            return self.paths.layers(start, end)
        for node in nodes:
            if len(node.inputs) == 1 and isinstance(step := self.paths.reader.read_layer(node), op.DropoutOp):
                [source] = node.inputs
                return (
                    *self._read_ungated(start, source, remarks), step, *self._read_ungated(node, end, remarks)
                )  # fmt: skip
        if not nodes:
            return ()
        signal = probe_signal(start.shape)
        found = read_copy(signal, self.graph.replay(end, {start: signal}), remarks)
        return self.paths.layers(start, end) if found is None else found


def read_copy(signal: Tensor, response: Tensor, remarks: list[str]) -> AuditLayers | None:
    """h where it copies x: whole, scaled, zero, or strided with zero channels added; None otherwise.

    What the description does not hold is put into `remarks`.
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
        return (op.PadChannels(extra, stride), *_scale_layers(factor))
    return None


def _scale_layers(factor: float) -> AuditLayers:
    return () if factor == 1 else (op.ScaleOp(factor),)


def _nodes_on_path(start: GraphNode, end: GraphNode) -> list[GraphNode]:
    return sorted(_ancestors(start, end), key=lambda node: node.index)


def _ancestors(start: GraphNode, end: GraphNode) -> set[GraphNode]:
    """The nodes on the ways from `start` to `end`, `end` among them."""
    seen: set[GraphNode] = set()
    waiting = [end]
    while waiting:
        at = waiting.pop()
        if at is not start and at not in seen:
            seen.add(at)
            waiting.extend(at.inputs)
    return seen


def _without(gate: GraphNode, split: GraphNode, product: GraphNode) -> GraphNode | None:
    """The factor that the gate has no part in."""
    return next((each for each in product.inputs if gate not in _ancestors(split, each)), None)


def _gate_sigmoid(split: GraphNode, addend: GraphNode) -> GraphNode | None:
    """The sigmoid that multiplies the shortcut, reading a layer as large as the shortcut itself."""
    found = [node for node in _ancestors(split, addend) if node.op == "sigmoid"]
    return found[0] if len(found) == 1 and found[0].shape == addend.shape else None
