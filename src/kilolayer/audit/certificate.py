"""What an audit says of a network's function: identical, permuted, different, or not proven, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from kilolayer.audit.audit_report import AuditFinding, NearestNetwork, Severity
from kilolayer.audit.comparison import FunctionProof
from kilolayer.audit.context import AuditContext
from kilolayer.audit.dataflow import DataflowGraph
from kilolayer.audit.proof import prove_identity
from kilolayer.audit.rules import by_severity, collect_findings
from kilolayer.audit.trace import Trace
from kilolayer.networks.description import Network
from kilolayer.units.branch import Aggregated

# Findings that concern a network's name or size, not what its layers do.
NOT_OF_FUNCTION = ("label", "widths", "option-b", "stem")

# Findings that say how layers were read; where the function is proven, they were written in another way only.
OF_READING = ("layer", "unit", "end", "head", "shortcut")


def with_proof(
    nearest: NearestNetwork | None,
    context: AuditContext,
    model: nn.Module,
    traced: Trace,
    graph: DataflowGraph,
) -> tuple[NearestNetwork | None, tuple[AuditFinding, ...]]:
    """The nearest network with what is proven of its function, and the findings with the proof's."""
    findings = collect_findings(context)
    if nearest is None or context.fit is None or context.nearest is None:
        return nearest, findings
    if nearest.differences:
        reason = "; ".join(nearest.differences)
        notes = [] if findings else [AuditFinding("note", "function", f"not {nearest.name}: it has {reason}")]
        return replace(nearest, function="different", reason=reason), (*findings, *notes)
    proof = prove_identity(model, traced, graph, _described(context))
    nearest = replace(
        nearest,
        identical={"identical": True, "not proven": None}.get(proof.word, False),
        function=proof.word,
        reason=proof.reason,
        permutation=dict(proof.permutation),
    )
    if proof.word in ("identical", "permuted"):
        findings = tuple(
            finding for finding in findings if finding.severity == "note" or finding.code not in OF_READING
        )
    explained = any(
        finding.severity != "note" and finding.code not in NOT_OF_FUNCTION for finding in findings
    )
    return nearest, by_severity([*findings, *_proof_findings(proof, nearest.name, explained=explained)])


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
