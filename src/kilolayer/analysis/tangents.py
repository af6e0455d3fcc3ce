"""The derivative of a chain of units as a linear map, J_l = ∂x_L/∂x_l: its products, never its entries.

Units are linearised one at a time where the batch meets them, and forgotten; of L units' inputs √L are kept,
and the others computed again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kilolayer.analysis.chain import Chain

Vectors = Sequence[Tensor]


class Tangents:
    """The units of `chain` linearised on the batch `x`."""

    def __init__(self, chain: Chain, x: Tensor) -> None:
        self.chain, self.x = chain, x
        self.stride = math.isqrt(len(chain) - 1) + 1
        self._kept: list[Tensor] = []
        signal = chain.enter(x)
        self.shapes = [signal.shape]
        for index in range(len(chain)):
            if index % self.stride == 0:
                self._kept.append(signal)
            with torch.no_grad():
                signal = self._step(index, signal)
            self.shapes.append(signal.shape)
        self.out = signal

    def forward(self, place: int, tangents: Vectors) -> list[Tensor]:
        """J_l v for l = `place` and every v of x_l's shape."""
        pushed, signal = list(tangents), self._input(place)
        for index in range(place, len(self.chain)):
            signal, pushed = self._pushed(index, signal, pushed)
        return pushed

    def backward(self, place: int, cotangents: Vectors) -> list[Tensor]:
        """J_lᵀ u for l = `place` and every u of x_L's shape."""
        for index, pulled in self.pulled(cotangents):
            if index == place:
                return pulled
        return list(cotangents)

    def pulled(self, cotangents: Vectors) -> Iterator[tuple[int, list[Tensor]]]:
        """J_lᵀ u for l = L−1 … 0 in turn."""
        pulled = list(cotangents)
        for first in reversed(range(0, len(self.chain), self.stride)):
            inputs = self._inputs(first)
            for index in reversed(range(first, first + len(inputs))):
                leaf = inputs.pop().detach().requires_grad_()
                with torch.enable_grad():
                    out = self._step(index, leaf)
                pulled = [torch.autograd.grad(out, leaf, u, retain_graph=True)[0] for u in pulled]
                del out, leaf
                yield index, pulled

    def _step(self, index: int, signal: Tensor) -> Tensor:
        """From x_l to x_{l+1}, with what stands between the units."""
        out = self.chain.run(self.x, index, signal)
        return out if index + 1 == len(self.chain) else self.chain.leave(self.x, index, out)

    @torch.no_grad()
    def _plain(self, index: int, signal: Tensor) -> Tensor:
        return self._step(index, signal)

    def _pushed(self, index: int, signal: Tensor, tangents: Vectors) -> tuple[Tensor, list[Tensor]]:
        """x_{l+1} and J v of one unit: u ↦ Jᵀu is linear, so its own derivative's transpose is J."""
        leaf = signal.detach().requires_grad_()
        with torch.enable_grad():
            out = self._step(index, leaf)
            free = torch.zeros_like(out, requires_grad=True)
            (pulled,) = torch.autograd.grad(out, leaf, free, create_graph=True)
        pushed = [torch.autograd.grad(pulled, free, each, retain_graph=True)[0] for each in tangents]
        return out.detach(), pushed

    def _input(self, place: int) -> Tensor:
        signal = self._kept[place // self.stride]
        for index in range(place - place % self.stride, place):
            signal = self._plain(index, signal)
        return signal

    def _inputs(self, first: int) -> list[Tensor]:
        """The inputs of the units from `first` to the next that is kept."""
        inputs = [self._kept[first // self.stride]]
        for index in range(first, min(first + self.stride, len(self.chain)) - 1):
            inputs.append(self._plain(index, inputs[-1]))
        return inputs
