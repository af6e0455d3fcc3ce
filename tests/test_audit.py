"""The auditor names the faults of re-created networks, passes clean ones, and tells each description."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional

from audited import clean, faulty
from kilolayer.audit import audit_model
from kilolayer.errors import InputError
from kilolayer.networks import Network, Stage, Stem, build, cifar, create_model, list_models
from kilolayer.units import (
    ARRANGEMENTS,
    BASIC,
    FULL_PREACT,
    Aggregated,
    Arrangement,
    Basic,
    Bottleneck,
    Dropout,
    ExclusiveGate,
    Identity,
    OneLayer,
    Projection,
    Scaled,
    ShortcutGate,
    Unit,
    Zero,
    ZeroPad,
)

TINY = Stem(16), (Stage(2, 16), Stage(2, 32, 2))
TINY_AGGREGATED = Stem(64), (Stage(2, 64), Stage(2, 128, 2))


def codes(report, *severities):
    return {each.code for each in report.findings if each.severity in (severities or ("fault", "deviation"))}


# The exact counts are those that FACTS has, or the sum over the layers described.
@pytest.mark.parametrize(
    ("name", "parameters", "faults", "deviations"),
    [
        ("preact_resnet164", 1_619_290, {"widths"}, set()),
        ("ResNeXt29_8x64d", 89_598_282, {"widths"}, {"stem"}),
        ("PreActResNet18", 11_171_146, {"no-final-activation", "raw-stem"}, {"stem"}),
        (
            "weiaicunzai_preactresnet18",
            11_176_074,
            {"biased-convolutions", "no-final-activation", "raw-projection"},
            {"stem", "activated-twice"},
        ),
        ("preresnet110_cifar10", 1_730_522, {"raw-stem"}, {"option-b"}),
        ("preresnet110", 1_703_258, {"label", "raw-projection"}, set()),
    ],
)
def test_the_known_faults_are_named(name, parameters, faults, deviations):
    report = audit_model(getattr(faulty, name)(), name)
    assert report.content.parameters == parameters
    assert codes(report, "fault") == faults
    assert codes(report, "deviation") == deviations
    assert not report.clean
    assert not report.nearest.identical


def test_a_finding_says_where_and_what_the_paper_has():
    report = audit_model(faulty.PreResNet(20), "PreResNet-20")
    label, projection = report.findings
    assert "29 layers" in label.what
    assert "bottlenecks" in label.what
    assert "20 layers" in label.paper
    assert projection.where == "layer1.0, layer2.0, layer3.0"
    widths = audit_model(faulty.Hysts(2), "resnet").findings[0]
    assert (widths.where, "16, 32, 64, doubling" in widths.paper) == ("stage 1", True)


@pytest.mark.parametrize(
    ("name", "ours", "choices"),
    [
        ("resnet18", "resnet18", {}),
        ("resnet34", "resnet34", {}),
        ("resnet50", "resnet50", {"branch": {"stride_on": "3x3"}}),
        ("resnext50_32x4d", "resnext50_32x4d", {}),
        ("preact_resnet164", "preact_resnet164_cifar", {}),
        pytest.param("wide_resnet50_2", "wide_resnet50_2", {}, marks=pytest.mark.slow),
    ],
)
def test_clean_networks_of_others_pass_and_are_recognised(name, ours, choices):
    report = audit_model(getattr(clean, name)(), name)
    assert report.findings == ()
    assert (report.nearest.name, report.nearest.choices, report.nearest.identical) == (ours, choices, True)


QUICK = ("resnet20_cifar", "preact_resnet56_cifar", "plain20_cifar", "preact_resnet18", "resnet34_c")
# Two names of one function.
SAME = {"resnet18_b": "resnet18", "resnet34_b": "resnet34", "resnext50_1x64d": "resnet50"}
# Too large for a test: benchmarks/audit_peers.py audits them.
GIANTS = ("1001", "1202", "200", "resnext101", "wide_resnet101", "16x64d")


def passes(name):
    report = audit_model(create_model(name), name)
    assert report.findings == ()
    assert (report.nearest.name, report.nearest.identical) == (SAME.get(name, name), True)
    assert report.content.parameters == report.nearest.parameters


@pytest.mark.parametrize("name", QUICK)
def test_our_own_networks_pass_under_their_names(name):
    passes(name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in list_models() if name not in QUICK and not any(big in name for big in GIANTS)]
)
def test_every_named_network_of_ours_passes(name):
    passes(name)


SHORTCUTS = (
    Identity(), Zero(), Scaled(0.5), Scaled(0.7, 0.3), Scaled(0.9, 1.0, "skip"), ExclusiveGate(-6.0),
    ExclusiveGate(-2.0, "skip", True), ShortcutGate(-3.0), Dropout(0.5), Dropout(0.25, "skip"), Projection(),
)  # fmt: skip
BRANCHES = (
    Basic(), Basic(2, 0.25), OneLayer(), Bottleneck(), Bottleneck(2, "3x3"), Aggregated(2, 16),
    Aggregated(2, 16, "split"), Aggregated(2, 16, "concatenated"),
)  # fmt: skip
RESIZES = (ZeroPad(), ZeroPad("preactivated"), Projection())
CASES = list(product(ARRANGEMENTS, SHORTCUTS, BRANCHES, RESIZES))


def told(arrangement, h, branch, resize):
    """The audit of a small network of that unit, and that it says what the unit is."""
    stem, stages = TINY_AGGREGATED if isinstance(branch, Aggregated) else TINY
    unit = Unit(branch, h, ARRANGEMENTS[arrangement], resize)
    report = audit_model(build(Network(stem, stages, unit, image_size=16)), "", side=16)
    content = report.content
    assert arrangement in (content.arrangement, *content.alternatives)
    assert content.shortcut == str(h)
    assert content.branch == type(branch).__name__.lower()
    assert (content.cardinality, content.d) == (
        (branch.cardinality, branch.d) if isinstance(branch, Aggregated) else (None, None)
    )
    letter = "B" if resize == Projection() else "A"
    assert content.option == {Zero: None, Projection: "C"}.get(type(h), letter)
    assert codes(report, "fault") == set()
    assert codes(report) <= {"option-b"}


# 37 is coprime to the number of each kind, so that every choice and many pairs of them appear.
@pytest.mark.parametrize("case", CASES[::37], ids=lambda case: f"{case[0]}-{case[1]}-{case[2]}-{case[3]}")
def test_units_are_told_from_what_they_do(case):
    told(*case)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES[5::11], ids=lambda case: f"{case[0]}-{case[1]}-{case[2]}-{case[3]}")
def test_more_units_are_told_from_what_they_do(case):
    told(*case)


@pytest.mark.parametrize("unit", [replace(BASIC, h=Projection(), arrangement=FULL_PREACT)])
def test_arrangements_that_are_one_function_are_both_named(unit):
    # With a projection everywhere, pre-activation and BN after addition are the same layers in a row.
    report = audit_model(build(Network(*TINY, unit)), "")
    assert {report.content.arrangement, *report.content.alternatives} >= {
        "full_preactivation", "bn_after_addition",
    }  # fmt: skip


def test_an_arrangement_of_ones_own_is_told_as_such():
    own = Arrangement(before=("ReLU",), between=("BN", "ReLU"), after=("BN",), f=("ReLU",))
    report = audit_model(build(cifar(20, replace(BASIC, arrangement=own))), "")
    assert report.content.arrangement == "other"


def _clamped(x):
    return x.clamp(min=0)


class Written(nn.Module):
    """One pre-activation network written in the ways people write them."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.stem = nn.Sequential(clean.conv(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(True))
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in (16, 16, 16, 32))
        self.convs = nn.ModuleList(
            clean.conv(*shape)
            for shape in [(16, 16, 3), (16, 16, 3), (16, 16, 3), (16, 16, 3), (16, 32, 3, 2), (32, 32, 3)]
        )
        self.linear = nn.Linear(32, 10)

    def relu(self, x):
        if self.way == "inplace":
            return functional.relu(x.clone(), inplace=True)
        return {"functional": functional.relu, "method": torch.Tensor.relu}.get(self.way, _clamped)(x)

    def add(self, h, F):
        if self.way == "functional":
            return torch.add(h, F)
        if self.way == "inplace":
            F += h
            return F
        return F + h

    def widen(self, x):
        half = x[:, :, ::2, ::2]
        if self.way == "functional":
            return functional.pad(half, (0, 0, 0, 0, 0, 16))
        if self.way == "inplace":
            out = torch.zeros(x.shape[0], 32, *half.shape[2:])
            out[:, :16] = half
            return out
        pooled = functional.avg_pool2d(x, 1, stride=2)
        return torch.cat([pooled, pooled.mul(0)], 1)

    def forward(self, x):
        x = self.stem(x)
        x = self.add(x, self.convs[1](self.relu(self.norms[0](self.convs[0](x)))))
        y = self.convs[2](self.relu(self.norms[1](x)))
        x = self.add(x, self.convs[3](self.relu(self.norms[2](y))))
        y = self.convs[4](self.relu(x))
        return self.linear(self.add(self.widen(x), self.convs[5](self.relu(self.norms[3](y)))).mean((2, 3)))


@pytest.mark.parametrize("way", ["functional", "method", "clamp", "inplace"])
def test_however_it_is_written_it_is_the_same(way):
    model = Written(way)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = audit_model(model, "")
    assert (report.content.option, report.content.arrangement) == ("A", "full_preactivation")
    # That network has no BN ahead of its last unit, and nothing behind it.
    assert codes(report) == {"no-final-activation", "unit"}
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: model.half(), lambda model: model.eval()])
def test_wrapped_and_half_precision_models_are_read(wrap):
    report = audit_model(wrap(create_model("resnet20_cifar")), "resnet20")
    assert report.findings == ()
    assert report.nearest.name == "resnet20_cifar"


def test_a_gate_that_opens_the_wrong_way_is_noticed():
    class Wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv = clean.conv(3, 16, 3), clean.conv(16, 16, 3)
            self.gate, self.linear = nn.Conv2d(16, 16, 1), nn.Linear(16, 10)

        def forward(self, x):
            x = self.stem(x).relu()
            g = torch.sigmoid(self.gate(x))
            return self.linear((g * x + (1 - g) * self.conv(x)).mean((2, 3)))

    report = audit_model(Wrong(), "")
    assert any("gate" in each.what for each in report.findings)


def test_parameters_that_nothing_uses_are_noted():
    model = create_model("resnet20_cifar")
    model.spare = nn.Linear(3, 3)
    report = audit_model(model, "")
    assert codes(report, "note") == {"unused"}
    assert report.clean


def test_a_network_without_additions_is_said_to_be_one():
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    report = audit_model(nn.Sequential(clean.conv(3, 8, 3), nn.ReLU(), *head), "vgg")
    assert codes(report, "note") == {"no-residual-addition"}
    assert (report.content.depth, report.outcome, report.clean) == (2, "nothing told", False)


def test_a_model_for_one_size_of_image_is_proven_at_that_size():
    head = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(64, 10))
    model = create_model("resnet14_cifar")
    body = nn.Sequential(model.stem, model.stage1, model.stage2, model.stage3)
    assert audit_model(nn.Sequential(body, head), "resnet14").nearest.identical


@pytest.mark.slow
def test_a_model_that_wants_another_image_gets_it():
    model = clean.resnet18()
    model.avgpool = nn.AvgPool2d(7)
    assert audit_model(model, "resnet18").nearest.identical


def test_a_model_that_fails_is_told_in_one_line():
    class Failing(nn.Module):
        def forward(self, x):
            raise RuntimeError("no such thing\nsecond line")

    with pytest.raises(InputError, match=r"RuntimeError: no such thing$"):
        audit_model(Failing())


def test_a_model_that_ignores_the_image_is_refused():
    class Constant(nn.Module):
        def forward(self, x):
            return torch.zeros(1, 10)

    with pytest.raises(InputError, match="does not depend on the image"):
        audit_model(Constant())


@pytest.mark.parametrize(
    ("label", "wrong"),
    [
        ("resnet20", False), ("ResNet", False), ("resnet_v1_20", False), ("preact_resnet20", True),
        ("resnet32", True), ("PreActResNet18", True), ("resnext29_8x64d", True), ("model_2016", False),
    ],
)  # fmt: skip
def test_labels_are_compared_with_the_content(label, wrong):
    report = audit_model(create_model("resnet20_cifar"), label)
    assert ("label" in codes(report, "fault")) == wrong
