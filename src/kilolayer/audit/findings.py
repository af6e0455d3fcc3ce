"""What is not as the papers have it: one function for each kind of finding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from kilolayer.audit.case import Case, words
from kilolayer.audit.content import Finding, Severity
from kilolayer.audit.forms import convolutions
from kilolayer.audit.labelled import label_findings
from kilolayer.audit.nearest import option, stem_words
from kilolayer.audit.steps import AVERAGE, Linear, Other
from kilolayer.networks.description import Stem
from kilolayer.units.branch import Aggregated, Basic


def findings(case: Case) -> tuple[Finding, ...]:
    """Faults first, then deviations, then notes."""
    order: list[Severity] = ["fault", "deviation", "note"]
    every = [finding for rule in RULES for finding in rule(case)]
    return tuple(sorted(every, key=lambda finding: order.index(finding.severity)))


def _no_addition(case: Case) -> Iterator[Finding]:
    if not case.form.parts:
        yield Finding(
            "note", "no-residual-addition", "no residual addition found on the way from image to logits"
        )
    elif case.fit is None:
        kernels = [tuple(conv.kernel for conv in convolutions(part.F)) for part in case.form.parts]
        usual = Counter(kernels).most_common(1)[0][0]
        shown = " ".join(f"{kernel}×{kernel}" for kernel in usual) or "none"
        yield Finding(
            "deviation", "unit", f"its units are none of the papers': convolutions {shown}",
            case.names([0]), "3×3 3×3, or 1×1 3×3 1×1 with four times the width behind (P1, Fig. 5)",
        )  # fmt: skip


def _biases(case: Case) -> Iterator[Finding]:
    every, biased = 0, []
    for i, part in enumerate(case.form.parts):
        here = list(convolutions((*part.edge, *part.h, *part.F)))
        every += len(here)
        biased += [i] * sum(conv.bias for conv in here)
    if biased:
        # Other families of networks, as ConvNeXt, are no faulty ResNets.
        severity: Severity = "fault" if case.fit else "deviation"
        yield Finding(
            severity, "biased-convolutions", f"{len(biased)} of {every} convolutions have a bias",
            case.names(list(dict.fromkeys(biased))), "no convolution has one: BN's β does its work",
        )  # fmt: skip


def _final(case: Case) -> Iterator[Finding]:
    if case.lacks_final():
        yield Finding(
            "fault", "no-final-activation", "no BN-ReLU after the last addition",
            "before the pooling", "a pre-activation network ends in one more activation (P2, Sec. 4)",
        )  # fmt: skip


def _raw_projections(case: Case) -> Iterator[Finding]:
    places = case.raw_projections()
    if places:
        yield Finding(
            "fault", "raw-projection", "projection shortcuts read the raw tensor",
            case.names(places), "the projection reads the pre-activated tensor (P2, Sec. 4, released code)",
        )  # fmt: skip


def _stem_activation(case: Case) -> Iterator[Finding]:
    paper = "the first activation stands behind the stem, before the split (P2, Sec. 4)"
    if not case.form.parts:
        return
    if case.first_from_raw_stem():
        what = "the first shortcut starts from the un-activated stem convolution"
        yield Finding("fault", "raw-stem", what, case.names([0]), paper)
    elif case.activated_twice():
        what = "the stem is activated, and the first unit activates once more"
        yield Finding("deviation", "activated-twice", what, case.names([0]), paper)


def _widths(case: Case) -> Iterator[Finding]:
    if case.fit is None or case.cores is None:
        return
    network = case.fit.network
    widths = [stage.width for stage in network.stages]
    aggregated = isinstance(network.unit.branch, Aggregated)
    base = 64 if aggregated or len(widths) > 3 else 16
    papers = [base << i for i in range(len(widths))]
    if widths == papers:
        return
    doubling = widths == [widths[0] << i for i in range(len(widths))]
    severity: Severity = "deviation" if doubling and not aggregated else "fault"
    inner = [each.inner for each in case.cores.first_of_stages]
    outer = [each.out for each in case.cores.first_of_stages]
    what = (
        f"stage widths {_listed(widths)} (inner {_listed(inner)}, output {_listed(outer)}), "
        f"so {case.parameters:,} parameters"
    )
    wrong = [i for i, (a, b) in enumerate(zip(widths, papers, strict=True)) if a != b]
    where = ", ".join(f"stage {i + 1}" for i in wrong)
    counted = f"; {case.near.name} has {case.near.network.parameters:,} parameters" if case.near else ""
    yield Finding(
        severity, "widths", what, where, f"{_listed(papers)}, doubling from stage to stage{counted}"
    )


def _option(case: Case) -> Iterator[Finding]:
    if case.fit is None:
        return
    network = case.fit.network
    narrow = isinstance(network.unit.branch, Basic) and network.unit.branch.widen == 1
    if len(network.stages) == 3 and narrow and option(network) == "B":
        yield Finding(
            "deviation", "option-b", "option B: projections where the shape changes", "",
            "the CIFAR networks of basic units use option A, free of parameters (P1, Sec. 4.2)",
        )  # fmt: skip


def _stem(case: Case) -> Iterator[Finding]:
    if case.fit is None:
        return
    network = case.fit.network
    cifar = len(network.stages) <= 3
    wide = 64 if isinstance(network.unit.branch, Aggregated) else 16
    papers = Stem(wide) if cifar else Stem(64, 7, 2, pool=True)
    same = (papers.kernel, papers.stride, papers.pool) == (
        network.stem.kernel, network.stem.stride, network.stem.pool,
    )  # fmt: skip
    convs = [step.kernel for step in convolutions(case.form.parts[0].edge)]
    if not same or convs != [papers.kernel]:
        many = f" in {len(convs)} convolutions" if len(convs) > 1 else ""
        kind = "CIFAR" if cifar else "ImageNet"
        expected = f"{papers.kernel}×{papers.kernel}, stride {papers.stride}{', max-pooling' * papers.pool}"
        yield Finding("deviation", "stem", f"stem {stem_words(network)}{many}", "", f"{kind}: {expected}")


def _others(case: Case) -> Iterator[Finding]:
    counted: Counter[str] = Counter()
    where: dict[str, list[int]] = {}
    for i, part in enumerate(case.form.parts):
        for step in (*part.edge, *part.h, *part.F, *part.g):
            if isinstance(step, Other):
                counted[step.what] += 1
                where.setdefault(step.what, []).append(i)
    for what, count in counted.items():
        names = case.names(list(dict.fromkeys(where[what])))
        yield Finding("deviation", "layer", f"{count} × {what}", names, "not in the papers' units")
    for step in case.end if case.form.parts else ():
        if isinstance(step, Other):
            yield Finding(
                "deviation", "layer", step.what, "after the last addition", "not in the papers' networks"
            )


def _remarks(case: Case) -> Iterator[Finding]:
    where: dict[str, list[int]] = {}
    for i, unit in enumerate(case.found.units):
        for remark in unit.remarks:
            where.setdefault(remark, []).append(i)
    for remark, places in where.items():
        severity: Severity = "note" if "zero channels" in remark else "deviation"
        yield Finding(severity, "shortcut", remark, case.names(places))


def _unused(case: Case) -> Iterator[Finding]:
    if case.unused:
        shown = ", ".join(case.unused[:3]) + (" …" if len(case.unused) > 3 else "")
        yield Finding("note", "unused", f"{len(case.unused)} parameter tensors are never used", shown)


def _rest(case: Case) -> Iterator[Finding]:
    """Units that differ from the description in what no other rule names."""
    if case.fit is None:
        return
    explained = {*case.raw_projections()}
    if case.first_from_raw_stem() or case.activated_twice():
        explained.add(0)
    different: dict[str, list[int]] = {}
    pairs = zip(case.plain_form.parts, case.fit.form.parts, strict=True)
    for i, (part, expected) in enumerate(pairs):
        if i in explained or any(isinstance(step, Other) for step in (*part.edge, *part.h, *part.F)):
            continue
        for letter in ("edge", "h", "F", "g"):
            a, b = getattr(part, letter), getattr(expected, letter)
            if a != b and not (
                letter == "edge" and i == 0 and list(convolutions(a)) != list(convolutions(b))
            ):
                told = {"edge": "ahead of the split stands"}.get(letter, f"{letter} is")
                different.setdefault(f"{told} {words(a)}; expected {words(b)}", []).append(i)
    for what, places in different.items():
        yield Finding("deviation", "unit", what, case.names(places))
    yield from _ends(case)


def _ends(case: Case) -> Iterator[Finding]:
    if case.fit is None or case.lacks_final():
        return
    rest = case.fit.form.end
    expected = rest[: rest.index(AVERAGE)]
    if case.end != expected and not any(isinstance(step, Other) for step in case.end):
        what = f"after the last addition stands {words(case.end)}; expected {words(expected)}"
        yield Finding("deviation", "end", what)
    if not any(isinstance(step, Linear) for step in case.form.end):
        yield Finding("note", "no-classifier", "there is no fully-connected layer behind the pooling")


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


RULES: tuple[Callable[[Case], Iterator[Finding]], ...] = (
    label_findings, _no_addition, _biases, _final, _raw_projections, _stem_activation, _widths, _option,
    _stem, _others, _remarks, _unused, _rest,
)  # fmt: skip
