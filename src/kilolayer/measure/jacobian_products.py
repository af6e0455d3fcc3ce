"""The derivative of a chain of units as a linear map, J_l = ∂x_L/∂x_l: its products, never its entries.

Units are linearised one at a time where the batch meets them, and forgotten; of L units' inputs √L are kept,
and the others computed again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kilolayer.measure.unit_chain import UnitChain

Vectors = Sequence[Tensor]


class JacobianProducts:
    """The units of `chain` linearised on the batch `x`."""

    def __init__(self, chain: UnitChain, x: Tensor) -> None:
        self.chain, self.x = chain, x
        self.stride = math.isqrt(len(chain) - 1) + 1
        self._checkpoints: list[Tensor] = []
        signal = chain.first_input(x)
        self.shapes = [signal.shape]
        for index in range(len(chain)):
            if index % self.stride == 0:
                self._checkpoints.append(signal)
            with torch.no_grad():
                signal = self._run_step(index, signal)
            self.shapes.append(signal.shape)
        self.out = signal

    def jvp(self, start: int, tangents: Vectors) -> list[Tensor]:
        """J_l v for l = `place` and every v of x_l's shape."""
        tangents_out, signal = list(tangents), self._input(start)
        for index in range(start, len(self.chain)):
            signal, tangents_out = self._push_forward(index, signal, tangents_out)
        return tangents_out

    def vjp(self, start: int, cotangents: Vectors) -> list[Tensor]:
        """J_lᵀ u for l = `place` and every u of x_L's shape."""
        for index, cotangents_in in self.vjps(cotangents):
            if index == start:
                return cotangents_in
        return list(cotangents)

    def vjps(self, cotangents: Vectors) -> Iterator[tuple[int, list[Tensor]]]:
        """J_lᵀ u for l = L−1 … 0 in turn."""
        vectors = list(cotangents)
        for first in reversed(range(0, len(self.chain), self.stride)):
            inputs = self._inputs(first)
            for index in reversed(range(first, first + len(inputs))):
                leaf = inputs.pop().detach().requires_grad_()
                with torch.enable_grad():
                    out = self._run_step(index, leaf)
                vectors = [torch.autograd.grad(out, leaf, u, retain_graph=True)[0] for u in vectors]
                del out, leaf
                yield index, vectors

    def _run_step(self, index: int, signal: Tensor) -> Tensor:
        """From x_l to x_{l+1}, with what stands between the units."""
        out = self.chain.run_unit(self.x, index, signal)
        return out if index + 1 == len(self.chain) else self.chain.next_input(self.x, index, out)

    @torch.no_grad()
    def _run_without_gradient(self, index: int, signal: Tensor) -> Tensor:
        return self._run_step(index, signal)

    def _push_forward(self, index: int, signal: Tensor, tangents: Vectors) -> tuple[Tensor, list[Tensor]]:
        """x_{l+1} and J v of one unit: u ↦ Jᵀu is linear, so its own derivative's transpose is J."""
        leaf = signal.detach().requires_grad_()
        with torch.enable_grad():
            out = self._run_step(index, leaf)
            cotangent = torch.zeros_like(out, requires_grad=True)
            (vjp,) = torch.autograd.grad(out, leaf, cotangent, create_graph=True)
        tangents_out = [
            torch.autograd.grad(vjp, cotangent, tangent, retain_graph=True)[0] for tangent in tangents
        ]
        return out.detach(), tangents_out

    def _input(self, start: int) -> Tensor:
        signal = self._checkpoints[start // self.stride]
        for index in range(start - start % self.stride, start):
            signal = self._run_without_gradient(index, signal)
        return signal

    def _inputs(self, first: int) -> list[Tensor]:
        """The inputs of the units from `first` to the next that is kept."""
        inputs = [self._checkpoints[first // self.stride]]
        for index in range(first, min(first + self.stride, len(self.chain)) - 1):
            inputs.append(self._run_without_gradient(index, inputs[-1]))
        return inputs
