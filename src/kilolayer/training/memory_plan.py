"""Memory as a choice: how many activations the forward pass saves, and how much memory training then takes.

"fastest" saves all of them. "balanced" takes the least memory in which no unit is computed forward more than
twice, "smallest" the least in which none is computed more than three times. A number of bytes means the least
recomputation that fits into them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from kilolayer.errors import InputError
from kilolayer.kernels import fused_saved_activations
from kilolayer.networks.description import Network, PlacedUnit
from kilolayer.networks.model import ResidualNetwork
from kilolayer.networks.recompute import Segment, Segments
from kilolayer.networks.saved_activations import (
    SavedActivations,
    network_activations,
    stem_and_head_activations,
)
from kilolayer.training.distributed import DistributedContext
from kilolayer.training.experiment import Experiment, Precision
from kilolayer.training.memory_budget import MEMORY_CHOICES, parse_memory
from kilolayer.training.rematerialisation import UnitCost, min_budget, peak_bytes, plan_segments

LEVELS_BY_CHOICE = dict(zip(MEMORY_CHOICES, range(3), strict=True))
_WORKING_MAPS = 4
"""Feature maps of the largest size that a unit's backward pass holds besides the saved activations."""
_BYTES_PER_LAYER = 40_000
"""Of the autograd graph of a weight layer and of small tensors; measured."""
_LIBRARY_BYTES = 30_000_000
"""What oneDNN and the interpreter allocate at the first step; measured."""


@dataclass(frozen=True)
class PeakMemory:
    """Predicted bytes at the fullest moment of a training step.

    process_bytes: before the network is built: data and libraries.
    state_bytes: weights and the optimiser's values.
    step_bytes: the largest sum of activations and gradients.
    working_bytes: temporary tensors of one unit.
    """

    process_bytes: int
    state_bytes: int
    step_bytes: int
    working_bytes: int

    @property
    def total_bytes(self) -> int:
        """The sum of the four parts."""
        return self.process_bytes + self.state_bytes + self.step_bytes + self.working_bytes


@dataclass(frozen=True)
class MemoryPlan:
    """How a network is divided for training, and what that takes.

    segments: of every stage, by its name.
    recomputed_share: additional forward computation, as a share of one forward pass.
    """

    segments: dict[str, Segments]
    recomputed_share: float
    peak: PeakMemory


SavedByUnits = Callable[[Network], Iterator[SavedActivations]]


def plan_memory(
    network: Network,
    activation_memory: str,
    batch_size: int,
    precision: Precision,
    *,
    process_bytes: int = 0,
    extra_copies: int = 0,
    optimizer_values: int = 1,
    trunk_frozen: bool = False,
    saved_activations: SavedByUnits = network_activations,
) -> MemoryPlan:
    """How to train `network` within `activation_memory`.

    process_bytes: in use before the network is built.
    extra_copies: of the weights or gradients; DistributedDataParallel and a moving average each make one.
    optimizer_values: numbers that the optimiser keeps for every weight that learns.
    trunk_frozen: only the classifier learns, so that no activation before it is saved.
    saved_activations: what each unit saves, where the units are not PyTorch's own layers.

    Raises `InputError` for a number of bytes that is too small, naming the smallest that is enough.

    >>> from kilolayer.networks import describe
    >>> network = describe("preact_resnet110_cifar")
    >>> plans = [plan_memory(network, memory, 128, "fp32") for memory in ("fastest", "balanced", "smallest")]
    >>> [round(plan.peak.total_bytes / 1e6) for plan in plans]  # MB
    [1127, 198, 148]
    >>> [round(plan.recomputed_share, 2) for plan in plans]
    [0.0, 0.94, 1.74]
    """
    budget = parse_memory(activation_memory)
    width = 2 if precision == "bf16" else 4
    units = network.units()
    keeps = list(saved_activations(network))
    costs = [_unit_cost(placed, saved, batch_size, width) for placed, saved in zip(units, keeps, strict=True)]
    stem, end = stem_and_head_activations(network)
    edge_activations, learning = stem.total + end.total, network.parameters
    if trunk_frozen:
        costs = [UnitCost(0, 0, starts_stage=cost.starts_stage) for cost in costs]
        edge_activations, learning = network.channels, (network.channels + 1) * network.num_classes
    fixed = PeakMemory(
        process_bytes,
        4 * ((1 + extra_copies) * network.parameters + optimizer_values * learning)
        + _BYTES_PER_LAYER * network.depth,
        batch_size * width * edge_activations + 4 * learning - sum(cost.gradient_bytes for cost in costs),
        batch_size * width * _WORKING_MAPS * max(saved.largest for saved in (stem, end, *keeps)),
    )
    levels = LEVELS_BY_CHOICE.get(activation_memory, max(LEVELS_BY_CHOICE.values()))
    room = (
        _bytes_without_recomputation(costs) if activation_memory == "fastest" else min_budget(costs, levels)
    )
    if budget is not None:
        smallest = fixed.total_bytes + room
        if budget < smallest:
            raise InputError(
                f"activation_memory {activation_memory} is too small for {network.depth} layers at batch "
                f"size {batch_size}: "
                f"the smallest plan needs {-(-smallest // 10**6)}MB; take that, or a smaller batch"
            )
        room = budget - fixed.total_bytes
    segments = plan_segments(costs, room, levels)
    assert segments is not None  # noqa: S101 - `min_budget` found one
    return _finish_plan(network, costs, segments, fixed)


def _finish_plan(
    network: Network, costs: list[UnitCost], segments: Segments, fixed: PeakMemory
) -> MemoryPlan:
    recomputed_units = sum(segment.recomputations for segment in segments)
    step = fixed.step_bytes + peak_bytes(costs, segments)
    return MemoryPlan(
        _segments_by_stage(network, segments),
        recomputed_units / len(costs),
        PeakMemory(fixed.process_bytes, fixed.state_bytes, step, fixed.working_bytes),
    )


def _unit_cost(placed: PlacedUnit, saved: SavedActivations, batch_size: int, width: int) -> UnitCost:
    weights = placed.layout.parameters
    # Under autocast every convolution whose activations are saved saves its weights in bf16 too.
    casts = width * weights if width == 2 else 0
    return UnitCost(
        input_bytes=batch_size * width * saved.input,
        inner_bytes=batch_size * width * saved.inside + casts,
        gradient_bytes=4 * weights,
        keeps_input=saved.saves_input,
        starts_stage=placed.name.endswith(".0"),
    )


def _bytes_without_recomputation(costs: list[UnitCost]) -> int:
    return sum(cost.saved_bytes + cost.gradient_bytes + cost.input_bytes for cost in costs)


def _segments_by_stage(network: Network, segments: Segments) -> dict[str, Segments]:
    remaining, by_stage = list(segments), {}
    for number, stage in enumerate(network.stages, 1):
        stage_segments: list[Segment] = []
        while sum(segment.units for segment in stage_segments) < stage.units:
            stage_segments.append(remaining.pop(0))
        by_stage[f"stage{number}"] = tuple(stage_segments)
    return by_stage


def apply_memory_plan(
    model: ResidualNetwork, experiment: Experiment, context: DistributedContext
) -> MemoryPlan:
    """Divides `model` into segments as the experiment asks, for this rank's share of the batch."""
    recipe = experiment.recipe
    share, copies = recipe.batch_size // context.world_size, (context.world_size > 1) + (recipe.ema > 0)
    return segment_model(
        model,
        experiment.activation_memory,
        share,
        experiment.precision,
        context.device,
        extra_copies=copies,
        optimizer_values=recipe.optimizer.values_per_weight,
        trunk_frozen=recipe.trunk_frozen,
    )


def segment_model(
    model: ResidualNetwork,
    activation_memory: str,
    batch_size: int,
    precision: Precision,
    device: torch.device,
    *,
    extra_copies: int = 0,
    optimizer_values: int = 1,
    trunk_frozen: bool = False,
) -> MemoryPlan:
    """Divides `model`, which is on `device`, into segments for training in so much memory.

    Sets `model.segments` and returns the plan; the arguments are those of `plan_memory`.
    """
    process = _bytes_without_weights(model, device)
    plan = plan_memory(
        model.description,
        activation_memory,
        batch_size,
        precision,
        process_bytes=process,
        extra_copies=extra_copies,
        optimizer_values=optimizer_values,
        trunk_frozen=trunk_frozen,
        saved_activations=lambda _: fused_saved_activations(model),
    )
    model.segments = plan.segments if plan.recomputed_share else {}
    return plan


def _bytes_without_weights(model: ResidualNetwork, device: torch.device) -> int:
    """Bytes in use, less those of the weights."""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    if device.type == "cuda":
        return max(0, torch.cuda.memory_allocated(device) - weights)
    return max(0, resident_bytes() - weights) + _LIBRARY_BYTES


def resident_bytes() -> int:
    """Bytes of this process in memory now; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
