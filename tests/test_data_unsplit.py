"""All labelled pictures of a source, whatever its splits."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kilolayer.data import Data, load, load_labelled
from kilolayer.data.evaluation_sample import match_classes, select_own_images
from kilolayer.data.images import Images
from kilolayer.data.labelled_images import LabelledImages, convert_channels
from kilolayer.data.pictures.decoding import PixelFormat
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
        assert f"/{names[label]}/" in loaded.locate(i)


def test_one_split(tmp_path: Path) -> None:
    root = folder(tmp_path, "train/ant", "train/bee", "test/bee")
    assert load_labelled(Data(str(root)), "test").classes == ("bee",)
    with pytest.raises(InputError, match="no split 'dev'"):
        load_labelled(Data(str(root)), "dev")


@pytest.mark.parametrize(("grey", "mode", "said"), [(True, "L", "read as grey"), (False, "RGB", "")])
def test_pictures_are_read_in_the_channels_asked_for(
    grey: bool, mode: str, said: str, tmp_path: Path
) -> None:
    root = folder(tmp_path, "ant", "bee")
    loaded = load_labelled(Data(str(root)), grey=grey)
    with Image.open(root / "bee/1.png") as image:
        expected = np.asarray(image.convert(mode)).reshape(8, 8, -1).transpose(2, 0, 1)
    assert torch.equal(loaded.images.pixels[3], torch.from_numpy(expected.copy()))
    assert said in loaded.origin[-1]
    assert ("read as" in loaded.origin[-1]) is bool(said)


def test_pictures_in_memory_are_converted_as_pillow_does() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), np.uint8)
    images = Images(torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.tensor([0, 1]))
    colour = LabelledImages("x", ("a", "b"), images, (), str)
    grey = convert_channels(colour, True)
    expected = np.stack([np.asarray(Image.fromarray(one).convert("L")) for one in pixels])
    assert torch.equal(grey.images.pixels[:, 0], torch.from_numpy(expected))
    assert grey.origin == ("colour pictures are read as grey",)
    assert convert_channels(grey, False).images.pixels.shape == (2, 3, 40, 40)
    assert convert_channels(colour, None) is colour


@pytest.mark.parametrize("validation", [0, 3])
@pytest.mark.parametrize("parts", [("",), ("train/", "test/"), ("train/", "val/", "test/")])
def test_every_image_is_where_it_is_said_to_be(
    parts: tuple[str, ...], validation: int, tmp_path: Path
) -> None:
    root = folder(tmp_path, *(part + name for part in parts for name in ("ant", "bee", "cow")))
    for name in ("ant", "bee", "cow"):
        for i in range(2, 6):
            pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(root / parts[0] / name / f"{i}.png")
    splits = load(Data(str(root), validation=validation))
    for part in ("train", "validation", "test"):
        images = getattr(splits, part)
        for i in range(0 if images is None else len(images)):
            path = Path(splits.locate(part, i).strip("'"))
            with Image.open(path) as image:
                pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
            assert torch.equal(images.pixels[i], pixels)
            assert splits.classes[int(images.labels[i])] == path.parent.name


def test_names_of_a_network_in_another_unicode_form() -> None:
    """Runs of earlier releases name classes as macOS writes folders."""
    apart = unicodedata.normalize("NFD", "café")
    images = Images(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([1, 0]))
    labelled = LabelledImages("x", ("café", "tea"), images, (), str)
    assert match_classes(labelled, "all", ("tea", apart)).images.labels.tolist() == [0, 1]


@pytest.mark.parametrize("part", ["val", "dev", "Validation"])
def test_parts_of_a_run_by_the_words_for_splits(part: str) -> None:
    assert len(select_own_images(Data("digits", validation=100), part, PixelFormat(8, grey=True))) == 100
