"""The convolutions of F, told apart: basic, bottleneck, one-layer, aggregated."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal, cast

from kilolayer.audit.canonical import CanonicalUnit, convolutions
from kilolayer.audit.layer_reader import AuditLayers
from kilolayer.units import ops as op
from kilolayer.units.branch import Aggregated, Basic, Bottleneck, Branch, OneLayer, StrideOn

BranchKind = Literal["basic", "bottleneck", "one-layer", "other"]
BRANCH_KINDS: dict[tuple[int, ...], BranchKind] = {
    (3, 3): "basic",
    (1, 3, 1): "bottleneck",
    (3,): "one-layer",
}


@dataclass(frozen=True)
class BranchShape:
    """The convolutions of one unit: `channels` in, `inner` between, `out`; `paths` of them in parallel."""

    kind: BranchKind
    layers: int
    channels: int
    inner: int
    out: int
    stride: int
    stride_on: StrideOn
    cardinality: int
    form: str
    dropout: float

    @property
    def changes_shape(self) -> bool:
        return self.stride != 1 or self.channels != self.out


def read_branch_shape(unit: CanonicalUnit) -> BranchShape | None:
    """What F's convolutions are; None where there is none."""
    form, cardinality, chain = _chain(unit.F)
    if not chain:
        return None
    kind = BRANCH_KINDS.get(tuple(conv.kernel for conv in chain), "other")
    strides = [conv.stride for conv in chain]
    stride = 1
    for each in strides:
        stride *= each
    dropped = [step.p for step in unit.F if isinstance(step, op.DropoutOp)]
    return BranchShape(
        kind=kind,
        layers=len(chain),
        channels=chain[0].in_channels,
        inner=chain[-1].in_channels,
        out=chain[-1].out_channels,
        stride=stride,
        stride_on="1x1" if kind == "bottleneck" and strides[0] != 1 else "3x3",
        cardinality=cardinality,
        form=form,
        dropout=dropped[0] if dropped else 0.0,
    )


def _chain(F: AuditLayers) -> tuple[str, int, list[op.Conv]]:
    """ResNeXt's form, the number of paths, and the convolutions of one path at their common width."""
    paths = next((step for step in F if isinstance(step, op.ParallelPaths)), None)
    if paths is None:
        chain = list(convolutions(F))
        return "grouped", max((conv.groups for conv in chain), default=1), chain
    count = len(paths.paths)
    one = list(convolutions(paths.paths[0]))
    behind = [step for step in F if isinstance(step, op.Conv)]
    wide = [_widened_conv(conv, count, first=i == 0) for i, conv in enumerate(one)]
    if paths.join == "concatenate":
        return "concatenated", count, wide + behind
    # The last convolution of each path has the unit's own output.
    last = op.Conv(one[-1].in_channels * count, one[-1].out_channels, one[-1].kernel, one[-1].stride)
    return "split", count, [*wide[:-1], last]


def _widened_conv(conv: op.Conv, count: int, *, first: bool) -> op.Conv:
    channels = conv.in_channels if first else conv.in_channels * count
    return op.Conv(channels, conv.out_channels * count, conv.kernel, conv.stride)


def branch_and_widths(shapes: list[BranchShape], stem: int) -> tuple[Branch, list[int]] | None:
    """The branch that all stages have in common, and each stage's width (the papers' 16, 32, 64 …)."""
    kind = Counter(each.kind for each in shapes).most_common(1)[0][0]
    first = next(each for each in shapes if each.kind == kind)
    strided = next((each.stride_on for each in shapes if each.stride != 1), None)
    if kind == "one-layer":
        return OneLayer(), [each.out for each in shapes]
    if kind == "basic":
        widen = first.out // stem if stem and first.out % stem == 0 else 1
        widths = [each.out // widen for each in shapes]
        return Basic(max(widen, 1), dropout=first.dropout), widths
    if kind != "bottleneck" or any(each.out % 4 for each in shapes):
        return None
    widths = [each.out // 4 for each in shapes]
    if first.cardinality > 1 or first.inner % widths[0]:  # 1×100d is a bottleneck of another width
        return _aggregated(first, strided or "3x3", widths)
    widen = max(first.inner // widths[0], 1)
    return Bottleneck(widen, strided or "1x1"), widths


def _aggregated(
    first: BranchShape, stride_on: StrideOn, widths: list[int]
) -> tuple[Branch, list[int]] | None:
    d, rest = divmod(first.inner // first.cardinality * 64, widths[0])
    if rest or not d:
        return None
    form = cast(Literal["split", "concatenated", "grouped"], first.form)
    return Aggregated(first.cardinality, d, form, stride_on), widths
