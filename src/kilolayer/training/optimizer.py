"""Optimisers as values without torch; `kilolayer.training.torch_optimizer` builds PyTorch's from them."""

from __future__ import annotations

from dataclasses import dataclass

from kilolayer.errors import InputError
from kilolayer.system.fp32 import FP32_MAX, FP32_RANGE, fits_fp32


def check_fraction(name: str, value: object, below: float = 1.0) -> None:
    """Raises `InputError` unless `value` is a number from 0 to below `below`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < below:
        raise InputError(f"{name} is {value!r}; allowed: from 0 to below {below:g}")
    if not fits_fp32(value):
        raise InputError(f"{name} is {value!r}; allowed: {FP32_RANGE}")


@dataclass(frozen=True)
class SGD:
    """Gradient descent with momentum; weight decay is a term of the gradient g = ∇ + weight_decay·w.

    v ← momentum·v + g;  w ← w − rate·v  (with Nesterov: w ← w − rate·(g + momentum·v)).

    Raises `InputError` for a momentum outside 0 … 1, and for Nesterov without momentum.
    """

    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        check_fraction("momentum", self.momentum)
        if self.nesterov and not self.momentum:
            raise InputError("nesterov is set, but momentum is 0; allowed: nesterov with a momentum above 0")

    @property
    def values_per_weight(self) -> int:
        """How many numbers the optimiser keeps for every weight."""
        return 1 if self.momentum else 0


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, Algorithm 2).

    w ← w − rate·weight_decay·w;  m ← β₁m + (1−β₁)∇;  v ← β₂v + (1−β₂)∇²;
    w ← w − rate·m̂/(√v̂ + ε), with m̂ = m/(1−β₁ᵗ) and v̂ = v/(1−β₂ᵗ).
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if not isinstance(self.betas, tuple) or len(self.betas) != 2:
            raise InputError(f"betas is {self.betas!r}; allowed: two numbers, as (0.9, 0.999)")
        for beta in self.betas:
            check_fraction("a number of betas", beta)
        check_fraction("eps", self.eps, FP32_MAX)
        if not self.eps:
            raise InputError("eps is 0; allowed: a number above 0, such as 1e-8")

    @property
    def values_per_weight(self) -> int:
        """How many numbers the optimiser keeps for every weight."""
        return 2


Optimizer = SGD | AdamW

OPTIMIZERS: dict[str, Optimizer] = {"sgd": SGD(), "adamw": AdamW()}
"""Optimisers by their names on the command line."""

ADAMW_RATE_FACTOR = 0.01
"""AdamW's learning rate as a share of SGD's where a recipe changes its optimiser: 0.001 for 0.1."""
