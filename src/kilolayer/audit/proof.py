"""Proves that a network is identical in function to a described one, or says why that is not so.

The described network is built, and the audited one's weights are carried over to it. Both then run in
float64, in training and in evaluation mode, with the given weights and with random ones, on small, usual and
large inputs. Logits, the gradients of the image and of every weight, and BN's statistics must agree.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kilolayer.audit.channel_orders import channel_orders
from kilolayer.audit.comparison import (
    IMAGES,
    Comparison,
    FunctionProof,
    ProofPass,
    relative_error,
)
from kilolayer.audit.dataflow import DataflowGraph
from kilolayer.audit.layer_reader import operator_words
from kilolayer.audit.localisation import locate, static_difference
from kilolayer.audit.trace import Trace, converted, trace_model, unwrap_model
from kilolayer.audit.weight_layers import pair_layers, weight_layers
from kilolayer.errors import InputError
from kilolayer.networks.description import Network
from kilolayer.networks.model import build
from kilolayer.system.message_text import error_line, listing

ROUNDING_MARGIN = 1e3
"""How many times further than a change of the image by one rounding two equal networks may differ."""

GIVEN_PASSES = (
    ProofPass(training=True, scale=1.0, side="odd"),
    ProofPass(training=False, scale=1.0, side="odd"),
)
RANDOM_PASSES = (
    ProofPass(training=True, scale=1e-4, side="odd"),
    ProofPass(training=False, scale=1e6, side="even"),
)
LARGE_PASS = ProofPass(training=False, scale=1.0, side="large")
"""A bounded activation shows far out only, a different ε only where a batch hardly varies.

A γ of 0 hides a branch, so what a side shows is asked with random weights."""


def prove_identity(model: nn.Module, trace: Trace, graph: DataflowGraph, described: Network) -> FunctionProof:
    """Whether `model`, of which `trace` and `graph` are, is identical in function to `described`.

    The model is only read: everything runs on a copy of it.
    """
    model = unwrap_model(model)
    hooked = [name for name, tensor in model.named_parameters() if _has_hooks(tensor)]
    if hooked:
        # A copy has none of them.
        return FunctionProof(
            "different", f"hooks change the gradient of {listing(hooked, 3)}", is_gradient=True
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ours = build(described)
        our_graph = DataflowGraph(trace_model(ours, trace.side or None))
    audited_layers, our_layers = weight_layers(graph), weight_layers(our_graph)
    pairs = pair_layers(audited_layers, our_layers)
    if isinstance(pairs, str):
        return FunctionProof("different", pairs)
    parameters = dict(model.named_parameters())
    difference = static_difference(pairs, parameters)
    if difference:
        return difference
    with _preserved(model):
        orders = channel_orders(graph, audited_layers)
        with _in_double(model, in_place=trace.in_place) as audited:
            return _prove(
                Comparison(audited, ours.double(), pairs, orders, graph, our_graph, trace, described)
            )


@contextmanager
def _in_double(model: nn.Module, *, in_place: bool) -> Iterator[nn.Module]:
    """A copy in float64; or the model itself for this while, where a copy would run the model after all."""
    if in_place:
        with converted(model, torch.float64):
            yield model
    else:
        yield copy.deepcopy(model).cpu().double()


def _has_hooks(tensor: Tensor) -> bool:
    return bool(tensor._backward_hooks) or bool(getattr(tensor, "_post_accumulate_grad_hooks", None))


@contextmanager
def _preserved(model: nn.Module) -> Iterator[None]:
    """The model's buffers and all random states afterwards as before, whatever its own code reaches."""
    buffers = [(tensor, tensor.detach().clone()) for tensor in model.buffers()]
    gradients = [(tensor, tensor.grad) for tensor in model.parameters()]
    python_state = random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python_state)
        with torch.no_grad():
            for tensor, before in buffers:
                if not torch.equal(tensor, before):
                    tensor.copy_(before)
        for parameter, gradient in gradients:
            if parameter.grad is not gradient:
                parameter.grad = gradient


def _prove(comparison: Comparison) -> FunctionProof:
    """The proof by all passes; the first in which the two differ ends it."""
    unfit = comparison.unfit_orders()
    if unfit:
        return FunctionProof("different", unfit)
    comparison.copy_weights()
    try:
        sides = comparison.usable_sides()
    except InputError as error:
        return FunctionProof("not proven", str(error))
    for proof_pass in GIVEN_PASSES:
        difference = _compare(comparison, proof_pass, sides)
        if difference:
            return difference
    comparison.draw_weights()
    difference = _compare_drawn(comparison, sides, silent=True)
    remarks = []
    if difference and difference.is_gradient:
        comparison.draw_weights()
        if _compare_drawn(comparison, sides, silent=False) is None:
            difference = None
            remarks.append(AT_ZERO)
    if difference:
        return difference
    if comparison.depends_on_side() and comparison.has_large_side(sides):
        comparison.draw_norms(None)
        difference = _compare(comparison, LARGE_PASS, sides)
        if difference:
            return difference
    comparison.note_restriction()
    unfit = _further_state(comparison)
    if unfit:
        return FunctionProof("not proven", unfit)
    if comparison.restriction:
        numbers = listing(list(map(str, sorted(set(sides.values())))), 3)
        remarks.append(f"this is proven for images of side {numbers} alone: {comparison.restriction}")
    permutation = comparison.permutation()
    return FunctionProof(
        "permuted" if permutation else "identical",
        permutation=permutation,
        remarks=tuple(remarks),
        sides=tuple(sorted(set(sides.values()))),
    )


AT_ZERO = (
    "where an activation's input is exactly 0, it hands on another gradient than ReLU, whose gradient "
    "there is 0 (as `clamp` and `maximum` do)"
)


def _compare_drawn(comparison: Comparison, sides: dict[str, int], *, silent: bool) -> FunctionProof | None:
    """The difference that random weights show; `silent`: with channels of zeros, at ReLU's corner."""
    for number, proof_pass in enumerate(RANDOM_PASSES):
        # Another channel in every pass: no one of them stays unseen.
        comparison.draw_norms(number if silent else None)
        difference = _compare(comparison, proof_pass, sides)
        if difference:
            return difference
    return None


def _further_state(comparison: Comparison) -> str:
    """What a pass reads or changes beside the carried-over tensors, in words."""
    if comparison.further_tensors:
        names = listing(sorted(comparison.further_tensors), 3)
        return f"in training mode it reads {names}, which no layer of the described network has"
    before, after = comparison.numbers[0], comparison.numbers[-1]
    changed = [f"`{name}`" for name, value in after.items() if before.get(name) != value]
    if changed:
        return f"its passes change {listing(changed, 3)}, so the next one may compute something else"
    return ""


def _compare(comparison: Comparison, proof_pass: ProofPass, sides: dict[str, int]) -> FunctionProof | None:
    """The difference that one pass shows; None if the two agree in it."""
    side = sides[proof_pass.side]
    image = proof_pass.scale * comparison.normal((IMAGES, comparison.described.in_chans, side, side))
    upstream = comparison.normal((IMAGES, comparison.described.num_classes))
    try:
        theirs = comparison.run_audited(image, proof_pass, upstream)
    except Exception as error:  # a foreign model may raise anything
        return FunctionProof("not proven", f"{proof_pass.text} it does not run: {error_line(error)}")
    ours = comparison.run_ours(image, proof_pass, upstream)
    if theirs.random_state != ours.random_state:
        return FunctionProof("different", _random_text(comparison, proof_pass))
    if not torch.isfinite(ours.logits).all():
        # An untrained network's running statistics may not fit its weights, and its logits overflow.
        overflow = FunctionProof("not proven", f"its logits overflow {proof_pass.text}")
        return None if proof_pass in GIVEN_PASSES else overflow
    mismatch = comparison.mismatch(theirs, ours)
    if mismatch is None:
        return None
    size, subject = mismatch
    rounding = _rounding_error(comparison, proof_pass, image, upstream)
    if size < ROUNDING_MARGIN * rounding:
        return FunctionProof(
            "not proven",
            f"{proof_pass.text} it amplifies rounding to {rounding:.0e}, and {subject} differ by {size:.0e}",
        )
    return locate(comparison, proof_pass, image, theirs, ours)


def _rounding_error(comparison: Comparison, proof_pass: ProofPass, image: Tensor, upstream: Tensor) -> float:
    """How far a change of the image by one rounding changes our network's logits and gradients."""
    buffers = [(buffer, buffer.clone()) for buffer in comparison.ours.buffers()]
    runs = [comparison.run_ours(image * factor, proof_pass, upstream) for factor in (1.0, 1 + 2.0**-52)]
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
    return max(relative_error(a, b) for a, b in zip(runs[0].every(), runs[1].every(), strict=True))


def _random_text(comparison: Comparison, proof_pass: ProofPass) -> str:
    mode = "training" if proof_pass.training else "evaluation"
    words = sorted({node.op for node in comparison.graph.nodes.values() if "dropout" in node.op})
    text = f"in {mode} mode it draws other random numbers than the described network"
    return text + (f" ({operator_words(words[0])})" if words else " (dropout, stochastic depth)")
