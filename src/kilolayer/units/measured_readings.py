"""Readings of a layer, measured by applying its module once."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from kilolayer.units.readings import Layer, MeasuredReadings, NoReading, SavedForBackward

IMAGES = (2, 4)
"""Two batch sizes: the difference of their saved numbers is the part that grows with the batch."""


@dataclass
class _ForwardPass:
    """A forward pass in training mode: input, output, and the tensors that autograd saved.

    Parameters are left out.
    """

    x: Tensor
    y: Tensor
    saved: list[Tensor]

    def count_numbers(self, tensors: list[Tensor]) -> int:
        """The size of `tensors` in numbers of 2 bytes, as training in bf16 saves them."""
        return sum(
            tensor.numel() if tensor.is_floating_point() else tensor.numel() * tensor.element_size() // 2
            for tensor in tensors
        )

    @property
    def saved_inside(self) -> list[Tensor]:
        """The saved tensors that are neither the input nor the output."""
        return [
            tensor
            for tensor in self.saved
            if not (_is_same_tensor(tensor, self.x) or _is_same_tensor(tensor, self.y))
        ]


@cache
def measure_layer(layer: Layer, channels: int, side: int) -> MeasuredReadings:
    """The readings of `layer` for an input of `channels` × `side` × `side`.

    Raises `NoReading` where the module fails on that input, or returns no feature map.
    """
    with torch.random.fork_rng(devices=[]):
        small, large = (_run_layer(layer, channels, side, count) for count in IMAGES)
    if small.y.ndim != 4:
        raise NoReading(f"the layer {layer.label} gives {tuple(small.y.shape)}; allowed: (N, channels, H, W)")
    images = IMAGES[1] - IMAGES[0]
    saved = SavedForBackward(
        input=any(_is_same_tensor(tensor, small.x) for tensor in small.saved),
        output=any(_is_same_tensor(tensor, small.y) for tensor in small.saved),
        extra_numbers=(large.count_numbers(large.saved_inside) - small.count_numbers(small.saved_inside))
        // images,
    )
    shape = small.y.shape[1], small.y.shape[2]
    return MeasuredReadings(shape, _multiply_adds(layer, small.x.detach()) // IMAGES[0], saved)


def _run_layer(layer: Layer, channels: int, side: int, images: int) -> _ForwardPass:
    module = layer.module().train()
    parameter_addresses = {parameter.data_ptr() for parameter in module.parameters()}
    # Not a leaf: a module that returns its input must return another tensor than the parameter-like leaf.
    x = torch.randn(images, channels, side, side).requires_grad_() + 0
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in parameter_addresses:
            saved[tensor.data_ptr()] = tensor
        return tensor

    try:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            y = module(x)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise NoReading(f"the layer {layer.label} cannot be applied to {tuple(x.shape)}: {reason}") from error
    return _ForwardPass(x, y, list(saved.values()))


def _multiply_adds(layer: Layer, x: Tensor) -> int:
    module: nn.Module = layer.module().eval()
    counter: Any = FlopCounterMode(display=False)
    with contextlib.ExitStack() as inside:
        inside.enter_context(torch.no_grad())
        inside.enter_context(counter)
        module(x)
    return int(counter.get_total_flops()) // 2


def _is_same_tensor(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.numel() == b.numel()
