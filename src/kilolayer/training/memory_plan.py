"""Memory as a choice: how much of the forward pass is kept for the backward pass, and what that comes to.

`fastest` keeps everything. `balanced` needs the least memory in which no unit is computed forward more than
twice, `smallest` no more than three times. A number of bytes takes the least recomputation that fits.
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
"""Maps of the largest size that a unit's backward pass holds besides what was kept."""
_BYTES_PER_LAYER = 40_000
"""The autograd graph of a weight layer, and small tensors: measured."""
_LIBRARY_BYTES = 30_000_000
"""What oneDNN and the interpreter take at the first step: measured."""


@dataclass(frozen=True)
class PeakMemory:
    """Predicted bytes at the fullest moment of a training step.

    `process`: what is there before the network is, data and libraries; `state`: weights and the optimiser's
    figures; `step`: activations and gradients at their worst together; `working`: what one unit needs on the
    side.
    """

    process_bytes: int
    state_bytes: int
    step_bytes: int
    working_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.process_bytes + self.state_bytes + self.step_bytes + self.working_bytes


@dataclass(frozen=True)
class MemoryPlan:
    """The segments of every stage, the peak, and how much more forward computation it takes, as a share."""

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
    """How to train `network` within `memory`.

    `process`: bytes in use before the network is built; `copies`: further copies of the gradients or the
    weights, as DistributedDataParallel and a running mean each make one; `figures`: numbers that the
    optimiser keeps of every weight that learns; `frozen`: only the classifier learns, so that nothing before
    it is kept;
    `kept`: what units keep, where they are not PyTorch's own layers.
    Raises `InputError` for a number of bytes that no division keeps, naming the least that one does.
    """
    budget = parse_memory(activation_memory)
    width = 2 if precision == "bf16" else 4
    units = network.units()
    keeps = list(saved_activations(network))
    chain = [_unit_cost(placed, saved, batch_size, width) for placed, saved in zip(units, keeps, strict=True)]
    stem, end = stem_and_head_activations(network)
    at_edges, learning = stem.total + end.total, network.parameters
    if trunk_frozen:
        chain = [UnitCost(0, 0, starts_stage=link.starts_stage) for link in chain]
        at_edges, learning = network.channels, (network.channels + 1) * network.num_classes
    fixed = PeakMemory(
        process_bytes,
        4 * ((1 + extra_copies) * network.parameters + optimizer_values * learning)
        + _BYTES_PER_LAYER * network.depth,
        batch_size * width * at_edges + 4 * learning - sum(link.gradient_bytes for link in chain),
        batch_size * width * _WORKING_MAPS * max(saved.largest for saved in (stem, end, *keeps)),
    )
    levels = LEVELS_BY_CHOICE.get(activation_memory, max(LEVELS_BY_CHOICE.values()))
    room = (
        _bytes_without_recomputation(chain) if activation_memory == "fastest" else min_budget(chain, levels)
    )
    if budget is not None:
        smallest = fixed.total_bytes + room
        if budget < smallest:
            raise InputError(
                f"memory {activation_memory} is too little for {network.depth} layers at batch size {batch_size}: "
                f"the smallest plan needs {-(-smallest // 10**6)}MB; take that, or a smaller batch"
            )
        room = budget - fixed.total_bytes
    division = plan_segments(chain, room, levels)
    assert division is not None  # noqa: S101 - `least` found that there is one
    return _finish_plan(network, chain, division, fixed)


def _finish_plan(
    network: Network, chain: list[UnitCost], division: Segments, fixed: PeakMemory
) -> MemoryPlan:
    recomputed_units = sum(segment.recomputations for segment in division)
    step = fixed.step_bytes + peak_bytes(chain, division)
    return MemoryPlan(
        _segments_by_stage(network, division),
        recomputed_units / len(chain),
        PeakMemory(fixed.process_bytes, fixed.state_bytes, step, fixed.working_bytes),
    )


def _unit_cost(placed: PlacedUnit, saved: SavedActivations, batch_size: int, width: int) -> UnitCost:
    weights = placed.layout.parameters
    # Under autocast every convolution that is kept keeps its weights in bf16 too.
    casts = width * weights if width == 2 else 0
    return UnitCost(
        input_bytes=batch_size * width * saved.input,
        inner_bytes=batch_size * width * saved.inside + casts,
        gradient_bytes=4 * weights,
        keeps_input=saved.saves_input,
        starts_stage=placed.name.endswith(".0"),
    )


def _bytes_without_recomputation(chain: list[UnitCost]) -> int:
    return sum(link.saved_bytes + link.gradient_bytes + link.input_bytes for link in chain)


def _segments_by_stage(network: Network, division: Segments) -> dict[str, Segments]:
    remaining = list(division)
    segments = {}
    for number, stage in enumerate(network.stages, 1):
        stage_segments: list[Segment] = []
        while sum(segment.units for segment in stage_segments) < stage.units:
            stage_segments.append(remaining.pop(0))
        segments[f"stage{number}"] = tuple(stage_segments)
    return segments


def apply_memory_plan(
    model: ResidualNetwork, experiment: Experiment, context: DistributedContext
) -> MemoryPlan:
    """`arranged` as the experiment asks, on this process's share of the batch."""
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
    """Divides `model`, which lies on `device`, for training in so much memory, and says how."""
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
    """Bytes in use without the weights."""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    if device.type == "cuda":
        return max(0, torch.cuda.memory_allocated(device) - weights)
    return max(0, resident_bytes() - weights) + _LIBRARY_BYTES


def resident_bytes() -> int:
    """Bytes of this process in memory now; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
