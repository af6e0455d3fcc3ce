"""A data set of one's own inside the package: one entry in the registry, and one function that reads it."""

from __future__ import annotations

import json

import pytest
import torch

from kilolayer.__main__ import main
from kilolayer.data import Data, Images, default_augmentation, load
from kilolayer.data.images import StoredDataset
from kilolayer.data.registry import DATASETS, NamedDataset
from kilolayer.errors import InputError

CLASSES = ("left", "middle", "right")


def _images(count: int) -> Images:
    """Noise of 8×8 pixels with a bright column, whose place is the class."""
    labels = torch.arange(count) % len(CLASSES)
    pixels = torch.randint(0, 100, (count, 1, 8, 8), generator=torch.Generator().manual_seed(count))
    pixels[torch.arange(count), 0, :, 1 + 2 * labels] = 255
    return Images(pixels.to(torch.uint8), labels)


def read_columns(data: Data) -> StoredDataset | None:
    if data.source != "columns":
        return None
    return StoredDataset("columns", lambda: CLASSES, lambda: _images(90), lambda: _images(30))


@pytest.fixture
def columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that a data set takes: this entry, and the function above."""
    entry = NamedDataset("Columns", 3, 90, f"{__name__}:read_columns", pad=1, flip=False)
    monkeypatch.setitem(DATASETS, "columns", entry)


@pytest.mark.usefixtures("columns")
def test_it_is_loaded_by_its_name() -> None:
    splits = load(Data("columns", validation=9, image_size=16))
    assert (splits.name, splits.classes, splits.image_size) == ("Columns", CLASSES, 16)
    assert [len(splits.train), len(splits.validation or ()), len(splits.test)] == [81, 9, 30]
    assert default_augmentation(Data("columns")).pad == 1
    assert not default_augmentation(Data("columns")).flip
    with pytest.raises(InputError, match="--train left: columns has one training set"):
        load(Data("columns", train="left"))


@pytest.mark.usefixtures("columns")
def test_every_command_knows_it(tmp_path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["check-data", "columns", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == {"train": 90, "test": 30}
    words = ["--model", "resnet8_cifar", "--iterations", "2", "--threads", "1", "--no-tensorboard"]
    assert main(["train", "--data", "columns", *words, "--out", "run"]) == 0
    assert "Columns" in capsys.readouterr().out
    assert main(["evaluate", "run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"] == "Columns"
    with pytest.raises(InputError, match=r"nearest: columns"):
        load(Data("colums"))


def test_the_command_line_offers_every_data_set() -> None:
    from kilolayer.cli.command_table import options_of
    from kilolayer.cli.completion_words import completions_at

    (data,) = (option for option in options_of("train") if "--data" in option.flags)
    assert all(name in data.help for name in DATASETS)
    assert {*DATASETS} < {*completions_at(["train", "--data", ""])}
