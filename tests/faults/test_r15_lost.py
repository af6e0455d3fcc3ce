"""R15: a process whose folder was moved, removed, replaced or unlocked stops, and writes nowhere else."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from kilolayer.errors import InputError
from kilolayer.runs import Run, train_run
from kilolayer.runs.folder import RunInUse
from kilolayer.system.opened_folder import FolderLost, OpenedFolder
from tiny_runs import Poll, files_in, outcome, tiny, train, training_of

STEPS = range(1, 8)


def moved(run: Path) -> None:
    run.rename(run.with_name("moved"))


def removed(run: Path) -> None:
    shutil.rmtree(run)


def reused(run: Path) -> None:
    removed(run)
    train(run, tiny(seed=1), Poll(5))


def moved_and_reused(run: Path) -> None:
    moved(run)
    train(run, tiny(seed=1), Poll(5))


def replaced_by_its_copy(run: Path) -> None:
    shutil.copytree(run, run.with_name("copy"))
    removed(run)
    run.with_name("copy").rename(run)


def replaced_by_a_link(run: Path) -> None:
    moved(run)
    run.with_name("other").mkdir()
    run.symlink_to(run.with_name("other"))


def parent_moved(run: Path) -> None:
    run.parent.rename(run.parent.with_name("elsewhere"))


def unlocked(run: Path) -> None:
    (run / ".lock").unlink()


def locked_by_another(run: Path) -> None:
    unlocked(run)
    shutil.copy(run / "config.json", run / ".lock")


def linked(name: str) -> Callable[[Path], None]:
    def harm(run: Path) -> None:
        precious = run.with_name("precious")
        precious.mkdir()
        (precious / "file").write_text("mine")
        path = run / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        path.symlink_to(precious if "." not in name else precious / "file")

    harm.__name__ = f"{name} becomes a link"
    return harm


LOST = (moved, removed, reused, moved_and_reused, replaced_by_its_copy, replaced_by_a_link, parent_moved,
        unlocked, locked_by_another)  # fmt: skip
LINKED = tuple(
    map(linked, ("checkpoints", "metrics.jsonl", "timing.jsonl", "weights.safetensors", "result.json"))
)


def stops(harm: Callable[[Path], None], at: int, top: Path) -> str:
    """What is wrong with a run that is harmed after step `at`, or "" where all is well."""
    run = top / "below" / "run"
    run.parent.mkdir(parents=True)
    with Run.open_or_create(run, tiny()) as opened:
        steps = train_run(opened, training_of(tiny()), save_seconds=-1.0)
        for step in steps:
            if step.iteration == at:
                break
        harm(run)
        before = files_in(top)
        try:
            for _ in steps:
                pass
        except FolderLost as error:
            said = str(error)
            if "could not be saved" not in said or "\n" in said:
                return said
        except InputError as error:
            if harm not in LINKED or "is a link" not in str(error):
                return str(error)
        else:
            return "it went on"
    after = files_in(top)
    if harm in LINKED:  # the run's own files may go on until the link is met
        outside = {path: raw for path, raw in after.items() if path.startswith("below/precious")}
        return "" if outside == {"below/precious/file": b"mine"} else "written"
    return "" if _without_lock(after) == _without_lock(before) else "something was written"


def _without_lock(files: dict[str, bytes]) -> dict[str, bytes]:
    return {path: raw for path, raw in files.items() if not path.endswith(".lock")}


def test_a_lost_folder_stops_the_run(
    tmp_path: Path, chosen: Callable[[Sequence[Any]], list[Any]], count: Any
) -> None:
    cases = chosen([*itertools.product((*LOST, *LINKED), STEPS[:-1])])
    bad = {}
    for number, (harm, at) in enumerate(cases):
        if wrong := stops(harm, at, tmp_path / str(number)):
            bad[harm.__name__, at] = wrong
    print(bad)
    count("R15", tried=len(cases), held=len(cases) - len(bad), note="at every step")


def test_checkpoints_that_were_removed_are_made_anew(
    tmp_path: Path, chosen: Callable[[Sequence[Any]], list[Any]], count: Any
) -> None:
    train(tmp_path / "whole", tiny())
    cases, held = chosen(STEPS[:-1]), 0
    for at in cases:
        path = tmp_path / str(at)
        with Run.open_or_create(path, tiny()) as run:
            for step in train_run(run, training_of(tiny()), save_seconds=-1.0):
                if step.iteration == at:
                    shutil.rmtree(path / "checkpoints")
        held += outcome(path) == outcome(tmp_path / "whole")
    count("R15", tried=len(cases), held=held, note="checkpoints/ removed")


def test_never_two_writers(tmp_path: Path, count: Any) -> None:
    """Also where .lock was deleted: whoever comes is refused as long as the first lives."""
    held = 0
    for deleted in (False, True):
        path = tmp_path / str(deleted)
        with Run.open_or_create(path, tiny()) as run:
            steps = train_run(run, training_of(tiny()), save_seconds=-1.0)
            next(steps)
            if deleted:
                os.unlink(path / ".lock")
            before = _without_lock(files_in(path))
            try:
                train(path, tiny())
            except RunInUse:
                held += _without_lock(files_in(path)) == before
    count("R15", tried=2, held=held, note="a second start")


@pytest.mark.parametrize("harm", [moved, unlocked])
def test_the_harness_sees_a_seeded_fault(
    harm: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpenedFolder, "check", lambda self: None)
    assert stops(harm, 2, tmp_path)
