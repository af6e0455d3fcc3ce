"""R1: SIGKILL right before every call that makes something last, of a run begun and of runs continued."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crashes import Story, begun
from harness import OPTIONS, Lab, outcome, saved_iteration

Whole = tuple[str, bytes]


def show(row: str, story: Story, numbers: list[int], fault: str, whole: Whole, count: Any) -> None:
    wrong = {number: story.killed(fault, number, whole) for number in numbers}
    bad = {number: what for number, what in wrong.items() if what}
    print(bad)
    count(row, tried=len(numbers), held=len(numbers) - len(bad), note=f"{len(story.calls)} calls")


def test_killed_before_every_call(
    lab: Lab, whole: Whole, tmp_path: Path, chosen: Callable[..., list[int]], count: Any
) -> None:
    story = Story(lab, tmp_path / "story", None, {})
    show("R1", story, chosen(range(len(story.calls))), "kill", whole, count)


@pytest.mark.parametrize("at", [30, 71])
def test_killed_before_every_call_of_a_run_that_goes_on(
    at: int, lab: Lab, whole: Whole, tmp_path: Path, chosen: Callable[..., list[int]], count: Any
) -> None:
    story = Story(lab, tmp_path / "story", begun(lab, tmp_path / "begun", at), {})
    show("R1", story, chosen(range(len(story.calls))), "kill", whole, count)


def test_as_its_own_program(lab: Lab, whole: Whole, tmp_path: Path, count: Any) -> None:
    """Without the server: the interpreter starts anew for both commands."""
    run = tmp_path / "case" / "run"
    run.parent.mkdir()
    words = ("train", *OPTIONS, "--save-every", "0", "--no-tensorboard", "--out", str(run))
    assert lab.anew(*words, FAULT_UNDER=str(run.parent), FAULT="kill:60").status == -9
    assert saved_iteration(run) > 0
    assert lab.anew("train", "--resume", str(run), "--no-tensorboard").status == 0
    count("R1", tried=1, held=int(outcome(run) == whole), note="a new interpreter")
