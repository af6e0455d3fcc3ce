"""One step of a training: what the host decides, a function of tensors on the device, a look at the loss."""

from __future__ import annotations

from collections.abc import Hashable
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from kilolayer.data import Splits, resampled, select, selected
from kilolayer.errors import InputError
from kilolayer.kernels import fuse
from kilolayer.networks import build
from kilolayer.training import graph
from kilolayer.training.compiling import compile_units
from kilolayer.training.device import Place, repeatable
from kilolayer.training.evaluation import forward
from kilolayer.training.experiment import Experiment
from kilolayer.training.memory import allocate, arrange
from kilolayer.training.state import State
from kilolayer.training.updates import freeze_trunk, running_figures, set_rate
from kilolayer.units.modules import draws


class Stepping(State):
    """A network on its device, with its data there, and how it is taken one step on.

    A step is a pure function of the state and its number: which images, how they are augmented and what
    dropout takes follow from (seed, epoch, position). Raises `InputError` where batch, data and processes do
    not fit together, or the step cannot be what the experiment asks for.
    """

    def __init__(self, experiment: Experiment, splits: Splits, place: Place) -> None:
        recipe = experiment.recipe
        if place.device.type == "cuda" and place.device.index is not None:
            torch.cuda.set_device(place.device)  # Triton and graphs ask for the current one
        repeatable(place.device)
        allocate(place.device)
        torch.manual_seed(experiment.seed)
        model = build(experiment.network)
        model.let_work(recipe.growth.start)
        model.silence_resting()
        model = model.to(place.device)
        if recipe.trunk_frozen:
            freeze_trunk(model)
        if experiment.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        super().__init__(experiment, splits, place, model)
        self.train_images = splits.train.to(place.device)
        # One tensor for all steps, for a graph writes where it was captured.
        self.loss = torch.full((), torch.nan, device=place.device)
        self.kernels = fuse(self.model) if experiment.kernels == "fused" else None
        if self.kernels and self.kernels.fused and place.device.type == "cuda":
            from kilolayer.kernels.gpu.check import check  # Triton need not be there

            check(self.model)
        self.memory = arrange(self.model, experiment, place)
        self.epoch_length = len(splits.train) // recipe.batch_size
        self._compute = self._wrapped()
        self._draws = any(map(draws, self.model.modules()))
        self._replay = self._replayed()

    def _wrapped(self) -> nn.Module:
        module: nn.Module = self.model
        if self.experiment.compile == "model":
            module = torch.compile(module)  # type: ignore[assignment]
        elif self.experiment.compile == "units":
            compile_units(self.model)
        if self.place.world > 1:
            # What rests has no gradient.
            growing = bool(self.experiment.recipe.growth.changes)
            module = DistributedDataParallel(module, find_unused_parameters=growing)
        return module

    def _replayed(self) -> graph.Replay | None:
        """What replays the steps as a CUDA graph. None where that is not asked for, or is no GPU."""
        if not self.experiment.graph or self.place.device.type != "cuda":
            return None
        why = graph.refusal(self.place.device, draws=self._draws, world=self.place.world)
        if why:
            raise InputError(f"the step cannot be a CUDA graph: {why}; use --graph off")
        return graph.Replay(self._advance, graph.CudaRecorder(self.place.device), self._changed)

    def _changed(self) -> list[Tensor]:
        """What `_advance` changes and the next one reads, where it lies."""
        figures = running_figures(self.optimizer)
        return [*self.model.parameters(), *self.model.buffers(), *figures, self.sums]

    def restore(self, tensors: dict[str, Tensor], counters: dict[str, Any]) -> None:
        super().restore(tensors, counters)
        self.loss.fill_(torch.nan)
        if self._replay:
            self._replay.forget()

    def _step(self) -> None:
        """The next step of the recipe."""
        self._prepare()
        if self._replay:
            self._replay(self._fixed)
        else:
            self._advance()
        self.iteration += 1
        if self.average:
            self.average.add(self.model, self.iteration)
        self._watch()

    def _prepare(self) -> None:
        """What a step takes from the host: which images, what chance decides for them, the learning rate."""
        recipe = self.experiment.recipe
        epoch, index = divmod(self.iteration, self.epoch_length)
        share = recipe.batch_size // self.place.world
        start = index * recipe.batch_size + self.place.rank * share
        selection = select(
            len(self.train_images),
            recipe.augmentation,
            self.experiment.seed,
            epoch,
            range(start, start + share),
            self.place.device,
        )
        self._selection = self._replay.held(selection) if self._replay else selection
        if self._draws:
            torch.manual_seed(_hash(self.experiment.seed, self.iteration, self.place.rank))
        self._side = recipe.resolution.side(self.splits.image_size, self.iteration, recipe.iterations)
        self.model.let_work(recipe.growth.at(self.iteration, recipe.iterations))
        set_rate(self.optimizer, recipe.rate(self.iteration))

    @property
    def _fixed(self) -> Hashable:
        """What `_advance` takes from the host: a graph holds it fixed."""
        return self._side, *self.model.working.values()

    def _advance(self) -> None:
        """A step on the device: a function of tensors there and of nothing that changes on the host."""
        x, labels = selected(
            self.train_images, self.statistics, self.experiment.recipe.augmentation, self._selection
        )
        logits, loss = self._loss(resampled(x, self._side), labels)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.loss.copy_(loss.detach())
        self._count(self.loss, logits, labels)

    def _loss(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The logits, and the loss that the step goes down on."""
        logits = forward(self._compute, x, self.experiment.precision, self.experiment.channels_last).float()
        smoothing = self.experiment.recipe.label_smoothing
        return logits, functional.cross_entropy(logits, labels, label_smoothing=smoothing)

    def _count(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        wrong = (logits.argmax(1) != labels).sum()
        count = torch.full_like(loss, len(labels))
        self.sums += torch.stack([count, loss * len(labels), wrong]).double()

    def _watch(self) -> None:
        # On a GPU a look at the loss waits for it, so it is looked at now and then; a NaN stays in the sum.
        if self.iteration % 100 == 0 or (
            self.place.device.type == "cpu" and self.place.meets(self.iteration)
        ):
            self.check_loss()


def _hash(*numbers: int) -> int:
    digest = blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
