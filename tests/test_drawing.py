"""Drawings show every layer once, and tables add up."""

from dataclasses import dataclass, fields, replace
from xml.etree import ElementTree

import pytest

from kilolayer.networks import describe, list_models
from kilolayer.networks.stage_table import stage_table
from kilolayer.report.lens.sentences import unit_equation
from kilolayer.report.unit_diagram import unit_diagram
from kilolayer.report.unit_svg import unit_svg
from kilolayer.report.unit_text import unit_text
from kilolayer.units import (
    AGGREGATED,
    ARRANGEMENTS,
    BASIC,
    BOTTLENECK,
    FULL_PREACT,
    Aggregated,
    Dropout,
    ExclusiveGate,
    Projection,
    Scaled,
    Shortcut,
    ShortcutGate,
    Zero,
    layout,
)
from kilolayer.units.field_checks import built_in_kinds
from kilolayer.units.ops import (
    MaxPool,
    NoReading,
    Op,
    multiply_adds,
    output_side,
    parameters,
)

UNITS = {
    **{name: replace(BASIC, arrangement=arrangement) for name, arrangement in ARRANGEMENTS.items()},
    "bottleneck": BOTTLENECK,
    "strided": layout(BASIC, 16, 32, 2),
    "projection": layout(replace(BOTTLENECK, arrangement=FULL_PREACT), 256, 128, 2),
    "option c": replace(BASIC, h=Projection()),
    "exclusive": replace(BASIC, h=ExclusiveGate(-6)),
    "exclusive, BN": replace(BASIC, h=ExclusiveGate(-6, batch_norm=True)),
    "shortcut-only": layout(replace(BASIC, h=ShortcutGate(-6)), 16, 32, 2),
    "scaled": replace(BASIC, h=Scaled(0.5, 0.5)),
    "dropout": replace(BASIC, h=Dropout(0.5)),
    "plain": replace(BASIC, h=Zero()),
    "grouped": AGGREGATED,
    "split": replace(AGGREGATED, branch=Aggregated(form="split")),
    "concatenated": replace(AGGREGATED, branch=Aggregated(form="concatenated")),
}
SVG = "{http://www.w3.org/2000/svg}"

ORIGINAL_TEXT = """\
  x
  │
  ├───────────╮
  │           │
  │     3×3, 64 → 64
  │           │
  │          BN
  │           │
  │         ReLU
  │           │
  │     3×3, 64 → 64
  │           │
  │          BN
  │           │
  ⊕───────────╯
  │
ReLU
  │
 x′"""


def parsed(svg):
    return ElementTree.fromstring(svg)  # noqa: S314 the text is ours


def labels(unit):
    drawn = unit_diagram(unit)
    return sorted(step.label for steps in (drawn.p, drawn.h, drawn.g, drawn.F, drawn.f) for step in steps)


def test_the_original_unit_in_text():
    assert unit_text(BASIC) == ORIGINAL_TEXT


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
def test_every_layer_is_drawn_once(unit):
    svg = parsed(unit_svg(unit))
    drawn = [group.find(f"{SVG}text").text for group in svg.iter(f"{SVG}g")]
    assert sorted(drawn) == labels(unit)
    text = unit_text(unit)
    for label in set(drawn):
        assert text.count(label) >= drawn.count(label)


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
def test_layers_follow_one_another_from_top_to_bottom(unit):
    text, drawn = unit_text(unit), unit_diagram(unit)
    assert text.index("x") < text.index("├") < text.index("⊕") < text.index("x′")
    beginnings = (0, drawn.p), (text.index("├"), drawn.F), (text.index("⊕"), drawn.f)
    for position, steps in beginnings:
        for step in steps:
            position = text.index(step.label, position) + 1
    assert not any(line != line.rstrip() for line in text.splitlines())


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
def test_boxes_do_not_overlap_and_stay_on_the_sheet(unit):
    svg = parsed(unit_svg(unit))
    sides = ("x", "y", "width", "height")
    rects = [group.find(f"{SVG}rect") for group in svg.iter(f"{SVG}g")]
    boxes = [[float(rect.get(side)) for side in sides] for rect in rects]
    for i, (x, y, width, height) in enumerate(boxes):
        assert x >= 0
        assert y >= 0
        assert x + width <= float(svg.get("width"))
        assert y + height <= float(svg.get("height"))
        for x2, y2, width2, height2 in boxes[:i]:
            apart = x + width <= x2 or x2 + width2 <= x or y + height <= y2 or y2 + height2 <= y
            assert apart


def test_aggregated_paths_are_counted():
    for form, join in (("split", "sum"), ("concatenated", "concatenate")):
        text = unit_text(replace(AGGREGATED, branch=Aggregated(form=form)))
        assert text.count("32 paths") == text.count(join) == 1
    assert "32 groups" in unit_text(AGGREGATED)


def test_gates_show_what_they_multiply():
    exclusive, only = (unit_diagram(replace(BASIC, h=gate)) for gate in (ExclusiveGate(), ShortcutGate()))
    assert exclusive.h == only.h
    assert exclusive.h[-1].label == "× (1−g)"
    assert exclusive.F[-1].label == "× g"
    assert only.F[-1].label == "BN"


def test_an_svg_stands_alone_and_can_be_read_aloud():
    svg = parsed(unit_svg(BASIC, title='a < b & "c"'))
    assert svg.get("role") == "img"
    assert svg.find(f"{SVG}title").text == 'a < b & "c"'
    spoken = parsed(unit_svg(BASIC)).find(f"{SVG}title").text
    assert spoken == "Residual unit. F: 3×3, 64 → 64, BN, ReLU, 3×3, 64 → 64, BN; f: ReLU"
    assert not any("href" in key or key == "id" for element in svg.iter() for key in element.attrib)


@pytest.mark.parametrize("name", list_models())
def test_every_network_draws_and_its_table_adds_up(name):
    network = describe(name)
    parsed(unit_svg(network.unit, name))
    assert unit_text(network.unit).endswith("x′")
    rows = stage_table(network)
    assert sum(row.parameters for row in rows) == network.parameters
    assert sum(row.multiply_adds for row in rows) == network.multiply_adds
    assert [row.stage for row in rows[1:-1]] == [f"stage{n + 1}" for n in range(len(network.stages))]


def test_resnet_50_is_table_1_of_p1():
    assert [(row.output, row.units) for row in stage_table(describe("resnet50"))] == [
        ("56×56", "7×7, 64, /2; 3×3 max pool, /2"),
        ("56×56", "[1×1, 64; 3×3, 64; 1×1, 256] × 3"),
        ("28×28", "[1×1, 128; 3×3, 128; 1×1, 512] × 4"),
        ("14×14", "[1×1, 256; 3×3, 256; 1×1, 1024] × 6"),
        ("7×7", "[1×1, 512; 3×3, 512; 1×1, 2048] × 3"),
        ("1×1", "average pool, 1000 classes"),
    ]


def test_resnext_50_is_table_1_of_px():
    table = stage_table(describe("resnext50_32x4d"))
    assert table[1].units == "[1×1, 128; 3×3, 128, C=32; 1×1, 256] × 3"
    split = stage_table(describe("resnext50_32x4d", branch={"form": "split"}))
    assert split[1].units == "[32 paths of (1×1, 4; 3×3, 4; 1×1, 256)] × 3"


def test_a_stage_of_one_strided_unit_shows_its_stride():
    assert stage_table(describe("resnet8_cifar"))[2].units == "[3×3, 32, /2; 3×3, 32] × 1"


@dataclass(frozen=True)
class LearnedScale(Op):
    """A layer of a kind that says nothing of itself."""

    start: float = 0.9


@pytest.mark.parametrize("kind", [*(kind for kind in built_in_kinds(Op) if not fields(kind)), LearnedScale])
def test_only_a_max_pool_is_called_one(kind):
    drawn = replace(layout(BASIC, 64, 64), F=(kind(),))
    shown = (unit_text(drawn), "".join(parsed(unit_svg(drawn)).itertext()))
    assert all(("max pool" in text) is (kind is MaxPool) for text in shown)
    if kind is LearnedScale:
        assert all("LearnedScale, start 0.9" in text for text in shown)


@pytest.mark.parametrize(
    "read", [parameters, lambda ops: multiply_adds(ops, 8), lambda ops: output_side(ops, 8)]
)
def test_a_layer_that_cannot_be_counted_is_refused_by_name(read):
    with pytest.raises(NoReading, match="LearnedScale"):
        read((LearnedScale(),))


def test_a_shortcut_of_no_known_kind_is_not_the_identity():
    @dataclass(frozen=True)
    class Mine(Shortcut):
        pass

    assert "y = Mine(x) + F(x)" in unit_equation(replace(BASIC, h=Mine()))


@pytest.mark.parametrize(
    ("h", "said"), [(Scaled(0.5, 1.0), "0.5·x + F(x)"), (Scaled(0.5, 0.25), "0.5·x + 0.25·F(x)")]
)
def test_both_factors_of_a_scaled_unit_stand_in_its_equation(h, said):
    assert f"y = {said}," in unit_equation(replace(BASIC, h=h))
