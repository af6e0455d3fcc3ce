"""One step of a training: what the host decides, a function of tensors on the device, a look at the loss."""

from __future__ import annotations

from collections.abc import Hashable
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from kilolayer.data import Splits, batch_spec, make_batch, resize_batch
from kilolayer.errors import InputError
from kilolayer.kernels import fuse
from kilolayer.networks import build
from kilolayer.training import cuda_graph
from kilolayer.training.compilation import compile_units
from kilolayer.training.device import DistributedContext, make_deterministic
from kilolayer.training.evaluation import autocast_forward
from kilolayer.training.experiment import Experiment
from kilolayer.training.memory_plan import apply_memory_plan, use_cpu_pool
from kilolayer.training.torch_optimizer import freeze_trunk, optimizer_tensors, set_learning_rate
from kilolayer.training.train_state import TrainState
from kilolayer.units.modules import draws_random_numbers


class Stepping(TrainState):
    """A network on its device, with its data there, and how it is taken one step on.

    A step is a pure function of the state and its number: which images, how they are augmented and what
    dropout takes follow from (seed, epoch, position). Raises `InputError` where batch, data and processes do
    not fit together, or the step cannot be what the experiment asks for.
    """

    def __init__(self, experiment: Experiment, splits: Splits, context: DistributedContext) -> None:
        recipe = experiment.recipe
        if context.device.type == "cuda" and context.device.index is not None:
            torch.cuda.set_device(context.device)  # Triton and graphs ask for the current one
        make_deterministic(context.device)
        use_cpu_pool(context.device)
        torch.manual_seed(experiment.seed)
        model = build(experiment.network)
        model.set_active_units(recipe.progressive_depth.start)
        model.zero_init_inactive()
        model = model.to(context.device)
        if recipe.trunk_frozen:
            freeze_trunk(model)
        if experiment.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        super().__init__(experiment, splits, context, model)
        self.train_images = splits.train.to(context.device)
        # One tensor for all steps, for a graph writes where it was captured.
        self.loss = torch.full((), torch.nan, device=context.device)
        self.kernels = fuse(self.model) if experiment.kernels == "fused" else None
        if self.kernels and self.kernels.fused_units and context.device.type == "cuda":
            from kilolayer.kernels.gpu.self_check import check_units  # Triton need not be there

            check_units(self.model)
        self.memory_plan = apply_memory_plan(self.model, experiment, context)
        self.epoch_length = len(splits.train) // recipe.batch_size
        self._compute = self._wrapped()
        self._draws = any(map(draws_random_numbers, self.model.modules()))
        self._replay = self._replayed()

    def _wrapped(self) -> nn.Module:
        module: nn.Module = self.model
        if self.experiment.compile == "model":
            module = torch.compile(module)  # type: ignore[assignment]
        elif self.experiment.compile == "units":
            compile_units(self.model)
        if self.context.world_size > 1:
            # What rests has no gradient.
            growing = bool(self.experiment.recipe.progressive_depth.changes)
            module = DistributedDataParallel(module, find_unused_parameters=growing)
        return module

    def _replayed(self) -> cuda_graph.GraphReplay | None:
        """What replays the steps as a CUDA graph. None where that is not asked for, or is no GPU."""
        if not self.experiment.graph or self.context.device.type != "cuda":
            return None
        why = cuda_graph.graph_unavailable_reason(
            self.context.device, has_dropout=self._draws, world_size=self.context.world_size
        )
        if why:
            raise InputError(f"the step cannot be a CUDA graph: {why}; use --cuda-graph off")
        return cuda_graph.GraphReplay(
            self._advance, cuda_graph.CudaRecorder(self.context.device), self._changed
        )

    def _changed(self) -> list[Tensor]:
        """What `_advance` changes and the next one reads, where it lies."""
        figures = optimizer_tensors(self.optimizer)
        return [*self.model.parameters(), *self.model.buffers(), *figures, self.epoch_sums]

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
        if self.ema:
            self.ema.update(self.model, self.iteration)
        self._watch()

    def _prepare(self) -> None:
        """What a step takes from the host: which images, what chance decides for them, the learning rate."""
        recipe = self.experiment.recipe
        epoch, index = divmod(self.iteration, self.epoch_length)
        share = recipe.batch_size // self.context.world_size
        start = index * recipe.batch_size + self.context.rank * share
        selection = batch_spec(
            len(self.train_images),
            recipe.augmentation,
            self.experiment.seed,
            epoch,
            range(start, start + share),
            self.context.device,
        )
        self._selection = self._replay.copy_to_buffers(selection) if self._replay else selection
        if self._draws:
            torch.manual_seed(_hash(self.experiment.seed, self.iteration, self.context.rank))
        self._side = recipe.progressive_resize.side_at(
            self.splits.image_size, self.iteration, recipe.iterations
        )
        self.model.set_active_units(recipe.progressive_depth.share_at(self.iteration, recipe.iterations))
        set_learning_rate(self.optimizer, recipe.rate(self.iteration))

    @property
    def _fixed(self) -> Hashable:
        """What `_advance` takes from the host: a graph holds it fixed."""
        return self._side, *self.model.num_active_units.values()

    def _advance(self) -> None:
        """A step on the device: a function of tensors there and of nothing that changes on the host."""
        x, labels = make_batch(
            self.train_images, self.statistics, self.experiment.recipe.augmentation, self._selection
        )
        logits, loss = self._loss(resize_batch(x, self._side), labels)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.loss.copy_(loss.detach())
        self._count(self.loss, logits, labels)

    def _loss(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The logits, and the loss that the step goes down on."""
        logits = autocast_forward(
            self._compute, x, self.experiment.precision, self.experiment.channels_last
        ).float()
        smoothing = self.experiment.recipe.label_smoothing
        return logits, functional.cross_entropy(logits, labels, label_smoothing=smoothing)

    def _count(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        wrong = (logits.argmax(1) != labels).sum()
        count = torch.full_like(loss, len(labels))
        self.epoch_sums += torch.stack([count, loss * len(labels), wrong]).double()

    def _watch(self) -> None:
        # On a GPU a look at the loss waits for it, so it is looked at now and then; a NaN stays in the sum.
        if self.iteration % 100 == 0 or (
            self.context.device.type == "cpu" and self.context.is_sync_step(self.iteration)
        ):
            self.check_loss()


def _hash(*numbers: int) -> int:
    digest = blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
