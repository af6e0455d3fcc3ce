"""All labelled pictures of a source, whatever its splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kilolayer.data import Data, load_labelled
from kilolayer.errors import InputError


def folder(root: Path, *classes: str) -> Path:
    """Two pictures in each of these folders, all of them different."""
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(np.full((8, 8, 3), 10 * number + i, np.uint8)).save(root / name / f"{i}.png")
    return root


def test_digits() -> None:
    assert len(load_labelled(Data("digits"))) == 1797
    assert len(load_labelled(Data("digits"), "test")) == 360


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        (("train/ant", "train/bee", "test/ant", "test/bee"), ("ant", "bee")),
        (("ant", "bee"), ("ant", "bee")),
        (("test/ant", "test/bee"), ("ant", "bee")),
        (("ant",), ("ant",)),
        (("train/ant", "train/bee", "test/bee"), ("ant", "bee")),
    ],
)
def test_folders(classes: tuple[str, ...], names: tuple[str, ...], tmp_path: Path) -> None:
    loaded = load_labelled(Data(str(folder(tmp_path, *classes))))
    assert (loaded.classes, len(loaded)) == (names, 2 * len(classes))
    for i, label in enumerate(loaded.images.labels.tolist()):
        assert f"/{names[label]}/" in loaded.where(i)


def test_one_split(tmp_path: Path) -> None:
    root = folder(tmp_path, "train/ant", "train/bee", "test/bee")
    assert load_labelled(Data(str(root)), "test").classes == ("bee",)
    with pytest.raises(InputError, match="no split 'dev'"):
        load_labelled(Data(str(root)), "dev")
