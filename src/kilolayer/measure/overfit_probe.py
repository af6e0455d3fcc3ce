"""Whether a network takes its first steps: training on one batch, over and over."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

PROBE_STEPS, PROBE_RATE, PROBE_MOMENTUM = 20, 0.01, 0.9
"""As many as show it; the rate is that of the papers' warm-up."""


@dataclass(frozen=True)
class OverfitProbe:
    """The loss before each step of SGD on one batch, and after the last one.

    `entropy` is that of the batch's labels: the loss of a network that knows how often a class comes, and
    of the images nothing. No signal need pass for that, a bias at the classifier does it.
    """

    losses: tuple[float, ...]
    entropy: float

    @property
    def learns(self) -> bool:
        """Whether the loss, mean of the last three, is below 95 % of the entropy."""
        return math.isfinite(self.final_loss) and self.final_loss < 0.95 * self.entropy

    @property
    def final_loss(self) -> float:
        end = self.losses[-3:]
        return sum(end) / len(end)


def probe_overfit(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    *,
    steps: int = PROBE_STEPS,
    rate: float = PROBE_RATE,
    momentum: float = PROBE_MOMENTUM,
    seed: int = 0,
) -> OverfitProbe:
    """Trains `model`, which is changed, for `steps` steps on the batch; a loss that is not finite ends it."""
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum)
    losses: list[float] = []
    model.train()
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(seed)
        for _ in range(steps):
            loss = functional.cross_entropy(model(x), labels)
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                break
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return OverfitProbe(tuple(losses), label_entropy(labels.tolist()))


def label_entropy(labels: Sequence[int]) -> float:
    """−Σ p log p of the labels' frequencies, in nats."""
    shares = [count / len(labels) for count in Counter(labels).values()]
    return -sum(share * math.log(share) for share in shares)
