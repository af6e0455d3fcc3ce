"""What a network is, in plain values: the auditor's typed result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["fault", "deviation", "note"]


@dataclass(frozen=True)
class AuditFinding:
    """Something that is not as the papers have it.

    A "fault" makes it another network than it says or than the papers describe; a "deviation" is a
    choice that the papers did not make; a "note" is worth knowing. `paper`: what stands in the paper.
    """

    severity: Severity
    code: str
    what: str
    where: str = ""
    paper: str = ""


@dataclass(frozen=True)
class StageContent:
    """Units of one width: `inner` and `channels` are those of F's middle and of its output."""

    units: int
    width: int | None
    inner: int
    channels: int
    stride: int | None


@dataclass(frozen=True)
class NearestNetwork:
    """The nearest network of ours: `choices` as `describe` takes them; `identical` in function.

    `differences`: where it differs, in words.
    """

    name: str
    choices: dict[str, dict[str, str]]
    parameters: int
    identical: bool
    differences: tuple[str, ...]


@dataclass(frozen=True)
class NetworkContent:
    """What a network is. None: it cannot be told, or there is none.

    `depth` counts weight layers as the papers do. `arrangement`: one of `kilolayer.units.ARRANGEMENTS`, or
    "other". `alternatives`: those that are the same function here (traced), or that shapes allow too.
    `shortcut`: h where the shape is kept; `option`: "A", "B", "C" or None where no unit changes shape.
    """

    parameters: int
    depth: int | None = None
    family: str | None = None
    arrangement: str | None = None
    alternatives: tuple[str, ...] = ()
    branch: str | None = None
    cardinality: int | None = None
    d: int | None = None
    widen: int | None = None
    stride_on: str | None = None
    shortcut: str | None = None
    option: str | None = None
    stem: str | None = None
    stages: tuple[StageContent, ...] = ()
    classes: int | None = None
    in_chans: int | None = None


@dataclass(frozen=True)
class AuditReport:
    """The report: what a network is, which of ours is nearest, and what was found.

    `source`: "traced" (a module) or "shapes" (a state dict). `unknown`: what could not be told and why.
    """

    label: str
    source: Literal["traced", "shapes"]
    content: NetworkContent
    nearest: NearestNetwork | None = None
    findings: tuple[AuditFinding, ...] = ()
    unknown: tuple[str, ...] = field(default=())

    @property
    def clean(self) -> bool:
        """Whether no finding is a fault."""
        return all(finding.severity != "fault" for finding in self.findings)
