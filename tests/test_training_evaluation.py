"""Errors, losses and confusions of known logits."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kilolayer.__main__ import main
from kilolayer.data import Data, Images, InputStatistics, load
from kilolayer.errors import InputError
from kilolayer.kernels import fuse
from kilolayer.kernels.folding import FoldedResidualUnit
from kilolayer.training import Evaluation, Experiment, Steps, evaluate, evaluation_mode_for
from kilolayer.training.evaluation import _logits_function
from kilolayer.units import BOTTLENECK, FULL_PREACT, ORIGINAL, ExclusiveGate, Unit
from kilolayer.values import from_json, to_json
from tiny_runs import HERE, PREACT, Poll, numbered, splits_of, tiny, train, training_of, with_recipe

PLAIN = InputStatistics(torch.zeros(1, 1, 1), torch.ones(1, 1, 1))


class Known(nn.Module):
    """Answers image i, whose pixels are i, with row i of a table."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        self.batches.append(len(x))
        return self.table[x[:, 0, 0, 0].long()]


def measured(table: Tensor, labels: Tensor | None = None, **options: Any) -> Evaluation:
    images = numbered(*table.shape)
    if labels is not None:
        images = Images(images.pixels, labels)
    found = evaluate(Known(table), images, PLAIN, context=HERE, num_classes=table.shape[1], **options)
    assert found is not None
    return found


def ranked(*orders: str) -> Tensor:
    """Logits that rank the classes 0 … 6 as each text does, the first highest."""
    table = torch.empty(len(orders), 7)
    for row, order in zip(table, orders, strict=True):
        for place, name in enumerate(order):
            row[int(name)] = -float(place)
    return table


def test_known_logits() -> None:
    table = ranked("0123456", "1034562", "3456012", "6543210", "4012356")
    labels = torch.tensor([0, 0, 2, 6, 6])
    found = measured(table, labels)
    # Right: the first and the fourth; class 2 is ranked seventh in the third row, 6 seventh in the last.
    assert found.images == 5
    assert found.error == pytest.approx(60)
    assert found.top5_error == pytest.approx(40)
    normaliser = math.log(sum(math.exp(-k) for k in range(7)))
    assert found.loss == pytest.approx(normaliser + (0 + 1 + 6 + 0 + 6) / 5)
    assert found.class_images == (2, 0, 1, 0, 0, 0, 2)
    assert found.confusion == (
        (1, 1, 0, 0, 0, 0, 0),
        (0, 0, 0, 0, 0, 0, 0),
        (0, 0, 0, 1, 0, 0, 0),
        (0, 0, 0, 0, 0, 0, 0),
        (0, 0, 0, 0, 0, 0, 0),
        (0, 0, 0, 0, 0, 0, 0),
        (0, 0, 0, 0, 1, 0, 1),
    )
    assert found.class_errors() == [(2, 50), (0, 0), (1, 100), (0, 0), (0, 0), (0, 0), (2, 50)]


@pytest.mark.parametrize("size", [1, 2, 7, 59, 60, 61, 256])
def test_the_batch_size_changes_nothing(size: int) -> None:
    table = torch.randn(60, 10, generator=torch.Generator().manual_seed(0))
    whole, found = measured(table), measured(table, batch_size=size)
    assert found.confusion == whole.confusion
    assert (found.error, found.top5_error) == (whole.error, whole.top5_error)
    assert found.loss == pytest.approx(whole.loss, rel=1e-6)


def test_every_image_counts_once() -> None:
    model = Known(torch.zeros(10, 3))
    found = evaluate(model, numbered(10, 3), PLAIN, context=HERE, num_classes=3, batch_size=4)
    assert found is not None
    assert model.batches == [4, 4, 2]
    assert (found.images, found.class_images) == (10, (4, 3, 3))


@pytest.mark.parametrize("classes", [2, 3, 4, 5])
def test_with_five_classes_or_fewer_the_top_five_hold_the_answer(classes: int) -> None:
    wrong = -10 * nn.functional.one_hot(torch.arange(classes)).float()
    found = measured(wrong)
    assert (found.error, found.top5_error) == (100, 0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("column", range(6))
def test_an_image_without_finite_logits_is_an_error(value: float, column: int) -> None:
    table = 10 * torch.eye(6)  # every image right
    table[0, column] = value
    found = measured(table)
    assert found.error == found.top5_error == pytest.approx(100 / 6)
    assert found.confusion[0] == (0,) * 6
    assert found.class_errors()[0] == (1, 100)
    assert found.class_errors()[1] == (1, 0)
    assert math.isfinite(found.loss) is False


def test_everything_nan_is_everything_wrong() -> None:
    found = measured(torch.full((10, 10), math.nan))
    assert (found.error, found.top5_error) == (100, 100)


def test_no_images_are_refused() -> None:
    with pytest.raises(InputError, match="no images"):
        evaluate(Known(torch.zeros(1, 2)), numbered(0, 2), PLAIN, context=HERE, num_classes=2)


def test_the_network_is_left_as_it_was() -> None:
    training = training_of(tiny())
    model = training.model.train()
    frozen = next(model.get_submodule("stage1").children())
    frozen.eval()  # as who fine-tunes keeps BN's averages
    modes = {name: module.training for name, module in model.named_modules()}
    state = {key: value.clone() for key, value in model.state_dict().items()}
    assert training.evaluate(training.splits.test) is not None
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert frozen.training is False


def test_the_mode_comes_back_after_a_failure() -> None:
    model = Known(torch.zeros(1, 2)).train()
    with pytest.raises(IndexError):
        evaluate(model, numbered(5, 2), PLAIN, context=HERE, num_classes=2)
    assert model.training


@pytest.mark.parametrize("at", range(4))
def test_stop_is_asked_before_every_batch(at: int) -> None:
    model, stop = Known(torch.zeros(10, 3)), Poll(at)
    found = evaluate(model, numbered(10, 3), PLAIN, context=HERE, num_classes=3, batch_size=4, stop=stop)
    assert (found is None) == (at < 3)
    assert model.batches == [4, 4, 2][:at]


def test_images_reach_the_network_normalised() -> None:
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return torch.zeros(len(x), 2)

    figures = InputStatistics(torch.full((1, 1, 1), 3.0), torch.full((1, 1, 1), 2.0))
    evaluate(Spy(), numbered(4, 2), figures, context=HERE, num_classes=2)
    assert seen[0].flatten().tolist() == [-1.5, -1.0, -0.5, 0.0]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_precision_and_layout_are_those_asked_for(precision: Any, channels_last: bool) -> None:
    seen: list[Tensor] = []
    convolution = nn.Conv2d(3, 4, 3)
    convolution.register_forward_hook(lambda _, args, out: seen.extend([*args, out]))
    _logits_function(convolution, precision, channels_last, "plain")(torch.randn(2, 3, 8, 8))
    assert seen[0].is_contiguous(memory_format=torch.channels_last) == channels_last
    assert seen[1].dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)


def test_a_training_evaluates_by_its_own_statistics_and_classes() -> None:
    experiment = tiny()
    training = training_of(experiment)
    images = splits_of(experiment).test
    found = training.evaluate(images)
    assert found is not None
    training.model.eval()
    logits = training.model(training.statistics.normalize(images.pixels))
    wrong = (logits.argmax(1) != images.labels).double().mean().item()
    assert found.error == pytest.approx(100 * wrong)
    assert found.loss == pytest.approx(nn.functional.cross_entropy(logits, images.labels).item(), rel=1e-5)


BF16: dict[str, Any] = {"precision": "bf16", "memory_format": "channels_last"}


@pytest.mark.parametrize(
    "unit",
    [PREACT, replace(PREACT, arrangement=ORIGINAL), replace(BOTTLENECK, arrangement=FULL_PREACT),
     replace(PREACT, h=ExclusiveGate(-1.0))],
    ids=["pre-activation", "original", "bottleneck", "gated"],
)  # fmt: skip
def test_a_folded_evaluation_is_the_plain_one_up_to_rounding(unit: Unit) -> None:
    """On a network that has learned: in fp32 to fp32's rounding, in bf16 to bf16's."""
    learning = with_recipe(tiny(unit, **BF16), iterations=120, batch_size=32, rate=Steps(0.1))
    experiment = replace(learning, data=Data(subset=500))
    training = training_of(experiment)
    fuse(training.model)
    for _ in training.steps():
        pass
    images, statistics = splits_of(experiment, 360).test, training.statistics
    asked: dict[str, Any] = {"context": HERE, "num_classes": 10, "channels_last": True}

    def of(**options: Any) -> Evaluation:
        found = evaluate(training.model, images, statistics, **asked, **options)
        assert found is not None
        return found

    exact = of(evaluation="plain")
    assert exact.error < 75  # chance is 90
    folded = of(evaluation="folded")
    assert folded.loss == pytest.approx(exact.loss, rel=1e-5)
    assert folded.confusion == exact.confusion
    rough = of(evaluation="folded", precision="bf16")
    assert rough.loss == pytest.approx(exact.loss, rel=0.02)
    assert abs(rough.error - exact.error) <= 2
    assert rough.loss != folded.loss
    assert not any(isinstance(module, FoldedResidualUnit) for module in training.model.modules())


def test_evaluate_repeats_a_folded_run_s_own_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = tiny(replace(BOTTLENECK, arrangement=FULL_PREACT), evaluation="folded", **BF16)
    train(tmp_path / "run", experiment, splits=load(experiment.data))
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--device", "cpu", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    own = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (again["error"], again["loss"]) == (own["test_error"], own["test_loss"])
    # The plain path is another one: equal figures would not show which was taken.
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace('"folded"', '"plain"'))
    assert main(["evaluate", str(tmp_path / "run"), "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] != own["test_loss"]


def test_runs_of_before_are_evaluated_as_they_were() -> None:
    written = json.loads(to_json(tiny(evaluation="folded", **BF16)))
    del written["evaluation"]
    assert from_json(json.dumps(written), Experiment).evaluation == "plain"


def test_fused_kernels_are_evaluated_folded_and_plain_ones_plain() -> None:
    assert (evaluation_mode_for("fused"), evaluation_mode_for("plain")) == ("folded", "plain")
    with pytest.raises(InputError, match="evaluation is 'quick'; allowed: 'plain', 'folded'"):
        tiny(evaluation="quick")
