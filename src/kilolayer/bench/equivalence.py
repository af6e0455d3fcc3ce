"""Whether candidates do the same work: with equal weights they must reach the same loss."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from kilolayer.bench.parameter_pairing import pairing_order
from kilolayer.errors import InputError

TOLERANCE = 1e-3
"""Relative, for losses in fp32 whose sums are added in different orders."""
TIMED_TOLERANCE = 0.1
"""Relative, for a loss in the timed precision: bf16 through a deep, untrained network."""
IMAGES = 8


def share_weights(module: nn.Module, path: str, x: Tensor) -> bool:
    """Loads the weights at `path` if they fit, or saves the module's own if there are none yet.

    Tensors are paired in the order of the computation. Returns whether the module now has the first
    candidate's weights. An empty path means that there is only one candidate.
    """
    if not path:
        return True
    parameters = dict(module.named_parameters())
    try:
        ordered = [parameters[name] for name in pairing_order(module, (1, *x.shape[1:]))]
    except RuntimeError:
        ordered = list(parameters.values())
    if not os.path.exists(path):
        _write_weights(ordered, path)
        return True
    shared = list(load_file(path).values())
    fits = len(ordered) == len(parameters) and [_shape_key(p) for p in ordered] == [
        _shape_key(p) for p in shared
    ]
    if fits:
        with torch.no_grad():
            for parameter, value in zip(ordered, shared, strict=True):
                parameter.copy_(value.view(parameter.shape))
    return fits


def _write_weights(tensors: list[nn.Parameter], path: str) -> None:
    partial = f"{path}.{os.getpid()}"
    save_file({f"{number:06d}": p.detach().cpu().contiguous() for number, p in enumerate(tensors)}, partial)
    os.replace(partial, path)


def _shape_key(tensor: Tensor) -> tuple[int, ...]:
    """The shape without trailing ones: a 1×1 convolution of a pooled map equals a linear classifier."""
    sizes = list(tensor.shape)
    while sizes and sizes[-1] == 1:
        sizes.pop()
    return tuple(sizes)


def compute_logits(module: nn.Module, x: Tensor) -> Tensor:
    """The logits of the images `x`. Raises `InputError` unless the output is one row of logits per image."""
    output = module(x)
    if isinstance(output, Tensor) and output.ndim == 2 and len(output) == len(x):
        return output
    description = (
        f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
    )
    raise InputError(
        f"for {len(x)} of the images it returns {description}; allowed: a tensor of images × classes"
    )


def reference_loss(module: nn.Module, x: Tensor, labels: Tensor, *, training: bool) -> float:
    """The loss of the first few images in fp32; with `training` by the statistics of the batch.

    Otherwise by BN's running statistics, which are set to those of the same images: a fresh network's own do
    not normalise, and its signal would grow from unit to unit.
    """
    x, labels = x[:IMAGES].contiguous(), labels[:IMAGES]
    was_training = module.training
    with torch.no_grad(), _channels_first(module):
        with _running_statistics_of_batch(module):
            logits = compute_logits(module.train(), x)
        if not training:
            logits = compute_logits(module.eval(), x)
    module.train(was_training)
    return mean_cross_entropy(logits, labels)


def mean_cross_entropy(outputs: Any, labels: Tensor) -> float:
    """The mean cross-entropy over the images that outputs and labels share.

    Raises `InputError` if it is not finite.
    """
    logits = torch.as_tensor(outputs).float()
    loss = functional.cross_entropy(logits[: len(labels)], labels[: len(logits)].to(logits.device))
    return finite_loss(loss)


def finite_loss(loss: Tensor) -> float:
    """The value of a loss. Raises `InputError` if it is not finite."""
    value = loss.item()
    if not math.isfinite(value):
        raise InputError(f"its loss is {value}, not finite")
    return value


@contextmanager
def _running_statistics_of_batch(module: nn.Module) -> Iterator[None]:
    """Replaces BN's running statistics by those of the batch that runs within."""
    norms = [(part, part.momentum) for part in module.modules() if isinstance(part, _BatchNorm)]
    for norm, _ in norms:
        norm.momentum = 1.0
    try:
        yield
    finally:
        for norm, momentum in norms:
            norm.momentum = momentum


@contextmanager
def _channels_first(module: nn.Module) -> Iterator[None]:
    """Makes all convolutions within add in one order.

    Over a thousand layers another order moves the loss by 0.1 %.
    """
    maps = [p for p in module.parameters() if p.ndim == 4]
    last = any(p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous() for p in maps)
    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    try:
        yield
    finally:
        if last:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def work_differences(rows: list[dict[str, Any]]) -> list[str]:
    """Sentences that say where a candidate does other work than the first, or could not be checked."""
    return [
        line
        for row in rows[1:]
        for line in (*_count_differences(row, rows[0]), *_loss_differences(row, rows[0]))
    ]


def _count_differences(row: dict[str, Any], first: dict[str, Any]) -> Iterator[str]:
    for key, quantity in (("multiply_adds", "multiply-adds"), ("parameters", "parameters")):
        if row[key] != first[key]:
            by = 100 * (row[key] / first[key] - 1)
            yield f"{row['name']}: {row[key]:,} {quantity}, {first['name']} {first[key]:,} ({by:+.2f} %)"


def _loss_differences(row: dict[str, Any], first: dict[str, Any]) -> Iterator[str]:
    if row["loss_with_equal_weights"] is None:
        yield f"{row['name']}: its tensors do not pair with {first['name']}'s, so losses are not compared"
        return
    for key, tolerance, condition in (
        ("loss_with_equal_weights", TOLERANCE, "with equal weights"),
        ("loss_as_run", TIMED_TOLERANCE, "with equal weights, as it is run,"),
    ):
        reference, loss = first["loss_with_equal_weights"], row[key]
        if abs(reference - loss) > tolerance * abs(reference):
            compared = f"that of {first['name']} is {reference:.5f}"
            yield f"{row['name']}: {condition} the loss is {loss:.5f}, {compared}"
