"""Reads a module's record as residual units: y = h(x) + F(x), x' = f(y), one for every addition in turn.

The record is a graph from the module's input to its output. A tensor through which every path passes is a
*cut*. Between two cuts lies either one operation, or several paths that part and join again. Where they join
in a sum, of which exactly one term is the signal itself (through linear maps without weights: views,
factors), that term is h and the rest is F.
A sum without such a term has as its h the term with fewer weights on its
way (a projection, a gated shortcut). Anything else is refused by name, or is a part of f, or is a plain unit
where every path has weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from kilolayer.errors import InputError
from kilolayer.measure.residual_tracer import (
    MATRIX_PRODUCTS,
    SAME_ELEMENTS,
    UNSEEN,
    ResidualTracer,
    Term,
    TracedTensor,
    WeightUse,
)

State = Literal["direct", "mixed", "rest"]
"""What a tensor is for the signal at a cut: the signal itself through linear maps without weights, a sum of
that and of something else, or something else."""
Edges = list[tuple[TracedTensor, Tensor]]
Cuts = Sequence[TracedTensor]


@dataclass(frozen=True)
class ResidualReading:
    """One unit of a module, as it was read from the module's record.

    `x`, `y` and `out` are the unit's input, y and x'; `states` says of every tensor between them what it is
    for the signal at `base`, which is p(x). A plain unit has no `states`.
    """

    x: TracedTensor
    base: TracedTensor
    y: TracedTensor
    out: TracedTensor
    states: dict[int, State]
    h_weights: tuple[WeightUse, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether no path without weights leads from x to x', and none is a shortcut."""
        return not self.states

    @property
    def h_is_input(self) -> bool:
        """Whether h(x) is x itself, element by element."""
        if self.is_plain or self.base is not self.x or self.y.shape != self.x.shape:
            return False
        way = [
            traced for traced in self._inner() if traced is not self.base and self._state(traced) != "rest"
        ]
        return all(_changes_no_element(traced, self.states) for traced in way)

    def terms(self) -> tuple[Tensor | None, Tensor]:
        """The values of h and F, both of y's shape; h is None in a plain unit."""
        if self.is_plain:
            return None, self.out.value()
        h, F = self._values(self.y)
        y = self.y.value()
        F = torch.zeros_like(y) if F is None else F
        return (torch.zeros_like(y) if h is None else h).expand(y.shape), F.expand(y.shape)

    def split(self, vector: Tensor) -> tuple[Edges, Edges]:
        """Where a gradient `vector` at y arrives: at the tensors of h, and at those of F."""
        direct: Edges = []
        rest: Edges = []
        self._send(self.y, vector, direct, rest)
        return direct, rest

    def gap(self) -> str:
        """Why autograd does not see what the record shows, "" where it does."""
        for traced in self._inner():
            if self._state(traced) == "rest":
                continue
            if traced.hidden:
                return f"the result of {traced.function}() {traced.hidden}"
            if not traced.has_gradient:
                return f"no gradient reaches the result of {traced.function}()"
        return ""

    def _state(self, traced: TracedTensor) -> State:
        return self.states.get(traced.number, "rest")

    def _inner(self) -> list[TracedTensor]:
        """The tensors of the sum: y, what it is computed from linearly, h's way, and F's terms."""
        reached: dict[int, TracedTensor] = {}
        waiting = [] if self.is_plain else [self.y]
        while waiting:
            traced = waiting.pop()
            if traced.number not in reached:
                reached[traced.number] = traced
                state = self._state(traced)
                if state == "mixed":
                    waiting += _operands(traced)
                elif state == "direct" and traced is not self.base:
                    waiting += [source for source in traced.sources if self._state(source) == "direct"]
        return list(reached.values())

    def _values(self, traced: TracedTensor) -> tuple[Tensor | None, Tensor | None]:
        state = self._state(traced)
        if state == "direct":
            return traced.value(), None
        if state == "rest":
            return None, traced.value()
        if traced.kind == "linear":
            again = traced.again
            assert again is not None  # noqa: S101 - a linear one has it
            h, F = self._values(traced.sources[0])
            return None if h is None else again(h), None if F is None else again(F)
        h, F = None, None
        for term in traced.terms:
            if isinstance(term.value, TracedTensor):
                direct, branch_value = self._values(term.value)
                h, F = _plus(h, direct, term.factor), _plus(F, branch_value, term.factor)
            else:
                F = _plus(F, _constant(term, traced.tensor), term.factor)
        return h, F

    def _send(self, traced: TracedTensor, vector: Tensor, direct: Edges, rest: Edges) -> None:
        state = self._state(traced)
        if vector.shape != traced.shape:
            vector = vector.sum_to_size(traced.shape)
        if vector.dtype != traced.tensor.dtype:
            vector = vector.to(traced.tensor.dtype)
        if state != "mixed":
            (direct if state == "direct" else rest).append((traced, vector))
        elif traced.kind == "linear":
            again = traced.again
            assert again is not None  # noqa: S101 - a linear one has it
            source = traced.sources[0]
            with torch.enable_grad():
                leaf = torch.zeros(source.shape, dtype=source.tensor.dtype, device=vector.device)
                leaf.requires_grad_()
                (back,) = torch.autograd.grad(again(leaf), leaf, vector)
            self._send(source, back, direct, rest)
        else:
            for term in traced.terms:
                if isinstance(term.value, TracedTensor):
                    self._send(term.value, vector if term.factor == 1 else vector * term.factor, direct, rest)


def read_residuals(tracer: ResidualTracer, out: Tensor, *, is_plain: bool = False) -> list[ResidualReading]:
    """The residual units of a module, in order; one plain unit where every path through it has weights.

    Args:
        tracer: the record of the module's run.
        out: the module's output.
        is_plain: the module says of itself that it has no shortcut.

    Raises:
        InputError: the module cannot be read exactly; the message says what was seen.

    >>> x = torch.ones(2, 3)
    >>> with torch.no_grad(), ResidualTracer(x) as tracer:
    ...     y = x + torch.relu(x) * 2
    ...     z = (y + torch.sin(y)) / 2
    >>> first, second = read_residuals(tracer, z)
    >>> first.terms()[1].unique().item(), torch.equal(second.terms()[0], y / 2)
    (2.0, True)
    """
    end = tracer.find(out)
    if tracer.escapes:
        raise InputError(
            f"its signal leaves PyTorch through {tracer.escapes[0]}(), where it cannot be followed"
        )
    if end is None:
        raise InputError(f"its output {UNSEEN}")
    nodes = _ancestors(end)
    if nodes[0] is not tracer.input:
        raise InputError(f"its output {UNSEEN}")
    cuts = _find_cuts(nodes)
    if end is tracer.input:
        return [ResidualReading(end, end, end, end, {end.number: "direct"})]
    segments = [_read_segment(nodes, start, stop, is_plain) for start, stop in pairwise(cuts)]
    residual = [number for number, segment in enumerate(segments) if segment.is_residual]
    if not residual:
        return [_read_without_sum(nodes, cuts, segments)]
    for segment in segments:
        if (
            segment.join
            and not segment.is_residual
            and segment.stop.function in _JOINS
            and segment.is_weightless
        ):
            raise InputError(_join_text(segment))
    return [_reading(cuts, segments, residual, position) for position in range(len(residual))]


@dataclass(frozen=True)
class _Segment:
    """What lies between two neighbouring cuts."""

    start: TracedTensor
    stop: TracedTensor
    states: dict[int, State]
    join: bool
    """Whether several paths part and join here."""
    is_residual: bool
    is_weightless: bool
    """Whether a path without weights leads through it."""
    h_weights: tuple[WeightUse, ...] = ()

    @property
    def is_linear(self) -> bool:
        """Whether it is a linear map without weights that can be applied to any tensor."""
        return not self.join and self.stop.kind == "linear"


def _ancestors(end: TracedTensor) -> list[TracedTensor]:
    """`end` and everything that it was computed from, in order."""
    reached = {end.number: end}
    waiting = [end]
    while waiting:
        for source in waiting.pop().sources:
            if source.number not in reached:
                reached[source.number] = source
                waiting.append(source)
    return [reached[number] for number in sorted(reached)]


def _find_cuts(nodes: Cuts) -> list[TracedTensor]:
    """The tensors through which every path from the first to the last passes: in order, with these two."""
    last_use: dict[int, int] = {}
    for node in nodes:
        for source in node.sources:
            last_use[source.number] = node.number
    cuts, open_until = [], 0
    for node in nodes:
        if open_until <= node.number:
            cuts.append(node)
        open_until = max(open_until, last_use.get(node.number, 0))
    return cuts


def _read_segment(nodes: Cuts, start: TracedTensor, stop: TracedTensor, is_plain: bool) -> _Segment:
    inner = [node for node in nodes if start.number < node.number <= stop.number]
    states: dict[int, State] = {start.number: "direct"}
    least = {start.number: 0}  # the least and the most weights of a path from `start`
    most = {start.number: 0}
    has_weights = {start.number: False}
    for node in inner:
        states[node.number] = _state_of(node, states, has_weights)
        used = sum(use.kernel for use in node.weights)
        least[node.number] = used + min(least[source.number] for source in node.sources)
        most[node.number] = used + max(most[source.number] for source in node.sources)
        has_weights[node.number] = used > 0 or any(has_weights[source.number] for source in node.sources)
    join = len({source.number for source in stop.sources}) > 1 or len(inner) > 1
    weightless = least[stop.number] == 0
    state = states[stop.number]
    if state == "mixed" and join:
        return _Segment(start, stop, states, join, True, weightless)
    if join and stop.kind == "sum" and _has_several_direct_terms(stop, states):
        raise InputError(
            f"{_where(stop)} adds several terms that each hold the input without weights "
            f"(a residual inside a "
            "residual, or a difference of the input and its copy), so its shortcut and its branch cannot be "
            "told apart"
        )
    if join and stop.kind == "sum" and state == "rest" and not _is_normalisation(stop, states, has_weights):
        chosen = _choose_shortcut(start, stop, least, most, is_plain)
        if chosen is not None:
            unit_states: dict[int, State] = dict.fromkeys(states, "rest")
            unit_states[chosen.number], unit_states[stop.number] = "direct", "mixed"
            uses = _weights_of(chosen, start)
            return _Segment(start, stop, unit_states, join, True, weightless, uses)
    return _Segment(start, stop, states, join, False, weightless)


def _state_of(node: TracedTensor, states: dict[int, State], has_weights: dict[int, bool]) -> State:
    if node.hidden:
        return "rest"
    if node.kind in ("linear", "random"):
        state = states[node.sources[0].number]
        return "rest" if state == "mixed" and node.kind == "random" else state
    if node.kind != "sum":
        return "rest"
    holding = [traced for traced in _operands(node) if states[traced.number] != "rest"]
    if len(holding) != 1:
        return "rest"
    if len(node.terms) == 1:
        return "direct" if states[holding[0].number] == "direct" and node.terms[0].factor == 1 else "mixed"
    return "rest" if _is_normalisation(node, states, has_weights) else "mixed"


def _has_several_direct_terms(node: TracedTensor, states: dict[int, State]) -> bool:
    return node.kind == "sum" and sum(states[traced.number] != "rest" for traced in _operands(node)) > 1


def _is_normalisation(node: TracedTensor, states: dict[int, State], has_weights: dict[int, bool]) -> bool:
    """x − mean(x) and the like, written out: a weightless term with one number for many of y's."""
    return any(
        states[traced.number] == "rest" and traced.shape != node.shape and not has_weights[traced.number]
        for traced in _operands(node)
    )


def _choose_shortcut(
    start: TracedTensor,
    stop: TracedTensor,
    least: dict[int, int],
    most: dict[int, int],
    is_plain: bool,
) -> TracedTensor | None:
    """The term with fewer weights on its way from `start`: on its lightest way, or else on its heaviest."""

    def weight(traced: TracedTensor) -> tuple[int, int]:
        return least[traced.number], most[traced.number]

    operands = sorted(_operands(stop), key=weight)
    if len(operands) < 2:
        return None
    first, second = operands[:2]
    if weight(first) == weight(second):
        if is_plain:
            return None
        raise InputError(
            f"{_where(stop)} adds {first.function}() and {second.function}(), whose ways "
            f"from the input have the "
            f"same number of weights, so it cannot be told which of them is the shortcut"
        )
    on_the_way = _path_of_least_weights(first, start, least)
    if hidden := next((traced for traced in on_the_way if traced.hidden), None):
        raise InputError(f"its shortcut {hidden.hidden}")
    if mixing := next((traced for traced in on_the_way if traced.function in MATRIX_PRODUCTS), None):
        raise InputError(
            f"its shortcut multiplies the input by a matrix ({mixing.function}): "
            f"streams or channels that are "
            "mixed cannot be read yet"
        )
    if inner := next(
        (traced for traced in on_the_way if len(_operands(traced)) > 1 and traced.kind == "sum"), None
    ):
        raise InputError(
            f"its shortcut holds an addition itself, {_where(inner)}: a residual inside a residual, whose "
            "shortcut and branch cannot be told apart"
        )
    if split := next((traced for traced in on_the_way if not traced.is_single), None):
        raise InputError(
            f"its shortcut takes a part of the input ({split.function}): streams cannot be read yet"
        )
    return first


def _path_of_least_weights(
    end: TracedTensor, start: TracedTensor, weights: dict[int, int]
) -> list[TracedTensor]:
    path, traced = [], end
    while traced is not start:
        path.append(traced)
        traced = min(
            (source for source in traced.sources if source.number in weights),
            key=lambda source: weights[source.number],
        )
    return path


def _weights_of(end: TracedTensor, start: TracedTensor) -> tuple[WeightUse, ...]:
    """All weights between `start` and `end`."""
    nodes = [node for node in _ancestors(end) if node.number > start.number]
    return tuple(use for node in nodes for use in node.weights)


def _reading(
    cuts: Cuts, segments: Sequence[_Segment], residual: Sequence[int], position: int
) -> ResidualReading:
    segment_index = residual[position]
    x = _end_of(cuts, segments, residual, position - 1) if position else cuts[0]
    out = _end_of(cuts, segments, residual, position)
    segment, y = segments[segment_index], segments[segment_index].stop
    states = dict(segment.states)
    for follower in segments[segment_index + 1 :]:
        if y is out or not follower.is_linear or follower.stop.number > out.number:
            break
        y = follower.stop
        states[y.number] = "mixed"
    return ResidualReading(x, segment.start, y, out, states, segment.h_weights)


def _end_of(cuts: Cuts, segments: Sequence[_Segment], residual: Sequence[int], position: int) -> TracedTensor:
    """The unit's output: the last cut before the next unit's paths part, if possible of the input's shape."""
    if position == len(residual) - 1:
        return cuts[-1]
    candidates = [cut for cut in cuts[residual[position] + 1 : residual[position + 1] + 1] if cut.is_single]
    same_shape = [cut for cut in candidates if cut.shape == cuts[0].shape]
    return (same_shape or candidates)[-1]


def _read_without_sum(nodes: Cuts, cuts: Cuts, segments: Sequence[_Segment]) -> ResidualReading:
    """A module without a residual sum: linear and without weights, or plain."""
    x, out = cuts[0], cuts[-1]
    states: dict[int, State] = {x.number: "direct"}
    for node in nodes[1:]:
        states[node.number] = _state_of(node, states, dict.fromkeys(states, True) | {node.number: True})
    if states[out.number] != "rest":
        return ResidualReading(x, x, out, out, states)
    if all(segment.is_weightless for segment in segments):
        joins = [segment for segment in segments if segment.join]
        hidden = next((node for node in nodes if node.hidden), None)
        if hidden is not None:
            raise InputError(f"the result of {hidden.function}() {hidden.hidden}")
        if joins:
            raise InputError(_join_text(joins[0]))
        raise InputError(
            f"its input reaches its output without weights (through {', '.join(cut.function for cut in cuts[1:4])}) "  # noqa: E501
            f"and "
            "without an addition: it is neither a residual unit nor a plain one"
        )
    return ResidualReading(x, x, out, out, {})


def _join_text(segment: _Segment) -> str:
    stop = segment.stop
    parts = {traced.function: None for traced in stop.sources if traced is not segment.start}
    inputs = ["its input"] if segment.start in stop.sources else []
    return (
        f"its input reaches its output without weights, but not by a sum of it and a branch: "
        f"{_where(stop)} joins "
        f"{', '.join([*inputs, *(f'{name}()' for name in parts)])}" + _HINTS.get(stop.function, "")
    )


_HINTS = dict.fromkeys(
    ("cat", "concat", "concatenate", "stack", "hstack", "vstack"),
    " (halves, streams or concatenated features, which cannot be read yet)",
)
_JOINS = frozenset(_HINTS) | {"addcmul", "addcdiv", "lerp", "addmm", "baddbmm", "addcmul_", "lerp_", "where"}


def _changes_no_element(traced: TracedTensor, states: dict[int, State]) -> bool:
    if traced.kind == "sum":
        return all(
            term.factor == 1
            for term in traced.terms
            if isinstance(term.value, TracedTensor) and states.get(term.value.number, "rest") != "rest"
        )
    return traced.kind == "linear" and traced.function in SAME_ELEMENTS | {"dropout"}


def _where(node: TracedTensor) -> str:
    return f"{node.function}() (call {node.call})"


def _operands(node: TracedTensor) -> list[TracedTensor]:
    """The traced terms of a sum, or the sources of a linear map."""
    if node.kind != "sum":
        return list(node.sources)
    return [term.value for term in node.terms if isinstance(term.value, TracedTensor)]


def _plus(total: Tensor | None, value: Tensor | None, factor: float) -> Tensor | None:
    if value is None:
        return total
    scaled = value if factor == 1 else value * factor
    return scaled if total is None else total + scaled


def _constant(term: Term, like: Tensor) -> Tensor:
    if isinstance(term.value, Tensor):
        return term.value
    assert isinstance(term.value, (int, float))  # noqa: S101 - the other kinds of term are tensors
    return torch.tensor(term.value, dtype=like.dtype, device=like.device)
