"""The label against the content."""

from __future__ import annotations

from collections.abc import Iterator

from kilolayer.audit.audit_report import AuditFinding
from kilolayer.audit.context import AuditContext
from kilolayer.audit.nearest import branch_words, by_first_stage, single_path
from kilolayer.audit.network_label import NetworkLabel
from kilolayer.networks.description import Network
from kilolayer.units.branch import Aggregated


def label_findings(context: AuditContext) -> Iterator[AuditFinding]:
    """Where the name says otherwise than the network: depth, block, arrangement, cardinality, width."""
    label, fit = context.label, context.fit
    if label is None or fit is None:
        return
    wrong, papers = [], []
    for is_so, should in _contradictions(label, fit.network):
        wrong.append(is_so)
        papers.append(should)
    ours = label.network(len(fit.network.stages))
    if wrong:
        known = f"; {ours.parameters:,} parameters" if ours else ""
        what = f"calls itself {label.text}, but {' and '.join(wrong)}; {context.parameters:,} parameters"
        yield AuditFinding(
            "fault", "label", what, "", f"the network of that name has {' and '.join(papers)}{known}"
        )


def _contradictions(label: NetworkLabel, network: Network) -> Iterator[tuple[str, str]]:
    """Pairs in words: what it has, what its name says."""
    branch = by_first_stage(network)
    if label.depth != network.depth:
        yield f"has {network.depth} layers", f"{label.depth} layers"
    named = label.network(len(network.stages))
    block = single_path(named.unit.branch) if named else branch
    if named and type(block) is not type(branch) and not _named_variant(label, network):
        yield f"is made of {branch_words(branch)}", f"{branch_words(named.unit.branch)} units"
    before = bool(network.unit.arrangement.before)
    if label.preact and not before and network.unit.arrangement.f[:1] != ("BN",):
        yield "is not pre-activated", "full pre-activation"
    found = (branch.cardinality, branch.d) if isinstance(branch, Aggregated) else (1, 64)
    if label.cardinality and type(block) is type(branch) and found != (label.cardinality, label.d):
        yield f"is {found[0]}×{found[1]}d", f"{label.cardinality}×{label.d}d"


def _named_variant(label: NetworkLabel, network: Network) -> bool:
    """Whether another of the name's blocks, at the same depth, is what was found."""
    words = ("_basic", "_bottleneck", "_onelayer")
    asked = [word for word in words if word.strip("_") in label.text.lower()]
    made = [label.network(len(network.stages), word) for word in asked]
    return any(each and type(each.unit.branch) is type(network.unit.branch) for each in made)
