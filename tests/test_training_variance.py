"""One value a channel has no variance: refused before the first step, as a description tells."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from kilolayer.__main__ import main
from kilolayer.errors import InputError
from kilolayer.networks import Network, Stage, Stem, build
from kilolayer.training import DistributedContext, ProgressiveResize
from kilolayer.training.experiment import InitialWeights
from kilolayer.units import (
    BASIC,
    BN_AFTER_ADDITION,
    BOTTLENECK,
    FULL_PREACT,
    ONE_LAYER,
    Aggregated,
    ExclusiveGate,
    Projection,
    Unit,
    ZeroPad,
)
from tiny_runs import network, tiny, training_of, with_recipe

UNITS = {
    "original": BASIC,
    "pre-activated": replace(BASIC, arrangement=FULL_PREACT),
    "BN after addition": replace(BASIC, arrangement=BN_AFTER_ADDITION),
    "bottleneck": replace(BOTTLENECK, arrangement=FULL_PREACT, downsample=Projection()),
    "gated": replace(ONE_LAYER, h=ExclusiveGate(-1.0, batch_norm=True)),
    "preactivated padding": replace(BASIC, arrangement=FULL_PREACT, downsample=ZeroPad("preactivated")),
    "split": Unit(Aggregated(2, 16, form="split"), downsample=Projection()),
}


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("side", [4, 5, 8, 9])
def test_a_description_knows_the_map_of_every_bn(unit: Unit, pool: bool, side: int) -> None:
    described = Network(Stem(4, pool=pool), (Stage(2, 4), Stage(2, 8, 2)), unit, image_size=side)
    model = build(described)
    seen: list[tuple[str, int]] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            part = ".".join(name.split(".")[:2]) if name.startswith("stage") else name.split(".")[0]
            module.register_forward_hook(lambda _, args, __, part=part: seen.append((part, args[0].shape[2])))
    model(torch.randn(2, 3, side, side))
    assert sorted(described.normalised_sides()) == sorted(seen)


@pytest.mark.parametrize(("side", "image", "world"), [(4, 1, 1), (4, 1, 2), (4, 2, 1), (5, 1, 1), (8, 1, 1)])
@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
def test_what_pytorch_would_refuse_is_refused_before(unit: Unit, side: int, image: int, world: int) -> None:
    stages = Stage(1, 16), Stage(1, 16, 2), Stage(1, 16, 2)
    described = replace(network(unit), stages=stages, image_size=side)
    experiment = with_recipe(tiny(network=described), batch_size=image * world)
    experiment = replace(experiment, data=replace(experiment.data, image_size=side))
    x = torch.randn(image, 1, side, side)
    try:
        build(described)(x)
    except ValueError:
        wanted = f"one image per process at batch size {world}, .* take a --batch-size of {2 * world} or more"
        with pytest.raises(InputError, match=wanted):
            training_of(experiment, DistributedContext(torch.device("cpu"), rank=0, world_size=world))
    else:
        assert world == 2 or training_of(experiment)


def test_images_that_are_small_at_first_are_refused_with_their_option() -> None:
    experiment = with_recipe(tiny(), batch_size=1, progressive_resize=ProgressiveResize(0.25, ((0.5, 1.0),)))
    with pytest.raises(InputError, match=r"for images of 2; .* or a larger --progressive-resize$"):
        training_of(experiment)


def test_a_frozen_trunk_takes_one_image() -> None:
    described = replace(network(), image_size=2)
    experiment = with_recipe(
        replace(tiny(network=described), init=InitialWeights("weights", "0" * 64)), batch_size=1
    )
    experiment = replace(experiment, data=replace(experiment.data, image_size=2))
    with pytest.raises(InputError, match="one value per channel"):
        training_of(experiment)
    step, *_ = training_of(with_recipe(experiment, trunk_rate=0.0)).steps()
    assert step.loss.isfinite()


@pytest.mark.parametrize(
    "option", [["--image-size", "4"], ["--progressive-resize", "0.5,1@0.5"]], ids=" ".join
)
def test_on_the_command_line_it_is_one_line_and_nothing_is_written(
    option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["train", "--model", "resnet8_cifar", "--subset", "64", "--batch-size", "1", "--no-tensorboard"]
    assert main([*line, *option, "--out", str(tmp_path / "run")]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "--batch-size of 2 or more" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", [["analyse", "gradient"], ["bench"]], ids=" ".join)
def test_so_do_commands_that_train_without_a_run(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*words, "preact_resnet8_cifar", "--batch-size", "1", "--image-size", "4"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "one value per channel in a batch of [1, 64, 1, 1]" in said
    assert not list(tmp_path.iterdir())


def test_evaluation_takes_one_image_of_one_pixel() -> None:
    model = build(network()).eval()
    assert model(torch.randn(1, 1, 2, 2)).isfinite().all()


@pytest.mark.slow
def test_two_processes_of_one_image_each_are_one_line(tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    line = ["-m", "kilolayer", "train", "--model", "resnet8_cifar", "--subset", "64", "--batch-size", "2"]
    rest = ["--image-size", "4", "--no-tensorboard", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [*launch, *line, *rest],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if line.startswith("kilolayer:")]
    assert len(said) == 1
    assert "one image per process at batch size 2" in said[0]
    assert not (tmp_path / "run").exists()
