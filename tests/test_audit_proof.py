"""The auditor certifies a function by proof alone: no impostor passes, and no rewriting is refused."""

from __future__ import annotations

import pytest
import torch

import impostors
from kilolayer.audit import audit_model
from kilolayer.audit.dataflow import DataflowGraph
from kilolayer.audit.trace import trace_model
from kilolayer.networks import create_model
from kilolayer.report.audit_text import print_audit

IMPOSTORS = dict(impostors.impostors())
SMALL = [name for name in IMPOSTORS if name.startswith(impostors.BASES[0])]
REWRITES, PERMUTED = dict(impostors.rewrites()), dict(impostors.permuted())


def refuses(name):
    report = audit_model(IMPOSTORS[name](), "resnet")
    assert report.findings
    if report.nearest:
        assert report.nearest.function in ("different", "not proven")
        assert not report.nearest.identical
        assert report.nearest.reason


# 41 is coprime to the number of each kind's perturbations, so that every kind appears.
@pytest.mark.parametrize("name", SMALL[::41])
def test_an_impostor_is_refused_with_the_reason(name):
    refuses(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(IMPOSTORS)[::17])
def test_more_impostors_are_refused(name):
    refuses(name)


def certifies(name):
    report = audit_model(REWRITES[name](), "resnet")
    assert (report.nearest.function, report.nearest.reason, report.clean) == ("identical", "", True)
    assert {each.code for each in report.findings} <= {"unused"}
    kind = name.partition(": ")[2]
    words = ["exactly 0"] * (kind in impostors.AT_CORNER) + ["of side"] * (kind in impostors.ON_SOME_SIDES)
    assert len(report.nearest.remarks) == len(words)
    assert all(word in remark for word, remark in zip(words, report.nearest.remarks, strict=True))


@pytest.mark.parametrize("name", list(REWRITES)[:24:8])
def test_the_same_function_written_otherwise_is_certified(name):
    certifies(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(REWRITES)[::5])
def test_more_rewritings_are_certified(name):
    certifies(name)


@pytest.mark.parametrize("name", list(PERMUTED)[:7:5])
def test_another_order_of_channels_is_its_own_answer(name, capsys):
    report = audit_model(PERMUTED[name](), "resnet")
    assert (report.nearest.function, report.nearest.identical) == ("permuted", False)
    for order in report.nearest.permutation.values():
        assert sorted(order) == list(range(len(order)))
    print_audit(report)
    assert "equal up to a permutation of channels" in capsys.readouterr().out


def test_the_permutation_is_the_one_that_was_made():
    report = audit_model(PERMUTED["resnet14_cifar: colours reversed"](), "resnet")
    assert report.nearest.permutation == {"module.stem.conv1 (input)": (2, 1, 0)}


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("batch norm", "ε 1.1e-5 [0]", "has ε 1.1e-05, not 1e-05"),
        ("batch norm", "always in evaluation mode [0]", "stays in evaluation mode"),
        ("batch norm", "cumulative statistics [0]", "has momentum 0 or None, not 0.1"),
        ("batch norm", "momentum by a counter [0]", "it reads stem.bn1.num_batches_tracked"),
        ("unit", "counts its calls [-2]", "change `stage3.0.calls`"),
        ("convolution", "circular padding [-2]", "parts written into a map (as circular padding does)"),
        (
            "convolution",
            "reflected padding [-2]",
            "has padding 0, not 1 (before it there is reflection pad2d)",
        ),
        ("batch norm", "momentum 0.01 [0]", "has momentum 0.01, not 0.1"),
        ("activation", "clipped at 1e3 [0]", "clipping (1000) where the described network has relu"),
        ("unit", "shortcut detached [-2]", "a shortcut behind it is detached"),
        ("unit", "branch detached [-2]", "the branch that it is in is detached"),
        ("head", "softmax", "after `classifier.module` there is softmax"),
        ("network", "everything frozen", "are frozen"),
        ("network", "BN tied", "are tied"),
        ("network", "image normalised", "before `module.stem.conv1` there is"),
        ("network", "hook on a parameter's gradient", "hooks change the gradient of stage1"),
    ],
)
def test_the_reason_is_what_was_changed(kind, name, words):
    report = audit_model(IMPOSTORS[f"resnet14_cifar: {kind}: {name}"](), "resnet")
    assert words in report.nearest.reason


def test_the_audited_network_stays_as_it_was():
    model = create_model("resnet14_cifar")
    model(torch.zeros(2, 3, 32, 32)).sum().backward()
    model.eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    random_state = torch.get_rng_state()
    assert audit_model(model, "resnet14").nearest.identical
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(
        torch.equal(parameter.grad, gradient)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True)
    )
    assert not any(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random_state)


WRITTEN_OTHERWISE = (
    "ReLU by a mask", "ReLU by absolute values", "sum of a stack", "sum of a concatenation",
    "negative taken off", "pooled by a fixed window", "forward that holds its unit",
)  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN_OTHERWISE)
def test_relu_and_additions_are_read_in_whatever_way_they_are_written(name):
    certifies(f"resnet14_cifar: {name}")


def test_a_network_that_a_copy_would_run_is_itself_compared_and_stays_as_it_was():
    model = impostors.closed_over(create_model("resnet14_cifar").double())
    state = {name: (id(value), value.clone()) for name, value in model.state_dict(keep_vars=True).items()}
    report = audit_model(model, "resnet14")
    assert report.nearest.identical
    for name, value in model.state_dict(keep_vars=True).items():
        assert (id(value), value.dtype) == (state[name][0], state[name][1].dtype)
        assert torch.equal(value, state[name][1])
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())


def test_weights_that_a_function_holds_and_no_module_are_named():
    model = create_model("resnet14_cifar")
    hidden = model.classifier
    model.classifier = impostors.Call(torch.nn.Identity(), lambda self, x: hidden(x))
    reason = audit_model(model, "resnet14").nearest.reason
    assert "none of the network's registered tensors" in reason
    assert "a linear layer 64→10" in reason


def test_a_crop_that_no_small_map_shows_is_seen_on_a_large_one():
    cropped = impostors.pooled(lambda x: x[:, :, :3, :3].mean((2, 3)))(create_model("resnet18"))
    assert audit_model(cropped, "resnet18").nearest.function == "different"


def test_a_certificate_names_the_sides_where_larger_images_run_other_operators():
    cropped = impostors.pooled(lambda x: x[:, :, :20, :20].mean((2, 3)))(create_model("resnet14_cifar"))
    nearest = audit_model(cropped, "resnet14").nearest
    assert nearest.function == "identical"
    assert "at side 1024" in nearest.remarks[0]
    assert nearest.sides == (8, 9, 32)


def test_a_proven_network_is_reported_as_the_described_one():
    report = audit_model(REWRITES["preact_resnet29_cifar: ReLU by absolute values"](), "preact_resnet29")
    assert (report.content.arrangement, report.content.shortcut) == ("full_preactivation", "Identity()")
    assert report.findings == ()


def test_writes_of_pytorchs_own_operators_are_recorded():
    part = torch.nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")
    graph = DataflowGraph(trace_model(part))
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(graph.replay(graph.output, {graph.trunk[0]: image}), part(image))


def test_what_cannot_run_in_double_precision_is_not_proven():
    model = create_model("resnet14_cifar")
    model.stage1[0].F = impostors.before(lambda x: x.float())(model.stage1[0].F)
    report = audit_model(model, "resnet14")
    assert (report.nearest.function, report.nearest.identical) == ("not proven", None)
    assert report.outcome == "nothing told"
    assert not report.clean
