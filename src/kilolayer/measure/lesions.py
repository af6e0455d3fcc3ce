"""Lesion study: a trained network's error after units are deleted or swapped (Veit et al. 2016, Sec. 4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from kilolayer.measure.execution_order import replace_forward
from kilolayer.measure.preservation import preserve_state
from kilolayer.measure.scalars import mean_present
from kilolayer.measure.series import stage_starts
from kilolayer.measure.unit_chain import UnitChain
from kilolayer.units import ResidualUnit
from kilolayer.units.layer_modules import ZeroModule

MAX_DELETIONS, LESION_COUNTS, REPEATS, BATCH_SIZE = 60, (1, 2, 4, 8, 16, 32, 64), 3, 256


@dataclass(frozen=True)
class LesionStudy:
    """Top-1 error in percent, and mean cross-entropy, before and after lesions."""

    images: int
    """The number of held-out images."""
    error: float
    """The error of the whole network."""
    loss: float
    single: tuple[tuple[int, float, float], ...]
    """(l, error, loss) without unit l alone."""
    deleted: tuple[tuple[int, float], ...]
    """(k, mean error) without k random units."""
    swapped: tuple[tuple[int, float], ...]
    """(k, mean error) after k swaps of two random units of one shape."""
    stages: tuple[float, ...] = ()
    """The units, counted from 1, that are the first of a stage."""


class _LesionedNetwork:
    """A network, its units that can be removed, and its errors under lesions."""

    def __init__(self, chain: UnitChain, x: Tensor, labels: Tensor) -> None:
        self.model, self.x, self.labels = chain.model, x, labels
        order = chain.execution_order(x)
        self.units = order.units
        keeps_shape = [into == out for into, out in zip(order.inputs, order.outputs, strict=True)]
        self.removable = [i for i, unit in enumerate(self.units) if keeps_shape[i] or _has_shortcut(unit)]
        inside = [i for i in self.removable if keeps_shape[i]]
        shapes = dict.fromkeys(order.inputs[i] for i in inside)
        self.swap_groups = [[i for i in inside if order.inputs[i] == shape] for shape in shapes]

    def error(self, *lesions: AbstractContextManager[None]) -> tuple[float, float]:
        """Top-1 error in percent, and loss."""
        with ExitStack() as stack, torch.no_grad():
            for lesion in lesions:
                stack.enter_context(lesion)
            stack.enter_context(preserve_state(self.model, training=False))
            logits = torch.cat([self.model(part) for part in torch.split(self.x, BATCH_SIZE)])
        wrong = (logits.argmax(1) != self.labels) | ~logits.isfinite().all(1)
        return 100 * float(wrong.double().mean()), float(functional.cross_entropy(logits, self.labels))

    def error_without(self, *removed: int) -> tuple[float, float]:
        return self.error(*(_deletion(self.units[index]) for index in removed))

    def error_swapped(self, pairs: Sequence[tuple[int, int]]) -> tuple[float, float]:
        return self.error(*(_swap(self.units[first], self.units[second]) for first, second in pairs))


def measure_lesions(
    chain: UnitChain,
    x: Tensor,
    labels: Tensor,
    *,
    deletions: int = MAX_DELETIONS,
    repeats: int = REPEATS,
    seed: int = 0,
) -> LesionStudy:
    """Deletes and swaps units of the chain's model, and measures its error with running statistics.

    Deleting a unit sets F = 0, which leaves its shortcut and f. A unit without a shortcut, or of a foreign
    model, is replaced by the identity; such units are left alone where they change the shape.

    Args:
        chain: the network's units; the model is left as it was.
        x: held-out images, normalised, (N, C, H, W).
        labels: their classes, (N,).
        deletions: at most so many units, evenly spread, are deleted one by one.
        repeats: random lesions for each count.
        seed: chooses the random lesions.

    >>> from kilolayer.networks import build, describe
    >>> chain = UnitChain(build(describe("preact_resnet8_cifar")), training=False)
    >>> study = measure_lesions(chain, torch.randn(4, 3, 32, 32), torch.arange(4), repeats=1)
    >>> [unit for unit, _, _ in study.single]  # every unit has a shortcut, so each can go
    [0, 1, 2]
    """
    network, random = _LesionedNetwork(chain, x, labels), torch.Generator().manual_seed(seed)
    free, groups = network.removable, network.swap_groups
    error, loss = network.error()
    most = sum(len(group) // 2 for group in groups)
    return LesionStudy(
        images=len(x),
        error=error,
        loss=loss,
        single=tuple(
            (index, *network.error_without(index)) for index in _evenly_spaced_indices(free, deletions)
        ),
        deleted=tuple(
            (k, mean_present(network.error_without(*_sample(free, k, random))[0] for _ in range(repeats)))
            for k in LESION_COUNTS
            if k <= len(free)
        ),
        swapped=tuple(
            (
                k,
                mean_present(
                    network.error_swapped(_disjoint_pairs(groups, k, random))[0] for _ in range(repeats)
                ),
            )
            for k in LESION_COUNTS
            if k <= most
        ),
        stages=stage_starts(chain.execution_order(x).stages),
    )


def _has_shortcut(unit: nn.Module) -> bool:
    return isinstance(unit, ResidualUnit) and not any(isinstance(part, ZeroModule) for part in unit.h)


def _deletion(unit: nn.Module) -> AbstractContextManager[None]:
    if isinstance(unit, ResidualUnit) and _has_shortcut(unit):
        return replace_forward(unit.F, lambda x: x.new_zeros(()))
    return replace_forward(unit, lambda x: x)


@contextmanager
def _swap(unit: nn.Module, partner: nn.Module) -> Iterator[None]:
    first, second = unit.forward, partner.forward
    with replace_forward(unit, second), replace_forward(partner, first):
        yield


def _evenly_spaced_indices(indices: Sequence[int], most: int) -> list[int]:
    step = max(1, -(-len(indices) // most))
    return list(indices[::step])


def _sample(indices: Sequence[int], count: int, random: torch.Generator) -> list[int]:
    order = torch.randperm(len(indices), generator=random)[:count]
    return [indices[index] for index in order.tolist()]


def _disjoint_pairs(
    groups: Sequence[Sequence[int]], count: int, random: torch.Generator
) -> list[tuple[int, int]]:
    """`count` disjoint pairs of units of one shape."""
    shuffled_groups = [_sample(group, len(group), random) for group in groups]
    pairs = [pair for group in shuffled_groups for pair in zip(group[::2], group[1::2], strict=False)]
    return [pairs[index] for index in _sample(range(len(pairs)), count, random)]
