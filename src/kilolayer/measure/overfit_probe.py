"""An overfit probe: whether a network can learn a single batch in a few steps of training."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

PROBE_STEPS, PROBE_RATE, PROBE_MOMENTUM = 20, 0.01, 0.9
"""The probe's training; the learning rate is that of the papers' warm-up (P1, Sec. 4.2)."""


@dataclass(frozen=True)
class OverfitProbe:
    """The mean cross-entropy before each step of SGD on one batch, in nats."""

    losses: tuple[float, ...]
    entropy: float
    """−Σ p log p of the batch's labels: the loss of a network that knows the classes' frequencies and
    nothing of the images. The classifier's bias can learn these without any signal, so a probe has to get
    below."""

    @property
    def learns(self) -> bool:
        """Whether `final_loss` is below 95 % of the entropy."""
        return math.isfinite(self.final_loss) and self.final_loss < 0.95 * self.entropy

    @property
    def final_loss(self) -> float:
        """The mean of the last three losses."""
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
    """Trains `model` on one batch with SGD, and records the loss. The model is changed.

    Args:
        model: any module with logits of shape (N, classes).
        x: a normalised batch, (N, C, H, W).
        labels: classes, (N,).
        steps: training steps; a loss that is not finite ends the probe.
        rate: the learning rate.
        momentum: SGD's momentum.
        seed: random numbers (dropout) follow from it.

    >>> probe = probe_overfit(nn.Linear(4, 2), torch.eye(4), torch.tensor([0, 1, 0, 1]))
    >>> len(probe.losses), round(probe.entropy, 4)
    (20, 0.6931)
    """
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
