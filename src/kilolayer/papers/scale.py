"""The scale of a reproduction: the paper's own size, or a proxy that names what it leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from kilolayer.errors import InputError
from kilolayer.networks import Network
from kilolayer.networks.families import IMAGENET_UNITS
from kilolayer.papers.plan import Plan

_EDGES = 2  # layers outside F: the stem and the classifier


@dataclass(frozen=True)
class Scale:
    """A smaller size for a reproduction; None keeps the paper's value.

    `depths` is one depth for all networks, or maps depths of the paper to others; each becomes the nearest
    depth that the unit allows (the smaller of two). `width` is the number of channels of the first stage (16
    in CIFAR's ResNets); the other stages keep their proportion. `subset` is the number of training images.
    With `iterations` the schedule is shortened in proportion.

    >>> Scale("small", depths={110: 56}, image_size=16).describe()
    'proxy: depth 56 instead of 110, 16×16 pixels'

    Raises:
        InputError: a field is no whole number from 1.
    """

    name: str
    depths: Mapping[int, int] | int | None = None
    width: int | None = None
    image_size: int | None = None
    subset: int | None = None
    iterations: int | None = None
    batch_size: int | None = None
    evaluate_every: int = 1

    def __post_init__(self) -> None:
        for name in ("width", "image_size", "subset", "iterations", "batch_size"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"scale {name} is {value!r}; allowed: a whole number from 1")

    @property
    def is_full(self) -> bool:
        """Whether this is the paper's own size: nothing is made smaller."""
        return replace(self, name="", evaluate_every=1) == Scale("")

    def depth(self, plan: Plan) -> int:
        """The depth of a plan's network at this scale."""
        if self.depths is None:
            return plan.depth
        if isinstance(self.depths, int):
            return nearest_depth(plan, self.depths)
        return nearest_depth(plan, self.depths.get(plan.depth, plan.depth))

    def describe(self, plan: Plan | None = None) -> str:
        """This scale as a sentence: "proxy: depth 56 instead of 110, 2,000 images, 400 iterations".

        With a `plan`, the sentence has its depth; without, all depths.
        """
        if self.is_full:
            return "full scale: the paper's own size"
        return "proxy: " + (", ".join(self.parts(plan)) or "at the paper's own size")

    def parts(self, plan: Plan | None = None) -> tuple[str, ...]:
        """Every reduction, as a phrase of its own."""
        texts = (
            self._depths(plan),
            f"first stage of {self.width} channels" if self.width else "",
            f"{self.subset:,} images" if self.subset else "",
            f"{self.iterations:,} iterations" if self.iterations else "",
            f"batch {self.batch_size}" if self.batch_size else "",
            f"{self.image_size}×{self.image_size} pixels" if self.image_size else "",
        )
        return tuple(filter(None, texts))

    def _depths(self, plan: Plan | None) -> str:
        if plan is not None:
            return _depth_change(self.depth(plan), plan.depth)
        match self.depths:
            case None:
                return ""
            case int():
                return f"depth {self.depths} instead of the paper's"
            case _:
                return ", ".join(
                    filter(None, (_depth_change(ours, theirs) for theirs, ours in self.depths.items()))
                )

    def network(self, plan: Plan) -> Network:
        """The plan's network at this depth and width."""
        network = replace(plan, depth=self.depth(plan)).network
        return network if self.width is None else _narrow_network(network, self.width)


FULL = Scale("full")


def _depth_change(ours: int, theirs: int) -> str:
    return "" if ours == theirs else f"depth {ours} instead of {theirs}"


def nearest_depth(plan: Plan, target: int) -> int:
    """The depth nearest to `target` that the plan's unit allows: 6n+2, 9n+2, 3n+2, or ImageNet's list."""
    layers = plan.unit.branch.layers
    if plan.data == "imagenet":
        return min(
            IMAGENET_UNITS.get(layers, {plan.depth: ()}), key=lambda depth: (abs(depth - target), depth)
        )
    step = 3 * layers
    below = max(1, (target - _EDGES) // step) * step + _EDGES
    return min(below, below + step, key=lambda depth: (abs(depth - target), depth))


def _narrow_network(network: Network, width: int) -> Network:
    first = network.stages[0].width
    stages = tuple(replace(stage, width=stage.width * width // first) for stage in network.stages)
    stem = replace(network.stem, channels=max(1, network.stem.channels * width // first))
    return replace(network, stem=stem, stages=stages)
