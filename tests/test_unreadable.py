"""What cannot be read is neither damaged nor missing: one line says so, and nothing is concluded from it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kilolayer.data import Data
from kilolayer.data.defects import find_defects
from kilolayer.data.pictures import inspection_cache
from kilolayer.errors import InputError, KilolayerError
from kilolayer.report.runs_page import write_runs_page
from kilolayer.sweep import registration, reproduction
from kilolayer.system.folder_listing import files_below, matching_paths
from kilolayer.training import Experiment

ERRORS = (errno.EIO, errno.EACCES, errno.ESTALE, errno.EINVAL, errno.ENODEV)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("ant", "bee"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(5):
            pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels + len(name) * (name == "bee")).save(
                tmp_path / "photos" / name / f"{number}.png"
            )
    return tmp_path / "photos"


def failing(function: Callable[..., Any], number: int, name: str) -> Callable[..., Any]:
    """The function; but the system refuses it a path that ends like `name`."""

    def refusing(path: Any, *args: Any, **options: Any) -> Any:
        if str(getattr(path, "filename", path)).endswith(name):
            raise OSError(number, os.strerror(number), str(path))
        return function(path, *args, **options)

    return refusing


@pytest.mark.parametrize("number", ERRORS)
def test_a_picture_that_could_not_be_read_is_not_remembered_as_damaged(
    number: int, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as once:
        once.setattr(Image, "open", failing(Image.open, number, "ant/3.png"))
        with pytest.raises(KilolayerError, match=rf"cannot read .*ant/3\.png.*{os.strerror(number)}"):
            find_defects(Data(str(photos)))
    assert find_defects(Data(str(photos))).findings == ()
    keys = [inspection_cache.cache_key(path, "shown") for path in files_below(photos, "3.png")]
    assert not [text for text in inspection_cache.lookup(keys) if text and os.strerror(number) in text]


def test_damage_is_still_told_from_it(photos: Path) -> None:
    (photos / "ant" / "3.png").write_bytes((photos / "ant" / "3.png").read_bytes()[:60])
    assert [one.kind for one in find_defects(Data(str(photos))).findings] == ["damaged"]


def test_an_entry_of_the_data_that_could_not_be_looked_at_is_not_passed_over(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "ant" / "link").symlink_to(photos / "bee" / "3.png")
    monkeypatch.setattr("kilolayer.data.sources.scan.open", failing(open, errno.EIO, "link"), raising=False)
    with pytest.raises(InputError, match="cannot be read"):
        find_defects(Data(str(photos)))


def unlistable(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, failing(getattr(os, name), errno.EACCES, folder.name))


@pytest.mark.parametrize(
    "look",
    [
        lambda folder: matching_paths(folder / "runs", "*"),
        lambda folder: files_below(folder, "config.json"),
        lambda folder: write_runs_page(folder),
        lambda folder: list(registration._copies(folder)),
        lambda folder: reproduction.run_folder(folder / "runs", Experiment.__new__(Experiment)),
    ],
)
def test_a_folder_that_cannot_be_listed_is_not_empty(
    look: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(reproduction, "run_name", lambda experiment: "d20-0-s0")
    monkeypatch.setattr(Experiment, "network", type("N", (), {"depth": 20}), raising=False)
    monkeypatch.setattr(Experiment, "seed", 0, raising=False)
    unlistable(monkeypatch, tmp_path / "runs")
    with pytest.raises(PermissionError):
        look(tmp_path)


def test_no_folder_is_an_empty_list(tmp_path: Path) -> None:
    assert matching_paths(tmp_path / "none", "*") == []
