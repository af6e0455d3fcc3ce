"""A network's weights in the order of its computation, so that two implementations' tensors can be paired."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

Node = Any
"""Of the graph that autograd builds; PyTorch gives it no type."""


def pairing_order(module: nn.Module, shape: tuple[int, ...]) -> list[str]:
    """Names of the parameters of `module`, in the order in which an image of `shape` meets them.

    The order of registration is a matter of taste: a projection stands before the branch in one class and
    behind it in another. What counts here is how many layers with weights lie before a layer on the longest
    way from the input, then how many behind it on the longest way to the output; then weight before bias.
    It is read off autograd's graph on the meta device, where nothing is computed. The same network gets
    the same order, whatever its tensors are called. Raises `RuntimeError` where it cannot be run so.
    """
    logits, names = _run_on_meta(module, shape)
    sizes = {name: p.ndim for name, p in module.named_parameters()}
    nodes = _topological_order(logits.grad_fn)
    before: dict[Node, int] = {}
    held: dict[Node, list[str]] = {}
    for node in nodes:
        ways = [before[other] for other in _input_nodes(node) if other in before]
        if ways or _leaf_name(node, names) == "":
            held[node] = sorted(_weights_of_node(node, before, names), key=lambda name: -sizes[name])
            before[node] = max(ways, default=0) + bool(held[node])
    behind = dict.fromkeys(nodes, 0)
    for node in reversed(nodes):
        for other in _input_nodes(node):
            behind[other] = max(behind[other], behind[node] + bool(held.get(node)))
    users = sorted(held, key=lambda node: (before[node], -behind[node]))
    return list(dict.fromkeys(name for node in users for name in held[node]))


def _run_on_meta(module: nn.Module, shape: tuple[int, ...]) -> tuple[Tensor, dict[int, str]]:
    """The output, and the names of the leaves of its graph by identity; the image's is empty."""
    modes = [(part, part.training) for part in module.modules()]
    state = {name: p.detach().to("meta").requires_grad_() for name, p in module.named_parameters()}
    image = torch.empty(shape, device="meta", requires_grad=True)
    buffers = {name: b.to("meta") for name, b in module.named_buffers()}
    try:
        with torch.enable_grad():
            logits = functional_call(module.eval(), state | buffers, (image,))
    except Exception as error:  # the code of others fails in its own ways
        raise RuntimeError(f"cannot be run without computing: {error}") from error
    finally:
        for part, training in modes:
            part.training = training
    # The leaves live as long as the graph does, so that no identity is given twice.
    return logits, {id(tensor): name for name, tensor in state.items()} | {id(image): ""}


def _input_nodes(node: Node) -> list[Node]:
    return [other for other, _ in node.next_functions if other is not None]


def _leaf_name(node: Node, names: dict[int, str]) -> str | None:
    return names.get(id(node.variable)) if hasattr(node, "variable") else None


def _topological_order(root: Node) -> list[Node]:
    """All nodes below `root`, each behind its sources; without recursion, for the graph is deep."""
    found: dict[Node, None] = {}
    left = [root]
    while left:
        ahead = [other for other in _input_nodes(left[-1]) if other not in found]
        if ahead:
            left += ahead
        else:
            found.setdefault(left.pop())
    return list(found)


def _weights_of_node(node: Node, depth_of_node: dict[Node, int], names: dict[int, str]) -> list[str]:
    """The weights that a node takes, perhaps transposed first, in the order of its arguments."""
    name = _leaf_name(node, names)
    if name is not None:
        return [name] if name else []
    beside = [other for other in _input_nodes(node) if other not in depth_of_node]
    return [each for other in beside for each in _weights_of_node(other, depth_of_node, names)]
