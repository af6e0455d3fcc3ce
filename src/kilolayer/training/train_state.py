"""What a training step changes, and what a run saves of it between two steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from kilolayer.errors import InputError, KilolayerError
from kilolayer.networks import ResidualNetwork
from kilolayer.training.ema import WeightEMA
from kilolayer.training.recipes import Recipe
from kilolayer.training.torch_optimizer import (
    STATE_NAMES,
    build_optimizer,
    expected_optimizer_tensors,
    load_optimizer_tensors,
    named_optimizer_tensors,
)


class NonFinite(KilolayerError):
    """The run diverged: a loss or a tensor of the network is infinite or not a number."""


@dataclass
class TrainState:
    """Network, optimiser, running mean of the weights, sums and counters after `iteration` steps.

    No random generator is part of it: randomness is a pure function of seed, epoch and position.

    epoch_sums: float64 (3,): images, summed loss and wrong answers of the current epoch, on this rank.
    best_weights: the state dict with the least validation error so far; empty without a validation set.
    seconds: time spent on the steps of the current epoch.
    may_be_inactive: units can be inactive, whose weights then have no gradient.
    """

    model: ResidualNetwork
    optimizer: Optimizer
    ema: WeightEMA | None
    epoch_sums: Tensor
    iteration: int = 0
    epochs_closed: int = 0
    best_error: float = math.inf
    best_epoch: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0
    may_be_inactive: bool = False

    @classmethod
    def initial(
        cls, model: ResidualNetwork, recipe: Recipe, device: torch.device, *, in_graph: bool
    ) -> TrainState:
        """The state before the first step of `recipe`.

        in_graph: the steps will be replayed as a CUDA graph, which wants the learning rates as tensors.
        """
        return cls(
            model,
            build_optimizer(model, recipe, device if in_graph else None),
            WeightEMA(model, recipe.ema_beta) if recipe.ema else None,
            torch.zeros(3, dtype=torch.float64, device=device),
            may_be_inactive=bool(recipe.progressive_depth.changes),
        )

    @property
    def reported_weights(self) -> dict[str, Tensor]:
        """The state dict whose errors are reported: the running mean where there is one, else the model's."""
        return self.ema.state if self.ema else self.model.state_dict()

    def tensors(self) -> dict[str, Tensor]:
        """The state's tensors by name, all but `epoch_sums`, which differ between ranks."""
        model = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        optimizer = named_optimizer_tensors(self.model, self.optimizer)
        mean = {f"average.{key}": value for key, value in self.ema.state.items()} if self.ema else {}
        best = {f"best.{key}": value for key, value in self.best_weights.items()}
        return {**model, **optimizer, **mean, **best}

    def counters(self) -> dict[str, Any]:
        """The rest of the state, as JSON can hold it."""
        return {
            "iteration": self.iteration,
            "epochs_closed": self.epochs_closed,
            "best_error": None if math.isinf(self.best_error) else self.best_error,
            "best_epoch": self.best_epoch,
            "seconds": self.seconds,
        }

    def check_fits(
        self, tensors: Mapping[str, Tensor], counters: Mapping[str, Any], others: Mapping[str, Tensor]
    ) -> None:
        """Raises `InputError` at the first of the tensors that a state of this experiment cannot have.

        others: what it has beside `tensors()`, and beside the best weights if there are some.
        """
        kinds = tuple(f"{kind}." for kind in STATE_NAMES.values())
        learnt = {name.partition(".")[2] for name in tensors if name.startswith(kinds)}
        # A state that has none at all was made smaller on purpose; the optimiser begins anew then.
        may_lack = counters["iteration"] == 0 or self.may_be_inactive or not learnt
        expected = {
            **{name: value for name, value in self.tensors().items() if not name.startswith("best.")},
            **expected_optimizer_tensors(self.model, self.optimizer),
            **others,
        }
        for name, value in expected.items():
            # What never had a gradient has no tensors of the optimiser.
            if may_lack and name.startswith(kinds) and name.partition(".")[2] not in learnt:
                continue
            if name not in tensors:
                raise _misfit(f"{name} is missing")
            if (form := _form(tensors[name])) != _form(value):
                raise _misfit(f"{name} is {form}, and has to be {_form(value)}")
        if extra := [name for name in tensors if name not in expected]:
            raise _misfit(f"{extra[0]} is none of them")

    def load(self, tensors: dict[str, Tensor], counters: Mapping[str, Any]) -> None:
        """Takes over what `tensors()`, with "sums", and `counters()` gave; `check_fits` tells if they fit."""
        self.model.load_state_dict(with_prefix(tensors, "model."))
        if self.ema:
            self.ema.load(with_prefix(tensors, "average."))
        device = self.epoch_sums.device
        self.best_weights = {
            key: value.to(device, copy=True) for key, value in with_prefix(tensors, "best.").items()
        }
        load_optimizer_tensors(self.model, self.optimizer, tensors)
        self.epoch_sums.copy_(tensors["sums"])
        self.iteration, self.epochs_closed = counters["iteration"], counters["epochs_closed"]
        self.best_error = math.inf if counters["best_error"] is None else counters["best_error"]
        self.best_epoch, self.seconds = counters["best_epoch"], counters["seconds"]

    def first_non_finite(self) -> str | None:
        """The name of the first tensor that holds an infinity or a NaN."""
        tensors = self.tensors()
        # One transfer for all of them: on a GPU each would wait.
        finite = torch.stack([tensor.isfinite().all() for tensor in tensors.values()]).tolist()
        bad = [name for name, is_finite in zip(tensors, finite, strict=True) if not is_finite]
        return bad[0].removeprefix("model.") if bad else None


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, under the rest of their names."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _misfit(reason: str) -> InputError:
    return InputError(
        f"the state's tensors do not fit the experiment: {reason}; it was changed, or another release of "
        "kilolayer saved it: bring it back from a copy, or begin a new run"
    )
