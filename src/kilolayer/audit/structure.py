"""Says what a network is by the structure of its graph, and counts its depth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from kilolayer.audit.branch_shape import BRANCH_KINDS
from kilolayer.audit.canonical import convolutions
from kilolayer.audit.dataflow import DataflowGraph, GraphNode, is_native
from kilolayer.audit.identify import MOST_STAGES
from kilolayer.audit.layer_reader import ATTENTION_OPS, LinearLayer, ancestors, operator_words
from kilolayer.audit.traced_units import WEIGHT_OPS, TracedNetwork, joins_layers
from kilolayer.units import ops as op

SOFTMAX = ("_softmax", "softmax", "_safe_softmax")
GATES = ("sigmoid", "hardsigmoid", *SOFTMAX)
UPSAMPLING = ("upsample", "pixel_shuffle")
DETECTION = ("nms", "roi_align", "roi_pool")
RECURRENT = ("lstm", "gru", "rnn")
FEWEST_STEPS = 3
"""The uses of one weight, each reading the one before, from which it counts as a recurrence."""


@dataclass(frozen=True)
class Kernel:
    """A convolution: channels in and out, its side (None if not square), its groups."""

    channels: int
    out: int
    side: int | None
    stride: int
    groups: int
    transposed: bool

    @property
    def is_depthwise(self) -> bool:
        """Whether every channel has a kernel of its own."""
        return 1 < self.groups == self.channels


class GraphStructure:
    """What a graph consists of."""

    def __init__(self, graph: DataflowGraph, network: TracedNetwork) -> None:
        self.graph = graph
        self.network = network
        self.nodes = list(dict.fromkeys(graph.nodes.values()))

    @cached_property
    def weights(self) -> list[GraphNode]:
        """The operators that multiply by a parameter: convolutions and fully-connected layers."""
        return [node for node in self.nodes if self._is_weight(node)]

    @cached_property
    def kernels(self) -> dict[GraphNode, Kernel]:
        """The convolutions."""
        return {node: _kernel(node) for node in self.weights if node.op == "convolution"}

    @cached_property
    def joins(self) -> list[GraphNode]:
        """The nodes in which paths meet, without the end at which several outputs meet."""
        return [node for node in self.nodes if len(node.inputs) > 1 and node.op != "output"]

    @cached_property
    def concatenations(self) -> list[GraphNode]:
        return [node for node in self.joins if node.op == "cat" and len(node.shape) > 2]

    @property
    def unread_joins(self) -> tuple[str, ...]:
        """The operators, no additions and no concatenations, in which maps of one size meet."""
        names = [
            node.op
            for node in self.joins
            if node.op not in ("add", "cat") and len(node.inputs[0].shape) > 2
            and len({source.shape for source in node.inputs}) == 1
        ]  # fmt: skip
        return tuple(dict.fromkeys(names))

    @cached_property
    def attentions(self) -> list[GraphNode]:
        """The nodes that weigh values by a softmax of products."""
        return [node for node in self.joins if ATTENTION_OPS in node.op or self._weighs_by_softmax(node)]

    def _is_weight(self, node: GraphNode) -> bool:
        position = 1 if node.op in ("convolution", "linear") else -1
        weight = node.fx.args[2] if node.op == "addmm" else node.fx.args[position] if node.fx.args else None
        return node.op in WEIGHT_OPS and weight not in self.graph.nodes

    @cached_property
    def unread(self) -> list[GraphNode]:
        """The operators that are none of PyTorch's own, as those of quantised layers."""
        return [node for node in self.nodes if not is_native(node.fx) and not node.op.endswith(DETECTION)]

    @property
    def shared(self) -> tuple[str, ...]:
        """The names of the weights that several layers use."""
        uses = Counter(name for node in self.weights if (name := self._weight_name(node)))
        return tuple(name for name, count in uses.items() if count > 1)

    @property
    def decides(self) -> bool:
        """Whether Python read a value that depends on the image, as for a branch or a loop."""
        return any(node.op == "_local_scalar_dense" for node in self.nodes)

    def _weighs_by_softmax(self, node: GraphNode) -> bool:
        # One query alone is a pooling, as in a global context block.
        has_queries = len(node.shape) > 2 and min(node.shape[-2:]) > 1
        return (
            node.op in ("bmm", "matmul")
            and has_queries
            and any(_chained(source, SOFTMAX) for source in node.inputs)
        )

    @property
    def attends_in_windows(self) -> bool:
        """Whether attention stands among parts of the one image, each a sample of its own."""
        shapes = [node.shape for node in self.nodes if node.op == "_softmax" and len(node.shape) > 3]
        shapes += [node.inputs[0].shape for node in self.attentions if ATTENTION_OPS in node.op]
        return any(len(shape) > 3 and shape[0] > 1 for shape in shapes)

    @property
    def recurs(self) -> bool:
        """Whether a weight is used in a row, each time on what its last use gave."""
        if any(name in node.op for node in self.nodes for name in RECURRENT):
            return True
        uses: dict[str, list[GraphNode]] = {}
        for node in self.weights:
            if name := self._weight_name(node):
                uses.setdefault(name, []).append(node)
        return any(
            len(nodes) >= FEWEST_STEPS
            and all(self._follows(first, second, uses) for first, second in pairwise(nodes))
            for nodes in uses.values()
        )

    def _weight_name(self, node: GraphNode) -> str | None:
        names = (
            self.graph.parameter_name(source) for source in node.fx.args[:3] if source not in self.graph.nodes
        )
        return next((name for name in names if name), None)

    def _follows(self, first: GraphNode, second: GraphNode, uses: dict[str, list[GraphNode]]) -> bool:
        """Whether `second` reads what `first` gave, through weights that are used as often."""
        before = ancestors(None, second)
        if first not in before:
            return False
        between = before & set(self.weights) - ancestors(None, first)
        return all(len(uses[name]) >= FEWEST_STEPS for node in between if (name := self._weight_name(node)))

    @cached_property
    def dense_concatenations(self) -> int:
        """The concatenations that contain the one before, or all of its parts."""
        pairs = pairwise(self.concatenations)
        return sum(a in b.inputs or {*a.inputs} <= {*b.inputs} for a, b in pairs)

    @cached_property
    def upsampled(self) -> set[GraphNode]:
        """The nodes that enlarge a map."""
        return {
            node
            for node in self.nodes
            if node.op.startswith(UPSAMPLING) or (node in self.kernels and self.kernels[node].transposed)
        }

    @cached_property
    def decoder_skips(self) -> list[GraphNode]:
        """The joins of an enlarged map with an earlier one that was not enlarged."""
        skips = []
        for node in self.joins:
            if node.op not in ("cat", "add") or len(node.shape) != 4:
                continue
            enlarged = [bool(self.upsampled & ancestors(node.dominator, source)) for source in node.inputs]
            if any(enlarged) and not all(enlarged):
                skips.append(node)
        return skips

    @property
    def shrinks_behind_decoder(self) -> bool:
        """Whether maps shrink again behind the first that was enlarged, as in HRNet."""
        return any(
            self.kernels[node].stride > 1 and not self.kernels[node].transposed
            and bool(self.upsampled & ancestors(None, node))
            for node in self.kernels
        )  # fmt: skip

    @cached_property
    def parallel_branches(self) -> list[GraphNode]:
        """The concatenations of branches that part at one node, each with layers of its own."""
        collected = []
        for node in self.concatenations:
            paths = [ancestors(node.dominator, source) for source in node.inputs]
            ancestries = [path - {source} for path, source in zip(paths, node.inputs, strict=True)]
            if any(source in ancestry for source in node.inputs for ancestry in ancestries):
                continue  # they stand in a row
            if all(any(source in self.kernels or "pool" in source.op for source in path) for path in paths):
                collected.append(node)
        return collected

    @property
    def shuffles(self) -> bool:
        """Whether channels are shuffled between groups."""
        transposed = [node for node in self.nodes if len(node.shape) == 5 and _swaps_groups(node)]
        return len(transposed) > 1


def hidden_additions(graph: DataflowGraph, network: TracedNetwork) -> int:
    """The additions of maps that stand in no unit, as those beside the trunk."""
    inside: set[GraphNode] = set()
    for unit in network.units:
        if unit.addition is not None:
            inside |= ancestors(unit.split, unit.addition)
    return len(_additions(graph) - inside)


def count_additions(graph: DataflowGraph) -> int:
    """The additions of maps in the whole graph, in units or not."""
    return len(_additions(graph))


def _additions(graph: DataflowGraph) -> set[GraphNode]:
    return {
        node
        for node in graph.nodes.values()
        if node.op == "add" and len(node.shape) > 2 and joins_layers(graph, node)
    }


def count_depth(structure: GraphStructure) -> int | None:
    """The weight layers of the longest path, without those that compute a gate; None for a recurrent one.

    The papers count so: shortcuts are shorter than the branches beside them.
    """
    if structure.recurs or structure.unread:
        return None
    weights = set(structure.weights)
    depths: dict[GraphNode, int] = {}
    for node in structure.nodes:
        inputs = node.inputs
        if node.op == "mul" and len(inputs) > 1:
            inputs = tuple(source for source in inputs if not _is_gate(source)) or inputs
        depths[node] = max((depths[source] for source in inputs), default=0) + (node in weights)
    return depths[structure.graph.output]


def describe_structure(structure: GraphStructure) -> str:
    """What the network is; "not known", with what was seen, where no rule holds."""
    return next((text for rule in STRUCTURE_RULES for text in rule(structure)), "") or _unknown(structure)


def _unknown(structure: GraphStructure) -> str:
    counts = Counter(node.op for node in structure.joins)
    words = {"add": "additions", "cat": "concatenations", "mul": "multiplications"}
    parts = [f"{count} {words.get(name, name.strip('_'))}" for name, count in counts.most_common(3)]
    met = f", in which paths meet by {', '.join(parts)}" if parts else ""
    return f"not known: {len(structure.weights)} weight layers{met}"


def _recurrent(structure: GraphStructure) -> Iterator[str]:
    if structure.recurs:
        yield "recurrent network: the same weights are used step by step"


def _unread(structure: GraphStructure) -> Iterator[str]:
    if structure.unread:
        names = Counter(operator_words(node.op) for node in structure.unread).most_common(3)
        yield f"not known: operators that are not PyTorch's own ({', '.join(name for name, _ in names)})"


def _detector(structure: GraphStructure) -> Iterator[str]:
    if any(node.op.endswith(DETECTION) for node in structure.nodes):
        yield f"detector of objects: {len(structure.kernels)} convolutions, then operations on boxes"


def _decoder(structure: GraphStructure) -> Iterator[str]:
    skips = structure.decoder_skips
    if len(skips) < 2 or structure.shrinks_behind_decoder or structure.attentions:
        return
    concatenated = sum(node.op == "cat" for node in skips)
    if 2 * concatenated > len(skips):
        yield f"U-Net: encoder and decoder with {len(skips)} skip connections, concatenated"
    else:
        yield f"encoder and decoder with {len(skips)} skip connections, added (as FPN or LinkNet)"


def _dense(structure: GraphStructure) -> Iterator[str]:
    dense, every = structure.dense_concatenations, len(structure.concatenations)
    if dense >= 2 and 2 * dense > every:
        yield f"DenseNet: each of {every} concatenations keeps the maps before it"


def _attention(structure: GraphStructure) -> Iterator[str]:
    if not structure.attentions:
        return
    count = len(structure.attentions)
    spatial = sum(kernel.side is not None and kernel.side > 1 for kernel in structure.kernels.values())
    if not structure.network.units and not any(node.op == "add" for node in structure.joins):
        return
    kind = "vision Transformer" if structure.kernels else "Transformer"
    layers = f"{count} attention layer{'s' * (count > 1)}"
    shapes = {unit.addition.shape for unit in structure.network.units if unit.addition is not None}
    if spatial > 1 + count // 4:
        yield f"hybrid of {len(structure.kernels)} convolutions and {layers}"
    elif structure.attends_in_windows:
        yield f"{kind} with {layers} in windows (as Swin)"
    elif len(shapes) > 1:
        yield f"{kind} with {layers}, at several resolutions"
    else:
        yield f"{kind} with {layers}{' (as ViT)' * bool(structure.kernels)}"


def _residual(structure: GraphStructure) -> Iterator[str]:
    units = structure.network.units
    if not units:
        return
    more = count_additions(structure.graph) - len(units)
    beside_trunk = f" on the trunk, and {more} more addition{'s' * (more > 1)}" if more > 0 else ""
    count = f"{len(units)} residual unit{'s' * (len(units) > 1)}{beside_trunk}"
    shapes = [tuple(_unit_layers(unit.F)) for unit in units]
    inverted = sum(map(_is_inverted, shapes))
    if 2 * inverted > len(units):
        yield f"network of inverted residuals (as MobileNetV2): {count}"
        return
    separable = sum(sum(1 < layer.groups == layer.in_channels for layer in shape) > 1 for shape in shapes)
    if 2 * separable > len(units):
        yield f"residual network of depthwise separable convolutions (as Xception): {count}"
        return
    modern = sum(map(_is_convnext, shapes))
    if 2 * modern > len(units):
        yield f"ConvNeXt: {count} of a depthwise convolution and two pointwise layers"
        return
    if not structure.kernels or (len(structure.kernels) <= 1 and len(structure.weights) > 2):
        yield f"residual network of fully-connected layers (as MLP-Mixer): {count}"
        return
    kernels = Counter(tuple(layer.kernel for layer in shape) for shape in shapes).most_common(1)[0][0]
    words = " ".join(f"{kernel}×{kernel}" for kernel in kernels)
    kind = BRANCH_KINDS.get(kernels, "other")
    named = {"basic": "basic units", "bottleneck": "bottlenecks"}.get(kind, "units of another kind")
    widths = len({unit.addition.shape[1] for unit in units if unit.addition is not None})
    grows = f", whose width grows in {widths} steps" if widths > MOST_STAGES else ""
    yield f"residual network of {named}: {count}{grows}{f', most with convolutions {words}' if words else ''}"


def _unit_layers(layers: tuple[object, ...]) -> list[op.Conv]:
    """The convolutions and fully-connected layers of F, these as 1×1 convolutions."""
    collected: list[op.Conv] = []
    for layer in layers:
        if isinstance(layer, LinearLayer):
            collected.append(op.Conv(layer.in_features, layer.out_features, 1))
        elif isinstance(layer, (op.Conv, op.ParallelPaths)):
            collected.extend(convolutions((layer,)))
    return collected


def _is_inverted(layers: tuple[op.Conv, ...]) -> bool:
    """1×1 to more channels, depthwise, 1×1 to fewer; or depthwise and 1×1 alone."""
    depthwise = [i for i, layer in enumerate(layers) if 1 < layer.groups == layer.in_channels]
    if len(depthwise) != 1 or layers[-1].kernel != 1 or len(layers) - depthwise[-1] != 2:
        return False
    return depthwise[0] == 0 or layers[0].out_channels >= layers[0].in_channels


def _is_convnext(layers: tuple[op.Conv, ...]) -> bool:
    """A depthwise convolution, a pointwise one to more channels, and one back."""
    if len(layers) != 3:
        return False
    first, second, third = layers
    return (
        1 < first.groups == first.in_channels
        and second.kernel == third.kernel == 1
        and second.out_channels > second.in_channels
    )


def _branches(structure: GraphStructure) -> Iterator[str]:
    branches = structure.parallel_branches
    if len(branches) < 2 or 2 * len(branches) < len(structure.concatenations):
        return
    if 2 * len(structure.network.units) > len(branches):
        count = len(structure.network.units)
        yield f"residual network of parallel branches (as Inception-ResNet): {count} residual units"
        return
    most = max(len(node.inputs) for node in branches)
    example = "Inception" if most > 2 else "SqueezeNet"
    yield f"network of parallel branches, concatenated in {len(branches)} places (as {example})"


def _shuffled(structure: GraphStructure) -> Iterator[str]:
    depthwise = any(kernel.is_depthwise for kernel in structure.kernels.values())
    if structure.shuffles and depthwise and not structure.attentions:
        count = len(structure.kernels)
        yield f"network that shuffles channels between groups (as ShuffleNet): {count} convolutions"


def _chain(structure: GraphStructure) -> Iterator[str]:
    if any(node.op != "mul" for node in structure.joins) or not structure.weights:
        return
    convs, linears = len(structure.kernels), len(structure.weights) - len(structure.kernels)
    fully_connected = f"{linears} fully-connected layer{'s' * (linears != 1)}"
    if not convs:
        yield f"chain of {fully_connected} (multi-layer perceptron)"
        return
    convolutions_text = f"{convs} convolution{'s' * (convs > 1)}"
    depthwise = sum(kernel.is_depthwise for kernel in structure.kernels.values())
    if structure.upsampled:
        yield f"plain encoder and decoder: a chain of {convolutions_text} without skip connections"
    elif 3 * depthwise > convs:
        yield f"chain of depthwise separable convolutions (as MobileNetV1): {convolutions_text}"
    elif not structure.joins:
        yield f"plain chain of {convolutions_text} and {fully_connected} (as VGG)"


STRUCTURE_RULES: tuple[Callable[[GraphStructure], Iterator[str]], ...] = (
    _unread, _detector, _recurrent, _decoder, _dense, _attention, _shuffled, _branches, _residual, _chain,
)  # fmt: skip


def _swaps_groups(node: GraphNode) -> bool:
    """Whether dimensions 1 and 2 of (N, groups, channels, H, W) change places."""
    order = tuple(argument for argument in node.fx.args[1:])
    return (node.op == "transpose" and {*order} == {1, 2}) or (
        node.op == "permute" and tuple(order[0]) == (0, 2, 1, 3, 4)  # type: ignore[arg-type]
    )


def _kernel(node: GraphNode) -> Kernel:
    arguments: tuple[Any, ...] = node.fx.args
    weight, stride, transposed, groups = (arguments[i] for i in (1, 3, 6, 8))
    out, inner, *sides = getattr(weight, "meta", {}).get("shape", (0, 0))
    square = sides[0] if len(sides) > 1 and len({*sides}) == 1 else None
    channels = inner * groups if not transposed else out
    return Kernel(channels, out, square, max(stride), groups, bool(transposed))


def _chained(node: GraphNode, names: tuple[str, ...]) -> bool:
    """Whether one of these operators stands ahead of a node, with only single-input operators between."""
    at = node
    while at.op not in names:
        if len(at.inputs) != 1 or at.op in WEIGHT_OPS:
            return False
        [at] = at.inputs
    return True


def _is_gate(node: GraphNode) -> bool:
    """Whether a factor is a gate: a sigmoid or softmax of something, or a clipped ramp."""
    if _chained(node, GATES):
        return True
    at = node
    while len(at.inputs) == 1 and at.op not in WEIGHT_OPS:
        [before] = at.inputs
        if at.op in ("hardtanh", "clamp") and before.op == "add" and len(before.inputs) == 1:
            return True
        at = before
    return False
