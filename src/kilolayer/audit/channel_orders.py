"""In which order a network's layers keep the channels that the described network keeps in another order.

An order says, for each channel of the audited network's tensor, which channel of the described network's it
is. A layer in the middle of a branch may have any order, so it gets the described one. Where tensors are
added, all of them have one order; the trunk therefore hands its order on from unit to unit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kilolayer.audit.dataflow import DataflowGraph, GraphNode
from kilolayer.audit.weight_layers import WeightLayer

KEEPS_CHANNELS = (
    "relu", "hardtanh", "clamp", "clamp_min", "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d",
    "native_dropout", "dropout", "detach", "clone", "alias",
)  # fmt: skip


@dataclass(eq=False)
class ChannelOrder:
    """The order of a tensor's channels; `values` is None as long as nothing has decided it."""

    channels: int
    values: tuple[int, ...] | None = None

    def decided(self) -> tuple[int, ...]:
        """The order, which is the described one if nothing else has decided it."""
        if self.values is None:
            self.values = tuple(range(self.channels))
        return self.values


@dataclass(frozen=True)
class LayerOrders:
    """The orders of a weight layer's input and output."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def channel_orders(graph: DataflowGraph, layers: list[WeightLayer]) -> dict[WeightLayer, LayerOrders]:
    """The orders of every layer. They are a proposal: the comparison of the two networks decides."""
    return _OrderReader(graph, layers).read()


class _OrderReader:
    def __init__(self, graph: DataflowGraph, layers: list[WeightLayer]) -> None:
        self.graph = graph
        self.layers = {layer.node: layer for layer in layers}
        # The node from which a tensor is computed without meeting another path or weights, and its order.
        self.bases: dict[GraphNode, GraphNode] = {}
        self.keeps: dict[GraphNode, bool] = {}
        self.orders: dict[GraphNode, ChannelOrder] = {}

    def read(self) -> dict[WeightLayer, LayerOrders]:
        inputs: dict[WeightLayer, ChannelOrder] = {}
        for node in sorted(set(self.graph.nodes.values()), key=lambda input_node: input_node.index):
            layer = self.layers.get(node)
            if layer is not None and node.inputs:
                inputs[layer] = self._input(node)
                self._start(node, self._output(layer, inputs[layer]))
            elif not node.inputs:
                self._start(node, ChannelOrder(_channels(node), tuple(range(_channels(node)))))
            elif len({self.bases[input_node] for input_node in node.inputs}) == 1:
                [base] = {self.bases[input_node] for input_node in node.inputs}
                self.bases[node] = base
                self.keeps[node] = (
                    all(self.keeps[input_node] for input_node in node.inputs)
                    and node.op in KEEPS_CHANNELS
                    and _channels(node) == _channels(base)
                )
            else:
                self._start(node, self._join(node))
        return {
            layer: LayerOrders(order.decided(), self.orders[layer.node].decided())
            for layer, order in inputs.items()
        }

    def _start(self, node: GraphNode, order: ChannelOrder) -> None:
        self.bases[node], self.keeps[node], self.orders[node] = node, True, order

    def _input(self, node: GraphNode) -> ChannelOrder:
        return self._order_of(node.inputs[0])

    def _output(self, layer: WeightLayer, order: ChannelOrder) -> ChannelOrder:
        if layer.kind == "linear" or layer.kind == "convolution":
            order.decided()
            channels = layer.shape[0]
            fixed = layer.kind == "linear" or layer.settings.get("groups", 1) > 1
            return ChannelOrder(channels, tuple(range(channels)) if fixed else None)
        return order

    def _order_of(self, node: GraphNode) -> ChannelOrder:
        """The order of a tensor, by the order of its base and what lies between."""
        order, selection = self.orders[self.bases[node]], self._selection(node)
        if not self._is_read(node):
            return ChannelOrder(len(selection), tuple(range(len(selection))))
        if selection == tuple(range(order.channels)):
            return order
        return ChannelOrder(len(selection), _select(order.decided(), selection))

    def _selection(self, node: GraphNode) -> tuple[int, ...]:
        """For each channel, the channel of the base that it copies; −1 for a zero channel."""
        base = self.bases[node]
        unchanged = tuple(range(_channels(node)))
        if self.keeps[node] or len(base.shape) < 2:
            return unchanged
        channels = _channels(base)
        numbers = torch.arange(1.0, channels + 1).reshape(1, -1, *[1] * (len(base.shape) - 2))
        response = self.graph.replay(node, {base: numbers.expand(base.shape).clone()})
        if response is None or response.ndim < 2 or response.shape[1] != _channels(node):
            return unchanged
        largest = response.abs().transpose(0, 1).flatten(1).amax(1)
        selection = tuple(int(value) - 1 for value in largest.round().tolist())
        copied = [channel for channel in selection if channel >= 0]
        is_selection = bool((largest == largest.round()).all()) and sorted(copied) == list(range(channels))
        return selection if is_selection else unchanged

    def _is_read(self, node: GraphNode) -> bool:
        """Whether what lies between a tensor and its base keeps all channels, permuted or with zero ones."""
        return _channels(node) >= self.orders[self.bases[node]].channels > 0

    def _join(self, node: GraphNode) -> ChannelOrder:
        """The one order of all tensors that meet, or their orders one behind the other."""
        channels = _channels(node)
        if node.op == "cat" and sum(_channels(input_node) for input_node in node.inputs) == channels:
            values: list[int] = []
            for input_node in node.inputs:
                values += [len(values) + value for value in self._order_of(input_node).decided()]
            return ChannelOrder(channels, tuple(values))
        met = [input_node for input_node in node.inputs if _channels(input_node) == channels]
        decided = [input_node for input_node in met if self.orders[self.bases[input_node]].values is not None]
        if not met:
            return ChannelOrder(channels, tuple(range(channels)))
        target = self._order_of((decided or met)[0]).decided()
        for input_node in met:
            order, selection = self.orders[self.bases[input_node]], self._selection(input_node)
            if order.values is None and sorted(selection) == list(range(order.channels)):
                values_by_channel = dict(zip(selection, target, strict=True))
                order.values = tuple(values_by_channel[channel] for channel in range(order.channels))
        return ChannelOrder(channels, target)


def _select(order: tuple[int, ...], selection: tuple[int, ...]) -> tuple[int, ...]:
    """The order of the selected channels; zero channels are numbered behind, as option A adds them."""
    behind = iter(range(len(order), len(selection)))
    return tuple(order[channel] if 0 <= channel < len(order) else next(behind, -1) for channel in selection)


def _channels(node: GraphNode) -> int:
    return node.shape[1] if len(node.shape) > 1 else 0
