"""A start scans a folder of pictures once, and opens a picture once to check it and once to decode it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from kilolayer.__main__ import main
from kilolayer.data import loading
from labelled_data import folders

WORDS = [
    "--model",
    "resnet8_cifar",
    "--iterations",
    "1",
    "--batch-size",
    "4",
    "--threads",
    "1",
    "--no-tensorboard",
]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each part's pictures are opened by Pillow, and how often a folder is scanned."""
    counts: Counter[str] = Counter()
    open_image, scan = Image.open, loading.scan_folder

    def counted_open(file, *rest, **more):
        if isinstance(file, Path):
            counts[file.parts[-3]] += 1
        return open_image(file, *rest, **more)

    def counted_scan(path):
        counts["scans"] += 1
        return scan(path)

    monkeypatch.setattr(Image, "open", counted_open)
    monkeypatch.setattr(loading, "scan_folder", counted_scan)
    return counts


def test_training_and_evaluation_read_what_they_need_once(tmp_path, opened, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders(tmp_path / "photos", "train/a", "train/b", "val/a", "val/b", "test/a", "test/b", images=6)
    assert main(["train", "--data", "photos", *WORDS, "--out", "run"]) == 0
    assert opened["scans"] == 1
    assert opened["train"] == 2 * 12  # its header, then its pixels
    assert opened["val"] == opened["test"] == 3 * 12  # inspected whole, its checksums, then its pixels
    opened.clear()
    assert main(["evaluate", "run"]) == 0
    assert opened["scans"] == 1
    assert opened["train"] == 0
    assert opened["test"] == 12  # what was inspected once is remembered


def test_a_drawn_test_set_and_a_drawn_validation_set_are_scanned_once(tmp_path, opened, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders(tmp_path / "photos", "all/a", "all/b", images=20)
    assert main(["train", "--data", "photos/all", *WORDS, "--out", "run"]) == 0
    assert opened["scans"] == 1
    assert opened["all"] == 2 * 32 + 3 * 8


def test_a_damaged_training_picture_does_not_stop_an_evaluation_on_the_test_set(
    tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    folders(tmp_path / "photos", "train/a", "train/b", "test/a", "test/b", images=6)
    assert main(["train", "--data", "photos", *WORDS, "--out", "run"]) == 0
    (tmp_path / "photos/train/a/0.png").write_bytes(b"damaged")
    assert main(["evaluate", "run"]) == 0
    assert main(["evaluate", "run", "--part", "train"]) == 2
    assert "1 of 24 images are unusable" in capsys.readouterr().err
