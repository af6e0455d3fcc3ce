"""A module audited: traced, split into units, compared with the papers'."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from kilolayer.audit.case import Case, words
from kilolayer.audit.content import Audit, Content, FoundStage, Nearest
from kilolayer.audit.findings import findings
from kilolayer.audit.forms import Form, convolutions, found, without_biases
from kilolayer.audit.graph import Graph
from kilolayer.audit.identify import Fit, cores_of, fit
from kilolayer.audit.label import read_label
from kilolayer.audit.nearest import Candidate, nearest, option
from kilolayer.audit.steps import Linear
from kilolayer.audit.trace import trace
from kilolayer.audit.units import find_units
from kilolayer.networks.description import Network
from kilolayer.units import ops as op
from kilolayer.units.branch import Aggregated
from kilolayer.units.shortcut import Zero


def audit_model(model: nn.Module, label: str | None = None, *, side: int | None = None) -> Audit:
    """What a module is, found by tracing one image of `side` and by feeding its shortcuts signals.

    Nothing is read from the names of its classes but the `label` (default: the class's own name), which
    is compared with the content. The module itself is not changed. Raises `InputError` where it takes no
    image, or does nothing with it.
    """
    label = type(model).__name__ if label is None else label
    traced = trace(model, side)
    graph = Graph(traced)
    units = find_units(graph)
    form = found(units)
    gate_bias = next((unit.gate_bias for unit in units.units if unit.g), 0.0)
    fitted = fit(form, gate_bias) if form.parts else None
    near = nearest(fitted.network) if fitted else None
    names = {name for name, _ in model.named_parameters()}
    case = Case(
        found=units,
        form=form,
        parameters=sum(each.numel() for each in model.parameters()),
        unused=tuple(sorted(names - graph.used_parameters())),
        cores=cores_of(form) if form.parts else None,
        fit=fitted,
        near=near,
        label=read_label(label),
    )
    return Audit(label, "traced", content(case), nearest_of(case), findings(case))


def nearest_of(case: Case) -> Nearest | None:
    """The nearest network with its classes and channels as found; identical where all is the same."""
    if case.fit is None or case.near is None:
        return None
    near, network = case.near, case.fit.network
    same = case.fit.exact and not near.differences and case.form == without_biases(case.form)
    told = tuple(each.what for each in near.differences)
    return Nearest(near.name, near.choices, _resized(near, network), same, told)


def _resized(near: Candidate, network: Network) -> int:
    """Its parameters for as many classes and channels as were found."""
    return replace(near.network, num_classes=network.num_classes, in_chans=network.in_chans).parameters


def content(case: Case) -> Content:
    """The plain values of a case."""
    linear = next((step for step in case.form.end if isinstance(step, Linear)), None)
    first = next(
        iter(convolutions((*(case.form.parts[0].edge if case.form.parts else case.form.end),))), None
    )
    common = Content(
        parameters=case.parameters,
        depth=_depth(case.form, case.fit),
        stages=_stages(case),
        classes=linear.out_features if linear else None,
        in_chans=first.in_channels if first else None,
    )
    return _with_description(common, case) if case.fit else common


def _with_description(common: Content, case: Case) -> Content:
    assert case.fit is not None  # noqa: S101 - the caller asked
    network = case.fit.network
    branch = network.unit.branch
    aggregated = isinstance(branch, Aggregated)
    return replace(
        common,
        family=family(network),
        arrangement=case.fit.arrangement or "other",
        alternatives=case.fit.equals,
        branch=type(branch).__name__.lower(),
        cardinality=branch.cardinality if isinstance(branch, Aggregated) else None,
        d=branch.path_width(network.stages[0].width) if isinstance(branch, Aggregated) else None,
        widen=None if aggregated else getattr(branch, "widen", None),
        stride_on=getattr(branch, "stride_on", None),
        shortcut=str(network.unit.h),
        option=option(network),
        stem=words(case.form.parts[0].edge),
    )


def family(network: Network) -> str:
    """The papers' word for a network: plain, ResNeXt, wide, v2 (pre-activation) or v1."""
    if isinstance(network.unit.h, Zero):
        return "plain"
    if isinstance(network.unit.branch, Aggregated):
        return "ResNeXt"
    if getattr(network.unit.branch, "widen", 1) > 1:
        return "wide"
    return "v2 (pre-activation)" if network.unit.arrangement.before else "v1"


def _depth(form: Form, fitted: Fit | None) -> int:
    """Weight layers, shortcuts left out."""
    stem = form.parts[0].edge if form.parts else ()
    if fitted and len(list(convolutions(stem))) == 1:
        return fitted.network.depth
    units = sum(len(_longest(part.F)) for part in form.parts)
    linear = sum(isinstance(step, Linear) for step in form.end)
    return len(_longest(stem)) + units + len(_longest(form.end)) + linear


def _longest(steps: tuple[object, ...]) -> list[object]:
    found: list[object] = []
    for step in steps:
        if isinstance(step, op.Conv):
            found.append(step)
        elif isinstance(step, op.Paths):
            found.extend(convolutions(step.paths[0]))
    return found


def _stages(case: Case) -> tuple[FoundStage, ...]:
    if case.cores is None:
        return ()
    widths = (
        [stage.width for stage in case.fit.network.stages] if case.fit else [None] * len(case.cores.starts)
    )
    firsts = zip(widths, case.cores.counts, case.cores.first_of_stages, strict=True)
    return tuple(FoundStage(count, width, core.inner, core.out, core.stride) for width, count, core in firsts)
