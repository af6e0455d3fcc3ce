"""Jacobian-vector and vector-Jacobian products of a chain of units, J_l = ∂x_L/∂x_l.

The Jacobian itself is never formed: for x of n numbers it has n² entries. Units are linearised one at a
time; of L units √L inputs are kept and the others recomputed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from kilolayer.errors import InputError
from kilolayer.measure.unit_chain import UnitChain

Vectors = Sequence[Tensor]


class JacobianProducts:
    """Products with J_l = ∂x_L/∂x_l of `chain`, linearised on the batch `x`, (N, C, H, W).

    Attributes:
        out: x_L, the last unit's output.
        shapes: the shapes of x_0 … x_L.

    >>> from kilolayer.networks import build, describe
    >>> chain = UnitChain(build(describe("preact_resnet8_cifar")).double())
    >>> products = JacobianProducts(chain, torch.randn(2, 3, 32, 32).double())
    >>> v, u = torch.randn(products.shapes[0]).double(), torch.randn(products.out.shape).double()
    >>> (Jv,), (Ju,) = products.jvp(0, [v]), products.vjp(0, [u])
    >>> torch.allclose((Jv * u).sum(), (v * Ju).sum(), atol=1e-6)  # ⟨Jv, u⟩ = ⟨v, Jᵀu⟩
    True
    """

    def __init__(self, chain: UnitChain, x: Tensor) -> None:
        self.chain, self.x = chain, x
        self.stride = math.isqrt(len(chain.execution_order(x).names) - 1) + 1
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
        """J_l v for l = `start` and every v, of the shape of x_l; the products have the shape of x_L."""
        tangents_out, signal = list(tangents), self._input(start)
        for index in range(start, len(self.chain)):
            signal, tangents_out = self._push_forward(index, signal, tangents_out)
        return tangents_out

    def vjp(self, start: int, cotangents: Vectors) -> list[Tensor]:
        """J_lᵀ u for l = `start` and every u, of the shape of x_L; the products have the shape of x_l."""
        for index, cotangents_in in self.vjps(cotangents):
            if index == start:
                return cotangents_in
        return list(cotangents)

    def vjps(self, cotangents: Vectors) -> Iterator[tuple[int, list[Tensor]]]:
        """Yields (l, [J_lᵀ u for every u]) for l = L−1 … 0, from one pass."""
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
        """x_{l+1} from x_l, with what stands between the units."""
        with sdpa_kernel(SDPBackend.MATH):  # the only attention whose gradient has a derivative
            out = self.chain.run_unit(self.x, index, signal)
        return out if index + 1 == len(self.chain) else self.chain.next_input(self.x, index, out)

    @torch.no_grad()
    def _run_without_gradient(self, index: int, signal: Tensor) -> Tensor:
        return self._run_step(index, signal)

    def _push_forward(self, index: int, signal: Tensor, tangents: Vectors) -> tuple[Tensor, list[Tensor]]:
        """x_{l+1} and Jv of one unit, by reverse mode alone.

        u ↦ Jᵀu is linear, so the transpose of its own derivative is J. PyTorch's forward mode works too, but
        it decomposes BN in Python, which is several times slower.
        """
        leaf = signal.detach().requires_grad_()
        with torch.enable_grad():
            out = self._run_step(index, leaf)
            cotangent = torch.zeros_like(out, requires_grad=True)
            (vjp,) = torch.autograd.grad(out, leaf, cotangent, create_graph=True)
        try:
            tangents_out = [
                torch.autograd.grad(vjp, cotangent, tangent, retain_graph=True)[0] for tangent in tangents
            ]
        except RuntimeError as error:
            if "not implemented" not in str(error) and "once_differentiable" not in str(error):
                raise
            name = self.chain.execution_order(self.x).names[index]
            raise InputError(
                f"{name!r} holds a function whose gradient cannot be differentiated, as a Jacobian-vector "
                f"product requires: {str(error).splitlines()[0]}"
            ) from None
        return out.detach(), tangents_out

    def _input(self, start: int) -> Tensor:
        signal = self._checkpoints[start // self.stride]
        for index in range(start - start % self.stride, start):
            signal = self._run_without_gradient(index, signal)
        return signal

    def _inputs(self, first: int) -> list[Tensor]:
        """The inputs of the units from `first` to the next checkpoint."""
        inputs = [self._checkpoints[first // self.stride]]
        for index in range(first, min(first + self.stride, len(self.chain)) - 1):
            inputs.append(self._run_without_gradient(index, inputs[-1]))
        return inputs
