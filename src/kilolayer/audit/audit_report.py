"""The auditor's result in plain values: what a network is, and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["fault", "deviation", "note"]
FunctionWord = Literal["identical", "permuted", "different", "not proven", "cannot be told"]
Outcome = Literal["clean", "faults", "nothing told"]


@dataclass(frozen=True)
class AuditFinding:
    """One difference between a network and the papers."""

    severity: Severity
    """A "fault" makes the network a different one from its name or from the papers' networks; a "deviation"
    is a choice that the papers did not make; a "note" is worth knowing."""
    code: str
    """The kind of finding, as "biased-convolutions"."""
    what: str
    """The finding in words."""
    where: str = ""
    """The units that it concerns."""
    paper: str = ""
    """The papers' version."""


@dataclass(frozen=True)
class StageContent:
    """One stage: consecutive units of one width."""

    units: int
    """The number of units."""
    width: int | None
    """The papers' width (16, 32, 64 …); None for units that are none of the papers'."""
    inner: int
    """Channels between F's convolutions."""
    channels: int
    """Channels of the stage's output."""
    stride: int | None


@dataclass(frozen=True)
class NearestNetwork:
    """The nearest of Kilolayer's networks."""

    name: str
    choices: dict[str, dict[str, str]]
    """The choices beside the name, as `kilolayer.networks.describe` takes them."""
    parameters: int
    """Its parameters, with as many classes and input channels as the audited network."""
    identical: bool | None
    """Whether both compute the same function of input and weights; None where that is not proven."""
    differences: tuple[str, ...]
    """The differences in words."""
    function: FunctionWord = "cannot be told"
    """What is proven of the two functions; "cannot be told" of weights alone."""
    reason: str = ""
    """Why the function is different, or not proven."""
    permutation: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Where channels have another order: by the layer's name and side, the described channel of each."""
    sides: tuple[int, ...] = ()
    """The sides of the images on which both were run, where the function is proven."""
    remarks: tuple[str, ...] = ()
    """What the proof does not hold for, in words: other sides, or the gradient at an activation's corner."""


@dataclass(frozen=True)
class NetworkContent:
    """What a network is. A value is None where it is unknown or does not apply."""

    parameters: int
    depth: int | None = None
    """Weight layers on the longest path, as the papers count them; None where they cannot be counted."""
    family: str | None = None
    """"plain", "ResNeXt", "wide", "v2 (pre-activation)" or "v1"."""
    arrangement: str | None = None
    """A name of `kilolayer.units.ARRANGEMENTS`, or "other"."""
    alternatives: tuple[str, ...] = ()
    """Other arrangements that are the same function here (traced), or that the shapes allow too."""
    branch: str | None = None
    """F: "basic", "bottleneck", "aggregated" or "onelayer"."""
    cardinality: int | None = None
    """ResNeXt's number of paths."""
    d: int | None = None
    """ResNeXt's width of a path in the first stage."""
    widen: int | None = None
    """The widening factor of a wide network."""
    stride_on: str | None = None
    """The convolution of a bottleneck that strides, "1x1" or "3x3"."""
    shortcut: str | None = None
    """h of the units that keep their shape."""
    option: str | None = None
    """P1's letter for the shortcuts that change the shape: "A", "B" or "C"."""
    stem: str | None = None
    """The layers before the first unit, in words."""
    stages: tuple[StageContent, ...] = ()
    classes: int | None = None
    """The size of a lone output (N, classes) that a fully-connected layer puts out."""
    in_chans: int | None = None
    """Channels of the input image."""
    outputs: tuple[str, ...] = ()
    """The shapes of the outputs, with their names, if the network is no classifier with one output."""
    structure: str | None = None
    """What a network is that is none of the papers', by its structure, as "DenseNet: …" or "not known: …"."""


@dataclass(frozen=True)
class AuditReport:
    """What a network is, which of Kilolayer's networks is nearest, and the findings."""

    label: str
    """The name under which the network was given."""
    source: Literal["traced", "shapes"]
    """"traced" for a module, "shapes" for a state dict."""
    content: NetworkContent
    nearest: NearestNetwork | None = None
    findings: tuple[AuditFinding, ...] = ()
    """Faults first, then deviations, then notes."""
    unknown: tuple[str, ...] = field(default=())
    """What the auditor cannot know, and why."""

    @property
    def clean(self) -> bool:
        """Whether the network was compared with the papers', and no finding is a fault."""
        return self.outcome == "clean"

    @property
    def outcome(self) -> Outcome:
        """ "faults"; "nothing told" where the auditor compared nothing with the papers' networks; "clean"."""
        if any(finding.severity == "fault" for finding in self.findings):
            return "faults"
        is_told = self.nearest is not None and self.nearest.function != "not proven"
        return "clean" if is_told else "nothing told"
