"""All that is known of a network when its faults are looked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from kilolayer.audit.forms import Form, pattern, without_biases
from kilolayer.audit.identify import Cores, Fit
from kilolayer.audit.label import Label
from kilolayer.audit.nearest import Candidate
from kilolayer.audit.steps import AVERAGE, Linear, Other, Steps
from kilolayer.audit.units import FoundNetwork
from kilolayer.units import ops as op


@dataclass(frozen=True)
class Case:
    """`fit` and `near` are None where the units are none of the papers'; `unused`: parameters' names."""

    found: FoundNetwork
    form: Form
    parameters: int
    unused: tuple[str, ...] = ()
    cores: Cores | None = None
    fit: Fit | None = None
    near: Candidate | None = None
    label: Label | None = None

    @cached_property
    def plain_form(self) -> Form:
        return without_biases(self.form)

    @property
    def before(self) -> str:
        """The pre-activation's pattern, "BR"; empty where there is none."""
        layers = self.fit.network.unit.arrangement.before if self.fit else ()
        return "".join(str(layer)[0] for layer in layers)

    @cached_property
    def end(self) -> Steps:
        """What stands between the last addition and the pooling."""
        steps = self.plain_form.end
        stops = [i for i, step in enumerate(steps) if step == AVERAGE or isinstance(step, Linear)]
        return steps[: stops[0]] if stops else steps

    def lacks_final(self) -> bool:
        return bool(self.before) and not pattern(self.end).endswith(self.before)

    def raw_projections(self) -> tuple[int, ...]:
        """Units of a pre-activation network whose projection reads what F activates for itself."""
        return tuple(
            i
            for i, part in enumerate(self.form.parts)
            if self.before and pattern(part.F).startswith(self.before) and "C" in pattern(part.h)
        )

    def first_from_raw_stem(self) -> bool:
        first = self.form.parts[0]
        own = bool(self.before) and pattern(first.F).startswith(self.before)
        return own and "C" not in pattern(first.h) and "R" not in pattern(first.edge)

    def activated_twice(self) -> bool:
        first = self.form.parts[0]
        return bool(self.before) and pattern(first.F).startswith(self.before) and "R" in pattern(first.edge)

    def names(self, places: tuple[int, ...] | list[int]) -> str:
        names = [self.found.units[i].name for i in places]
        return ", ".join(names[:3]) + (f" … ({len(names)} units)" if len(names) > 3 else "")


def words(steps: Steps) -> str:
    """Layers in words: "3×3 conv 16→32 /2, BN, ReLU"."""
    return ", ".join(_word(step) for step in steps) or "nothing"


def _word(step: object) -> str:
    match step:
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
        case op.Scale(factor):
            return f"× {factor:g}"
        case op.Dropout(p):
            return f"dropout {p:g}"
        case op.PadChannels(extra, stride):
            return f"{extra} zero channels" + (f", one pixel in {stride} a side" if stride > 1 else "")
        case op.Zero():
            return "zero"
        case op.Paths(paths, join):
            return f"{len(paths)} paths ({'summed' if join == 'sum' else 'concatenated'})"
        case Linear(inside, out):
            return f"linear {inside}→{out}"
        case Other(what):
            return what
        case _:
            return str(step)
