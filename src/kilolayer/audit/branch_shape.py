"""Classifies the convolutions of F: basic, bottleneck, one-layer, aggregated."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
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
    """The convolutions of one unit: `channels` in, `inner` between, `out` behind, in `cardinality` paths."""

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
        """Whether side or channels change."""
        return self.stride != 1 or self.channels != self.out


def read_branch_shape(unit: CanonicalUnit) -> BranchShape | None:
    """The shape of F's convolutions; None if it has none."""
    form, cardinality, chain = _chain(unit.F)
    if not chain:
        return None
    is_chain = all(a.out_channels == b.in_channels for a, b in pairwise(chain))
    kind = BRANCH_KINDS.get(tuple(conv.kernel for conv in chain), "other") if is_chain else "other"
    strides = [conv.stride for conv in chain]
    stride = 1
    for conv_stride in strides:
        stride *= conv_stride
    dropouts = [layer.p for layer in unit.F if isinstance(layer, op.DropoutOp)]
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
        dropout=dropouts[0] if dropouts else 0.0,
    )


def _chain(F: AuditLayers) -> tuple[str, int, list[op.Conv]]:
    """ResNeXt's form, the number of paths, and the convolutions of all paths as one chain."""
    paths = next((layer for layer in F if isinstance(layer, op.ParallelPaths)), None)
    if paths is None or not any(True for _ in convolutions(paths.paths[0])):
        chain = [layer for layer in F if isinstance(layer, op.Conv)]
        return "grouped", max((conv.groups for conv in chain), default=1), chain
    count = len(paths.paths)
    path = list(convolutions(paths.paths[0]))
    after_join = [layer for layer in F if isinstance(layer, op.Conv)]
    widened = [_widen_conv(conv, count, first=i == 0) for i, conv in enumerate(path)]
    if paths.join == "concatenate":
        return "concatenated", count, widened + after_join
    # The last convolution of each path already has the unit's output width.
    last = op.Conv(path[-1].in_channels * count, path[-1].out_channels, path[-1].kernel, path[-1].stride)
    return "split", count, [*widened[:-1], last]


def _widen_conv(conv: op.Conv, count: int, *, first: bool) -> op.Conv:
    channels = conv.in_channels if first else conv.in_channels * count
    return op.Conv(channels, conv.out_channels * count, conv.kernel, conv.stride)


def branch_and_widths(shapes: list[BranchShape], stem: int) -> tuple[Branch, list[int]] | None:
    """The stages' common branch, and each stage's width (the papers' 16, 32, 64); None for other branches."""
    kind = Counter(shape.kind for shape in shapes).most_common(1)[0][0]
    first = next(shape for shape in shapes if shape.kind == kind)
    strided = next((shape.stride_on for shape in shapes if shape.stride != 1), None)
    if kind == "one-layer":
        return OneLayer(), [shape.out for shape in shapes]
    if kind == "basic":
        widen = first.out // stem if stem and first.out % stem == 0 else 1
        widths = [shape.out // widen for shape in shapes]
        return Basic(max(widen, 1), dropout=first.dropout), widths
    if kind != "bottleneck" or any(shape.out % 4 for shape in shapes):
        return None
    if 1 < first.cardinality == first.inner:  # a depthwise convolution, as in inverted residuals
        return None
    widths = [shape.out // 4 for shape in shapes]
    if first.cardinality > 1 and any(b != 2 * a for a, b in pairwise(widths)):
        return None  # a ResNeXt doubles its widths; others choose each, as RegNet
    if first.cardinality > 1 or first.inner % widths[0]:  # 1×100d is a bottleneck of another width
        return _fit_aggregated(first, strided or "3x3", widths)
    widen = max(first.inner // widths[0], 1)
    return Bottleneck(widen, strided or "1x1"), widths


def _fit_aggregated(
    first: BranchShape, stride_on: StrideOn, widths: list[int]
) -> tuple[Branch, list[int]] | None:
    d, remainder = divmod(first.inner // first.cardinality * 64, widths[0])
    if remainder or not d:
        return None
    form = cast(Literal["split", "concatenated", "grouped"], first.form)
    return Aggregated(first.cardinality, d, form, stride_on), widths
