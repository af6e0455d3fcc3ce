"""Finds Kilolayer's network that is nearest to a description."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from kilolayer.errors import InputError
from kilolayer.networks.description import Network
from kilolayer.networks.names import describe, list_models
from kilolayer.units.arrangement import ARRANGEMENTS, Arrangement
from kilolayer.units.branch import Aggregated, Basic, Bottleneck, Branch, OneLayer
from kilolayer.units.shortcut import Projection, Shortcut, Zero, ZeroPad


@dataclass(frozen=True)
class Difference:
    """The weight of one difference between two networks, and the difference in words."""

    weight: float
    text: str


@dataclass(frozen=True)
class NearestCandidate:
    """One of Kilolayer's networks, and its differences from the audited one."""

    name: str
    choices: dict[str, dict[str, str]]
    network: Network
    differences: tuple[Difference, ...]

    @property
    def distance(self) -> float:
        """The sum of the differences' weights."""
        return sum(difference.weight for difference in self.differences)


def find_nearest(network: Network) -> NearestCandidate:
    """The nearest network with a listed name, or with a name built from the audited network's depth."""
    network = replace(network, unit=replace(network.unit, branch=by_first_stage(network)))
    names = [name for name in _candidate_names(network) if _describe_or_none(name, "", "")]
    return min((_candidate(name, network) for name in names), key=lambda candidate: candidate.distance)


def by_first_stage(network: Network) -> Branch:
    """The branch with the d of the first stage, which is the d of names, however wide that stage is."""
    branch = network.unit.branch
    if not isinstance(branch, Aggregated):
        return branch
    return replace(branch, d=branch.path_width(network.stages[0].width))


def single_path(branch: Branch) -> Branch:
    """ResNeXt's 1×64d is the bottleneck itself (PX, Table 2)."""
    if isinstance(branch, Aggregated) and (branch.cardinality, branch.d) == (1, 64):
        return Bottleneck(stride_on=branch.stride_on)
    return branch


def _candidate_names(network: Network) -> Iterator[str]:
    depth = network.depth
    for kind in ("", "preact_"):
        for suffix in ("", "_a", "_b", "_c", "_onelayer", "_bottleneck", "_basic"):
            yield from (f"{kind}resnet{depth}{suffix}{family}" for family in ("", "_cifar"))
    yield from (f"plain{depth}{family}" for family in ("", "_cifar"))
    match network.unit.branch:
        case Aggregated(cardinality, d):
            for kind in ("", "preact_", "plain_"):
                yield from (f"{kind}resnext{depth}_{cardinality}x{d}d{family}" for family in ("", "_cifar"))
        case Basic(widen) | Bottleneck(widen) if widen > 1:
            yield from (f"wide_resnet{depth}_{widen}{family}" for family in ("", "_cifar"))
    yield from list_models()


@cache
def _describe_or_none(name: str, stride_on: str, reads: str) -> Network | None:
    try:
        network = describe(name)
        branch: dict[str, Any] = {"stride_on": stride_on} if stride_on else {}
        unit = {"downsample": ZeroPad(reads)} if reads else {}  # type: ignore[arg-type]
        return describe(name, branch=branch, unit=unit) if branch or unit else network
    except InputError:
        return None


def _candidate(name: str, network: Network) -> NearestCandidate:
    """The network of that name, with the choices that the papers leave open made as in the audited one."""
    ours = _describe_or_none(name, "", "")
    assert ours is not None  # noqa: S101 - `nearest` asked
    stride_on = getattr(network.unit.branch, "stride_on", "")
    stride_on = "" if stride_on == getattr(ours.unit.branch, "stride_on", "") else stride_on
    padded = isinstance(network.unit.downsample, ZeroPad) and isinstance(ours.unit.downsample, ZeroPad)
    reads = (
        network.unit.downsample.reads if padded and network.unit.downsample != ours.unit.downsample else ""
    )
    chosen = _describe_or_none(name, stride_on, reads)
    choices = {"branch": {"stride_on": stride_on}} if stride_on else {}
    choices |= {"unit": {"downsample": f"ZeroPad({reads!r})"}} if reads else {}
    if chosen is None:
        return NearestCandidate(name, {}, ours, tuple(network_differences(network, ours)))
    return NearestCandidate(name, choices, chosen, tuple(network_differences(network, chosen)))


def network_differences(network: Network, ours: Network) -> Iterator[Difference]:
    """The differences between an audited network and one of Kilolayer's."""
    a, b = network, ours
    if len(a.stages) != len(b.stages):
        yield Difference(8, f"{len(a.stages)} stages, not {len(b.stages)}")
    if type(a.unit.branch) is not type(b.unit.branch):
        yield Difference(6, f"units are {branch_words(a.unit.branch)}, not {branch_words(b.unit.branch)}")
    elif _plain_branch(a.unit.branch) != _plain_branch(b.unit.branch):
        yield Difference(2, f"units are {branch_words(a.unit.branch)}, not {branch_words(b.unit.branch)}")
    if a.unit.arrangement != b.unit.arrangement:
        yield Difference(
            4, f"{arrangement_words(a.unit.arrangement)}, not {arrangement_words(b.unit.arrangement)}"
        )
    units = [[stage.units for stage in side.stages] for side in (a, b)]
    if units[0] != units[1]:
        relative_depth = abs(a.depth - b.depth) / max(a.depth, b.depth)
        yield Difference(
            2 + 2 * relative_depth,
            f"{comma_separated(units[0])} units a stage, not {comma_separated(units[1])}",
        )
    widths = [[stage.width for stage in side.stages] for side in (a, b)]
    if widths[0] != widths[1]:
        yield Difference(2, f"widths {comma_separated(widths[0])}, not {comma_separated(widths[1])}")
    if not same_shortcut(a.unit.h, b.unit.h):
        yield Difference(2, f"shortcut {a.unit.h}, not {b.unit.h}")
    if shortcut_option(a) != shortcut_option(b):
        yield Difference(1, f"{option_words(a)}, not {option_words(b)}")
    if a.stem != b.stem:
        yield Difference(1.5, f"stem {stem_words(a)}, not {stem_words(b)}")


def _plain_branch(branch: Branch) -> Branch:
    return replace(branch, form="grouped") if isinstance(branch, Aggregated) else branch


def same_shortcut(a: Shortcut, b: Shortcut) -> bool:
    """Whether two shortcuts are equal, up to the gate's bias b_g, which training changes."""
    blank = {"bias": 0.0}
    return replace(a, **blank) == replace(b, **blank) if hasattr(a, "bias") and type(a) is type(b) else a == b


def shortcut_option(network: Network) -> str | None:
    """P1's letter for the shortcuts that change the shape; None in a plain network."""
    if isinstance(network.unit.h, Zero):
        return None
    if isinstance(network.unit.h, Projection):
        return "C"
    return "B" if isinstance(network.unit.downsample, Projection) else "A"


def option_words(network: Network) -> str:
    letter = shortcut_option(network)
    return f"option {letter} where the shape changes" if letter else "no shortcuts"


def arrangement_words(arrangement: Arrangement) -> str:
    names = [name for name, candidate in ARRANGEMENTS.items() if candidate == arrangement]
    return names[0].replace("_", " ") if names else "an arrangement that is none of the papers'"


def branch_words(branch: Branch) -> str:
    match branch:
        case Aggregated(cardinality, d):
            return f"aggregated bottlenecks {cardinality}×{d}d"
        case Basic(widen) | Bottleneck(widen) if widen > 1:
            return f"{type(branch).__name__.lower()} units {widen} times as wide"
        case Bottleneck():
            return "bottlenecks"
        case Basic():
            return "basic (two 3×3)"
        case OneLayer():
            return "one 3×3 convolution each"
        case _:
            return type(branch).__name__


def stem_words(network: Network) -> str:
    stem = network.stem
    pool = ", max-pooling" if stem.pool else ""
    return f"{stem.kernel}×{stem.kernel} to {stem.channels} channels, stride {stem.stride}{pool}"


def comma_separated(numbers: list[int]) -> str:
    """Numbers as "16, 32, 64"."""
    return ", ".join(map(str, numbers))
