"""The auditor certifies a function by proof alone: no impostor passes, and no rewriting is refused."""

from __future__ import annotations

import pytest
import torch

import impostors
from kilolayer.audit import audit_model
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


def test_what_cannot_run_in_double_precision_is_not_proven():
    model = create_model("resnet14_cifar")
    model.stage1[0].F = impostors.before(lambda x: x.float())(model.stage1[0].F)
    report = audit_model(model, "resnet14")
    assert (report.nearest.function, report.nearest.identical) == ("not proven", None)
    assert report.outcome == "nothing told"
    assert not report.clean
