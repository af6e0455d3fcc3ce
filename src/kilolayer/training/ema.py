"""The running mean of a network's weights over its steps, which errs less than the last weights do.

m_T = Σ_{t≤T} β^(T−t)·w_t / Σ_{t≤T} β^(T−t), so that the initial weights have no part in it (Polyak and
Juditsky 1992; with exponential weights and this correction Kingma and Ba 2015). BN's running means and
variances are averaged like weights: they belong to the weights of their step, and move as slowly.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class WeightEMA:
    """The mean of a module's parameters and buffers. `state` has the keys and shapes of its state dict."""

    def __init__(self, module: nn.Module, beta: float) -> None:
        self.beta = beta
        self.state: dict[str, Tensor] = {
            key: value.detach().clone() for key, value in module.state_dict().items()
        }

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Takes in the weights after the `step`-th step, counted from 1."""
        new = module.state_dict()
        share = (1 - self.beta) / (1 - self.beta**step)
        torch._foreach_lerp_(list(self.state.values()), [new[key] for key in self.state], share)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes up a saved mean; each tensor stays where and as it lies in memory."""
        for key, value in self.state.items():
            value.copy_(state[key])
