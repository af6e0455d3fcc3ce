"""What shapes and their order tell of a state dict, and what the auditor says that they do not."""

from __future__ import annotations

import pytest
import torch

from audited import clean, faulty
from kilolayer.audit import audit_state
from kilolayer.errors import InputError
from kilolayer.networks import create_model


def codes(report):
    return {each.code for each in report.findings}


@pytest.mark.parametrize("order", [dict, lambda state: dict(sorted(state.items()))])
@pytest.mark.parametrize(
    ("name", "parameters", "expected"),
    [
        ("preact_resnet164", 1_619_290, {"widths"}),
        ("ResNeXt29_8x64d", 89_598_282, {"widths", "stem"}),
        ("PreActResNet18", 11_171_146, {"no-final-activation", "stem"}),
        ("weiaicunzai_preactresnet18", 11_176_074, {"biased-convolutions", "no-final-activation", "stem"}),
        ("preresnet110_cifar10", 1_730_522, {"option-b"}),
        ("preresnet110", 1_703_258, {"label"}),
    ],
)
def test_faults_that_shapes_show(name, parameters, expected, order):
    with torch.device("meta"):
        state = order(getattr(faulty, name)().state_dict())
    report = audit_state(state, name)
    assert report.content.parameters == parameters
    assert codes(report) == expected


@pytest.mark.parametrize(
    ("made", "nearest", "arrangement"),
    [
        (clean.resnet18, "resnet18", "original"),
        (clean.resnet50, "resnet50", "original"),
        (clean.resnext50_32x4d, "resnext50_32x4d", "original"),
        (clean.wide_resnet50_2, "wide_resnet50_2", "original"),
        (clean.preact_resnet164, "preact_resnet164_cifar", "full_preactivation"),
    ],
)
def test_clean_weights_pass(made, nearest, arrangement):
    with torch.device("meta"):
        report = audit_state(made().state_dict(), nearest)
    assert report.findings == ()
    assert (report.nearest.name, report.content.arrangement) == (nearest, arrangement)
    assert report.nearest.parameters == report.content.parameters


NAMES = (
    "resnet32_cifar", "preact_resnet20_cifar", "resnet29_cifar", "preact_resnet164_cifar",
    "resnet20_c_cifar", "wide_resnet28_10_cifar", "resnext29_8x64d_cifar", "preact_resnet50", "resnet34_c",
    "resnext50_8x14d",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_our_own_weights_are_recognised_in_any_order(name):
    with torch.device("meta"):
        state = create_model(name).state_dict()
    report = audit_state(state, name)
    assert report == audit_state(dict(sorted(state.items())), name)
    assert report.findings == ()
    assert report.nearest.name == name


def test_what_shapes_cannot_tell_is_said():
    with torch.device("meta"):
        report = audit_state(create_model("resnet20_cifar").state_dict())
    # Pre-activation with option A has the very same shapes; here the place of the last BN speaks against it.
    assert "relu_before_addition" in report.content.alternatives
    assert any("strides" in each for each in report.unknown)
    assert report.nearest.identical is None
    assert report.outcome == "clean"
    shown = report.content
    assert (shown.stride_on, shown.option, shown.shortcut) == (None, None, None)
    assert all(stage.stride is None for stage in shown.stages)


def test_names_do_not_matter_but_for_grouping():
    with torch.device("meta"):
        state = create_model("preact_resnet56_bottleneck_cifar").state_dict()
    prefixes = {name.rpartition(".")[0] for name in state}
    renamed = {prefix: f"block.{number}" for number, prefix in enumerate(dict.fromkeys(sorted(prefixes)))}
    ordered = {f"{renamed[n.rpartition('.')[0]]}.{n.rpartition('.')[2]}": v for n, v in state.items()}
    report = audit_state(ordered)
    assert report.nearest.name == "preact_resnet56_bottleneck_cifar"


@pytest.mark.parametrize("state", [{"a.weight": torch.zeros(3, 3)}, {"a.weight": torch.zeros(4, 7, 3, 3)}])
def test_other_weights_are_counted_and_no_more(state):
    report = audit_state(state)
    assert report.content.parameters == sum(value.numel() for value in state.values())
    assert report.content.arrangement is None
    assert "do not chain" in report.unknown[0]
    assert (report.outcome, report.clean) == ("nothing told", False)


def test_a_head_that_is_no_lone_classifier_leaves_depth_and_classes_open():
    state = create_model("resnet20_cifar").state_dict() | {"more.weight": torch.zeros(5, 10)}
    content = audit_state(state, "resnet20").content
    assert (content.depth, content.classes) == (None, None)


def test_norms_that_fit_no_arrangement_are_named():
    state = create_model("resnet20_cifar").state_dict()
    bare = {name: value for name, value in state.items() if not name.startswith("stage2.0.F.bn1")}
    assert codes(audit_state(bare)) == {"norms"}
    running = ("running_mean", "running_var", "num_batches_tracked")
    grouped = {name: value for name, value in state.items() if not name.endswith(running)}
    assert any("running statistics" in words for words in audit_state(grouped).unknown)


@pytest.mark.parametrize("shape", [(0, 3, 3, 3), (8, 0, 3, 3), (), (3,), (2, 2, 2), (1, 1, 1, 1, 1)])
def test_odd_tensors_are_no_fault_of_the_program(shape):
    state = {"a.weight": torch.zeros(shape), "b.weight": torch.zeros(4, 8, 3, 3), "c.weight": torch.zeros(4)}
    assert audit_state(state).outcome == "nothing told"


def test_no_weights_are_refused():
    with pytest.raises(InputError, match="no tensors"):
        audit_state({}, "empty.pt")
