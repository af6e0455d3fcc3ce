"""An audited network and the described one with its weights, run side by side in float64."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from kilolayer.audit.audit_report import FunctionWord
from kilolayer.audit.channel_orders import LayerOrders
from kilolayer.audit.dataflow import POOL_OPS, DataflowGraph, covers_map
from kilolayer.audit.layer_reader import operator_words
from kilolayer.audit.trace import Trace, output_tensors
from kilolayer.audit.weight_layers import LayerPair, WeightLayer
from kilolayer.errors import InputError
from kilolayer.networks.description import Network
from kilolayer.system.message_text import error_line

IMAGES = 2
SMALLEST_SIDE = 9
HUGE_SIDE = 1024
LARGE_MAP = 7
"""The side of the last map at which a network is compared that may crop: ImageNet's networks have it."""
TOLERANCE = 1e-9
"""Largest difference that may be rounding, relative to the largest value of a tensor."""


@dataclass(frozen=True)
class FunctionProof:
    """The word on a network's function, the reason in words, and the permutation of channels, by layer.

    `is_gradient`: the networks differ in what they learn from, not in what they put out. `remarks` say what
    a certificate does not hold for, and `sides` on which images it was given.
    """

    word: FunctionWord
    reason: str = ""
    permutation: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    is_gradient: bool = False
    remarks: tuple[str, ...] = ()
    sides: tuple[int, ...] = ()


@dataclass(frozen=True)
class ProofPass:
    """One comparison: mode, scale of the image, and its side, "odd", "even" or "large"."""

    training: bool
    scale: float
    side: str

    @property
    def text(self) -> str:
        mode = "training" if self.training else "evaluation"
        return f"in {mode} mode, image scale {self.scale:g}"


@dataclass(frozen=True)
class PassResult:
    """What one pass gives: logits, gradients by tensor, and a number for the state of random generators."""

    logits: Tensor
    image_gradient: Tensor | None
    gradients: dict[str, Tensor | None]
    random_state: int

    def every(self) -> list[Tensor | None]:
        return [self.logits, self.image_gradient, *self.gradients.values()]


class Comparison:
    """The audited network and ours with its weights, side by side."""

    def __init__(
        self,
        audited: nn.Module,
        ours: nn.Module,
        pairs: list[LayerPair],
        orders: dict[WeightLayer, LayerOrders],
        graph: DataflowGraph,
        our_graph: DataflowGraph,
        trace: Trace,
        described: Network,
    ) -> None:
        self.audited, self.ours, self.pairs, self.orders = audited, ours, pairs, orders
        self.graph, self.our_graph, self.trace, self.described = graph, our_graph, trace, described
        self.tensors = [dict(_named_tensors(model)) for model in (audited, ours)]
        self.generator = torch.Generator().manual_seed(3)
        self.modes = _Modes(audited)
        paired = {name for pair in pairs for name in pair.audited.tensors.values()}
        self._further = {id(tensor): name for name, tensor in self.tensors[0].items() if name not in paired}
        self.further_tensors: set[str] = set()
        """The names of the tensors that a pass has read, and that no layer of ours has."""
        self.restriction = ""
        """Why images of a side that was tried cannot be compared; empty where all can."""
        self.operators: list[str] = []
        """The operators of the last pass in evaluation mode."""
        self._at_huge_side: list[str] = []
        self.numbers: list[dict[str, str]] = []
        """The numbers that modules keep beside their tensors, after each training pass on the odd side."""

    def permutation(self) -> dict[str, tuple[int, ...]]:
        """By layer and side, which channel of the described network's tensor each channel is."""
        orders_by_side = {}
        for pair in self.pairs:
            order = self.orders[pair.audited]
            for values, side in ((order.inputs, "input"), (order.outputs, "output")):
                if values != tuple(range(len(values))):
                    orders_by_side[f"{pair.audited.name} ({side})"] = values
        return orders_by_side

    def unfit_orders(self) -> str:
        for pair in self.pairs:
            order = self.orders[pair.audited]
            for values in (order.inputs, order.outputs):
                if sorted(values) != list(range(len(values))):
                    return f"the channels before `{pair.audited.name}` are mixed, not only permuted"
            is_grouped = pair.audited.settings.get("groups", 1) > 1
            if is_grouped and order.inputs != tuple(range(len(order.inputs))):
                return f"the channels are permuted before `{pair.audited.name}`, across its groups"
        return ""

    def _tensor_pairs(self) -> Iterator[tuple[LayerPair, str, str, str]]:
        for pair in self.pairs:
            for role, name in pair.audited.tensors.items():
                yield pair, role, name, pair.ours.tensors[role]

    def to_ours(self, pair: LayerPair, role: str, value: Tensor) -> Tensor:
        """A tensor of the audited layer as the described layer keeps it."""
        order = self.orders[pair.audited]
        if role != "weight" or len(pair.audited.shape) == 1:
            return in_order(value.reshape(-1), order.outputs)
        value = value.t() if pair.audited.stored_transposed else value
        value = in_order(value.reshape(pair.audited.shape), order.outputs)
        if pair.audited.settings.get("groups", 1) > 1:
            return value
        return in_order(value.transpose(0, 1), order.inputs).transpose(0, 1)

    def copy_weights(self) -> None:
        theirs, ours = self.tensors
        with torch.no_grad():
            for pair, role, name, our_name in self._tensor_pairs():
                target = ours[our_name]
                target.copy_(self.to_ours(pair, role, theirs[name].detach()).reshape(target.shape))

    def draw_weights(self) -> None:
        """Random weights of both networks, without the special values that hide what a layer does."""
        theirs = self.tensors[0]
        with torch.no_grad():
            for pair, role, name, _ in self._tensor_pairs():
                if pair.audited.kind != "batch norm":
                    tensor = theirs[name]
                    fan = max(1, tensor.numel() // max(1, pair.audited.shape[0]))
                    tensor.normal_(generator=self.generator).mul_(
                        (2 / fan) ** 0.5 if role == "weight" else 0.3
                    )
        self.copy_weights()

    def draw_norms(self, silent: int | None) -> None:
        """Random numbers of every BN; the channel `silent` (of ours) puts out 0 for every image."""
        theirs = self.tensors[0]
        with torch.no_grad():
            for pair, role, name, our_name in self._tensor_pairs():
                if pair.audited.kind != "batch norm":
                    continue
                shape = theirs[name].shape
                values = self.normal(shape)
                if role == "running variance":
                    values = 0.5 + self._uniform(shape)
                elif role == "weight":
                    # Channels of every size from 0.0003 to 10: an activation's threshold shows near 0 only,
                    # and its bound far out.
                    values = torch.sign(values) * 10 ** (4.5 * self._uniform(shape) - 3.5)
                elif role == "bias" and "weight" in pair.audited.tensors:
                    values = values * 0.3 * theirs[pair.audited.tensors["weight"]].abs()
                else:
                    values = values * 0.3
                if silent is not None and not role.startswith("running"):
                    values[self.orders[pair.audited].outputs.index(silent % len(values))] = 0.0
                theirs[name].copy_(values)
                target = self.tensors[1][our_name]
                target.copy_(self.to_ours(pair, role, values).reshape(target.shape))

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def _uniform(self, shape: tuple[int, ...]) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64)

    def usable_sides(self) -> dict[str, int]:
        """The sides of the images to compare: small ones where the audited network allows.

        A large one is added where operators do not say that they are the same on every side.
        """
        stride, traced_side = self.described.total_stride, self.trace.side
        smallest = {"odd": max(stride + 1, SMALLEST_SIDE), "even": max(2 * stride, SMALLEST_SIDE - 1)}
        sides = {
            parity: next((side for side in (least, traced_side) if self._takes(side)), 0)
            for parity, least in smallest.items()
        }
        if not all(sides.values()):
            raise InputError(
                f"it takes no batch of {IMAGES} images of side {traced_side} in float64: {self.restriction}"
            )
        return sides

    def depends_on_side(self) -> bool:
        """Whether its operators may do something else on another side, as far as they and their names say.

        Python's own code may decide by the side, and crop a map that is larger than those that are compared.
        """
        self._at_huge_side = self._operators(HUGE_SIDE)
        return bool(self.graph.size_bound) or self._at_huge_side != self.operators

    def has_large_side(self, sides: dict[str, int]) -> bool:
        """Adds a large side to `sides`, if the network takes such images."""
        large = max(self.trace.side, LARGE_MAP * self.described.total_stride)
        if large in sides.values() or not self._takes(large):
            return False
        sides["large"] = large
        return True

    def note_restriction(self) -> None:
        """Notes what the operators, and those of a huge image, leave open on other sides."""
        if self._at_huge_side != self.operators:
            names = (name for name in self._at_huge_side if name not in self.operators)
            words = " and ".join(map(operator_words, dict.fromkeys(names))) or "other operators"
            self.restriction = self.restriction or f"at side {HUGE_SIDE} it runs {words}"
        elif self.graph.size_bound:
            words = " and ".join(map(operator_words, self.graph.size_bound))
            self.restriction = self.restriction or f"{words} may do something else on another side"

    def _operators(self, side: int) -> list[str]:
        """The operators that run in evaluation on images of a side, by shapes; none if they do not run."""
        state = {name: tensor.detach().to("meta") for name, tensor in _named_tensors(self.audited)}
        image = torch.empty((IMAGES, self.described.in_chans, side, side), dtype=torch.float64, device="meta")
        self.modes.set(training=False)
        recorder = _ForwardRecorder({})
        try:
            with torch.no_grad(), recorder:
                functional_call(self.audited, state, (image,))
        except Exception:  # a foreign model may raise anything
            return []
        return recorder.operators

    def _takes(self, side: int) -> bool:
        """Whether the network takes such images, and pools as it did when it was traced."""
        if not side:
            return False
        self.modes.set(training=False)
        image = self.normal((IMAGES, self.described.in_chans, side, side))
        windows = _PoolRecorder()
        try:
            with torch.no_grad(), windows:
                output_shapes = [tensor.shape for _, tensor in output_tensors(self.audited(image))]
        except Exception as error:  # a foreign model may raise anything
            self.restriction = self.restriction or f"side {side} ends in {error_line(error)}"
            return False
        if output_shapes != [(IMAGES, self.described.num_classes)]:
            shapes = ", ".join("×".join(map(str, shape)) for shape in output_shapes)
            self.restriction = self.restriction or f"at side {side} it puts out {shapes}"
            return False
        if windows.covering != self.graph.covering_windows:
            self.restriction = self.restriction or f"at side {side} its pooling leaves out a part of the map"
            return False
        return True

    def mismatch(self, theirs: PassResult, ours: PassResult) -> tuple[float, str] | None:
        """The largest relative error above the tolerance, and of what; logits come first."""
        error = relative_error(theirs.logits, ours.logits)
        if not error <= TOLERANCE:
            return error, "the logits"
        gradient = max(
            [relative_error(theirs.image_gradient, ours.image_gradient)]
            + [error for _, error, _ in self.gradient_errors(theirs, ours)]
        )
        if not gradient <= TOLERANCE:
            return gradient, "the gradients"
        statistics = max((error for _, _, error in self.statistic_errors()), default=0.0)
        return None if statistics <= TOLERANCE else (statistics, "the running statistics of BN")

    def gradient_errors(
        self, theirs: PassResult, ours: PassResult
    ) -> Iterator[tuple[LayerPair, float, Tensor | None]]:
        """The relative error of every weight's gradient, and the audited network's."""
        gradients = [value for value in ours.gradients.values() if value is not None]
        floor = 1e-12 * max((float(value.abs().max()) for value in gradients), default=0.0)
        for pair, role, name, our_name in self._tensor_pairs():
            expected = ours.gradients.get(our_name)
            if role.startswith("running") or expected is None:
                continue
            gradient = theirs.gradients.get(name)
            carried = None
            if gradient is not None:
                carried = self.to_ours(pair, role, gradient).reshape(expected.shape)
            yield pair, relative_error(carried, expected, floor), gradient

    def statistic_errors(self) -> Iterator[tuple[LayerPair, str, float]]:
        """The relative error of BN's running statistics."""
        theirs, ours = self.tensors
        for pair, role, name, our_name in self._tensor_pairs():
            if role.startswith("running"):
                expected = ours[our_name]
                carried = self.to_ours(pair, role, theirs[name]).reshape(expected.shape)
                yield pair, role, relative_error(carried, expected)

    def run_audited(self, image: Tensor, proof_pass: ProofPass, upstream: Tensor) -> PassResult:
        self.modes.set(training=proof_pass.training)
        recorder = _ForwardRecorder(self._further)
        result = _run(self.audited, image, upstream, recorder)
        self.further_tensors |= recorder.names
        if proof_pass.training:
            self.numbers.append(dict(_numbers(self.audited)))
        else:
            self.operators = recorder.operators
        return result

    def run_ours(self, image: Tensor, proof_pass: ProofPass, upstream: Tensor) -> PassResult:
        self.ours.train(proof_pass.training)
        return _run(self.ours, image, upstream)


class _Modes:
    """Training and evaluation mode of a network, with single parts that were set to another one by hand."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.given_mode = model.training
        self.modes_given = [
            (module, module.training) for module in model.modules() if hasattr(module, "training")
        ]
        self.mixed = any(mode != model.training for _, mode in self.modes_given)

    def set(self, *, training: bool) -> None:
        if self.mixed and training == self.given_mode:
            for module, mode in self.modes_given:
                module.training = mode
        else:
            self.model.train(training)


def _run(
    model: nn.Module, image: Tensor, upstream: Tensor, recorder: AbstractContextManager[Any] | None = None
) -> PassResult:
    torch.manual_seed(7)
    random.seed(7)
    tensors = dict(model.named_parameters())
    for tensor in tensors.values():
        tensor.grad = None
    leaf = image.clone().requires_grad_()
    with torch.enable_grad(), recorder or nullcontext():
        [(_, logits)] = output_tensors(model(leaf))
    state = hash((torch.get_rng_state().numpy().tobytes(), random.getstate()))
    if logits.requires_grad:
        logits.backward(upstream.to(logits.dtype))  # type: ignore[no-untyped-call]
    gradients = {name: tensor.grad for name, tensor in tensors.items()}
    return PassResult(logits.detach(), leaf.grad, gradients, state)


def _numbers(model: nn.Module) -> Iterator[tuple[str, str]]:
    """The numbers that modules keep as attributes, alone or in a list or a dictionary."""
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            members = value.values() if isinstance(value, dict) else value
            is_number = isinstance(value, (int, float)) or (
                isinstance(value, (dict, list, tuple)) and all(isinstance(m, (int, float)) for m in members)
            )
            if is_number and not attribute.startswith("_"):
                yield f"{name}.{attribute}".lstrip("."), str(value)


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def in_order(value: Tensor, order: tuple[int, ...]) -> Tensor:
    """`value` with its row i at `order[i]`."""
    if order == tuple(range(len(order))):
        return value
    return torch.empty_like(value).index_copy_(0, torch.tensor(order), value)


def relative_error(value: Tensor | None, expected: Tensor | None, floor: float = 0.0) -> float:
    """The largest difference over the largest expected value or `floor`; infinite where one is missing."""
    if expected is None or value is None:
        present = value if expected is None else expected
        return 0.0 if present is None or not present.any() else float("inf")
    if value.shape != expected.shape:
        return float("inf")
    if not value.numel():
        return 0.0
    largest = max(float(torch.linalg.vector_norm(expected, torch.inf)), floor)
    if value.dtype == expected.dtype and torch.equal(value, expected):
        return 0.0 if math.isfinite(largest) else float("inf")
    difference = float(torch.linalg.vector_norm(value.double() - expected, torch.inf))
    if not math.isfinite(difference):
        return float("inf")
    return 0.0 if not difference else float("inf") if not largest else difference / largest


class _PoolRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # PyTorch's own
    """Records of each average pooling that runs whether its window is the whole map."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.covering: list[bool] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func._schema.name in POOL_OPS:
            self.covering.append(covers_map(args[1], args[0].shape))
        return func(*args, **(kwargs or {}))


class _ForwardRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # PyTorch's own
    """Notes the operators that run, and which of some tensors they read; one only counted up is not read."""

    def __init__(self, tensors: Mapping[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tensors, self.names = tensors, set[str]()
        self.operators: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name.partition("::")[2]
        if name not in ("detach", "alias"):  # autograd's own
            self.operators.append(name)
        counts = func._schema.name == "aten::add_" and not isinstance(args[1], Tensor)
        read = args[1:] if counts else args
        self.names |= {self.tensors[id(value)] for value in read if id(value) in self.tensors}
        return func(*args, **(kwargs or {}))
