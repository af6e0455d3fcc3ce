"""A run goes on where its data were moved, from another working folder, and by one command."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kilolayer.__main__ import main
from kilolayer.cli import resuming
from kilolayer.runs import Run
from kilolayer.system import stopping
from kilolayer.training import recipe_by_name
from kilolayer.values import to_json

TINY = (
    *("--model", "resnet8_cifar", "--epochs", "2", "--batch-size", "4", "--image-size", "16"),
    *("--threads", "1", "--precision", "fp32", "--no-tensorboard"),
)
Refused = Callable[..., str]


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 255, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with pictures of two classes in pics/, training and test."""
    folder = tmp_path / "project"
    for number, part in enumerate(("train", "test")):
        for label, name in enumerate("ab"):
            for index in range(10):
                picture(folder / f"pics/{part}/{name}/{index}.png", number * 100 + label * 50 + index)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def train(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def attempt(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        status = main(["train", *words])
        shown = capsys.readouterr()
        return status, shown.out + shown.err

    return attempt


def begun(*words: str, monkeypatch: pytest.MonkeyPatch, steps: int = 1) -> None:
    """A run that was asked to stop after so many steps."""
    with monkeypatch.context() as patch:
        asked = iter([False] * steps)
        patch.setattr(stopping.StopRequest, "__call__", lambda self: next(asked, True))
        assert main(["train", *TINY, *words]) == 143


def outcome(run: Path) -> tuple[bytes, bytes]:
    return (run / "weights.safetensors").read_bytes(), (run / "metrics.jsonl").read_bytes()


@pytest.fixture
def whole(project: Path, train) -> tuple[bytes, bytes]:
    """What an uninterrupted run gives."""
    assert train(*TINY, "--data", "pics", "--out", "whole")[0] == 0
    return outcome(project / "whole")


@pytest.fixture
def run(whole, project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run in runs/a that was stopped after its first step."""
    begun("--data", "pics", "--out", "runs/a", monkeypatch=monkeypatch)
    return project / "runs/a"


class TestElsewhere:
    def test_from_another_working_folder(self, run, whole, tmp_path, train, monkeypatch):
        config = (run / "config.json").read_bytes()
        monkeypatch.chdir(tmp_path)
        status, said = train("--resume", str(run), "--no-tensorboard")
        assert status == 0, said
        assert f"reading the data from {run.parent.parent}/pics" in said
        assert outcome(run) == whole
        assert (run / "config.json").read_bytes() == config

    def test_run_and_data_moved_together(self, run, whole, project, tmp_path, train, monkeypatch):
        monkeypatch.chdir(tmp_path)
        project.rename(tmp_path / "moved")
        assert train("--resume", "moved/runs/a", "--no-tensorboard")[0] == 0
        assert outcome(tmp_path / "moved/runs/a") == whole

    def test_data_moved(self, run, whole, project, tmp_path, train):
        """Said once, by --data; then it is known."""
        (project / "pics").rename(tmp_path / "new")
        status, said = train("--resume", "runs/a", "--no-tensorboard")
        assert status == 2
        assert "'pics' does not exist" in said
        assert "the data's new place: --data PATH" in said
        status, said = train("--resume", "runs/a", "--data", str(tmp_path / "new"), "--no-tensorboard")
        assert status == 0, said
        assert outcome(run) == whole
        assert json.loads((run / "config.json").read_text())["data"]["source"] == "pics"
        assert main(["evaluate", "runs/a"]) == 0

    @pytest.mark.parametrize(
        ("part", "same"), [("test", "training set"), ("train", "test set")], ids=["test", "train"]
    )
    def test_data_that_changed_are_refused_by_the_part(self, part, same, run, project, tmp_path, train):
        shutil.copytree(project / "pics", tmp_path / "new")
        picture(tmp_path / f"new/{part}/a/3.png", 999)
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        status, said = train("--resume", "runs/a", "--data", str(tmp_path / "new"), "--no-tensorboard")
        assert status == 2
        name = {"test": "test set", "train": "training set"}[part]
        assert f"other images or labels in the {name}; the same " in said
        assert same in said
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before

    def test_a_test_set_that_changed_in_its_place(self, run, project, train):
        picture(project / "pics/test/a/3.png", 999)
        assert "other images or labels in the test set" in train("--resume", "runs/a", "--no-tensorboard")[1]

    def test_a_run_of_an_earlier_release_goes_on(self, run, whole, project, tmp_path, train):
        """Its start says nothing of the data, and its state nothing of the test set."""
        starts = json.loads((run / "environment.json").read_text())
        for start in starts:
            del start["data"]
        (run / "environment.json").write_text(json.dumps(starts))
        (project / "pics").rename(tmp_path / "new")
        assert train("--resume", "runs/a", "--data", str(tmp_path / "new"), "--no-tensorboard")[0] == 0
        assert outcome(run) == whole

    def test_data_that_nothing_can_be_compared_with(self, run, project, tmp_path, train):
        (run / "environment.json").write_text("[]")
        shutil.rmtree(run / "checkpoints")
        (project / "pics").rename(tmp_path / "new")
        said = train("--resume", "runs/a", "--data", str(tmp_path / "new"), "--no-tensorboard")[1]
        assert "has no record of its data" in said

    def test_no_absolute_path_is_noted_that_nobody_wrote(self, run, project):
        assert str(project) not in (run / "environment.json").read_text()
        assert Run(run).environments()[0]["data"]["path"] == os.path.join("..", "..", "pics")


AUTO = (*TINY, "--data", "pics", "--out", "runs/auto", "--resume", "auto")


class TestAuto:
    @pytest.mark.parametrize("state", ["missing", "empty", "killed before its configuration"])
    def test_it_begins(self, state, whole, project, train):
        folder = project / "runs/auto"
        if state != "missing":
            folder.mkdir(parents=True)
        if state.startswith("killed"):
            (folder / ".lock").touch()
            (folder / "environment.json").write_text("[]")
            (folder / ".config.json.0123abcd").write_text("{")
        assert train(*AUTO)[0] == 0
        assert outcome(folder) == whole

    def test_it_goes_on_and_at_the_end_does_nothing(self, whole, project, train, monkeypatch):
        begun(*AUTO[len(TINY) :], monkeypatch=monkeypatch, steps=3)
        begun(*AUTO[len(TINY) :], monkeypatch=monkeypatch)
        assert train(*AUTO)[0] == 0
        folder = project / "runs/auto"
        assert outcome(folder) == whole
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        status, said = train(*AUTO)
        assert status == 0
        assert "runs/auto is done: test error" in said
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before

    def test_it_goes_on_where_it_was_killed_before_its_first_save(self, whole, project, train, monkeypatch):
        begun(*AUTO[len(TINY) :], monkeypatch=monkeypatch)
        shutil.rmtree(project / "runs/auto/checkpoints")
        assert train(*AUTO)[0] == 0
        assert outcome(project / "runs/auto") == whole

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("--seed", "1"), "seed 0 (now 1)"),
            (("--epochs", "3"), "settings: steps (--epochs, --iterations) 8 (now 12); give"),
            (("--batch-size", "5"), "--batch-size 4 (now 5)"),
            (("--lr", "0.01"), "--lr 0.1 (now 0.01)"),
            (("--model", "resnet14_cifar"), "network.stages"),
            (("--precision", "bf16"), "precision fp32 (now bf16)"),
            (("--snapshots", "2"), "snapshots 0 (now 2)"),
            (("--subset", "12"), "data.subset none (now 12)"),
        ],
    )
    @pytest.mark.parametrize("done", [False, True], ids=["under way", "done"])
    def test_other_settings_are_refused_by_name(self, done, words, said, project, train, monkeypatch):
        if done:
            assert train(*AUTO)[0] == 0
        else:
            begun(*AUTO[len(TINY) :], monkeypatch=monkeypatch)
        status, text = train(*AUTO, *words)
        assert status == 2, text
        assert said in text
        assert "choose another --out" in text

    def test_what_this_machine_would_choose_is_no_setting(self, project, train, monkeypatch):
        """The run began in bf16, as another processor chose."""
        words = [word for word in AUTO if word not in ("--precision", "fp32")]
        begun(*AUTO[len(TINY) :], "--precision", "bf16", monkeypatch=monkeypatch)
        status, said = train(*words)
        assert status == 0, said
        assert Run(project / "runs/auto").experiment().precision == "bf16"

    def test_other_data_are_refused(self, project, train, monkeypatch):
        begun(*AUTO[len(TINY) :], monkeypatch=monkeypatch)
        shutil.copytree(project / "pics", project / "others")
        status, said = train(*AUTO, "--data", "others")
        assert status == 0, said  # the same pictures
        shutil.rmtree(project / "runs")
        begun(*AUTO[len(TINY) :], monkeypatch=monkeypatch)
        picture(project / "others/test/a/3.png", 999)
        assert "other images or labels in the test set" in train(*AUTO, "--data", "others")[1]

    def test_a_folder_of_other_things_is_refused(self, project, train):
        (project / "runs/auto").mkdir(parents=True)
        (project / "runs/auto/thesis.tex").write_text("")
        assert "holds other files; choose another --out" in train(*AUTO)[1]
        assert [path.name for path in (project / "runs/auto").iterdir()] == ["thesis.tex"]

    def test_a_file_is_refused(self, project, train):
        (project / "runs").mkdir()
        (project / "runs/auto").write_text("")
        assert "runs/auto is a file; choose another --out" in train(*AUTO)[1]

    def test_it_needs_a_folder(self, project, train):
        status, said = train(*TINY, "--resume", "auto")
        assert status == 2
        assert "--resume auto begins or continues the run in --out DIR; add --out DIR" in said

    def test_a_run_in_a_folder_of_that_name_still_goes_on(self, whole, project, train, monkeypatch):
        begun("--data", "pics", "--out", "auto", monkeypatch=monkeypatch)
        assert train("--resume", "auto", "--no-tensorboard")[0] == 0
        assert outcome(project / "auto") == whole


def test_only_what_does_not_change_a_run_may_stand_beside_resume():
    assert {"--data", "--data-folder", "--download"} < set(resuming.ALLOWED_WITH_RESUME)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"iterations": 9}, ["recipe.iterations"]),
        ({"iterations": 9, "batch_size": 8}, ["recipe.batch_size", "recipe.iterations"]),
        ({"peak": 0.2}, ["recipe.rate.peak"]),
        ({"recipe": "sprint"}, ["recipe.name"]),
    ],
)
def test_settings_that_follow_from_others_are_not_named(changed: dict[str, Any], named: list[str]) -> None:
    began = recipe_by_name("short", 1000)
    now = recipe_by_name(changed.get("recipe", "short"), 1000).with_iterations(
        changed.get("iterations", began.iterations)
    )
    now = replace(now, batch_size=changed.get("batch_size", now.batch_size))
    if "peak" in changed:
        now = replace(now, rate=replace(now.rate, peak=changed["peak"]))
    one, other = (dict(resuming._flat(json.loads(to_json(each)), "recipe")) for each in (began, now))
    differing = [name for name in one | other if one.get(name) != other.get(name)]
    assert sorted(resuming._chosen(differing, began, now)) == named
