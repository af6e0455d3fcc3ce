"""What is said before a training from random weights on few pictures."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from kilolayer.__main__ import main
from kilolayer.cli.init_advice import FEW_IMAGES, advise_on_init, source_runs
from kilolayer.data import Data, Images, Splits
from kilolayer.networks import cifar, describe
from kilolayer.training import Experiment, network_for_data, recipe_by_name
from kilolayer.training.experiment import InitialWeights
from kilolayer.values import to_json

LARGE = network_for_data(describe("preact_resnet20_cifar"), classes=4, in_chans=3, image_size=8)
SMALL = network_for_data(cifar(8), classes=4, in_chans=3, image_size=8)


def experiment(**changes: Any) -> Experiment:
    return replace(Experiment(LARGE, Data("photos"), recipe_by_name("short", 100)), **changes)


def splits(a_class: int) -> Splits:
    images = Images(torch.zeros(4 * a_class, 3, 8, 8, dtype=torch.uint8), torch.arange(4 * a_class) % 4)
    return Splits("photos", tuple("abcd"), images, None, lambda: images)


def finished(folder: Path, network: Any = LARGE, source: str = "others", age: int = 0) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(to_json(experiment(network=network, data=Data(source))))
    (folder / "weights.safetensors").write_bytes(b"")
    os.utime(folder / "weights.safetensors", (1e9 - age, 1e9 - age))
    return folder


@pytest.mark.parametrize(
    ("given", "a_class", "warned"),
    [
        (experiment(), FEW_IMAGES - 1, "images a class are few for"),
        (experiment(), FEW_IMAGES, None),
        (experiment(init=InitialWeights("w.pt", "0")), 5, None),
        (experiment(network=SMALL), 5, None),
        (experiment(data=Data("cifar10")), 5, None),
        (
            experiment(recipe=recipe_by_name("finetune", 100)),
            500,
            "the recipe finetune expects trained weights",
        ),
        (
            experiment(recipe=recipe_by_name("finetune", 100).with_iterations(9)),
            500,
            "the recipe finetune expects trained weights",
        ),
        (experiment(recipe=recipe_by_name("finetune", 100), init=InitialWeights("w.pt", "0")), 500, None),
    ],
)
def test_who_is_warned(given: Experiment, a_class: int, warned: str | None, tmp_path: Path) -> None:
    said = advise_on_init(given, splits(a_class), [tmp_path])
    assert (said is None) == (warned is None)
    assert said is None or (warned or "") in said


def test_weights_that_are_there_are_named(tmp_path: Path) -> None:
    run = finished(tmp_path / "my runs" / "source")
    said = advise_on_init(experiment(), splits(3), [tmp_path / "my runs"])
    assert said is not None
    assert said.endswith(f"begin from a run's weights: --init '{run}' --recipe finetune")
    nothing = advise_on_init(experiment(), splits(3), [tmp_path / "none", tmp_path])
    assert nothing is not None
    assert "train on a larger data set of the same kind first" in nothing


def test_the_same_network_comes_first_then_the_newest(tmp_path: Path) -> None:
    new = finished(tmp_path / "new", SMALL, age=1)
    same = finished(tmp_path / "same", replace(LARGE, num_classes=9, image_size=32), age=3)
    old = finished(tmp_path / "old", SMALL, age=2)
    finished(tmp_path / "grey", replace(LARGE, in_chans=1))
    finished(tmp_path / "digits", source="digits")
    finished(tmp_path / "own", source="photos")
    (finished(tmp_path / "damaged") / "config.json").write_text("[" * 100_000)
    (finished(tmp_path / "other") / "config.json").write_text('{"network": 3, "data": []}')
    (tmp_path / "unfinished").mkdir()
    assert list(source_runs(experiment(), [tmp_path, tmp_path])) == [same, new, old]


@pytest.mark.slow
def test_a_person_is_told_on_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(9):
            Image.new("RGB", (8, 8), (number * 20, ord(name), 9)).save(
                tmp_path / "photos" / name / f"{number}.png"
            )
    finished(tmp_path / "runs" / "source")
    words = ["train", "--data", "photos", "--iterations", "1", "--batch-size", "4", "--no-tensorboard"]
    assert main([*words, "--explain"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "few" in line]
    assert said == [
        "kilolayer: 7 images a class are few for 269,202 random weights; begin from a run's weights: "
        "--init runs/source --recipe finetune"
    ]


def test_the_suggested_folder_is_not_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "--init runs/source " in str(advise_on_init(experiment(), splits(3), []))
    assert "--init runs/source-2 " in str(advise_on_init(experiment(), splits(3), [], Path("runs/source")))
    (tmp_path / "runs" / "source-2").mkdir(parents=True)
    assert "--out runs/source-3" in str(
        advise_on_init(experiment(), splits(3), [], tmp_path / "runs" / "source")
    )
