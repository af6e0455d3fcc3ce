"""A trunk that is frozen, or learns slower than the classifier."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kilolayer.__main__ import main
from kilolayer.cli.assemble import _recipe
from kilolayer.cli.options import RecipeOptions
from kilolayer.data import PHOTO_AUGMENTATION, Data
from kilolayer.errors import InputError
from kilolayer.networks import describe
from kilolayer.training import (
    SGD,
    AdamW,
    Experiment,
    Optimizer,
    Recipe,
    Steps,
    choose_kernels,
    recipe_by_name,
    recipe_differences,
)
from kilolayer.training.decisions import explain_decisions
from kilolayer.training.experiment import InitialWeights, memory_format_for
from kilolayer.training.memory_plan import plan_memory
from kilolayer.units import Basic, Dropout
from kilolayer.values import from_json, to_json
from tiny_runs import PREACT, tiny, training_of, with_recipe

GIVEN = InitialWeights("w.safetensors", "0")
"""The trainings here are not asked to read it."""


def with_trunk(share: float, **fields: Any) -> Experiment:
    return with_recipe(tiny(init=GIVEN), trunk_rate=share, **fields)


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", [SGD(), AdamW()], ids=["sgd", "adamw"])
def test_of_a_frozen_trunk_nothing_changes(optimizer: Optimizer, precision: Any) -> None:
    experiment = with_trunk(0.0, optimizer=optimizer, weight_decay=0.1)
    training = training_of(
        replace(experiment, precision=precision, memory_format=memory_format_for(precision))
    )
    before = copied(training.model.state_dict())
    for _ in range(3):
        training.take_step()
    changed = {
        name for name, value in training.model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {"classifier.weight", "classifier.bias"}
    training.evaluate(training.splits.test)
    training.take_step()
    assert not torch.equal(training.model.state_dict()["classifier.bias"], before["classifier.bias"])
    assert torch.equal(training.model.state_dict()["stem.conv1.weight"], before["stem.conv1.weight"])


def test_a_frozen_trunk_has_no_backward_pass() -> None:
    training = training_of(with_trunk(0.0))
    x = training.statistics.normalize(training.train_images.pixels[:4])
    assert not training.model.forward_features(x).requires_grad
    training.take_step()
    assert all(parameter.grad is None for parameter in training.model.stage1.parameters())
    learning = {id(each) for group in training.state.optimizer.param_groups for each in group["params"]}
    assert learning == {id(each) for each in training.model.classifier.parameters()}
    assert not any("stage" in name for name in training.tensors() if not name.startswith("model."))


def test_a_frozen_trunk_computes_as_in_evaluation() -> None:
    unit = replace(PREACT, branch=Basic(dropout=0.5), h=Dropout(0.5))
    training = training_of(replace(with_trunk(0.0), network=tiny(unit).network))
    x = training.statistics.normalize(training.train_images.pixels[:4])
    learning = training.model(x)
    assert torch.equal(learning, training.model.eval()(x))


@pytest.mark.parametrize("decay", ["all", "weights"])
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_a_slower_trunk_takes_a_share_of_the_step(rate: float, decay: Any) -> None:
    options: dict[str, Any] = {"optimizer": SGD(0.0), "decay": decay, "weight_decay": 0.1}
    moved = []
    for share in (1.0, rate):
        training = training_of(with_trunk(share, rate=Steps(0.1, ((1, 0.01),)), **options))
        before = copied(dict(training.model.named_parameters()))
        training.take_step()
        now = dict(training.model.named_parameters())
        moved.append({name: (now[name] - before[name]).detach() for name in now})
        assert len(training.state.optimizer.param_groups) == (1 if decay == "all" else 2) * (1 + (share < 1))
    for name, whole in moved[0].items():
        share = 1.0 if name.startswith("classifier") else rate
        torch.testing.assert_close(moved[1][name], share * whole, rtol=1e-3, atol=1e-7)


def test_a_whole_trunk_rate_is_no_other_training() -> None:
    first, other = training_of(tiny()), training_of(with_recipe(tiny(), trunk_rate=1.0))
    for _ in range(3):
        first.take_step()
        other.take_step()
    assert all(torch.equal(value, other.tensors()[name]) for name, value in first.tensors().items())


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan"), True, "0.1"])
def test_a_trunk_rate_is_a_share(rate: Any) -> None:
    if rate is True:  # 1, which JSON does not write so
        return
    with pytest.raises(InputError, match="trunk_rate"):
        with_trunk(rate)


def test_what_cannot_be_with_a_frozen_trunk_is_refused() -> None:
    with pytest.raises(InputError, match="its weights are random; give weights"):
        with_recipe(tiny(), trunk_rate=0.0)
    with pytest.raises(InputError, match="use kernels plain"):
        replace(with_trunk(0.0), precision="bf16", memory_format="channels_last", kernels="fused")
    cpu = torch.device("cpu")
    assert choose_kernels("auto", cpu, "bf16", channels_last=True, trunk_frozen=True) == "plain"
    with pytest.raises(InputError, match="the trunk is frozen"):
        choose_kernels("fused", cpu, "bf16", channels_last=True, trunk_frozen=True)


@pytest.mark.parametrize("memory", ["fastest", "balanced", "smallest", "2GB"])
def test_a_frozen_trunk_keeps_nothing(memory: str) -> None:
    network = describe("preact_resnet56_cifar")
    frozen, learning = (plan_memory(network, memory, 64, "fp32", trunk_frozen=each) for each in (True, False))
    assert frozen.recomputed_share == 0
    assert frozen.peak.step_bytes < 4 * 64 * 64 + 4 * 650 + 1
    assert frozen.peak.step_bytes < learning.peak.step_bytes / 20
    assert frozen.peak.state_bytes < learning.peak.state_bytes
    training = training_of(replace(with_trunk(0.0), activation_memory="balanced"))
    assert "nothing is kept" in explain_decisions(training)["memory"]


def test_adamw_needs_room_for_two_numbers_a_weight() -> None:
    network = describe("preact_resnet56_cifar")
    none, one, two = (
        plan_memory(network, "fastest", 64, "fp32", optimizer_values=each).peak.state_bytes
        for each in range(3)
    )
    assert one - none == two - one == 4 * network.parameters
    assert [SGD(0.0).values_per_weight, SGD().values_per_weight, AdamW().values_per_weight] == [0, 1, 2]


def test_a_recipe_without_a_trunk_rate_is_read() -> None:
    older = json.loads(to_json(tiny().recipe))
    del older["trunk_rate"]
    assert from_json(json.dumps(older), Recipe) == tiny().recipe


DATA = Data("photos")


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"trunk_lr": 0.1}, {"trunk_rate": 0.1}),
        ({"trunk_lr": 1.0}, {"trunk_rate": 1.0}),
        ({"freeze_trunk": True}, {"trunk_rate": 0.0}),
        ({"freeze_trunk": True, "trunk_lr": 0.0}, {"trunk_rate": 0.0}),
        ({"no_flip": True}, {"augmentation": replace(PHOTO_AUGMENTATION, flip=False)}),
        ({"optimizer": "sgd"}, {"optimizer": SGD(nesterov=True), "weight_decay": 5e-4}),
        ({"optimizer": "adamw", "weight_decay": 0.3}, {"optimizer": AdamW(), "weight_decay": 0.3}),
    ],
)
def test_options_change_the_recipe(options: dict[str, Any], wanted: dict[str, Any]) -> None:
    made = _recipe(RecipeOptions(recipe="finetune", **options), DATA, 800)
    assert {name: getattr(made, name) for name in wanted} == wanted
    changed = {row[0] for row in recipe_differences(recipe_by_name("finetune", 800), made)}
    assert changed <= {*wanted, *(("rate", "weight_decay") if isinstance(made.optimizer, AdamW) else ())}


def test_a_rate_that_is_given_is_the_optimisers_own() -> None:
    made = _recipe(RecipeOptions(recipe="finetune", optimizer="adamw", lr=0.002), DATA, 800)
    assert made.rate.peak == pytest.approx(0.002)
    assert _recipe(RecipeOptions(recipe="finetune", optimizer="adamw"), DATA, 800).rate.peak == pytest.approx(
        3e-4
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--trunk-lr", "2"], "--trunk-lr is 2; allowed: a share from 0 to 1"),
        (["--trunk-lr", "nan"], "--trunk-lr is nan"),
        (["--freeze-trunk", "--trunk-lr", "0.1"], "exclude each other"),
        (["--freeze-trunk"], "give weights with --init"),
        (["--optimizer", "adam"], "adam"),
    ],
)
def test_is_refused(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--subset", "64", "--no-tensorboard", *words]) == 2
    assert says in capsys.readouterr().err
