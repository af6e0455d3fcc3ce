"""What would reproduce a cell: a network, data, a recipe and a protocol of evaluation, as one value."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from kilolayer.networks import Network, cifar, imagenet
from kilolayer.units import BASIC, Unit

DataSet = Literal["cifar10", "cifar100", "imagenet"]
Protocol = Literal["plain image", "224 crop", "320 crop", "10-crop", "multi-scale"]
Variation = Literal["pad and crop", "scale", "scale and aspect ratio"]

CLASSES: dict[DataSet, int] = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}

# What Kilolayer's data and trainer cannot do yet, in the words a report prints.
_PROTOCOLS_NOT_YET: dict[Protocol, str] = {
    "224 crop": "tests on the centre square resized to 224 pixels, not on the 224-pixel centre of 256",
    "320 crop": "tests at the training size of 224 pixels, not at 320",
    "10-crop": "tests on one centre crop of 224 pixels, not on ten crops",
    "multi-scale": "tests on one centre crop of 224 pixels, not fully convolutionally at five sizes",
}
_VARIATIONS_NOT_YET: dict[Variation, str] = {
    "scale": "trains on shifted centre squares, without scale augmentation",
    "scale and aspect ratio": "trains on shifted centre squares, without scale and aspect-ratio augmentation",
}


@dataclass(frozen=True)
class Plan:
    """A network of `depth` layers of `unit`, trained on `data` by the recipe called `recipe`.

    `batch_size` replaces the recipe's. `select`: the paper chose b_g among 0, −1 … −10 by
    cross-validation inside the training set. `setting` names this plan where a cell has several.
    `departure` says where the named recipe is not the paper's own.
    """

    data: DataSet
    depth: int = 110
    unit: Unit = BASIC
    recipe: str = "paper"
    batch_size: int | None = None
    variation: Variation = "pad and crop"
    protocol: Protocol = "plain image"
    select: bool = False
    setting: str = ""
    departure: str = ""

    def with_changes(self, **changes: Any) -> Plan:
        """This plan with fields of its own, and fields of its unit (`h=`, `arrangement=` …), replaced."""
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
        """Where a run of Kilolayer's would differ from the paper's; empty where it would not."""
        reasons = (
            _VARIATIONS_NOT_YET.get(self.variation, ""),
            _PROTOCOLS_NOT_YET.get(self.protocol, ""),
            self.departure,
        )
        return "; ".join(filter(None, reasons))
