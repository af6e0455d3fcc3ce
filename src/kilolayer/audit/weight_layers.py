"""The weight layers of a traced network, what feeds them, and the pairs that two networks' layers form.

A pair is found by position alone: by what computes a layer's input, and by what reads its output. Names are
only handles of tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from kilolayer.audit.dataflow import DataflowGraph, GraphNode, op_name
from kilolayer.audit.layer_reader import operator_words, producer_args

LINEAR_OPS = ("addmm", "mm", "linear")
CONVOLUTION_SETTINGS = ("stride", "padding", "dilation", "transposed", "output padding", "groups")


@dataclass(eq=False)
class WeightLayer:
    """An operator that reads tensors of the module: convolution, BN, linear, or another.

    `tensors` are the names of its tensors by role, "" for one that the module does not have by name;
    `computed` are the roles whose tensor is computed from the module's, with the operator. `settings` are the
    numbers that it was called with. `sources` are the layers whose outputs reach it without passing another;
    `users` the layers that it reaches so.
    """

    index: int
    node: GraphNode
    kind: str
    shape: tuple[int, ...]
    tensors: dict[str, str] = field(default_factory=dict)
    computed: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    sources: frozenset[WeightLayer] = frozenset()
    users: list[WeightLayer] = field(default_factory=list)
    reaches_output: bool = False
    reads_image: bool = False
    stored_transposed: bool = False
    """Whether a linear layer's weight is stored as (inputs, outputs)."""

    @property
    def name(self) -> str:
        """The name of the module that holds its weight."""
        tensor = next((name for name in self.tensors.values() if name), "")
        return tensor.rpartition(".")[0] or tensor or "a layer without named weights"

    @property
    def text(self) -> str:
        """The layer in words."""
        sizes = "→".join(map(str, (self.shape[1], self.shape[0]))) if len(self.shape) > 1 else ""
        match self.kind:
            case "convolution":
                out, inner, *kernel = self.shape
                groups: int = self.settings.get("groups", 1)
                kernel_text = "×".join(map(str, kernel))
                return f"{kernel_text} convolution {inner * groups}→{out}" + f" in {groups} groups" * (
                    groups > 1
                )
            case "linear":
                return f"linear layer {sizes}"
            case "batch norm":
                return f"BN of {self.shape[0]} channels"
            case _:
                return f"{operator_words(self.kind)} of {'×'.join(map(str, self.shape)) or 'one number'}"


def weight_layers(graph: DataflowGraph) -> list[WeightLayer]:
    """The weight layers in execution order, joined to their sources and users."""
    layers: list[WeightLayer] = []
    sources: dict[GraphNode, frozenset[WeightLayer]] = {}
    from_image: dict[GraphNode, bool] = {}
    nodes = sorted(set(graph.nodes.values()), key=lambda node: node.index)
    for node in nodes:
        before = frozenset[WeightLayer]().union(*(sources[member] for member in node.inputs))
        reads_image = not node.inputs or any(from_image[member] for member in node.inputs)
        layer = _read(graph, node, len(layers)) if node.inputs else None
        if layer is None:
            sources[node], from_image[node] = before, reads_image
            continue
        if _is_bias(layer, node, before):
            [biased] = before
            biased.tensors["bias"] = layer.tensors["tensor 0"]
            sources[node], from_image[node] = before, False
            continue
        layer.sources, layer.reads_image = before, reads_image
        for source in sorted(before, key=lambda member: member.index):
            source.users.append(layer)
        layers.append(layer)
        sources[node], from_image[node] = frozenset({layer}), False
    for layer in sources[graph.output]:
        layer.reaches_output = True
    return layers


def _is_bias(layer: WeightLayer, node: GraphNode, before: frozenset[WeightLayer]) -> bool:
    """Whether an addition is the bias of the linear layer right before it, as in x @ W + b."""
    return (
        layer.kind == "add"
        and len(layer.tensors) == 1
        and len(before) == 1
        and all(
            member.kind == "linear"
            and node.inputs == (member.node,)
            and "bias" not in member.tensors
            and layer.shape == member.shape[:1]
            for member in before
        )
    )


def _read(graph: DataflowGraph, node: GraphNode, index: int) -> WeightLayer | None:
    if node.op == "getitem":  # a further output, as BN's statistics of the batch
        return None
    args = producer_args(node)
    if node.op == "convolution" and _shape(args[1]):
        tensors = {"weight": args[1], "bias": args[2]}
        settings = dict(zip(CONVOLUTION_SETTINGS, args[3:9], strict=False))
        return _layer(graph, node, index, "convolution", tensors, settings)
    if node.op.endswith("batch_norm"):
        roles = dict(zip(("weight", "bias", "running mean", "running variance"), args[1:5], strict=False))
        numbers = [value for value in args[5:] if isinstance(value, float)]
        settings = dict(zip(("momentum", "ε"), numbers, strict=False))
        return _layer(graph, node, index, "batch norm", roles, settings)
    if node.op in LINEAR_OPS and (weight := _linear_weight(graph, node, args)) is not None:
        bias = args[0] if node.op == "addmm" else args[2] if len(args) > 2 else None
        return _layer(graph, node, index, "linear", {"weight": weight, "bias": bias}, {})
    stored = [member for member in args if isinstance(member, fx.Node) and member not in graph.nodes]
    named = [member for member in stored if graph.tensor_name(member)]
    if not named:
        return None
    return _layer(graph, node, index, node.op, {f"tensor {i}": member for i, member in enumerate(named)}, {})


def _linear_weight(graph: DataflowGraph, node: GraphNode, args: tuple[Any, ...]) -> fx.Node | None:
    weight = args[2] if node.op == "addmm" else args[1]
    return weight if isinstance(weight, fx.Node) and weight not in graph.nodes else None


def _layer(
    graph: DataflowGraph,
    node: GraphNode,
    index: int,
    kind: str,
    roles: dict[str, Any],
    settings: dict[str, Any],
) -> WeightLayer:
    present = {role: value for role, value in roles.items() if isinstance(value, fx.Node)}
    first = next(iter(present.values()), None)
    shape = _shape(first) or (node.shape[1:2] if kind == "batch norm" else ())
    if kind == "linear" and node.op != "linear":
        shape = shape[::-1]
    is_pooled = kind == "convolution" and shape[2:] == (1, 1) and node.shape[2:] == (1, 1)
    if is_pooled and settings.get("groups") == 1 and node.inputs[0].shape[2:] == (1, 1):
        kind, shape, settings = "linear", shape[:2], {}
    computed = {role: by for role, value in present.items() if (by := graph.computed_by(value))}
    tensors = {role: graph.tensor_name(value) or "" for role, value in present.items()}
    stored_transposed = node.op in ("addmm", "mm") and not _is_transposed(first)
    return WeightLayer(
        index, node, kind, shape, tensors, computed, settings, stored_transposed=stored_transposed
    )


def _is_transposed(weight: Any) -> bool:
    return isinstance(weight, fx.Node) and op_name(weight) in ("t", "transpose", "permute", "numpy_T")


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.meta.get("shape", ())) if isinstance(value, fx.Node) else ()


@dataclass(frozen=True)
class LayerPair:
    """A layer of the audited network, and the layer of ours that stands in its place."""

    audited: WeightLayer
    ours: WeightLayer


def pair_layers(audited: list[WeightLayer], ours: list[WeightLayer]) -> list[LayerPair] | str:
    """The pairs in the audited order of execution; or, in words, the first layer without a partner."""
    before = [_keys(layers, backwards=False) for layers in (audited, ours)]
    after = [_keys(layers, backwards=True) for layers in (audited, ours)]
    reason = _first_without_partner(audited, ours, *before) or _first_without_partner(audited, ours, *after)
    if reason:
        return reason
    waiting: dict[tuple[int, int], list[WeightLayer]] = {}
    for layer in ours:
        waiting.setdefault((before[1][layer], after[1][layer]), []).append(layer)
    pairs = []
    for layer in audited:
        partners = waiting.get((before[0][layer], after[0][layer]))
        if not partners:
            return f"`{layer.name}`, {_a(layer.text)}, is read by other layers than in the described network"
        pairs.append(LayerPair(layer, partners.pop(0)))
    return pairs


def _keys(layers: list[WeightLayer], *, backwards: bool) -> dict[WeightLayer, int]:
    """A number for each layer: equal for two whose kinds, sizes and all that comes before are equal."""
    keys: dict[WeightLayer, int] = {}
    for layer in reversed(layers) if backwards else layers:
        near = layer.users if backwards else layer.sources
        ends = layer.reaches_output if backwards else layer.reads_image
        keys[layer] = hash((layer.kind, layer.shape, ends, tuple(sorted(keys[member] for member in near))))
    return keys


def _first_without_partner(
    audited: list[WeightLayer],
    ours: list[WeightLayer],
    audited_keys: dict[WeightLayer, int],
    our_keys: dict[WeightLayer, int],
) -> str:
    extra = next(_unmatched(audited, audited_keys, our_keys), None)
    missing = next(_unmatched(ours, our_keys, audited_keys), None)
    kinds = [Counter((layer.kind, layer.shape) for layer in layers) for layers in (audited, ours)]
    if extra is None and missing is None:
        return ""
    if extra is None:
        assert missing is not None  # noqa: S101 - asked above
        return f"{_a(missing.text)} is missing (the described network's `{missing.name}`)"
    is_further = (kinds[0] - kinds[1])[extra.kind, extra.shape]
    if missing is None or is_further:
        return f"`{extra.name}`, {_a(extra.text)}, is further to what the described network has there"
    if (kinds[1] - kinds[0])[missing.kind, missing.shape]:
        return (
            f"{_a(missing.text)} is missing before `{extra.name}` (the described network's `{missing.name}`)"
        )
    return (
        f"`{extra.name}`, {_a(extra.text)}, stands where the described network has {_a(missing.text)}, "
        "or reads another tensor than it"
    )


def _unmatched(
    layers: list[WeightLayer], keys: dict[WeightLayer, int], others: dict[WeightLayer, int]
) -> Iterator[WeightLayer]:
    available = Counter(others.values())
    for layer in layers:
        if available[keys[layer]]:
            available[keys[layer]] -= 1
        else:
            yield layer


def _a(text: str) -> str:
    return f"a {text}"
