"""Training through the kernels: resumed to the same bits, recorded, and with the same curve."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import cycle, islice

import pytest

from kernel_cases import needs_kernels
from kilolayer import kernels
from kilolayer.__main__ import main
from kilolayer.cli.assemble import assemble_experiment
from kilolayer.cli.options import ComputeOptions, ExperimentOptions
from kilolayer.errors import InputError
from kilolayer.kernels import compute_dtype, native_library
from kilolayer.networks import Network, Stage, Stem, cifar
from kilolayer.runs import Run
from kilolayer.training import Experiment, Trainer, recipe_by_name
from kilolayer.units import BASIC, BOTTLENECK, FULL_PREACT
from kilolayer.values import from_json, to_json
from tiny_runs import HERE, PREACT, Poll, outcome, splits_of, tiny, train, training_of

NETWORK = Network(
    Stem(16), (Stage(2, 16), Stage(2, 32, stride=2)), PREACT, in_chans=1, image_size=8
)  # fmt: skip
FUSED = replace(tiny(), network=NETWORK, precision="bf16", memory_format="channels_last", kernels="fused")


@needs_kernels
def test_a_fused_run_stopped_again_and_again_ends_as_if_it_had_not_been(tmp_path):
    train(tmp_path / "whole", FUSED)
    for looks in cycle((1, 3, 2)):
        if train(tmp_path / "stopped", FUSED, Poll(looks)).is_finished:
            break
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")
    assert {start["kernels"] for start in Run(tmp_path / "stopped").environments()} == {"fused"}
    # It is another run than the plain one, and says so.
    train(tmp_path / "plain", replace(FUSED, kernels="plain"))
    assert outcome(tmp_path / "plain")["weights"] != outcome(tmp_path / "whole")["weights"]


@needs_kernels
@pytest.mark.parametrize("memory", ["balanced", "smallest"])
def test_memory_changes_no_bit_of_a_fused_run(memory, tmp_path):
    train(tmp_path / "fastest", FUSED)
    assert train(tmp_path / memory, replace(FUSED, activation_memory=memory)).memory_plan.recomputed_share > 0
    one, other = outcome(tmp_path / "fastest"), outcome(tmp_path / memory)
    assert one["weights"] == other["weights"]


@needs_kernels
def test_where_the_kernels_are_gone_a_run_goes_on_in_plain_layers_and_warns(tmp_path, monkeypatch, caplog):
    folder = tmp_path / "run"
    train(folder, FUSED, Poll(3))
    monkeypatch.setenv("KILOLAYER_NATIVE", "0")
    for cached in (compute_dtype._load_unit_library, native_library.load_native_library):
        cached.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert train(folder, FUSED).is_finished
    for cached in (compute_dtype._load_unit_library, native_library.load_native_library):
        cached.cache_clear()
    assert "kernels plain (was fused)" in caplog.text


def test_an_experiment_says_what_it_can_be():
    with pytest.raises(InputError, match="kernels is 'fast'; allowed: 'plain', 'fused'"):
        tiny(kernels="fast")
    assert from_json(to_json(FUSED), Experiment) == FUSED
    assert tiny().kernels == "plain"


@needs_kernels
def test_what_units_keep_is_less_than_layers_do():
    fused, plain = training_of(FUSED), training_of(replace(FUSED, kernels="plain"))
    assert [kept.inside for kept in kernels.fused_saved_activations(fused.model)][:2] == [16 * 64] * 2
    assert fused.memory_plan.peak.step_bytes < plain.memory_plan.peak.step_bytes


STEPS = 200
UNITS = {
    "basic": (8, replace(BASIC, arrangement=FULL_PREACT)),
    "original": (8, BASIC),
    "bottleneck": (11, replace(BOTTLENECK, arrangement=FULL_PREACT)),
}


def curve(experiment: Experiment) -> list[float]:
    """The mean training loss of every epoch."""
    steps = Trainer(experiment, splits_of(experiment), HERE).steps()
    return [step.epoch.train_loss for step in islice(steps, STEPS) if step.epoch is not None]


@needs_kernels
@pytest.mark.slow
@pytest.mark.parametrize("name", UNITS)
def test_the_curve_is_that_of_plain_training(name):
    """Epoch by epoch the loss is as near to fp32's as that of PyTorch's layers in bf16 is."""
    depth, unit = UNITS[name]
    base = tiny()
    made = replace(
        recipe_by_name("smoke", 1000), iterations=STEPS, batch_size=32, augmentation=base.recipe.augmentation
    )
    network = replace(cifar(depth, unit), in_chans=1, image_size=8)
    plain = replace(base, network=network, recipe=made, data=replace(base.data, subset=1000))
    bf16 = replace(plain, precision="bf16", memory_format="channels_last")
    exact, autocast, fused = map(curve, (plain, bf16, replace(bf16, kernels="fused")))
    gaps = [max(abs(a - b) for a, b in zip(exact, one, strict=True)) for one in (autocast, fused)]
    assert fused[-1] < 0.5 * fused[0]
    assert gaps[1] <= 2 * gaps[0] + 0.05


def test_the_command_line_refuses_kernels_that_cannot_be():
    with pytest.raises(InputError, match="no fused kernels here: they compute in bf16 with channels last"):
        assemble_experiment(ExperimentOptions(compute=ComputeOptions(kernels="fused", precision="fp32")))


def test_the_command_line_takes_what_is_fastest():
    automatic, _ = assemble_experiment(ExperimentOptions(compute=ComputeOptions(precision="bf16")))
    assert automatic.kernels == ("plain" if kernels.unavailable_reason() else "fused")
    plain, _ = assemble_experiment(
        ExperimentOptions(compute=ComputeOptions(precision="bf16", kernels="plain"))
    )
    assert plain.kernels == "plain"


def train_fused(model: str, *words: str, kernels: str = "fused") -> int:
    """The exit status of a training of two iterations, explained and not recorded."""
    small = ["--subset", "64", "--iterations", "2", "--batch-size", "8", "--threads", "1", "--explain"]
    return main(
        [
            "train",
            "--model",
            model,
            "--precision",
            "bf16",
            "--kernels",
            kernels,
            *small,
            *words,
            "--no-tensorboard",
        ]
    )


@needs_kernels
def test_fused_kernels_that_compute_no_part_of_a_network_are_refused(tmp_path, capsys):
    """`auto` steps aside without a word."""
    file = tmp_path / "mine.py"
    file.write_text(NO_PART)
    unit = ["--unit", f"{file}:UNIT"]
    assert train_fused("preact_resnet8_cifar", *unit) == 2
    assert capsys.readouterr().err == (
        "kilolayer: no fused kernels for this network: of its units, its shortcut is not the identity; "
        "use --kernels auto or plain\n"
    )
    assert train_fused("preact_resnet8_cifar", *unit, kernels="auto") == 0
    assert "fused" not in capsys.readouterr().err


@needs_kernels
def test_a_network_that_is_fused_in_part_says_how_many_units(capsys):
    """In the first network BN and ReLU are fused, and no unit as a whole; in the second all is fused."""
    assert train_fused("preact_resnet8_cifar", "--shortcut", "dropout") == 0
    assert capsys.readouterr().err == (
        "kilolayer: 0 of 3 units are fused as a whole; of the others: its shortcut is not the identity; "
        "--explain lists every unit\n"
    )
    assert train_fused("preact_resnet8_cifar") == 0
    assert capsys.readouterr().err == ""


NO_PART = """
from dataclasses import dataclass, replace

from torch import nn

from kilolayer.units import BASIC, RELU, Activation, Arrangement, CustomLayer, Shortcut


class Half(nn.Module):
    def __init__(self, channels):
        super().__init__()

    def forward(self, x):
        return x / 2


class Norm(nn.GroupNorm):
    def __init__(self, channels):
        super().__init__(1, channels)


@dataclass(frozen=True)
class HalfShortcut(Shortcut):
    def layers(self, channels):
        return (CustomLayer(Half, channels),)


@dataclass(frozen=True)
class GroupNorm(Activation):
    normalises = True

    def layer(self, channels):
        return CustomLayer(Norm, channels)


LAYERS = (GroupNorm(), RELU)
UNIT = replace(BASIC, h=HalfShortcut(), arrangement=Arrangement(before=LAYERS, between=LAYERS))
"""
