"""The audit context: everything that the rules read about a network."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from kilolayer.audit.audit_report import Severity
from kilolayer.audit.canonical import CanonicalNetwork, layer_pattern, without_biases
from kilolayer.audit.identify import BranchShapes, DescriptionFit
from kilolayer.audit.layer_reader import AVERAGE_POOLING, AuditLayers, LinearLayer, OtherLayer
from kilolayer.audit.nearest import NearestCandidate
from kilolayer.audit.network_label import NetworkLabel, label_base
from kilolayer.audit.traced_units import TracedNetwork
from kilolayer.units import ops as op


@dataclass(frozen=True)
class AuditContext:
    """A network as traced, as a canonical network, and beside the nearest description.

    `branch_shapes`, `fit` and `nearest` are None where the units are none of the papers'.
    """

    traced: TracedNetwork
    canonical: CanonicalNetwork
    parameters: int
    unused: tuple[str, ...] = ()
    """The names of parameters that the output does not depend on."""
    branch_shapes: BranchShapes | None = None
    fit: DescriptionFit | None = None
    nearest: NearestCandidate | None = None
    label: NetworkLabel | None = None
    text: str = ""
    """What the network calls itself."""
    has_one_output: bool = True
    shared: tuple[str, ...] = ()
    """The names of the weights that several layers use."""
    decides: bool = False
    """Whether its Python code reads values that depend on the image."""
    unread_joins: tuple[str, ...] = ()
    """The operators, no additions and no concatenations, in which maps of one size meet."""
    additions: int = 0
    """The additions of maps in the whole graph, in units or not."""

    @cached_property
    def canonical_without_biases(self) -> CanonicalNetwork:
        return without_biases(self.canonical)

    @property
    def preactivation(self) -> str:
        """The letters of the pre-activation, "BR"; empty without one."""
        layers = self.fit.network.unit.arrangement.before if self.fit else ()
        return "".join(str(layer)[0] for layer in layers)

    @cached_property
    def final_layers(self) -> AuditLayers:
        """The layers between the last addition and the pooling."""
        layers = self.canonical_without_biases.tail
        stops = [
            i for i, layer in enumerate(layers) if layer == AVERAGE_POOLING or isinstance(layer, LinearLayer)
        ]
        return layers[: stops[0]] if stops else layers

    @property
    def holds_unread_layers(self) -> bool:
        """Whether a layer is none that descriptions know, or is written in a way that is not read."""
        units = self.canonical.units
        inside = [layer for unit in units for layer in (*unit.edge, *unit.h, *unit.F, *unit.g)]
        unread = [layer for layer in (*inside, *self.canonical.tail) if layer != AVERAGE_POOLING]
        return any(isinstance(layer, OtherLayer) for layer in unread)

    @cached_property
    def fault_or_deviation(self) -> Severity:
        """The severity of a departure from the papers' units.

        A network whose units hold other layers, or whose name is a variant's, is none of the papers'.
        """
        units = self.canonical.units
        foreign = any(
            isinstance(layer, OtherLayer) for unit in units for layer in (*unit.h, *unit.F, *unit.g)
        )
        is_papers = self.fit is not None and self.fit.arrangement is not None
        return "fault" if is_papers and not foreign and label_base(self.text) != "variant" else "deviation"

    def lacks_final_activation(self) -> bool:
        """Whether a pre-activation network does not end in one more activation."""
        final = layer_pattern(self.final_layers)
        is_papers = self.fit is not None and self.fit.arrangement is not None
        return bool(self.preactivation) and not (final.endswith(self.preactivation) if is_papers else final)

    def raw_projections(self) -> tuple[int, ...]:
        """The pre-activation units whose projection reads the raw input, while F activates it for itself."""
        return tuple(
            i
            for i, unit in enumerate(self.canonical.units)
            if self.preactivation
            and layer_pattern(unit.F).startswith(self.preactivation)
            and "C" in layer_pattern(unit.h)
        )

    def first_reads_raw_stem(self) -> bool:
        """Whether the first shortcut starts from the stem's convolution without an activation."""
        first = self.canonical.units[0]
        starts_with_activation = "R" in self.preactivation and layer_pattern(first.F).startswith(
            self.preactivation
        )
        return (
            starts_with_activation
            and "C" not in layer_pattern(first.h)
            and "R" not in layer_pattern(first.edge)
        )

    def activates_stem_twice(self) -> bool:
        """Whether the stem ends in an activation and the first unit begins with one."""
        first = self.canonical.units[0]
        return (
            bool(self.preactivation)
            and layer_pattern(first.F).startswith(self.preactivation)
            and "R" in layer_pattern(first.edge)
        )

    def unit_names(self, indices: tuple[int, ...] | list[int]) -> str:
        """The first three names of these units, and their number."""
        names = [self.traced.units[i].name for i in indices]
        return ", ".join(names[:3]) + (f" … ({len(names)} units)" if len(names) > 3 else "")


def layers_text(layers: AuditLayers) -> str:
    """Layers in words: "3×3 conv 16→32 /2, BN, ReLU"."""
    return ", ".join(_layer_text(layer) for layer in layers) or "nothing"


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
