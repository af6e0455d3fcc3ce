"""Memory as a choice: how much of the forward pass is kept for the backward pass, and what that comes to.

`fastest` keeps everything. `balanced` needs the least memory in which no unit is computed forward more than
twice, `smallest` no more than three times. A number of bytes takes the least recomputation that fits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from kilolayer import kernels
from kilolayer.errors import InputError
from kilolayer.kernels import pool
from kilolayer.networks.activations import Kept, kept_at_edges, kept_by_units
from kilolayer.networks.description import Network, PlacedUnit
from kilolayer.networks.model import ResidualNetwork
from kilolayer.networks.recompute import Segment, Segments
from kilolayer.training.budget import CHOICES, budget
from kilolayer.training.device import Place
from kilolayer.training.division import Link, divide, least, peak
from kilolayer.training.experiment import Experiment, Precision

LEVELS = dict(zip(CHOICES, range(3), strict=True))
_MAPS_AT_WORK = 4
"""Maps of the largest size that a unit's backward pass holds besides what was kept."""
_BYTES_PER_LAYER = 40_000
"""The autograd graph of a weight layer, and small tensors: measured."""
_LIBRARIES = 30_000_000
"""What oneDNN and the interpreter take at the first step: measured."""


@dataclass(frozen=True)
class Peak:
    """Predicted bytes at the fullest moment of a training step.

    `process`: what is there before the network is, data and libraries; `state`: weights and the optimiser's
    figures; `step`: activations and gradients at their worst together; `working`: what one unit needs on the
    side.
    """

    process: int
    state: int
    step: int
    working: int

    @property
    def total(self) -> int:
        return self.process + self.state + self.step + self.working


@dataclass(frozen=True)
class MemoryPlan:
    """The segments of every stage, the peak, and how much more forward computation it takes, as a share."""

    segments: dict[str, Segments]
    recomputed: float
    peak: Peak


KeptByUnits = Callable[[Network], Iterator[Kept]]


def plan(
    network: Network,
    memory: str,
    batch_size: int,
    precision: Precision,
    *,
    process: int = 0,
    copies: int = 0,
    figures: int = 1,
    frozen: bool = False,
    kept: KeptByUnits = kept_by_units,
) -> MemoryPlan:
    """How to train `network` within `memory`.

    `process`: bytes in use before the network is built; `copies`: further copies of the gradients or the
    weights, as DistributedDataParallel and a running mean each make one; `figures`: numbers that the
    optimiser keeps of every weight that learns; `frozen`: only the classifier learns, so that nothing before
    it is kept;
    `kept`: what units keep, where they are not PyTorch's own layers.
    Raises `InputError` for a number of bytes that no division keeps, naming the least that one does.
    """
    wanted = budget(memory)
    width = 2 if precision == "bf16" else 4
    units = network.units()
    keeps = list(kept(network))
    chain = [_link(placed, one, batch_size, width) for placed, one in zip(units, keeps, strict=True)]
    stem, end = kept_at_edges(network)
    at_edges, learning = stem.all + end.all, network.parameters
    if frozen:
        chain = [Link(0, 0, first=link.first) for link in chain]
        at_edges, learning = network.channels, (network.channels + 1) * network.num_classes
    fixed = Peak(
        process,
        4 * ((1 + copies) * network.parameters + figures * learning) + _BYTES_PER_LAYER * network.depth,
        batch_size * width * at_edges + 4 * learning - sum(link.gradients for link in chain),
        batch_size * width * _MAPS_AT_WORK * max(one.largest for one in (stem, end, *keeps)),
    )
    levels = LEVELS.get(memory, max(LEVELS.values()))
    room = _all(chain) if memory == "fastest" else least(chain, levels)
    if wanted is not None:
        smallest = fixed.total + room
        if wanted < smallest:
            raise InputError(
                f"memory {memory} is too little for {network.depth} layers at batch size {batch_size}: "
                f"the smallest plan needs {-(-smallest // 10**6)}MB; take that, or a smaller batch"
            )
        room = wanted - fixed.total
    division = divide(chain, room, levels)
    assert division is not None  # noqa: S101 - `least` found that there is one
    return _plan(network, chain, division, fixed)


def _plan(network: Network, chain: list[Link], division: Segments, fixed: Peak) -> MemoryPlan:
    again = sum(segment.again for segment in division)
    step = fixed.step + peak(chain, division)
    return MemoryPlan(
        _by_stage(network, division),
        again / len(chain),
        Peak(fixed.process, fixed.state, step, fixed.working),
    )


def _link(placed: PlacedUnit, kept: Kept, batch_size: int, width: int) -> Link:
    weights = placed.layout.parameters
    # Under autocast every convolution that is kept keeps its weights in bf16 too.
    casts = width * weights if width == 2 else 0
    return Link(
        input=batch_size * width * kept.input,
        inside=batch_size * width * kept.inside + casts,
        gradients=4 * weights,
        keeps_input=kept.keeps_input,
        first=placed.name.endswith(".0"),
    )


def _all(chain: list[Link]) -> int:
    return sum(link.kept + link.gradients + link.input for link in chain)


def _by_stage(network: Network, division: Segments) -> dict[str, Segments]:
    left = list(division)
    found = {}
    for number, stage in enumerate(network.stages, 1):
        own: list[Segment] = []
        while sum(segment.units for segment in own) < stage.units:
            own.append(left.pop(0))
        found[f"stage{number}"] = tuple(own)
    return found


def allocate(device: torch.device) -> None:
    """Before anything large is made: on a CPU the process's tensors come from a pool, where there is one."""
    if device.type == "cpu":
        pool.use()


def arrange(model: ResidualNetwork, experiment: Experiment, place: Place) -> MemoryPlan:
    """`arranged` as the experiment asks, on this process's share of the batch."""
    recipe = experiment.recipe
    share, copies = recipe.batch_size // place.world, (place.world > 1) + (recipe.averaged > 0)
    return arranged(
        model,
        experiment.memory,
        share,
        experiment.precision,
        place.device,
        copies=copies,
        figures=recipe.optimizer.numbers_per_weight,
        frozen=recipe.trunk_frozen,
    )


def arranged(
    model: ResidualNetwork,
    memory: str,
    batch_size: int,
    precision: Precision,
    device: torch.device,
    *,
    copies: int = 0,
    figures: int = 1,
    frozen: bool = False,
) -> MemoryPlan:
    """Divides `model`, which lies on `device`, for training in so much memory, and says how."""
    process = _before(model, device)
    found = plan(
        model.description,
        memory,
        batch_size,
        precision,
        process=process,
        copies=copies,
        figures=figures,
        frozen=frozen,
        kept=lambda _: kernels.kept_by_units(model),
    )
    model.segments = found.segments if found.recomputed else {}
    return found


def _before(model: ResidualNetwork, device: torch.device) -> int:
    """Bytes in use without the weights."""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    if device.type == "cuda":
        return max(0, torch.cuda.memory_allocated(device) - weights)
    return max(0, resident() - weights) + _LIBRARIES


def resident() -> int:
    """Bytes of this process in memory now; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
