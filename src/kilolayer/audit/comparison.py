"""An audited network and the described one with its weights, run side by side in float64."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kilolayer.audit.audit_report import FunctionWord
from kilolayer.audit.channel_orders import LayerOrders
from kilolayer.audit.dataflow import DataflowGraph
from kilolayer.audit.trace import Trace, output_tensors
from kilolayer.audit.weight_layers import LayerPair, WeightLayer
from kilolayer.errors import InputError
from kilolayer.networks.description import Network
from kilolayer.system.message_text import error_line

IMAGES = 2
TOLERANCE = 1e-9
"""Largest difference that may be rounding, relative to the largest value of a tensor."""


@dataclass(frozen=True)
class FunctionProof:
    """The word on a network's function, the reason in words, and the permutation of channels, by layer.

    `is_gradient`: the networks differ in what they learn from, not in what they put out.
    """

    word: FunctionWord
    reason: str = ""
    permutation: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    is_gradient: bool = False


@dataclass(frozen=True)
class ProofPass:
    """One comparison: mode, weights, scale of the image, and side in total strides."""

    training: bool
    given_weights: bool
    scale: float
    odd_side: bool

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
        outputs = torch.tensor(order.outputs)
        if role != "weight" or len(pair.audited.shape) == 1:
            return in_order(value.reshape(-1), outputs)
        value = value.t() if pair.audited.stored_transposed else value
        value = in_order(value.reshape(pair.audited.shape), outputs)
        if pair.audited.settings.get("groups", 1) > 1:
            return value
        return in_order(value.transpose(0, 1), torch.tensor(order.inputs)).transpose(0, 1)

    def copy_weights(self) -> None:
        theirs, ours = self.tensors
        with torch.no_grad():
            for pair, role, name, our_name in self._tensor_pairs():
                target = ours[our_name]
                target.copy_(self.to_ours(pair, role, theirs[name].detach()).reshape(target.shape))

    def draw_weights(self) -> None:
        """Weights without the special values of an initialisation, as γ = 0, that hide what a layer does."""
        theirs = self.tensors[0]
        with torch.no_grad():
            for pair, role, name, _ in self._tensor_pairs():
                tensor = theirs[name]
                values = self.normal(tensor.shape)
                is_norm = pair.audited.kind == "batch norm"
                if role == "running variance":
                    values = 0.5 + self._uniform(tensor.shape)
                elif role == "weight" and is_norm:
                    # Channels of every size from 0.0003 to 10: an activation's threshold shows near 0 only,
                    # and its bound far out.
                    values = torch.sign(values) * 10 ** (4.5 * self._uniform(tensor.shape) - 3.5)
                elif role == "bias" and is_norm and "weight" in pair.audited.tensors:
                    values = values * 0.3 * theirs[pair.audited.tensors["weight"]].abs()
                elif role == "weight":
                    fan = max(1, tensor.numel() // max(1, pair.audited.shape[0]))
                    values = values * (2 / fan) ** 0.5
                else:
                    values = values * 0.3
                tensor.copy_(values)
        self.copy_weights()

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def _uniform(self, shape: tuple[int, ...]) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64)

    def usable_sides(self) -> tuple[int, int]:
        """An odd and an even side that both networks take: small ones where the audited network allows."""
        stride, traced_side = self.described.total_stride, self.trace.side
        odd = next((side for side in (2 * stride + 1, traced_side) if self._takes(side)), None)
        even = next((side for side in (2 * stride, traced_side, 224, 32) if self._takes(side)), None)
        if odd is None or even is None:
            raise InputError(
                f"it takes no batch of {IMAGES} images of side {traced_side} in float64: {self._error}"
            )
        return odd, even

    _error = ""

    def _takes(self, side: int) -> bool:
        if not side:
            return False
        self.modes.set(training=False)
        image = self.normal((IMAGES, self.described.in_chans, side, side))
        try:
            with torch.no_grad():
                output_shapes = [tensor.shape for _, tensor in output_tensors(self.audited(image))]
        except Exception as error:  # a foreign model may raise anything
            self._error = self._error or error_line(error)
            return False
        if output_shapes != [(IMAGES, self.described.num_classes)]:
            self._error = (
                self._error
                or f"it puts out {', '.join('×'.join(map(str, shape)) for shape in output_shapes)}"
            )
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
        return _run(self.audited, image, upstream)

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


def _run(model: nn.Module, image: Tensor, upstream: Tensor) -> PassResult:
    torch.manual_seed(7)
    random.seed(7)
    tensors = dict(model.named_parameters())
    for tensor in tensors.values():
        tensor.grad = None
    leaf = image.clone().requires_grad_()
    with torch.enable_grad():
        [(_, logits)] = output_tensors(model(leaf))
    state = hash((torch.get_rng_state().numpy().tobytes(), random.getstate()))
    if logits.requires_grad:
        logits.backward(upstream.to(logits.dtype))  # type: ignore[no-untyped-call]
    gradients = {name: tensor.grad for name, tensor in tensors.items()}
    return PassResult(logits.detach(), leaf.grad, gradients, state)


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def in_order(value: Tensor, order: Tensor) -> Tensor:
    """`value` with its row i at `order[i]`."""
    return torch.empty_like(value).index_copy_(0, order, value)


def relative_error(value: Tensor | None, expected: Tensor | None, floor: float = 0.0) -> float:
    """The largest difference over the largest expected value or `floor`; infinite where one is missing."""
    if expected is None or value is None:
        present = value if expected is None else expected
        return 0.0 if present is None or not present.any() else float("inf")
    if value.shape != expected.shape or not torch.isfinite(value).all():
        return float("inf")
    difference = float((value.double() - expected).abs().max()) if value.numel() else 0.0
    largest = max(float(expected.abs().max()) if expected.numel() else 0.0, floor)
    return 0.0 if not difference else float("inf") if not largest else difference / largest
