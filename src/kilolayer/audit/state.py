"""A state dict audited: what shapes and their order tell, and what they cannot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from kilolayer.audit.auditing import content, nearest_of
from kilolayer.audit.branches import branch_and_widths
from kilolayer.audit.case import Case
from kilolayer.audit.content import Audit, Content
from kilolayer.audit.findings import findings
from kilolayer.audit.forms import Form, Part, described
from kilolayer.audit.identify import PREFERENCE, Cores, Fit
from kilolayer.audit.label import read_label
from kilolayer.audit.nearest import nearest
from kilolayer.audit.shapes import Layer, ShapedUnit, layers, units
from kilolayer.audit.steps import AVERAGE, Steps
from kilolayer.audit.units import FoundNetwork, FoundUnit
from kilolayer.errors import InputError
from kilolayer.networks.description import Network, Stage, Stem
from kilolayer.units import ops as op
from kilolayer.units.arrangement import ARRANGEMENTS
from kilolayer.units.shortcut import Identity, Projection, Resize, Shortcut, ShortcutGate, ZeroPad
from kilolayer.units.unit import Unit

NOT_TOLD = (
    "strides, pooling and dropout: weights hold none, so the papers' are assumed",
    "where ReLU stands, and what projections and the first shortcut read",
    "whether a shortcut without weights is there at all, scaled, or zero-padded",
)


def audit_state(state: Mapping[str, Tensor], label: str = "state dict") -> Audit:
    """What a state dict's shapes and their order say of its network; `unknown` lists what they do not.

    Names group tensors into layers and put a sorted file in order; what a layer is its shapes say.
    Raises `InputError` for a state dict without tensors.
    """
    if not state:
        raise InputError(f"{label} holds no tensors")
    found = layers(state)
    parameters = sum(layer.parameters for layer in found)
    chained = units(found)
    fitted = _fit(found, *chained) if chained else None
    if chained is None or fitted is None:
        unchained = "its convolutions do not chain into the papers' basic or bottleneck units"
        return Audit(label, "shapes", Content(parameters), unknown=(unchained, *NOT_TOLD))
    fit, lacking = fitted
    case = _case(label, parameters, chained[1], fit, lacking=lacking, biased=chained[0].bias)
    near = nearest_of(case)
    near = replace(near, identical=False) if near else None
    told = replace(content(case), stride_on=None)
    return Audit(label, "shapes", told, near, findings(case), NOT_TOLD)


def _case(
    label: str, parameters: int, shaped: list[ShapedUnit], fit: Fit, *, lacking: bool, biased: bool
) -> Case:
    """The fit's own form, with the biases and without the final activation, as the weights have it."""
    parts = []
    for i, (part, unit) in enumerate(zip(fit.form.parts, shaped, strict=True)):
        edge = _biased(part.edge, biased and i == 0)
        h = _biased(part.h, unit.projection is not None and unit.projection.bias)
        parts.append(Part(edge, h, _biased(part.F, unit.convs[0].bias), part.g, part.gates_branch))
    end = fit.form.end[fit.form.end.index(AVERAGE) :] if lacking else fit.form.end
    named = tuple(
        FoundUnit(_name(unit), p.edge, p.h, p.F, p.g) for p, unit in zip(parts, shaped, strict=True)
    )
    return Case(
        found=FoundNetwork(named, end),
        form=Form(tuple(parts), end),
        parameters=parameters,
        cores=_cores(shaped),
        fit=fit,
        near=nearest(fit.network),
        label=read_label(label),
    )


def _biased(steps: Steps, bias: bool) -> Steps:
    return tuple(replace(step, bias=bias) if isinstance(step, op.Conv) else step for step in steps)


def _name(unit: ShapedUnit) -> str:
    return unit.convs[0].prefix.rpartition(".")[0]


def _cores(shaped: list[ShapedUnit]) -> Cores:
    cores = tuple(unit.core for unit in shaped)
    starts = tuple(i for i, each in enumerate(cores) if i == 0 or each.out != cores[i - 1].out)
    return Cores(cores, starts)


def _fit(found: list[Layer], stem: Layer, shaped: list[ShapedUnit]) -> tuple[Fit, bool] | None:
    """The arrangement whose BNs have the widths found, and whether its final one is lacking."""
    base = _base(found, stem, shaped)
    if base is None:
        return None
    widths = Counter(layer.vectors[0] for layer in found if layer.is_norm)
    tried = []
    for name in PREFERENCE:
        network = replace(base, unit=replace(base.unit, arrangement=ARRANGEMENTS[name]))
        form = described(network)
        expected = _norms(form)
        missing, more = expected - widths, widths - expected
        lacking = bool(network.final_ops) and missing[network.channels] == 1 and missing.total() == 1
        tried.append((missing.total() + more.total(), name, Fit(network, form, name, (), False), lacking))
    least = min(distance for distance, *_ in tried)
    best = [(name, fit, lacking) for distance, name, fit, lacking in tried if distance == least]
    final = _norm_outside_units(found, shaped)
    chosen = [each for each in best if bool(each[1].network.final_ops and not each[2]) == final]
    (_, fit, lacking), *others = chosen or best
    return replace(fit, equals=tuple(name for name, *_ in others)), lacking


def _norms(form: Form) -> Counter[int]:
    steps = [*form.end]
    for part in form.parts:
        steps.extend((*part.edge, *part.h, *part.F, *part.g))
    return Counter(step.channels for step in steps if isinstance(step, op.BatchNorm))


def _base(found: list[Layer], stem: Layer, shaped: list[ShapedUnit]) -> Network | None:
    """The description but for its arrangement."""
    cores = _cores(shaped)
    made = branch_and_widths(cores.first_of_stages, stem.kernel[0])
    if made is None:
        return None
    branch, widths = made
    h, resize = _shortcuts(shaped)
    counted = zip(cores.counts, widths, strict=True)
    stages = tuple(Stage(count, width, 2 if i else 1) for i, (count, width) in enumerate(counted))
    out, channels, kernel = stem.kernel[:3]
    imagenet = kernel == 7
    linear = next((layer.kernel[0] for layer in found if len(layer.kernel) == 2), 1)
    try:
        described_stem = Stem(out, kernel, 2 if imagenet else 1, pool=imagenet)
        return Network(
            described_stem, stages, Unit(branch, h, resize=resize), linear, channels, image_size=1024
        )
    except InputError:
        return None


def _shortcuts(shaped: list[ShapedUnit]) -> tuple[Shortcut, Resize]:
    changing = [unit for unit in shaped if unit.core.changes]
    kept = [unit for unit in shaped if not unit.core.changes]
    projected = bool(changing) and all(unit.projection for unit in changing)
    h: Shortcut = Identity()
    if kept and all(unit.projection for unit in kept):
        h = Projection()
    elif any(unit.gate for unit in shaped):
        h = ShortcutGate(0.0)
    return h, Projection() if projected else ZeroPad()


def _norm_outside_units(found: list[Layer], shaped: list[ShapedUnit]) -> bool:
    """Whether a BN as wide as the last unit stands apart from the units, as a final activation's does."""
    parts = [layer.prefix.split(".") for layer in found if layer.is_conv]
    shared = 0
    while all(len(each) > shared + 1 for each in parts) and len({each[shared] for each in parts}) == 1:
        shared += 1
    inside = {each[shared] for each in parts}
    last = shaped[-1].core.out
    norms = (layer.prefix.split(".") for layer in found if layer.is_norm and layer.vectors[0] == last)
    return any(len(each) <= shared or each[shared] not in inside for each in norms)
