"""A network's weights in the order of its computation, so that two implementations' tensors can be paired."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

Node = Any
"""A node of autograd's graph; PyTorch has no type for it."""


def pairing_order(module: nn.Module, shape: tuple[int, ...]) -> list[str]:
    """The names of the module's parameters in the order in which an image of `shape` meets them.

    Registration order is arbitrary: a projection stands before the branch in one class and after it in
    another. Here a layer is ordered by the number of layers with weights before it on the longest path from
    the input, then by the number after it on the longest path to the output; weight comes before bias. The
    order is read off autograd's graph on the meta device, where nothing is computed, and does not depend on
    names.

    Raises `RuntimeError` if the module cannot be run that way.

    >>> pairing_order(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 2)), (1, 3, 3, 3))
    ['0.weight', '0.bias', '2.weight', '2.bias']
    """
    logits, names = _run_on_meta(module, shape)
    sizes = {name: p.ndim for name, p in module.named_parameters()}
    nodes = _topological_order(logits.grad_fn)
    layers_before: dict[Node, int] = {}
    weights: dict[Node, list[str]] = {}
    for node in nodes:
        depths = [layers_before[source] for source in _input_nodes(node) if source in layers_before]
        if depths or _leaf_name(node, names) == "":
            weights[node] = sorted(
                _weights_of_node(node, layers_before, names), key=lambda name: -sizes[name]
            )
            layers_before[node] = max(depths, default=0) + bool(weights[node])
    layers_after = dict.fromkeys(nodes, 0)
    for node in reversed(nodes):
        for source in _input_nodes(node):
            layers_after[source] = max(layers_after[source], layers_after[node] + bool(weights.get(node)))
    users = sorted(weights, key=lambda node: (layers_before[node], -layers_after[node]))
    return list(dict.fromkeys(name for node in users for name in weights[node]))


def _run_on_meta(module: nn.Module, shape: tuple[int, ...]) -> tuple[Tensor, dict[int, str]]:
    """The output, and the names of its graph's leaves by identity; the image's name is empty."""
    modes = [(part, part.training) for part in module.modules()]
    state = {name: p.detach().to("meta").requires_grad_() for name, p in module.named_parameters()}
    image = torch.empty(shape, device="meta", requires_grad=True)
    buffers = {name: b.to("meta") for name, b in module.named_buffers()}
    try:
        with torch.enable_grad():
            logits = functional_call(module.eval(), state | buffers, (image,))
    except Exception as error:  # other people's code may raise anything
        raise RuntimeError(f"cannot be run without computing: {error}") from error
    finally:
        for part, training in modes:
            part.training = training
    # The graph keeps its leaves alive, so no identity is used twice.
    return logits, {id(tensor): name for name, tensor in state.items()} | {id(image): ""}


def _input_nodes(node: Node) -> list[Node]:
    return [source for source, _ in node.next_functions if source is not None]


def _leaf_name(node: Node, names: dict[int, str]) -> str | None:
    return names.get(id(node.variable)) if hasattr(node, "variable") else None


def _topological_order(root: Node) -> list[Node]:
    """All nodes below `root`, each after its inputs; without recursion, since the graph is deep."""
    ordered: dict[Node, None] = {}
    stack = [root]
    while stack:
        pending = [source for source in _input_nodes(stack[-1]) if source not in ordered]
        if pending:
            stack += pending
        else:
            ordered.setdefault(stack.pop())
    return list(ordered)


def _weights_of_node(node: Node, depth_of_node: dict[Node, int], names: dict[int, str]) -> list[str]:
    """The weights that a node takes, perhaps transposed first, in the order of its arguments."""
    name = _leaf_name(node, names)
    if name is not None:
        return [name] if name else []
    side_inputs = [source for source in _input_nodes(node) if source not in depth_of_node]
    return [weight for source in side_inputs for weight in _weights_of_node(source, depth_of_node, names)]
