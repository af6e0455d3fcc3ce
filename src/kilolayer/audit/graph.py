"""The recorded operators as a graph of what depends on the image, with dominators, and its replay."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from kilolayer.audit.trace import Trace
from kilolayer.errors import InputError

# These take a tensor for its shape alone.
FACTORIES = {
    "empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like",
    "new_empty", "new_zeros", "new_ones", "new_full",
}  # fmt: skip
RANDOM = {"bernoulli", "rand", "randn", "rand_like", "randn_like", "native_dropout", "uniform"}


@dataclass(eq=False)
class Node:
    """An operator whose output depends on the image. `inputs`: those of its inputs that do so too.

    `dominator`: the last node before it that every way from the image passes.
    """

    index: int
    op: str
    fx: fx.Node
    inputs: tuple[Node, ...] = ()
    shape: tuple[int, ...] = ()
    users: list[Node] = field(default_factory=list)
    dominator: Node | None = None
    level: int = 0


class Graph:
    """Nodes in the order of their execution; `trunk`: those that every way from image to logits passes."""

    def __init__(self, trace: Trace) -> None:
        self.constants = trace.constants
        self.parameters = trace.parameters
        self.nodes: dict[fx.Node, Node] = {}
        for made in trace.recorded.nodes:
            self._add(made)
        [output] = trace.recorded.output_node().all_input_nodes
        if output not in self.nodes:
            raise InputError("the model's output does not depend on the image")
        self.output = self.nodes[output]
        self.trunk = self._trunk()

    def _add(self, made: fx.Node) -> None:
        if made.op == "placeholder":
            self.nodes[made] = Node(0, "input", made, shape=_shape(made))
            return
        inputs = [self.nodes[each] for each in made.all_input_nodes if each in self.nodes]
        name = op_name(made)
        if made.op != "call_function" or not inputs or _is_factory(made, name):
            return
        if made.target is operator.getitem and made.args[1] == 0:
            inputs[0].fx, inputs[0].shape = made, _shape(made)
            self.nodes[made] = inputs[0]
            return
        node = Node(len(self.nodes), name, made, tuple(dict.fromkeys(inputs)), _shape(made))
        node.dominator = _meeting(node.inputs)
        node.level = node.dominator.level + 1
        for each in node.inputs:
            each.users.append(node)
        self.nodes[made] = node

    def _trunk(self) -> list[Node]:
        trunk: list[Node] = []
        node: Node | None = self.output
        while node is not None:
            trunk.append(node)
            node = node.dominator
        return trunk[::-1]

    def constant(self, made: Any) -> Any:
        """The value of a node that does not depend on the image, or a literal as it is."""
        return self._evaluate(made, {}) if isinstance(made, fx.Node) else made

    def parameter_name(self, made: Any) -> str | None:
        """The name of the parameter that a weight is, or is made of."""
        waiting = [made] if isinstance(made, fx.Node) else []
        while waiting:
            at = waiting.pop()
            name = self.parameters.get(id(self.constants[at])) if at.op == "get_attr" else None
            if name:
                return name
            waiting.extend(each for each in at.all_input_nodes if each not in self.nodes)
        return None

    def used_parameters(self) -> set[str]:
        return {self.parameters.get(id(value), "") for value in self.constants.values()}

    def is_random(self, made: Any) -> bool:
        """Whether a constant was drawn, as dropout's mask is."""
        waiting = [made] if isinstance(made, fx.Node) and made not in self.nodes else []
        while waiting:
            at = waiting.pop()
            if op_name(at) in RANDOM:
                return True
            waiting.extend(each for each in at.all_input_nodes if each not in self.nodes)
        return False

    def replay(self, target: Node, given: Mapping[Node, Tensor]) -> Tensor:
        """`target`'s output where the nodes in `given` put out these tensors instead of their own."""
        found: Tensor = self._evaluate(target.fx, {node.fx: value for node, value in given.items()})
        return found

    def _evaluate(self, target: fx.Node, known: dict[fx.Node, Any]) -> Any:
        waiting = [target]
        with torch.no_grad():
            while waiting:
                at = waiting[-1]
                missing = [] if at in known else [each for each in self._needed(at) if each not in known]
                if missing:
                    waiting.extend(missing)
                    continue
                waiting.pop()
                if at not in known:
                    known[at] = self._run(at, known)
        return known[target]

    def _needed(self, made: fx.Node) -> list[fx.Node]:
        """Its inputs, but for a constant those that it takes for their shape."""
        inputs = made.all_input_nodes
        return inputs if made in self.nodes else [each for each in inputs if each not in self.nodes]

    def _run(self, made: fx.Node, known: dict[fx.Node, Any]) -> Any:
        if made.op == "get_attr":
            return self.constants[made]
        if made.op == "placeholder":  # something beside the path that was asked for
            return torch.randn(_shape(made), generator=torch.Generator().manual_seed(0))

        def value(each: fx.Node) -> Any:
            return known[each] if each in known else torch.zeros(_shape(each))

        args, kwargs = fx.node.map_arg((made.args, made.kwargs), value)
        assert callable(made.target)  # noqa: S101 - only calls, attributes and inputs are recorded
        return made.target(*args, **kwargs)


def op_name(made: fx.Node) -> str:
    """ "convolution" of aten::convolution; "getitem"."""
    schema = getattr(made.target, "_schema", None)
    return schema.name.partition("::")[2] if schema else getattr(made.target, "__name__", str(made.target))


def _is_factory(made: fx.Node, name: str) -> bool:
    return name in FACTORIES or (name == "bernoulli" and len(made.args) > 1)


def _shape(made: fx.Node) -> tuple[int, ...]:
    shape: tuple[int, ...] = made.meta.get("shape", ())
    return shape


def _meeting(nodes: Iterable[Node]) -> Node:
    """The nearest node that dominates all of `nodes`."""
    first, *others = nodes
    for other in others:
        while first is not other:
            if first.level >= other.level:
                assert first.dominator is not None  # noqa: S101 - the image dominates everything
                first = first.dominator
            else:
                assert other.dominator is not None  # noqa: S101
                other = other.dominator
    return first
