"""What reproduces a cell, as one value: a network, data, a recipe and an evaluation protocol."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from kilolayer.networks import Network, cifar, imagenet
from kilolayer.units import BASIC, Unit

DataSet = Literal["cifar10", "cifar100", "imagenet"]
Protocol = Literal["plain image", "224 crop", "320 crop", "10-crop", "multi-scale"]
Variation = Literal["pad and crop", "scale", "scale and aspect ratio"]
Origin = Literal["paper", "authors' README", "released code"]

CLASSES: dict[DataSet, int] = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}

# Where Kilolayer differs from a paper's protocol so far, in the words of a report.
_PROTOCOLS_NOT_YET: dict[Protocol, str] = {
    "224 crop": "tests on the centre square resized to 224 pixels, not on the 224-pixel centre of 256",
    "320 crop": "tests at the training size of 224 pixels, not at 320",
    "10-crop": "tests on one centre crop of 224 pixels, not on ten crops",
    "multi-scale": "tests on one centre crop of 224 pixels, not fully convolutionally at five sizes",
}
_VARIATIONS_NOT_YET: dict[Variation, str] = {
    "scale": "trains on shifted centre squares, without scale and colour augmentation",
    "scale and aspect ratio": (
        "trains on shifted centre squares, without scale, aspect-ratio and colour augmentation"
    ),
}
_ORIGINS: dict[Origin, str] = {
    "paper": "",
    "authors' README": "as the authors' README has it, which is not as the paper states it",
    "released code": "as the released code has it, which is not as the paper states it",
}


@dataclass(frozen=True)
class Plan:
    """A network of `depth` layers with `unit`, trained on `data` with the recipe called `recipe`.

    `select` says that the paper chose b_g among 0, −1 … −10 by cross-validation inside the training set.
    `setting` names this plan in a cell of several plans. `origin` says who states this plan: the paper, its
    authors' README, or the code that they released. `departure` names a difference from what they state.

    >>> from kilolayer.units import Zero
    >>> plan = Plan("cifar10", 164).with_changes(h=Zero(), depth=110)
    >>> plan.depth, plan.network.unit.h.equation
    (110, 'F(x)')
    """

    data: DataSet
    depth: int = 110
    unit: Unit = BASIC
    recipe: str = "paper"
    variation: Variation = "pad and crop"
    protocol: Protocol = "plain image"
    select: bool = False
    setting: str = ""
    origin: Origin = "paper"
    departure: str = ""

    def with_changes(self, **changes: Any) -> Plan:
        """This plan with some fields replaced: its own, and those of its unit (`h`, `arrangement`, …)."""
        names = {field.name for field in fields(Plan)}
        plan = replace(self, **{key: value for key, value in changes.items() if key in names})
        of_unit = {key: value for key, value in changes.items() if key not in names}
        return replace(plan, unit=replace(plan.unit, **of_unit))

    @property
    def network(self) -> Network:
        family = imagenet if self.data == "imagenet" else cifar
        return family(self.depth, self.unit, num_classes=CLASSES[self.data])

    @property
    def not_yet(self) -> str:
        """The differences between this plan and the run that its origin states; empty if there are none."""
        reasons = (
            _VARIATIONS_NOT_YET.get(self.variation, ""),
            _PROTOCOLS_NOT_YET.get(self.protocol, ""),
            self.departure,
        )
        return "; ".join(filter(None, reasons))

    @property
    def remark(self) -> str:
        """What a report says beside a figure of this plan; empty if the plan is exactly the paper's.

        >>> Plan("cifar10", 1001, recipe="released", origin="released code").remark
        'as the released code has it, which is not as the paper states it'
        """
        parts = (_ORIGINS[self.origin], f"departs: {self.not_yet}" if self.not_yet else "")
        return "; ".join(filter(None, parts))
