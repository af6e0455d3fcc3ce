"""All that is known of a network when its faults are looked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from kilolayer.audit.canonical import CanonicalNetwork, layer_pattern, without_biases
from kilolayer.audit.identify import BranchShapes, DescriptionFit
from kilolayer.audit.layer_reader import AVERAGE_POOLING, AuditLayers, LinearLayer, OtherLayer
from kilolayer.audit.nearest import NearestCandidate
from kilolayer.audit.network_label import NetworkLabel
from kilolayer.audit.traced_units import TracedNetwork
from kilolayer.units import ops as op


@dataclass(frozen=True)
class AuditContext:
    """`fit` and `near` are None where the units are none of the papers'; `unused`: parameters' names."""

    traced: TracedNetwork
    canonical: CanonicalNetwork
    parameters: int
    unused: tuple[str, ...] = ()
    branch_shapes: BranchShapes | None = None
    fit: DescriptionFit | None = None
    nearest: NearestCandidate | None = None
    label: NetworkLabel | None = None

    @cached_property
    def canonical_without_biases(self) -> CanonicalNetwork:
        return without_biases(self.canonical)

    @property
    def preactivation(self) -> str:
        """The pre-activation's pattern, "BR"; empty where there is none."""
        layers = self.fit.network.unit.arrangement.before if self.fit else ()
        return "".join(str(layer)[0] for layer in layers)

    @cached_property
    def final_layers(self) -> AuditLayers:
        """What stands between the last addition and the pooling."""
        steps = self.canonical_without_biases.tail
        stops = [
            i for i, step in enumerate(steps) if step == AVERAGE_POOLING or isinstance(step, LinearLayer)
        ]
        return steps[: stops[0]] if stops else steps

    def lacks_final_activation(self) -> bool:
        return bool(self.preactivation) and not layer_pattern(self.final_layers).endswith(self.preactivation)

    def raw_projections(self) -> tuple[int, ...]:
        """Units of a pre-activation network whose projection reads what F activates for itself."""
        return tuple(
            i
            for i, part in enumerate(self.canonical.units)
            if self.preactivation
            and layer_pattern(part.F).startswith(self.preactivation)
            and "C" in layer_pattern(part.h)
        )

    def first_reads_raw_stem(self) -> bool:
        first = self.canonical.units[0]
        starts_with_activation = bool(self.preactivation) and layer_pattern(first.F).startswith(
            self.preactivation
        )
        return (
            starts_with_activation
            and "C" not in layer_pattern(first.h)
            and "R" not in layer_pattern(first.edge)
        )

    def activates_stem_twice(self) -> bool:
        first = self.canonical.units[0]
        return (
            bool(self.preactivation)
            and layer_pattern(first.F).startswith(self.preactivation)
            and "R" in layer_pattern(first.edge)
        )

    def unit_names(self, indices: tuple[int, ...] | list[int]) -> str:
        names = [self.traced.units[i].name for i in indices]
        return ", ".join(names[:3]) + (f" … ({len(names)} units)" if len(names) > 3 else "")


def layers_text(layers: AuditLayers) -> str:
    """Layers in words: "3×3 conv 16→32 /2, BN, ReLU"."""
    return ", ".join(_layer_text(step) for step in layers) or "nothing"


def _layer_text(layer: object) -> str:
    match layer:
        case op.Conv(channels, out, kernel, stride, groups):
            strided = f" /{stride}" if stride > 1 else ""
            return f"{kernel}×{kernel} conv {channels}→{out}{strided}" + (
                f" in {groups} groups" * (groups > 1)
            )
        case op.BatchNorm():
            return "BN"
        case op.ReLU():
            return "ReLU"
        case op.MaxPool():
            return "max-pooling"
        case op.ScaleOp(factor):
            return f"× {factor:g}"
        case op.DropoutOp(p):
            return f"dropout {p:g}"
        case op.PadChannels(extra, stride):
            return f"{extra} zero channels" + (f", one pixel in {stride} a side" if stride > 1 else "")
        case op.ZeroOp():
            return "zero"
        case op.ParallelPaths(paths, join):
            return f"{len(paths)} paths ({'summed' if join == 'sum' else 'concatenated'})"
        case LinearLayer(inside, out):
            return f"linear {inside}→{out}"
        case OtherLayer(what):
            return what
        case _:
            return str(layer)
