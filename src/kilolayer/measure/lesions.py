"""Lesion study: a trained network's error after units are deleted or swapped (Veit et al. 2016, Sec. 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kilolayer.measure.execution_order import ModuleCall, replace_forward
from kilolayer.measure.part_runs import CutPoint, Detour, run_part
from kilolayer.measure.preservation import preserve_state
from kilolayer.measure.scalars import mean_present
from kilolayer.measure.series import stage_starts
from kilolayer.measure.unit_chain import UnitChain
from kilolayer.units import ResidualUnit
from kilolayer.units.layer_modules import ZeroModule

Lesion = Callable[[Tensor], Tensor] | None
"""What stands in a unit's place; None for nothing."""
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
        self.order = order
        keeps_shape = [into == out for into, out in zip(order.inputs, order.outputs, strict=True)]
        self.removable = [i for i, unit in enumerate(order.units) if keeps_shape[i] or _has_shortcut(unit)]
        inside = [i for i in self.removable if keeps_shape[i]]
        shapes = dict.fromkeys(order.inputs[i] for i in inside)
        self.swap_groups = [[i for i in inside if order.inputs[i] == shape] for shape in shapes]

    def error(self, lesions: Mapping[int, Lesion] | None = None) -> tuple[float, float]:
        """Top-1 error in percent, and loss; `lesions` maps units to what stands in their place."""
        with ExitStack() as stack, torch.no_grad():
            for number, call in enumerate(self.order.modules):
                inside = {
                    part: lesion
                    for index, lesion in (lesions or {}).items()
                    if self.order.places[index] == (number, part := self.order.places[index][1])
                }
                if inside:
                    stack.enter_context(_replacement(call, inside))
            stack.enter_context(preserve_state(self.model, training=False))
            logits = torch.cat([self.model(part) for part in torch.split(self.x, BATCH_SIZE)])
        wrong = (logits.argmax(1) != self.labels) | ~logits.isfinite().all(1)
        return 100 * float(wrong.double().mean()), float(functional.cross_entropy(logits, self.labels))

    def error_without(self, *removed: int) -> tuple[float, float]:
        return self.error(dict.fromkeys(removed))

    def error_swapped(self, pairs: Sequence[tuple[int, int]]) -> tuple[float, float]:
        lesions: dict[int, Lesion] = {}
        for first, second in pairs:
            lesions |= {first: self._runner(second), second: self._runner(first)}
        return self.error(lesions)

    def _runner(self, index: int) -> Callable[[Tensor], Tensor]:
        """Unit `index` as a function, whatever stands in its place by then."""
        number, part = self.order.places[index]
        call = self.order.modules[number]
        if call.units == 1:
            forward = call.module.forward
            return lambda signal: forward(signal, *call.other_arguments, **dict(call.options))
        whole = call.with_module(call.module.forward)
        start, stop = (*call.cuts, None)[part - 1] if part else None, (*call.cuts, None)[part]
        return lambda signal: run_part(
            whole, signal.new_zeros((len(signal), *call.input[1:])), start, signal, stop
        )


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


def _replacement(call: ModuleCall, lesions: Mapping[int, Lesion]) -> AbstractContextManager[None]:
    """Puts `lesions` (by the number of the unit in its module; None deletes it) into a module."""
    unit = call.module
    if call.units > 1:
        return replace_forward(unit, _detoured(call, lesions))
    lesion = lesions[0]
    if lesion is not None:
        return replace_forward(unit, lambda x, *_, **__: lesion(x))
    if isinstance(unit, ResidualUnit) and _has_shortcut(unit):
        return replace_forward(unit.F, lambda x: x.new_zeros(()))
    return replace_forward(unit, lambda x, *_, **__: x)


def _detoured(call: ModuleCall, lesions: Mapping[int, Lesion]) -> Callable[..., Tensor]:
    forward = call.module.forward
    cuts = (CutPoint(0, "input", call.input), *call.cuts)
    inside = {
        cuts[part + 1]: (cuts[part], lesion or _unchanged)
        for part, lesion in lesions.items()
        if part + 1 < len(cuts)
    }

    def detoured(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with (detour := Detour(x.clone(), inside, cuts[-1])):
            out: Tensor = forward(x, *args, **kwargs)
        if len(cuts) - 1 in lesions:
            return (lesions[len(cuts) - 1] or _unchanged)(detour.last)
        return out

    return detoured


def _unchanged(x: Tensor) -> Tensor:
    return x


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
