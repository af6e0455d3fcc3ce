"""The exponential moving average of a network's weights, which errs less than the last weights.

m_T = Σ_{t≤T} β^(T−t)·w_t / Σ_{t≤T} β^(T−t), so that the initial weights have no part in it (Polyak and
Juditsky 1992; with exponential weights and this correction Kingma and Ba 2015). BN's running means and
variances are averaged like weights: they belong to the weights of their step, and move as slowly.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class WeightEMA:
    """The moving average of a module's parameters and buffers.

    state: the average, with the keys and shapes of the module's state dict.

    >>> module = nn.Linear(1, 1, bias=False)
    >>> ema = WeightEMA(module, beta=0.5)
    >>> for step, weight in enumerate((1.0, 4.0), start=1):
    ...     _ = nn.init.constant_(module.weight, weight)
    ...     ema.update(module, step)
    >>> ema.state["weight"].item()  # (0.5·1 + 4) / (0.5 + 1)
    3.0
    """

    def __init__(self, module: nn.Module, beta: float) -> None:
        self.beta = beta
        self.state: dict[str, Tensor] = {
            key: value.detach().clone() for key, value in module.state_dict().items()
        }

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Adds the weights after step number `step`, counted from 1, to the average."""
        new = module.state_dict()
        share = (1 - self.beta) / (1 - self.beta**step)
        torch._foreach_lerp_(list(self.state.values()), [new[key] for key in self.state], share)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Loads a saved average in place: each tensor keeps its device and memory format."""
        for key, value in self.state.items():
            value.copy_(state[key])
