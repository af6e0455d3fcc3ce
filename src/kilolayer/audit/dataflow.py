"""The graph of the operators that depend on the image, with dominators, and its replay on other signals."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from kilolayer.audit.trace import Trace
from kilolayer.errors import InputError

# Operators that read nothing but the shape of their input.
FACTORY_OPS = {
    "empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like",
    "new_empty", "new_zeros", "new_ones", "new_full",
}  # fmt: skip
RANDOM_OPS = {"bernoulli", "rand", "randn", "rand_like", "randn_like", "native_dropout", "uniform"}


@dataclass(eq=False)
class GraphNode:
    """An operator whose output depends on the image; `inputs` are its inputs that depend on the image too.

    `dominator` is the last node that every path from the image to this node passes, and `level` its depth in
    the dominator tree.
    """

    index: int
    op: str
    fx: fx.Node
    inputs: tuple[GraphNode, ...] = ()
    shape: tuple[int, ...] = ()
    users: list[GraphNode] = field(default_factory=list)
    dominator: GraphNode | None = None
    level: int = 0


class DataflowGraph:
    """Nodes in execution order; `trunk` are the nodes that every path from image to logits passes."""

    def __init__(self, trace: Trace) -> None:
        self.constants = trace.constants
        self.parameters = trace.parameters
        self.nodes: dict[fx.Node, GraphNode] = {}
        for fx_node in trace.graph.nodes:
            self._add(fx_node)
        [output] = trace.graph.output_node().all_input_nodes
        if output not in self.nodes:
            raise InputError("the model's output does not depend on the image")
        self.output = self.nodes[output]
        self.trunk = self._trunk()

    def _add(self, fx_node: fx.Node) -> None:
        if fx_node.op == "placeholder":
            self.nodes[fx_node] = GraphNode(0, "input", fx_node, shape=_shape(fx_node))
            return
        inputs = [
            self.nodes[input_node] for input_node in fx_node.all_input_nodes if input_node in self.nodes
        ]
        name = op_name(fx_node)
        if fx_node.op != "call_function" or not inputs or _is_factory(fx_node, name):
            return
        if fx_node.target is operator.getitem and fx_node.args[1] == 0:
            inputs[0].fx, inputs[0].shape = fx_node, _shape(fx_node)
            self.nodes[fx_node] = inputs[0]
            return
        node = GraphNode(len(self.nodes), name, fx_node, tuple(dict.fromkeys(inputs)), _shape(fx_node))
        node.dominator = _common_dominator(node.inputs)
        node.level = node.dominator.level + 1
        for input_node in node.inputs:
            input_node.users.append(node)
        self.nodes[fx_node] = node

    def _trunk(self) -> list[GraphNode]:
        trunk: list[GraphNode] = []
        node: GraphNode | None = self.output
        while node is not None:
            trunk.append(node)
            node = node.dominator
        return trunk[::-1]

    def constant(self, fx_node: Any) -> Any:
        """The value of a node that does not depend on the image; a literal is returned as it is."""
        return self._evaluate(fx_node, {}) if isinstance(fx_node, fx.Node) else fx_node

    def parameter_name(self, fx_node: Any) -> str | None:
        """The name of the parameter that a weight is, or is computed from."""
        waiting = [fx_node] if isinstance(fx_node, fx.Node) else []
        while waiting:
            at = waiting.pop()
            name = self.parameters.get(id(self.constants[at])) if at.op == "get_attr" else None
            if name:
                return name
            waiting.extend(input_node for input_node in at.all_input_nodes if input_node not in self.nodes)
        return None

    def used_parameters(self) -> set[str]:
        """The names of the parameters that the pass has read."""
        return {self.parameters.get(id(value), "") for value in self.constants.values()}

    def is_random(self, fx_node: Any) -> bool:
        """Whether a constant was drawn at random, as dropout's mask is."""
        waiting = [fx_node] if isinstance(fx_node, fx.Node) and fx_node not in self.nodes else []
        while waiting:
            at = waiting.pop()
            if op_name(at) in RANDOM_OPS:
                return True
            waiting.extend(input_node for input_node in at.all_input_nodes if input_node not in self.nodes)
        return False

    def replay(self, target: GraphNode, overrides: Mapping[GraphNode, Tensor]) -> Tensor:
        """The output of `target` if the nodes in `overrides` put out these tensors instead of their own."""
        output: Tensor = self._evaluate(target.fx, {node.fx: value for node, value in overrides.items()})
        return output

    def _evaluate(self, target: fx.Node, values: dict[fx.Node, Any]) -> Any:
        waiting = [target]
        with torch.no_grad():
            while waiting:
                at = waiting[-1]
                missing = (
                    []
                    if at in values
                    else [input_node for input_node in self._value_inputs(at) if input_node not in values]
                )
                if missing:
                    waiting.extend(missing)
                    continue
                waiting.pop()
                if at not in values:
                    values[at] = self._run(at, values)
        return values[target]

    def _value_inputs(self, fx_node: fx.Node) -> list[fx.Node]:
        """Its inputs; for a constant, without those of which it reads the shape only."""
        inputs = fx_node.all_input_nodes
        return (
            inputs
            if fx_node in self.nodes
            else [input_node for input_node in inputs if input_node not in self.nodes]
        )

    def _run(self, fx_node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        if fx_node.op == "get_attr":
            return self.constants[fx_node]
        if fx_node.op == "placeholder":  # an operator beside the path reads the image itself
            return torch.randn(_shape(fx_node), generator=torch.Generator().manual_seed(0))

        def value(input_node: fx.Node) -> Any:
            return values[input_node] if input_node in values else torch.zeros(_shape(input_node))

        args, kwargs = fx.node.map_arg((fx_node.args, fx_node.kwargs), value)
        assert callable(fx_node.target)  # noqa: S101 - only calls, attributes and inputs are recorded
        return fx_node.target(*args, **kwargs)


def op_name(fx_node: fx.Node) -> str:
    """ "convolution" of aten::convolution; "getitem"."""
    schema = getattr(fx_node.target, "_schema", None)
    return (
        schema.name.partition("::")[2] if schema else getattr(fx_node.target, "__name__", str(fx_node.target))
    )


def _is_factory(fx_node: fx.Node, name: str) -> bool:
    return name in FACTORY_OPS or (name == "bernoulli" and len(fx_node.args) > 1)


def _shape(fx_node: fx.Node) -> tuple[int, ...]:
    shape: tuple[int, ...] = fx_node.meta.get("shape", ())
    return shape


def _common_dominator(nodes: Iterable[GraphNode]) -> GraphNode:
    """The last node that dominates all of `nodes`."""
    meeting, *remaining = nodes
    for node in remaining:
        while meeting is not node:
            if meeting.level >= node.level:
                assert meeting.dominator is not None  # noqa: S101 - the image dominates everything
                meeting = meeting.dominator
            else:
                assert node.dominator is not None  # noqa: S101
                node = node.dominator
    return meeting
