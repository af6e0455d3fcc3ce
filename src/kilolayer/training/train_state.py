"""A training between two steps: what is saved of it, how it is taken up again, and whether it is finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, NoReturn

import torch
from torch import Tensor

from kilolayer.data import InputStatistics, Splits, measure_statistics
from kilolayer.errors import InputError
from kilolayer.networks import ResidualNetwork
from kilolayer.training.device import DistributedContext
from kilolayer.training.ema import WeightEMA
from kilolayer.training.experiment import Experiment
from kilolayer.training.torch_optimizer import (
    build_optimizer,
    load_optimizer_tensors,
    named_optimizer_tensors,
)

MAX_EPOCHS = 999_999
"""The names of a run's states have six digits for them."""


class NonFinite(InputError):
    """A loss, or a tensor of the network, is infinite or not a number any more: the run diverged."""


class TrainState:
    """Network, optimiser, running sums and counters; no generator, for randomness is a pure function.

    Raises `InputError` where batch, data and processes do not fit together.

    `sums` are float64 (3,): images, summed loss and wrong answers of the epoch under way, of this process.
    """

    def __init__(
        self, experiment: Experiment, splits: Splits, context: DistributedContext, model: ResidualNetwork
    ) -> None:
        _check_fits(experiment, splits, context)
        self.experiment, self.splits, self.context, self.model = experiment, splits, context, model
        self.optimizer = build_optimizer(
            model, experiment.recipe, context.device if experiment.graph else None
        )
        self.ema = WeightEMA(model, experiment.recipe.ema_beta) if experiment.recipe.ema else None
        self.statistics = measure_statistics(splits.train, experiment.recipe.normalization).to(context.device)
        self.iteration = 0
        self.epochs_closed = 0
        self.epoch_sums = torch.zeros(3, dtype=torch.float64, device=context.device)
        self.best_error = math.inf
        self.best_epoch = 0
        self.best_state: dict[str, Tensor] = {}
        self.seconds = 0.0
        self._finite_at = 0

    @property
    def reported_state(self) -> dict[str, Tensor]:
        """The state dict of the weights whose errors are reported: the recipe's mean, or the model's own."""
        return self.ema.state if self.ema else self.model.state_dict()

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """What the images are that decide the weights."""
        parts = {"training set": self.splits.train, "validation set": self.splits.validation}
        return {name: images.fingerprint() for name, images in parts.items() if images is not None}

    def tensors(self) -> dict[str, Tensor]:
        """The state's tensors by name: weights, mean and best weights so far, the optimiser's figures, sums.

        With many processes all of them must ask, for the sums are everyone's.
        """
        return {**self._own_tensors(), "sums": self.context.all_reduce(self.epoch_sums.clone())}

    def _own_tensors(self) -> dict[str, Tensor]:
        figures = named_optimizer_tensors(self.model, self.optimizer)
        model = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        mean = {f"average.{key}": value for key, value in self.ema.state.items()} if self.ema else {}
        best = {f"best.{key}": value for key, value in self.best_state.items()}
        # The data say the others again.
        init = self.experiment.init
        given = self.statistics.tensors() if init and init.normalization == "file" else {}
        inputs = {f"input.{key}": value for key, value in given.items()}
        return {**model, **figures, **mean, **best, **inputs}

    def counters(self) -> dict[str, Any]:
        """The rest of the state, as JSON can hold it."""
        best = None if math.isinf(self.best_error) else self.best_error
        return {
            "iteration": self.iteration,
            "epochs_closed": self.epochs_closed,
            "best_error": best,
            "best_epoch": self.best_epoch,
            "seconds": self.seconds,
            "data": self.fingerprints,
        }

    def restore(self, tensors: dict[str, Tensor], counters: dict[str, Any]) -> None:
        """Continues from a state: `tensors()` and `counters()` of the same experiment.

        Raises `InputError`, and changes nothing, where the data are others now or the state does not fit.
        """
        self._check_data(counters["data"])
        model = _with_prefix(tensors, "model.")
        averaged = _shapes(_with_prefix(tensors, "average.")) == _shapes(self.ema.state if self.ema else {})
        if _shapes(model) != _shapes(self.model.state_dict()) or not averaged:
            raise InputError("the state was saved by another release of kilolayer: its tensors do not fit")
        self.model.load_state_dict(model)
        if self.ema:
            self.ema.load(_with_prefix(tensors, "average."))
        self.best_state = {
            key: value.to(self.context.device, copy=True)
            for key, value in _with_prefix(tensors, "best.").items()
        }
        if inputs := _with_prefix(tensors, "input."):
            self.statistics = InputStatistics(**inputs).to(self.context.device)
        load_optimizer_tensors(self.model, self.optimizer, tensors)
        # The sums are everyone's, and are added up over the processes again.
        self.epoch_sums.copy_(tensors["sums"] if self.context.is_main else torch.zeros_like(self.epoch_sums))
        self.iteration, self.epochs_closed = counters["iteration"], counters["epochs_closed"]
        self.best_error = math.inf if counters["best_error"] is None else counters["best_error"]
        self.best_epoch, self.seconds = counters["best_epoch"], counters["seconds"]
        self._finite_at = self.iteration

    def _check_data(self, fingerprints: Mapping[str, str]) -> None:
        for name, now in self.fingerprints.items():
            if fingerprints.get(name) != now:
                raise InputError(
                    f"the {name} has changed since the run began: its images or labels are not the same; "
                    f"bring the data back, or begin a new run"
                )

    def check_loss(self) -> None:
        """Raises `NonFinite` when the running loss is not finite. On a GPU this waits for it."""
        if self.context.any(not math.isfinite(self.epoch_sums[1].item())):
            tensor = _first_non_finite(self._own_tensors())
            self.raise_non_finite(f"the training loss{f' (and {tensor})' if tensor else ''}")

    def check_finite(self) -> None:
        """Raises `NonFinite`, with what to try, when the loss or a tensor of the state is not finite.

        A step can make a weight or a running average infinite behind a finite loss. With many
        processes all of them must ask.
        """
        self.check_loss()
        name = _first_non_finite(self._own_tensors())
        if self.context.any(name is not None):
            self.raise_non_finite(name or "a tensor of another process")
        self._finite_at = self.iteration

    def raise_non_finite(self, subject: str) -> NoReturn:
        """Raises `NonFinite`: `what` is not finite, seen now, and when all was still finite."""
        rate = self.experiment.recipe.rate(max(0, self.iteration - 1))
        when = f"(learning rate {rate:g}; all was finite at iteration {self._finite_at:,})"
        raise NonFinite(
            f"{subject} is not finite at iteration {self.iteration:,} {when}; "
            f"try a lower --lr, a recipe with a warm-up, or --precision fp32"
        )


def _first_non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds an infinity or no number."""
    # One look for all of them: on a GPU each would wait.
    finite = torch.stack([tensor.isfinite().all() for tensor in tensors.values()])
    bad = [name for name, fine in zip(tensors, finite.tolist(), strict=True) if not fine]
    return bad[0].removeprefix("model.") if bad else None


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in tensors.items()}


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _check_variance(experiment: Experiment, image_side: int, world_size: int) -> None:
    """Raises `InputError` where a BN would see one value a channel, of one image in every process.

    full: the side of the images.
    """
    recipe = experiment.recipe
    for _, side in recipe.progressive_resize.phase_sides(image_side, recipe.iterations):
        network = replace(experiment.network, image_size=side)
        part = next((part for part, read in network.normalised_sides() if read == 1), None)
        if part is not None:
            raise InputError(
                f"a BN in {part} would see one value a channel, which has no variance: one image a process "
                f"at batch size {recipe.batch_size}, in a map of 1×1 pixels for images of {side}; take a "
                f"--batch-size of {2 * world_size} or more"
                f"{', or a larger --progressive-resize' if side < image_side else ''}"
            )


def _check_fits(experiment: Experiment, splits: Splits, context: DistributedContext) -> None:
    size, images = experiment.recipe.batch_size, len(splits.train)
    if size > images:
        raise InputError(
            f"batch size {size} is larger than the training set of {images} images; take at most {images}"
        )
    if size % context.world_size:
        raise InputError(
            f"batch size {size} cannot be shared among {context.world_size} processes; "
            f"take a multiple of {context.world_size}"
        )
    # The BNs of a frozen trunk have their figures, and measure none.
    if size == context.world_size and not experiment.recipe.trunk_frozen:
        _check_variance(experiment, splits.image_size, context.world_size)
    epochs = -(-experiment.recipe.iterations // (images // size))
    if epochs > MAX_EPOCHS:
        raise InputError(
            f"{experiment.recipe.iterations:,} steps of {size} of {images:,} images are {epochs:,} epochs; "
            f"allowed: up to {MAX_EPOCHS:,}"
        )
    network = experiment.network
    if network.num_classes != splits.num_classes or network.in_chans != splits.in_chans:
        raise InputError(
            f"the network has {network.num_classes} classes and {network.in_chans} input channels, "
            f"the data {splits.num_classes} and {splits.in_chans}"
        )
