"""An audit as a short report on the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from kilolayer.audit import AuditReport, NearestNetwork, NetworkContent
from kilolayer.system.terminal import print_text
from kilolayer.units.arrangement import ARRANGEMENTS

FIGURE_4_LETTERS = dict(zip(ARRANGEMENTS, "abcde", strict=False))
"""P2, Fig. 4; an arrangement that was added to the five has no letter."""


OUTCOMES = {
    "identical": "; it computes what {name} computes",
    "permuted": "; it computes what {name} computes, with its channels in another order",
    "different": ", but it does not compute what {name} computes",
    "not proven": ", but that it computes what {name} computes is not proven",
}


def print_audit(report: AuditReport) -> None:
    """Prints what the network is, our nearest network, the findings, and what remains unknown."""
    for line in _lines(report):
        print_text(line, hanging=12 if line.startswith("  ") else 4)


def _lines(report: AuditReport) -> Iterator[str]:
    how = "traced" if report.source == "traced" else "from the shapes of its weights"
    yield f"{report.label} ({how}): {_finding(report)}"
    for name, value in _rows(report.content, traced=report.source == "traced"):
        yield f"  {name:<12}{value}"
    if report.nearest:
        yield f"  {'nearest':<12}{_nearest(report.nearest)}"
        for remark in report.nearest.remarks:
            yield f"  {'':<12}{remark}"
    yield ""
    for finding in report.findings:
        where = f" [{finding.where}]" if finding.where else ""
        yield f"{finding.severity}: {finding.what}{where}"
        if finding.paper:
            yield f"    the papers: {finding.paper}"
    heading = "cannot be told from weights" if report.source == "shapes" else "unknown"
    for unknown in report.unknown:
        yield f"{heading}: {unknown}"
    yield ", ".join(
        _counted_noun(_count_severity(report, kind), kind) for kind in ("fault", "deviation", "note")
    )


def _finding(report: AuditReport) -> str:
    """The outcome in a sentence: whether results with this network can be compared with a paper's."""
    faults, deviations = _count_severity(report, "fault"), _count_severity(report, "deviation")
    if faults:
        return f"{_counted_noun(faults, 'fault')}, so it is not the network that the papers describe."
    if deviations and report.nearest:
        count = _counted_noun(deviations, "deviation")
        return f"no fault, but {count} from the papers, to be named with its results."
    if report.nearest and report.source == "traced":
        return f"no fault found{OUTCOMES[report.nearest.function].format(name=report.nearest.name)}."
    if report.outcome == "nothing told" and report.source == "shapes":
        return "nothing told: its weights do not show which network they are."
    if report.outcome == "nothing told":
        return "no residual network of the papers, so nothing was compared."
    if report.source == "shapes":
        return "no fault in what weights show; the rest cannot be told from weights."
    return "no fault found, as far as the audit can tell."


def _count_severity(report: AuditReport, severity: str) -> int:
    return sum(finding.severity == severity for finding in report.findings)


def _counted_noun(number: int, word: str) -> str:
    return f"{number or 'no'} {word}{'' if number == 1 else 's'}"


def _rows(content: NetworkContent, *, traced: bool) -> Iterator[tuple[str, str]]:
    if content.family:
        yield "family", content.family
    if content.structure:
        yield "structure", content.structure
    if content.arrangement:
        yield "arrangement", _arrangement(content, traced=traced)
    if content.branch:
        yield "unit", _unit(content)
    if content.shortcut:
        option = f"; option {content.option} where the shape changes" if content.option in ("A", "B") else ""
        yield "shortcut", f"{content.shortcut}{option or '; option C' * (content.option == 'C')}"
    if content.depth is not None:
        how = "counted as the papers do" if content.family else "on the longest path"
        yield "depth", f"{content.depth} weight layers, {how}"
    if content.stem:
        yield "stem", content.stem
    if content.stages:
        stages = "; ".join(_stage(s.units, s.inner, s.channels, s.stride) for s in content.stages)
        yield "stages", stages
    if content.classes:
        yield "classes", str(content.classes)
    if content.outputs:
        yield "outputs", "; ".join(content.outputs)
    yield "parameters", f"{content.parameters:,}"


def _arrangement(content: NetworkContent, *, traced: bool) -> str:
    name = content.arrangement or ""
    letter = f" (P2, Fig. 4 {FIGURE_4_LETTERS[name]})" if name in FIGURE_4_LETTERS else ""
    equivalents = ", ".join(alternative.replace("_", " ") for alternative in content.alternatives)
    how = "here the same function as" if traced else "shapes would also allow"
    return name.replace("_", " ") + letter + (f"; {how} {equivalents}" if equivalents else "")


def _unit(content: NetworkContent) -> str:
    cardinality = f" {content.cardinality}×{content.d}d" if content.cardinality else ""
    wide = f", {content.widen} times as wide" if (content.widen or 1) > 1 else ""
    stride = f", stride on the {content.stride_on.replace('x', '×')}" if content.stride_on else ""
    return f"{content.branch}{cardinality}{wide}{stride}"


def _stage(units: int, inner: int, channels: int, stride: int | None) -> str:
    width = str(channels) if inner == channels else f"{inner}→{channels}"
    return f"{units} × {width}" + (f" /{stride}" if stride and stride > 1 else "")


def _nearest(nearest: NearestNetwork) -> str:
    choices = "".join(
        f", {key}={value}" for group in nearest.choices.values() for key, value in group.items()
    )
    return f"{nearest.name}{choices}: {_function(nearest)}; it has {nearest.parameters:,} parameters"


def _function(nearest: NearestNetwork) -> str:
    """What is proven of the function, with the reason."""
    match nearest.function:
        case "identical":
            return "identical in function"
        case "permuted":
            return f"equal up to a permutation of channels ({_permutation(nearest.permutation)})"
        case "different":
            return f"not identical: {nearest.reason}"
        case "not proven":
            return f"not proven: {nearest.reason}"
        case _:
            differences = f"; {'; '.join(nearest.differences)}" if nearest.differences else ""
            return f"whether identical in function cannot be told from weights{differences}"


def _permutation(permutation: dict[str, tuple[int, ...]]) -> str:
    """The first permutation, and at how many places there is one."""
    place, order = next(iter(permutation.items()))
    shown = ", ".join(map(str, order[:8])) + (" …" if len(order) > 8 else "")
    more = f"; {len(permutation)} places, all in --json" if len(permutation) > 1 else ""
    return f"{place}: {shown}{more}"
