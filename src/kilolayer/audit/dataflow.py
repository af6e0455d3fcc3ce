"""The graph of the operators that depend on the image, with dominators, and its replay on other signals."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
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
# Operators that hand a tensor on as it is, in another layout or type.
VIEW_OPS = {
    "alias", "clone", "contiguous", "detach", "expand", "getitem", "lift_fresh", "lift_fresh_copy", "permute",
    "reshape", "squeeze", "t", "_to_copy", "transpose", "unsqueeze", "view", "_unsafe_view", "_reshape_alias",
}  # fmt: skip
POOL_OPS = ("aten::avg_pool2d",)
LONGEST_SIDE = 2**31
SIZE_FREE_OPS = VIEW_OPS | {
    "convolution", "native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
    "relu", "clamp", "clamp_min", "hardtanh", "threshold", "maximum", "sigmoid",
    "add", "sub", "rsub", "mul", "div", "neg", "abs", "gt", "ge", "lt", "le", "where", "masked_fill",
    "mean", "max_pool2d_with_indices", "addmm", "mm", "linear", "native_dropout", "constant_pad_nd", "cat",
    "stack", "sum", "output", "input",
}  # fmt: skip
"""Operators whose arguments do not change with the side of the image."""
LONGEST_SUM = 5
"""The operators that may stand between the join of paths and the sum that it makes, as in a stack's sum."""
RANDOM_OPS = {"bernoulli", "rand", "randn", "rand_like", "randn_like", "native_dropout", "uniform"}


@dataclass(eq=False)
class GraphNode:
    """An operator whose output depends on the image; `inputs` are its inputs that depend on the image too.

    An "add" of several inputs is their weighted sum, in whatever way it is written.
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
    factors: tuple[float, ...] = ()
    """Of an addition: what multiplies each input."""


class DataflowGraph:
    """Nodes in execution order; `trunk` are the nodes that every path from image to logits passes."""

    def __init__(self, trace: Trace) -> None:
        self.constants = trace.constants
        self.parameters = trace.parameters
        self.tensors = trace.tensors
        self.nodes: dict[fx.Node, GraphNode] = {}
        for fx_node in trace.graph.nodes:
            self._add(fx_node)
        self._read_sums()
        self.outputs = self._outputs(trace)
        if not self.outputs:
            raise InputError("the model's output does not depend on the image, as far as its operators show")
        self.output = self._end(trace.graph.output_node(), tuple(self.outputs.values()))
        self.trunk = self._trunk()

    def _outputs(self, trace: Trace) -> dict[str, GraphNode]:
        """The outputs that depend on the image, by name."""
        [nodes] = trace.graph.output_node().args
        named = zip(trace.outputs, nodes, strict=True)  # type: ignore[arg-type]
        return {name: self.nodes[node] for name, node in named if node in self.nodes}

    def _end(self, fx_node: fx.Node, outputs: tuple[GraphNode, ...]) -> GraphNode:
        """The output; of several, a node in which they meet."""
        if len(set(outputs)) == 1:
            return outputs[0]
        end = GraphNode(len(self.nodes), "output", fx_node, tuple(dict.fromkeys(outputs)))
        end.dominator = _common_dominator(end.inputs)
        end.level = end.dominator.level + 1
        self.nodes[fx_node] = end
        return end

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
        if fx_node.target is operator.getitem and fx_node.args[1] == 0 and _is_lone_output(fx_node):
            inputs[0].fx, inputs[0].shape = fx_node, _shape(fx_node)
            self.nodes[fx_node] = inputs[0]
            return
        node = GraphNode(len(self.nodes), name, fx_node, tuple(dict.fromkeys(inputs)), _shape(fx_node))
        if name == "add" and len(node.inputs) == 2:
            node.factors = (1.0, float(fx_node.kwargs.get("alpha", 1)))  # type: ignore[arg-type]
        node.dominator = _common_dominator(node.inputs)
        node.level = node.dominator.level + 1
        for input_node in node.inputs:
            input_node.users.append(node)
        self.nodes[fx_node] = node

    def _in_order(self) -> list[GraphNode]:
        return sorted(set(self.nodes.values()), key=lambda node: node.index)

    def _read_sums(self) -> None:
        """Makes an "add" of every weighted sum of maps that is written otherwise, as of a stack's sum."""
        has_merged = False
        for join in self._in_order():
            if join.op == "add" or len(join.inputs) < 2 or len(join.shape) < 3:
                continue
            if len({addend.shape for addend in join.inputs}) > 1:
                continue
            sizes = _without_ones(join.inputs[0].shape)
            chain = [join]
            while _without_ones(chain[-1].shape) != sizes and len(chain) < LONGEST_SUM:
                users = chain[-1].users
                if len(users) != 1 or len(users[0].inputs) != 1:
                    break
                chain.append(users[0])
            if _without_ones(chain[-1].shape) == sizes and (factors := self._factors(chain[-1], join.inputs)):
                self._merge(chain, factors)
                has_merged = True
        for node in self._in_order() if has_merged else ():
            if node.inputs:
                node.dominator = _common_dominator(node.inputs)
                node.level = node.dominator.level + 1

    def _factors(self, end: GraphNode, addends: tuple[GraphNode, ...]) -> tuple[float, ...]:
        """λ with end = Σ λ·addend, to six digits; empty where `end` is no such sum, near 0 or far out."""
        generator = torch.Generator().manual_seed(2)
        signals = [torch.randn(addend.shape, generator=generator) for addend in addends]
        columns = torch.stack([signal.flatten() for signal in signals], 1).double()
        if len(columns) < len(addends) + 2:
            return ()
        factors: set[tuple[float, ...]] = set()
        for scale in (1.0, 1e6):
            inputs = {addend: scale * signal for addend, signal in zip(addends, signals, strict=True)}
            response = self.replay(end, inputs)
            if response is None or response.shape != end.shape or not torch.isfinite(response).all():
                return ()
            expected = response.flatten().double() / scale
            solution = torch.linalg.lstsq(columns, expected[:, None]).solution
            if not torch.allclose((columns @ solution)[:, 0], expected, rtol=1e-4, atol=1e-5):
                return ()
            factors.add(tuple(float(f"{value:.5g}") for value in solution.flatten().tolist()))
        solution_set = list(factors)
        return () if len(solution_set) > 1 or 0.0 in solution_set[0] else solution_set[0]

    def _merge(self, chain: list[GraphNode], factors: tuple[float, ...]) -> None:
        """Makes the last node of `chain` the addition of the first one's inputs."""
        join, end = chain[0], chain[-1]
        for node in chain[:-1]:
            self.nodes.update({fx_node: end for fx_node, mapped in self.nodes.items() if mapped is node})
        for addend in join.inputs:
            addend.users = [end if user is join else user for user in addend.users]
        end.op, end.inputs, end.factors = "add", join.inputs, factors

    def _trunk(self) -> list[GraphNode]:
        trunk: list[GraphNode] = []
        node: GraphNode | None = self.output
        while node is not None:
            trunk.append(node)
            node = node.dominator
        return trunk[::-1]

    @cached_property
    def size_bound(self) -> tuple[str, ...]:
        """The operators that do not say that they do the same on images of every side."""
        return tuple(dict.fromkeys(node.op for node in self._in_order() if not _is_size_free(node)))

    @property
    def covering_windows(self) -> list[bool]:
        """Of each average pooling, in order, whether its window is the whole map."""
        nodes = (node for node in self.nodes if f"aten::{op_name(node)}" in POOL_OPS)
        return [covers_map(node.args[1], _shape(node.all_input_nodes[0])) for node in nodes]

    def constant(self, fx_node: Any) -> Any:
        """The value of a node that does not depend on the image; a literal is returned as it is."""
        return self._evaluate(fx_node, {}) if isinstance(fx_node, fx.Node) else fx_node

    def parameter_name(self, fx_node: Any) -> str | None:
        """The name of the parameter that a weight is, or is computed from."""
        return next(
            (name for name in map(self._name_in(self.parameters), self._sources(fx_node)) if name), None
        )

    def tensor_name(self, fx_node: Any) -> str | None:
        """The name of the parameter or buffer that a constant is, or is computed from."""
        return next((name for name in map(self._name_in(self.tensors), self._sources(fx_node)) if name), None)

    def _name_in(self, names: Mapping[int, str]) -> Callable[[fx.Node], str | None]:
        return lambda node: names.get(id(self.constants[node])) if node.op == "get_attr" else None

    def _sources(self, fx_node: Any) -> Iterator[fx.Node]:
        """A node and all nodes that it is computed from, as far as they do not depend on the image."""
        waiting = [fx_node] if isinstance(fx_node, fx.Node) else []
        visited = set(waiting)
        while waiting:
            at = waiting.pop()
            yield at
            fresh = [node for node in at.all_input_nodes if node not in self.nodes and node not in visited]
            visited.update(fresh)
            waiting.extend(fresh)

    def computed_by(self, fx_node: Any) -> str | None:
        """The operator, beyond views and copies, that computes a constant; None for a stored one."""
        operators = (op_name(node) for node in self._sources(fx_node) if node.op == "call_function")
        return next((name for name in operators if name not in VIEW_OPS), None)

    def used_parameters(self) -> set[str]:
        """The names of the parameters that the pass has read."""
        return {self.parameters.get(id(value), "") for value in self.constants.values()}

    def is_random(self, fx_node: Any) -> bool:
        """Whether a constant was drawn at random, as dropout's mask is."""
        if not isinstance(fx_node, fx.Node) or fx_node in self.nodes:
            return False
        return any(op_name(node) in RANDOM_OPS for node in self._sources(fx_node))

    def replay(self, target: GraphNode, overrides: Mapping[GraphNode, Tensor]) -> Tensor | None:
        """The output of `target` if the nodes in `overrides` put out these tensors instead of their own.

        None where an operator on the way does not take such a tensor, or where the output holds no floats.
        """
        if target.op == "output":
            return None
        try:
            output = self._evaluate(target.fx, {node.fx: value for node, value in overrides.items()})
        except Exception:  # a foreign operator may raise anything at a signal that is not its own
            return None
        return output if isinstance(output, Tensor) and output.is_floating_point() else None

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

        if fx_node in self.nodes and not is_native(fx_node):
            raise InputError(f"{op_name(fx_node)} is fed nothing but its own input")
        args, kwargs = fx.node.map_arg((fx_node.args, fx_node.kwargs), value)
        assert callable(fx_node.target)  # noqa: S101 - only calls, attributes and inputs are recorded
        return fx_node.target(*args, **kwargs)


def covers_map(kernel: Any, shape: tuple[int, ...]) -> bool:
    """Whether the window of a pooling is the whole map."""
    sides = [kernel] if isinstance(kernel, int) else list(kernel)
    return set(sides) == set(shape[2:])


def _is_size_free(node: GraphNode) -> bool:
    match node.op, node.fx.args:
        case "slice", (_, int(), 0, int(end), *_):
            return end > LONGEST_SIDE
        case (("_adaptive_avg_pool2d" | "adaptive_avg_pool2d"), _):
            return node.shape[2:] == (1, 1)
        case _:
            return node.op in SIZE_FREE_OPS or not node.inputs


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def op_name(fx_node: fx.Node) -> str:
    """ "convolution" of aten::convolution; "getitem"."""
    schema = getattr(fx_node.target, "_schema", None)
    name: str = (
        schema.name.partition("::")[2] if schema else getattr(fx_node.target, "__name__", str(fx_node.target))
    )
    return "convolution" if name == "_convolution" else name  # as torch.jit.trace writes it


def is_native(fx_node: fx.Node) -> bool:
    """Whether an operator is one of PyTorch's own, which check their input: others may crash on a probe."""
    schema = getattr(fx_node.target, "_schema", None)
    return schema is None or schema.name.startswith(("aten::", "prims::"))


def _is_lone_output(fx_node: fx.Node) -> bool:
    """Whether no other output of the same operator is read, as those of BN and max-pooling are not."""
    return not any(sibling.users for sibling in fx_node.args[0].users if sibling is not fx_node)  # type: ignore[union-attr]


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
