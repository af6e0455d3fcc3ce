"""The layers of a state dict, and the units that their shapes chain into."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from kilolayer.audit.branch_shape import BRANCH_KINDS, BranchShape
from kilolayer.units.branch import StrideOn


@dataclass(frozen=True)
class StateLayer:
    """Tensors with the same prefix: a convolution (4-D), a linear layer (2-D), a norm (vectors alone)."""

    prefix: str
    kernel: tuple[int, ...]
    vectors: tuple[int, ...]

    @property
    def is_conv(self) -> bool:
        return len(self.kernel) == 4

    @property
    def is_norm(self) -> bool:
        return not self.kernel and len(self.vectors) > 1 and len(set(self.vectors)) == 1

    @property
    def bias(self) -> bool:
        return bool(self.kernel) and bool(self.vectors)

    @property
    def parameters(self) -> int:
        """Trainable numbers: of a norm its scale and shift, not its running statistics."""
        count = 1
        for size in self.kernel:
            count *= size
        vectors = self.vectors[:2] if self.is_norm else self.vectors
        return (count if self.kernel else 0) + sum(vectors)


@dataclass(frozen=True)
class StateUnit:
    """F's convolutions with what they are, its projection, and its gate."""

    shape: BranchShape
    convs: tuple[StateLayer, ...]
    projection: StateLayer | None = None
    gate: StateLayer | None = None


def read_state_layers(state: Mapping[str, Tensor]) -> list[StateLayer]:
    """The layers in the order of the file. Counters and other single numbers are no layers."""
    kernels: dict[str, tuple[int, ...]] = {}
    vectors: dict[str, tuple[int, ...]] = {}
    for name, tensor in state.items():
        prefix = name.rpartition(".")[0]
        if tensor.ndim > 1:
            kernels[prefix] = tuple(tensor.shape)
        if tensor.ndim == 1 and tensor.is_floating_point():
            vectors[prefix] = (*vectors.get(prefix, ()), tensor.shape[0])
    prefixes = dict.fromkeys(name.rpartition(".")[0] for name in state)
    return [StateLayer(prefix, kernels.get(prefix, ()), vectors.get(prefix, ())) for prefix in prefixes]


def chain_state_units(layers: Sequence[StateLayer]) -> tuple[StateLayer, list[StateUnit]] | None:
    """The stem and the units, in the file's order or else that of the names; None if they do not chain.

    safetensors sorts its tensors, so the order of a file need not be that of the network.
    """
    orders = list(layers), sorted(layers, key=lambda layer: _natural_key(layer.prefix))
    for order in orders:
        convs = [layer for layer in order if layer.is_conv]
        if not convs:
            return None
        stem = min(convs, key=lambda layer: layer.kernel[1])
        convs.remove(stem)
        made = _chain_units(convs, stem.kernel[0])
        if made:
            return stem, made
    return None


def _natural_key(text: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", text)]


def _chain_units(convs: list[StateLayer], channels: int) -> list[StateUnit]:
    """All of `convs` as units that follow each other; empty where they do not."""
    made: list[StateUnit] = []
    while convs:
        unit, used = _read_unit(convs, channels, first=not made)
        if unit is None:
            return []
        made.append(unit)
        channels, convs = unit.shape.out, convs[used:]
    return made


def _read_unit(convs: list[StateLayer], channels: int, *, first: bool) -> tuple[StateUnit | None, int]:
    """The unit that `convs` begin with and how many of them are its; shortcuts may stand on either side."""
    for lead in (0, 1, 2):
        for size in (3, 2):
            body = convs[lead : lead + size]
            core = _read_shape(body, channels, first=first)
            if core is None:
                continue
            ahead = [each for each in convs[:lead] if _is_shortcut(each, core)]
            if len(ahead) != lead:
                continue
            # What follows shortcuts that stand ahead is the next unit's.
            behind = [] if lead else _trailing_shortcuts(convs[lead + size :], core)
            sides = ahead + behind
            gates = [each for each in sides if each.bias and not body[0].bias]
            projections = [each for each in sides if each not in gates]
            unit = StateUnit(core, tuple(body), *(next(iter(some), None) for some in (projections, gates)))
            return unit, lead + size + len(behind)
    return None, 0


def _trailing_shortcuts(convs: list[StateLayer], shape: BranchShape) -> list[StateLayer]:
    """The shortcuts that follow F; a 1×1 ahead of a 3×3 is the next bottleneck's own."""
    found = []
    for each, following in zip(convs[:2], [*convs[1:3], None, None], strict=False):
        reduces = shape.kind == "bottleneck" and following is not None and following.kernel[-1] > 1
        if reduces or not _is_shortcut(each, shape):
            break
        found.append(each)
    return found


def _is_shortcut(layer: StateLayer, shape: BranchShape) -> bool:
    """A 1×1 convolution from the unit's input to its output: a projection or a gate."""
    return layer.kernel == (shape.out, shape.channels, 1, 1)


def _read_shape(body: list[StateLayer], channels: int, *, first: bool) -> BranchShape | None:
    kernels = tuple(layer.kernel[-1] for layer in body)
    kind = BRANCH_KINDS.get(kernels)
    if kind not in ("basic", "bottleneck") or len(body) != len(kernels):
        return None
    groups, at = 1, channels
    for layer in body:
        out, inside = layer.kernel[:2]
        if at % inside or (at != inside and layer.kernel[-1] == 1):
            return None
        groups, at = max(groups, at // inside), out
    # Shapes hold no strides: the papers' stages halve the side where the channels change.
    stride = 2 if at != channels and not first else 1
    inner = body[-1].kernel[1]
    stride_on: StrideOn = "3x3" if groups > 1 else "1x1"
    return BranchShape(kind, len(body), channels, inner, at, stride, stride_on, groups, "grouped", 0.0)
