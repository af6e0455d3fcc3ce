"""Finds the first place at which a network and the described one, with the same weights, part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from kilolayer.audit.comparison import (
    TOLERANCE,
    Comparison,
    FunctionProof,
    PassResult,
    ProofPass,
    in_order,
    relative_error,
)
from kilolayer.audit.dataflow import DataflowGraph, GraphNode
from kilolayer.audit.layer_reader import operator_words, producer_args
from kilolayer.audit.weight_layers import LINEAR_OPS, LayerPair
from kilolayer.system.message_text import listing

OPERATOR_NAMES = {
    "hardtanh": "clipping",
    "max_pool2d_with_indices": "max-pooling",
    "mul": "multiplication",
    "add": "addition",
    "_to_copy": "conversion to another type",
}
RECORDED = ("convolution", "batch norm", "linear")
VIEWS = (
    "view",
    "_unsafe_view",
    "clone",
    "alias",
    "contiguous",
    "detach",
    "getitem",
    "new_zeros",
    "reshape",
    "slice",
)


def static_difference(pairs: list[LayerPair], parameters: Mapping[str, nn.Parameter]) -> FunctionProof | None:
    """A difference that layers show without running: settings; tied, computed, frozen, missing tensors."""
    for pair in pairs:
        reason = _settings_difference(pair) or _tensor_difference(pair, parameters)
        if reason:
            return FunctionProof("different", reason)
    uses = Counter(
        name for pair in pairs for role, name in pair.audited.tensors.items() if role in ("weight", "bias")
    )
    tied = [name for name, count in uses.items() if count > 1]
    if tied:
        layers = sum(uses[name] > 1 for pair in pairs for name in [pair.audited.tensors.get("weight", "")])
        return FunctionProof(
            "different", f"{layers} layers are tied: they share {listing(tied, 3)}", is_gradient=True
        )
    frozen = [
        name
        for pair in pairs
        for role, name in pair.audited.tensors.items()
        if role in ("weight", "bias") and not parameters[name].requires_grad
    ]
    if frozen:
        text = f"{len(frozen)} parameter tensors are frozen (requires_grad is off): {listing(frozen, 3)}"
        return FunctionProof("different", text, is_gradient=True)
    return None


def _settings_difference(pair: LayerPair) -> str:
    theirs, ours = pair.audited.settings, pair.ours.settings
    different = [
        f"{name} {'0 or None' if is_cumulative else _value(theirs.get(name))}, not {_value(value)}"
        for name, value in ours.items()
        if _value(theirs.get(name)) != _value(value)
        # In evaluation mode, BN without a momentum (its statistics are means over all batches) shows 0.
        for is_cumulative in [name == "momentum" and theirs.get(name) == 0]
    ]
    before = pair.audited.node.inputs[0].op
    border = (
        f" (before it there is {operator_words(before)})" if "pad" in before or "scatter" in before else ""
    )
    return f"`{pair.audited.name}` has {' and '.join(different)}{border}" if different else ""


def _tensor_difference(pair: LayerPair, parameters: Mapping[str, nn.Parameter]) -> str:
    name, theirs = pair.audited.name, pair.audited.tensors
    for role in pair.ours.tensors.keys() - theirs.keys():
        return f"`{name}` has no {role}"
    for role in theirs.keys() - pair.ours.tensors.keys():
        return f"`{name}` has a {role}"
    for role, computed in pair.audited.computed.items():
        return f"the {role} of `{name}` is computed ({operator_words(computed)}), and no parameter itself"
    for role, tensor in theirs.items():
        if not tensor:
            text = f"the {role} of a {pair.audited.text} is none of the network's registered tensors"
            return f"{text}, so no optimiser reaches it (the described network's `{pair.ours.name}`)"
        if role in ("weight", "bias") and tensor not in parameters:
            return f"the {role} of `{name}` is no parameter, so it is not trained (frozen)"
    return ""


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "×".join(map(str, value)) if len(set(value)) > 1 else str(value[0]) if value else ""
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class _Call:
    """A weight layer as it ran: input, output, and its numbers."""

    kind: str
    input: Tensor
    output: Tensor
    numbers: dict[str, Any]


class _CallRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # PyTorch's own
    """Records the weight layers that run, in order."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[_Call] = []
        self.active = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name.partition("::")[2]
        kind = _kind(name)
        before = args[1 if name == "addmm" else 0].detach().clone() if kind else None
        output = func(*args, **(kwargs or {}))
        if kind and before is not None and "backward" not in name:
            first = output if isinstance(output, Tensor) else output[0]
            numbers = {"training": args[5]} if kind == "batch norm" and len(args) > 5 else {}
            self.calls.append(_Call(kind, before, first.detach().clone(), numbers))
        return output


def _kind(name: str) -> str:
    if name.endswith("batch_norm") or name.startswith("_native_batch_norm"):
        return "batch norm"
    return "convolution" if name == "convolution" else "linear" if name in LINEAR_OPS else ""


def _calls(model: nn.Module, image: Tensor) -> list[_Call]:
    torch.manual_seed(7)
    recorder = _CallRecorder()
    with torch.enable_grad(), recorder:
        model(image.clone().requires_grad_())
    return recorder.calls


def locate(
    comparison: Comparison,
    proof_pass: ProofPass,
    image: Tensor,
    theirs: PassResult,
    ours: PassResult,
) -> FunctionProof:
    """The reason why the two differ in this pass: the first layer at which they do, and in what."""
    if relative_error(theirs.logits, ours.logits) <= TOLERANCE:
        return _locate_gradient(comparison, proof_pass, theirs, ours)
    comparison.modes.set(training=proof_pass.training)
    calls = [_calls(comparison.audited, image), _calls(comparison.ours, image)]
    layers = [
        [layer for layer in sorted(operators, key=lambda layer: layer.index) if layer.kind in RECORDED]
        for operators in (
            [pair.audited for pair in comparison.pairs],
            [pair.ours for pair in comparison.pairs],
        )
    ]
    if len(calls[0]) != len(layers[0]):
        return FunctionProof(
            "different",
            f"{proof_pass.text} it runs {len(calls[0])} weight layers, not {len(layers[0])}: it leaves "
            "out or repeats some",
        )
    of_audited = dict(zip(layers[0], calls[0], strict=True))
    of_ours = dict(zip(layers[1], calls[1], strict=True))
    verified: tuple[set[GraphNode], set[GraphNode]] = (
        {comparison.graph.trunk[0]},
        {comparison.our_graph.trunk[0]},
    )
    for pair in comparison.pairs:
        a, b = of_audited[pair.audited], of_ours[pair.ours]
        orders = comparison.orders[pair.audited]
        if not _agrees(a.input, b.input, orders.inputs):
            words = _between(comparison, pair, verified)
            return FunctionProof("different", f"before `{pair.audited.name}` {words} ({proof_pass.text})")
        if not _agrees(a.output, b.output, orders.outputs):
            return FunctionProof("different", _layer_text(pair, a, b, proof_pass))
        for nodes, layer in zip(verified, (pair.audited, pair.ours), strict=True):
            nodes.update((layer.node, layer.node.inputs[0]))
    last = max((pair for pair in comparison.pairs), key=lambda pair: pair.audited.index)
    words = _words_between(comparison, comparison.graph.output, comparison.our_graph.output, verified)
    return FunctionProof("different", f"after `{last.audited.name}` {words} ({proof_pass.text})")


def _agrees(theirs: Tensor, ours: Tensor, order: tuple[int, ...]) -> bool:
    if theirs.ndim > 1 and theirs.shape[1] == len(order):
        theirs = in_order(theirs.transpose(0, 1), order).transpose(0, 1)
    if theirs.shape != ours.shape and theirs.numel() == ours.numel():
        theirs = theirs.reshape(ours.shape)
    return relative_error(theirs, ours) <= TOLERANCE


def _layer_text(pair: LayerPair, theirs: _Call, ours: _Call, proof_pass: ProofPass) -> str:
    name = pair.audited.name
    if theirs.numbers != ours.numbers:
        if ours.numbers.get("training"):
            return f"`{name}` stays in evaluation mode while the network trains (frozen BN)"
        return f"`{name}` uses the batch's statistics in evaluation mode"
    text = f"`{name}`, a {pair.audited.text}, puts out other values from the same input and weights"
    return f"{text} ({proof_pass.text})"


def _between(comparison: Comparison, pair: LayerPair, verified: tuple[set[GraphNode], set[GraphNode]]) -> str:
    return _words_between(comparison, pair.audited.node.inputs[0], pair.ours.node.inputs[0], verified)


def _words_between(
    comparison: Comparison,
    theirs: GraphNode,
    ours: GraphNode,
    verified: tuple[set[GraphNode], set[GraphNode]],
) -> str:
    """What stands between the tensors that agree and the first that do not, in both networks."""
    operators = list(_operators(comparison.graph, theirs, verified[0]))
    expected = list(_operators(comparison.our_graph, ours, verified[1]))
    more, fewer = Counter(operators) - Counter(expected), Counter(expected) - Counter(operators)
    if not more and not fewer:
        if operators != expected:
            return f"the order is {', '.join(operators)}; the described network's is {', '.join(expected)}"
        return f"the same operators ({', '.join(operators) or 'none'}) give other values"
    expected_text, audited_text = ", ".join(dict.fromkeys(fewer)), ", ".join(dict.fromkeys(more))
    if more and fewer:
        return f"there is {audited_text} where the described network has {expected_text}"
    return (
        f"there is {audited_text}, which the described network does not have"
        if more
        else f"{expected_text} is missing"
    )


def _operators(graph: DataflowGraph, end: GraphNode, verified: set[GraphNode]) -> Iterator[str]:
    waiting, visited = [end], set()
    while waiting:
        node = waiting.pop()
        if node in visited or node in verified:
            continue
        visited.add(node)
        waiting.extend(node.inputs)
    for node in sorted(visited, key=lambda member: member.index):
        if node.op not in VIEWS and node.inputs:
            yield _operator_text(node)


def _operator_text(node: GraphNode) -> str:
    if node.op == "add" and len(node.inputs) > 1 and set(node.factors) <= {1.0}:
        return OPERATOR_NAMES["add"]
    numbers = [
        _value(value)
        for value in producer_args(node)
        if not isinstance(value, fx.Node) and value not in (None, True, False, [], ())
    ]
    numbers += [
        f"{name} {_value(value)}" for name, value in node.fx.kwargs.items() if isinstance(value, (int, float))
    ]
    words = OPERATOR_NAMES.get(node.op) or operator_words(node.op)
    return f"{words} ({', '.join(numbers)})" if numbers else words


def _locate_gradient(
    comparison: Comparison, proof_pass: ProofPass, theirs: PassResult, ours: PassResult
) -> FunctionProof:
    """Where gradients part although logits agree: the layer nearest to the logits with another gradient."""
    errors = list(comparison.gradient_errors(theirs, ours))
    wrong = [(pair, gradient) for pair, error, gradient in errors if error > TOLERANCE]
    if not wrong:
        if relative_error(theirs.image_gradient, ours.image_gradient) > TOLERANCE:
            return FunctionProof(
                "different", "the gradient of the image differs, and no weight's", is_gradient=True
            )
        return _locate_statistics(comparison)
    last, gradient = max(wrong, key=lambda row: row[0].audited.index)
    earlier = [(pair.audited, error, value) for pair, error, value in errors if _is_before(pair, last)]
    is_lost = gradient is None or not gradient.any()
    name = last.audited.name
    if is_lost and any(value is not None and bool(value.any()) for _, _, value in earlier):
        text = f"no gradient reaches `{name}`: the branch that it is in is detached"
    elif is_lost:
        text = f"no gradient reaches `{name}` or anything before it: the trunk behind it is detached"
    elif any(error <= TOLERANCE for _, error, _ in earlier):
        text = f"another gradient reaches `{name}`: it is changed in the branch that it is in"
    else:
        text = (
            f"another gradient reaches `{name}` and all before it: a shortcut behind it is detached, "
            "or the gradient is changed there"
        )
    return FunctionProof(
        "different", f"{text}, although the logits agree ({proof_pass.text})", is_gradient=True
    )


def _is_before(pair: LayerPair, last: LayerPair) -> bool:
    return pair.audited.index < last.audited.index


def _locate_statistics(comparison: Comparison) -> FunctionProof:
    for pair, role, error in comparison.statistic_errors():
        if error > TOLERANCE:
            return FunctionProof("different", f"`{pair.audited.name}` updates its {role} in another way")
    raise AssertionError("the networks differ, and nothing in them does")
