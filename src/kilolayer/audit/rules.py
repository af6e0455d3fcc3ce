"""The auditor's rules: one function for each kind of finding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from kilolayer.audit.audit_report import AuditFinding, Severity
from kilolayer.audit.canonical import convolutions
from kilolayer.audit.context import AuditContext, layers_text
from kilolayer.audit.layer_reader import AVERAGE_POOLING, LinearLayer, OtherLayer, operator_words
from kilolayer.audit.nearest import (
    branch_words,
    by_first_stage,
    comma_separated,
    shortcut_option,
    single_path,
    stem_words,
)
from kilolayer.audit.network_label import NetworkLabel, label_base
from kilolayer.networks.description import Network, Stem
from kilolayer.units.branch import Aggregated, Basic, Bottleneck
from kilolayer.units.shortcut import Zero


def label_findings(context: AuditContext) -> Iterator[AuditFinding]:
    """Contradictions between name and network: depth, block, arrangement, cardinality, width."""
    label, fit = context.label, context.fit
    if label is None:
        return
    if fit is None:
        yield from _label_without_units(context, label)
        return
    actual, expected = [], []
    for is_so, expectation in _contradictions(label, fit.network):
        actual.append(is_so)
        expected.append(expectation)
    ours = label.network(len(fit.network.stages))
    if actual:
        parameter_count = f"; {ours.parameters:,} parameters" if ours else ""
        text = f"calls itself {label.text}, but {' and '.join(actual)}; {context.parameters:,} parameters"
        yield AuditFinding(
            "fault",
            "label",
            text,
            "",
            f"the network of that name has {' and '.join(expected)}{parameter_count}",
        )


def _label_without_units(context: AuditContext, label: NetworkLabel) -> Iterator[AuditFinding]:
    """A residual network's name on a network in which no two paths are added."""
    if (
        context.additions == 0
        and context.traced.units == ()
        and label_base(label.text) == "papers"
        and not label.plain
    ):
        text = f"calls itself {label.text}, but nothing is added to anything in it"
        paper = "a residual network adds its shortcuts (P1, Eq. 1)"
        if context.unread_joins:
            words = " and ".join(map(operator_words, context.unread_joins))
            text = f"calls itself {label.text}; no addition is read in it, and maps meet in {words}"
        yield AuditFinding("note" if context.unread_joins else "fault", "label", text, "", paper)


def _contradictions(label: NetworkLabel, network: Network) -> Iterator[tuple[str, str]]:
    """Pairs in words: what the network has, and what its name says."""
    branch = by_first_stage(network)
    stages = len(network.stages)
    if label.counts_depth and label.depth != network.depth:
        yield f"has {network.depth} layers", f"{label.depth} layers"
    named_network = label.network(stages) if label.claims_block(stages) else None
    block = single_path(named_network.unit.branch) if named_network else branch
    if label.aggregated and not label.cardinality and not isinstance(branch, Aggregated):
        yield f"is made of {branch_words(branch)}", "aggregated bottlenecks"
    elif named_network and type(block) is not type(branch) and not _is_named_variant(label, network):
        yield f"is made of {branch_words(branch)}", f"{branch_words(named_network.unit.branch)} units"
    if label.plain and not isinstance(network.unit.h, Zero):
        yield "has shortcuts", "none"
    before = bool(network.unit.arrangement.before)
    if label.preact and not before and network.unit.arrangement.f[:1] != ("BN",):
        yield "is not pre-activated", "full pre-activation"
    paths_and_width = (branch.cardinality, branch.d) if isinstance(branch, Aggregated) else (1, 64)
    is_bottleneck = isinstance(branch, (Aggregated, Bottleneck))
    if label.cardinality and is_bottleneck and paths_and_width != (label.cardinality, label.d):
        yield f"is {paths_and_width[0]}×{paths_and_width[1]}d", f"{label.cardinality}×{label.d}d"
    elif label.cardinality and not is_bottleneck:
        yield f"is made of {branch_words(branch)}", f"aggregated bottlenecks {label.cardinality}×{label.d}d"
    # A wide stem hides the factor in the width of the stages.
    wide = getattr(branch, "widen", 0) * network.stages[0].width
    if label.widen and wide and wide != label.widen * (16 if stages < 4 else 64):
        yield f"is {wide} channels wide in stage 1", f"{label.widen} times the papers' width"


def _is_named_variant(label: NetworkLabel, network: Network) -> bool:
    """Whether the label asks for a variant, as "_bottleneck", that the network is."""
    words = ("_basic", "_bottleneck", "_onelayer")
    requested = [word for word in words if word.strip("_") in label.text.lower()]
    variants = [label.network(len(network.stages), word) for word in requested]
    return any(variant and type(variant.unit.branch) is type(network.unit.branch) for variant in variants)


def collect_findings(context: AuditContext) -> tuple[AuditFinding, ...]:
    """Faults first, then deviations, then notes."""
    return by_severity(finding for rule in RULES for finding in rule(context))


def by_severity(findings: Iterable[AuditFinding]) -> tuple[AuditFinding, ...]:
    """The findings in order: faults first, then deviations, then notes."""
    order: list[Severity] = ["fault", "deviation", "note"]
    return tuple(sorted(findings, key=lambda finding: order.index(finding.severity)))


def _no_addition(context: AuditContext) -> Iterator[AuditFinding]:
    if not context.canonical.units:
        yield AuditFinding(
            "note", "no-residual-addition", "no residual addition found on the way from image to logits"
        )
    elif context.fit is None:
        kernels = [tuple(conv.kernel for conv in convolutions(unit.F)) for unit in context.canonical.units]
        usual = Counter(kernels).most_common(1)[0][0]
        kernels_text = " ".join(f"{kernel}×{kernel}" for kernel in usual)
        most = f": most have convolutions {kernels_text}" if kernels_text else ""
        yield AuditFinding(
            "note", "unit", f"its units are none of the papers'{most}",
            context.unit_names([0]), "3×3 3×3, or 1×1 3×3 1×1 with four times the width behind (P1, Fig. 5)",
        )  # fmt: skip


def _biases(context: AuditContext) -> Iterator[AuditFinding]:
    num_convolutions, biased = 0, []
    for i, unit in enumerate(context.canonical.units):
        unit_convolutions = list(convolutions((*unit.edge, *unit.h, *unit.F)))
        num_convolutions += len(unit_convolutions)
        biased += [i] * sum(conv.bias for conv in unit_convolutions)
    if biased and context.fit:
        yield AuditFinding(
            context.fault_or_deviation, "biased-convolutions",
            f"{len(biased)} of {num_convolutions} convolutions have a bias",
            context.unit_names(list(dict.fromkeys(biased))), "no convolution has a bias: BN's β replaces it",
        )  # fmt: skip


def _final(context: AuditContext) -> Iterator[AuditFinding]:
    if context.lacks_final_activation():
        yield AuditFinding(
            context.fault_or_deviation, "no-final-activation", "no BN-ReLU after the last addition",
            "before the pooling", "a pre-activation network ends in one more activation (P2, Sec. 4)",
        )  # fmt: skip


def _raw_projections(context: AuditContext) -> Iterator[AuditFinding]:
    indices = context.raw_projections()
    if indices:
        yield AuditFinding(
            context.fault_or_deviation, "raw-projection", "projection shortcuts read the raw tensor",
            context.unit_names(indices),
            "the projection reads the pre-activated tensor (P2, Sec. 4, released code)",
        )  # fmt: skip


def _stem_activation(context: AuditContext) -> Iterator[AuditFinding]:
    paper = "the first activation follows the stem, before the split (P2, Sec. 4)"
    if not context.canonical.units:
        return
    if context.first_reads_raw_stem():
        text = "the first shortcut starts from the un-activated stem convolution"
        yield AuditFinding(context.fault_or_deviation, "raw-stem", text, context.unit_names([0]), paper)
    elif context.activates_stem_twice():
        text = "the stem is activated, and the first unit activates it again"
        yield AuditFinding("deviation", "activated-twice", text, context.unit_names([0]), paper)


def _widths(context: AuditContext) -> Iterator[AuditFinding]:
    if context.fit is None or context.branch_shapes is None:
        return
    network = context.fit.network
    widths = [stage.width for stage in network.stages]
    aggregated = isinstance(network.unit.branch, Aggregated)
    base = 64 if aggregated or len(widths) > 3 else 16
    papers = [base << i for i in range(len(widths))]
    if widths == papers:
        return
    doubling = widths == [widths[0] << i for i in range(len(widths))]
    claims = context.fault_or_deviation == "fault" and label_base(context.text) == "papers"
    severity: Severity = "fault" if claims and (aggregated or not doubling) else "deviation"
    inner = [shape.inner for shape in context.branch_shapes.first_of_stages]
    outer = [shape.out for shape in context.branch_shapes.first_of_stages]
    text = (
        f"stage widths {comma_separated(widths)} "
        f"(inner {comma_separated(inner)}, output {comma_separated(outer)}), "
        f"so {context.parameters:,} parameters"
    )
    wrong = [i for i, (a, b) in enumerate(zip(widths, papers, strict=True)) if a != b]
    where = ", ".join(f"stage {i + 1}" for i in wrong)
    counted = (
        f"; {context.nearest.name} has {context.nearest.network.parameters:,} parameters"
        if context.nearest
        else ""
    )
    yield AuditFinding(
        severity, "widths", text, where, f"{comma_separated(papers)}, doubling from stage to stage{counted}"
    )


def _option(context: AuditContext) -> Iterator[AuditFinding]:
    if context.fit is None:
        return
    network = context.fit.network
    narrow = isinstance(network.unit.branch, Basic) and network.unit.branch.widen == 1
    if len(network.stages) == 3 and narrow and shortcut_option(network) == "B":
        yield AuditFinding(
            "deviation", "option-b", "option B: projections where the shape changes", "",
            "the CIFAR networks of basic units use option A, free of parameters (P1, Sec. 4.2)",
        )  # fmt: skip


def _stem(context: AuditContext) -> Iterator[AuditFinding]:
    if context.fit is None:
        return
    network = context.fit.network
    cifar = len(network.stages) <= 3
    wide = 64 if isinstance(network.unit.branch, Aggregated) else 16
    papers = Stem(wide) if cifar else Stem(64, 7, 2, pool=True)
    is_papers_stem = (papers.kernel, papers.stride, papers.pool) == (
        network.stem.kernel, network.stem.stride, network.stem.pool,
    )  # fmt: skip
    convs = [layer.kernel for layer in convolutions(context.canonical.units[0].edge)]
    if not is_papers_stem or convs != [papers.kernel]:
        many = f" in {len(convs)} convolutions" if len(convs) > 1 else ""
        kind = "CIFAR" if cifar else "ImageNet"
        expected = f"{papers.kernel}×{papers.kernel}, stride {papers.stride}{', max-pooling' * papers.pool}"
        yield AuditFinding(
            "deviation", "stem", f"stem {stem_words(network)}{many}", "", f"{kind}: {expected}"
        )


def _unknown_layers(context: AuditContext) -> Iterator[AuditFinding]:
    if context.fit is None:  # what it is says its structure
        return
    counted: Counter[str] = Counter()
    where: dict[str, list[int]] = {}
    for i, unit in enumerate(context.canonical.units):
        for layer in (*unit.edge, *unit.h, *unit.F, *unit.g):
            if isinstance(layer, OtherLayer):
                counted[layer.text] += 1
                where.setdefault(layer.text, []).append(i)
    for text, count in counted.items():
        names = context.unit_names(list(dict.fromkeys(where[text])))
        yield AuditFinding("deviation", "layer", f"{count} × {text}", names, "not in the papers' units")
    for layer in context.final_layers:
        if isinstance(layer, OtherLayer):
            yield AuditFinding(
                "deviation", "layer", layer.text, "after the last addition", "not in the papers' networks"
            )


def _remarks(context: AuditContext) -> Iterator[AuditFinding]:
    where: dict[str, list[int]] = {}
    for i, unit in enumerate(context.traced.units):
        for remark in unit.remarks:
            where.setdefault(remark, []).append(i)
    for remark, indices in where.items():
        severity: Severity = "note" if "zero channels" in remark else "deviation"
        yield AuditFinding(severity, "shortcut", remark, context.unit_names(indices))


def _head(context: AuditContext) -> Iterator[AuditFinding]:
    """What stands behind the pooling, where the papers have one fully-connected layer."""
    if context.fit is None:
        return
    if not any(isinstance(layer, LinearLayer) for layer in context.canonical.tail):
        yield AuditFinding("note", "no-classifier", "there is no fully-connected layer behind the pooling")
        return
    head = context.canonical.tail[len(context.final_layers) :]
    match head:
        case (pooling, LinearLayer(bias=True)) if pooling == AVERAGE_POOLING and context.has_one_output:
            return
    texts = [
        layers_text((layer,)) + " without bias" * (isinstance(layer, LinearLayer) and not layer.bias)
        for layer in head
    ]
    yield AuditFinding(
        "deviation", "head", f"behind the last activation there is {', '.join(texts)}", "",
        "global average pooling and one fully-connected layer (P1, Sec. 3.3)",
    )  # fmt: skip


def _shared_weights(context: AuditContext) -> Iterator[AuditFinding]:
    if context.fit is not None and context.shared:
        names = ", ".join(context.shared[:3]) + (" …" if len(context.shared) > 3 else "")
        text = f"{len(context.shared)} weights are each used by several layers"
        yield AuditFinding("deviation", "shared-weights", text, names, "every layer has weights of its own")


def _decisions(context: AuditContext) -> Iterator[AuditFinding]:
    if context.fit is not None and context.decides:
        yield AuditFinding(
            "deviation", "decides", "its code reads values of the image: the trace shows one of its ways", "",
            "the layers are the same for every image",
        )  # fmt: skip


def _idle_parameters(context: AuditContext) -> Iterator[AuditFinding]:
    if context.unused:
        names = ", ".join(context.unused[:3]) + (" …" if len(context.unused) > 3 else "")
        yield AuditFinding("note", "unused", f"{len(context.unused)} parameter tensors are never used", names)


def _other_unit_differences(context: AuditContext) -> Iterator[AuditFinding]:
    """Differences between units and description that no other rule reports."""
    if context.fit is None:
        return
    explained = {*context.raw_projections()}
    if context.first_reads_raw_stem() or context.activates_stem_twice():
        explained.add(0)
    different: dict[str, list[int]] = {}
    pairs = zip(context.canonical_without_biases.units, context.fit.canonical.units, strict=True)
    for i, (unit, expected) in enumerate(pairs):
        if i in explained or any(isinstance(layer, OtherLayer) for layer in (*unit.edge, *unit.h, *unit.F)):
            continue
        for letter in ("edge", "h", "F", "g"):
            a, b = getattr(unit, letter), getattr(expected, letter)
            if a != b and not (
                letter == "edge" and i == 0 and list(convolutions(a)) != list(convolutions(b))
            ):
                subject = {"edge": "before the split there is"}.get(letter, f"{letter} is")
                different.setdefault(f"{subject} {layers_text(a)}; expected {layers_text(b)}", []).append(i)
    for text, indices in different.items():
        yield AuditFinding("deviation", "unit", text, context.unit_names(indices))
    yield from _other_end_differences(context)


def _other_end_differences(context: AuditContext) -> Iterator[AuditFinding]:
    if context.fit is None or context.lacks_final_activation():
        return
    expected_tail = context.fit.canonical.tail
    expected = expected_tail[: expected_tail.index(AVERAGE_POOLING)]
    if context.final_layers != expected and not any(
        isinstance(layer, OtherLayer) for layer in context.final_layers
    ):
        actual = layers_text(context.final_layers)
        text = f"after the last addition there is {actual}; expected {layers_text(expected)}"
        yield AuditFinding("deviation", "end", text)


RULES: tuple[Callable[[AuditContext], Iterator[AuditFinding]], ...] = (
    label_findings, _no_addition, _biases, _final, _raw_projections, _stem_activation, _widths, _option,
    _stem, _unknown_layers, _remarks, _head, _shared_weights, _decisions, _idle_parameters,
    _other_unit_differences,
)  # fmt: skip
