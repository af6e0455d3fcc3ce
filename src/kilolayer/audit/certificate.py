"""What an audit says of a network's function: identical, permuted, different, or not proven, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from kilolayer.audit.audit_report import AuditFinding, NearestNetwork, Severity
from kilolayer.audit.canonical import canonical_description
from kilolayer.audit.comparison import FunctionProof
from kilolayer.audit.context import AuditContext
from kilolayer.audit.dataflow import DataflowGraph
from kilolayer.audit.proof import prove_identity
from kilolayer.audit.rules import by_severity, collect_findings
from kilolayer.audit.trace import Trace
from kilolayer.networks.description import Network
from kilolayer.units.arrangement import ARRANGEMENTS
from kilolayer.units.branch import Aggregated

# Findings that concern a network's name or size, not what its layers do.
NOT_OF_FUNCTION = ("label", "widths", "option-b", "stem")

CERTIFIED = ("identical", "permuted")


def with_proof(
    nearest: NearestNetwork | None,
    context: AuditContext,
    model: nn.Module,
    traced: Trace,
    graph: DataflowGraph,
) -> tuple[NearestNetwork | None, AuditContext, tuple[AuditFinding, ...]]:
    """The nearest network with what is proven of its function; the context; the findings with the proof's.

    A network whose function is proven has the findings of the described one, in whatever way it is written.
    """
    findings = collect_findings(context)
    if nearest is None or context.fit is None or context.nearest is None:
        return nearest, context, findings
    described = _described(context)
    has_other_sizes = not context.unused and described.parameters != context.parameters
    proof = (
        FunctionProof("different", "; ".join(nearest.differences))
        if nearest.differences and has_other_sizes
        else prove_identity(model, traced, graph, described)
    )
    if nearest.differences and proof.word == "different":
        reason = "; ".join(nearest.differences)
        notes = [] if findings else [AuditFinding("note", "function", f"not {nearest.name}: it has {reason}")]
        return replace(nearest, function="different", reason=reason), context, (*findings, *notes)
    nearest = replace(
        nearest,
        identical={"identical": True, "not proven": None}.get(proof.word, False),
        function=proof.word,
        reason=proof.reason,
        permutation=dict(proof.permutation),
        sides=proof.sides,
        remarks=proof.remarks,
    )
    if proof.word in CERTIFIED:
        nearest = replace(nearest, differences=())
        as_described = _read_as(context, described)
        findings = collect_findings(as_described)
        context = as_described if context.holds_unread_layers else context
    explained = any(
        finding.severity != "note" and finding.code not in NOT_OF_FUNCTION for finding in findings
    )
    findings = by_severity([*findings, *_proof_findings(proof, nearest.name, explained=explained)])
    return nearest, context, findings


def _read_as(context: AuditContext, described: Network) -> AuditContext:
    """The context of a network that is proven to be `described`."""
    assert context.fit is not None  # noqa: S101 - the caller asked
    canonical = canonical_description(described)
    is_as_read = context.fit.network == described and context.fit.canonical == canonical
    arrangement = described.unit.arrangement
    name = next((name for name, layers in ARRANGEMENTS.items() if layers == arrangement), None)
    return replace(
        context,
        canonical=canonical,
        traced=replace(
            context.traced, units=tuple(replace(unit, remarks=()) for unit in context.traced.units)
        ),
        fit=context.fit
        if is_as_read
        else replace(context.fit, network=described, canonical=canonical, arrangement=name, exact=True),
    )


def _described(context: AuditContext) -> Network:
    """The nearest network with the classes, channels and form of the audited one."""
    assert context.fit is not None and context.nearest is not None  # noqa: S101, PT018 - the caller asked
    network, nearest = context.fit.network, context.nearest.network
    branch = nearest.unit.branch
    if isinstance(branch, Aggregated) and isinstance(network.unit.branch, Aggregated):
        branch = replace(branch, form=network.unit.branch.form)
    return replace(
        nearest,
        num_classes=network.num_classes,
        in_chans=network.in_chans,
        unit=replace(nearest.unit, branch=branch),
    )


def _proof_findings(proof: FunctionProof, name: str, *, explained: bool) -> Iterator[AuditFinding]:
    """What the proof adds to the rules' findings; a difference that they told already is not told twice."""
    if proof.word == "different" and (proof.is_gradient or not explained):
        severity: Severity = "fault" if proof.is_gradient else "deviation"
        yield AuditFinding(severity, "function", proof.reason, "", f"{name}, with the same weights")
    elif proof.word == "permuted":
        layers = len(proof.permutation)
        yield AuditFinding(
            "note", "permutation", f"it is {name} up to the order of the channels at {layers} places",
            next(iter(proof.permutation)),
        )  # fmt: skip
    elif proof.word == "not proven" and not explained:
        yield AuditFinding(
            "note", "not-proven", f"that it computes what {name} computes is not proven: {proof.reason}"
        )
