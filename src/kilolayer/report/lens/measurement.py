"""Signal and gradient, measured once in a small network at its initialisation."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from kilolayer.data import Data, load
from kilolayer.networks import Network, ResidualNetwork, build
from kilolayer.report.lens.settings import SIDE
from kilolayer.units import ResidualUnit

MANY, FEW, DEEP = 32, 16, 120
"""Batch sizes: a network of at least `DEEP` units gets the smaller batch, to save time."""


@dataclass(frozen=True)
class LensMeasurement:
    """E[x_l²] and ‖∂ε/∂x_l‖ / ‖∂ε/∂x_L‖ at the input of every unit and at the output of the last.

    They hold for one seed and one batch of `images`. `seconds` is the time for building and measuring.
    """

    signal: tuple[float, ...]
    gradient: tuple[float, ...]
    images: int
    seconds: float


class _Stopped(Exception):
    pass


def measure_lens_network(
    network: Network, images: str, stop: Callable[[], bool], seed: int = 0
) -> LensMeasurement | None:
    """Measure `network` on "noise" or "digits"; return None if `stop()` becomes true before the end."""
    began = time.perf_counter()
    try:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            tensors = _forward_backward(network, images, stop)
    except _Stopped:
        return None
    signal, gradient = torch.stack(tensors[0]).tolist(), torch.stack(tensors[1])
    ratios = (gradient / gradient[-1]).tolist()
    return LensMeasurement(tuple(signal), tuple(ratios), batch_size(network), time.perf_counter() - began)


def _forward_backward(
    network: Network, images: str, stop: Callable[[], bool]
) -> tuple[list[Tensor], list[Tensor]]:
    model = build(network).train()
    signal: list[Tensor] = []
    gradient: list[Tensor] = []

    def look(x: Tensor) -> None:
        if stop():
            raise _Stopped
        signal.append(x.detach().square().mean())
        x.register_hook(back)  # type: ignore[no-untyped-call]

    def back(grad: Tensor) -> None:
        if stop():
            raise _Stopped
        gradient.append(grad.norm())

    *units, last = _units(model)
    for unit in (*units, last):
        unit.register_forward_pre_hook(lambda _, args: look(args[0]))
    last.register_forward_hook(lambda _, args, out: look(out))
    x, labels = _batch(images, batch_size(network))
    # The hooks collect the figures. Only the image's gradient is asked for, so weights get none.
    torch.autograd.grad(functional.cross_entropy(model(x.requires_grad_()), labels), x)
    return signal, gradient[::-1]


def _units(model: ResidualNetwork) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, ResidualUnit)]


def batch_size(network: Network) -> int:
    """The images of a measurement: few for a deep network."""
    return MANY if sum(stage.units for stage in network.stages) < DEEP else FEW


def _batch(images: str, count: int) -> tuple[Tensor, Tensor]:
    """Grey images of mean 0 and second moment 1, as in the theory, with their labels or random ones."""
    if images == "noise":
        return torch.randn(count, 1, SIDE, SIDE), torch.randint(10, (count,))
    train = load(Data("digits")).train
    chosen = train[torch.randperm(len(train))[:count]]
    x = chosen.pixels.float()
    return (x - x.mean()) / x.std(correction=0), chosen.labels
