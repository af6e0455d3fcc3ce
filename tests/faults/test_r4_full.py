"""R4: no room: the disk is full from the n-th call on, a small file system, a limit on a file's size."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import calls
import pytest
from crashes import Story
from harness import OPTIONS, Ended, Lab, outcome, saved_iteration

Whole = tuple[str, bytes]


def refused(ended: Ended, run: Path) -> str:
    """What is wrong with how the command ended, or "": one line that names the path and the room there is."""
    if ended.status != 2:
        return f"status {ended.status}: {ended.said}"
    line = ended.err.strip()
    named = re.fullmatch(r"kilolayer: cannot [^\n]*; [\d,]+ bytes are free there", line)
    return "" if named and str(run) in line else line


def goes_on(lab: Lab, run: Path, promised: int, whole: Whole) -> str:
    """What is wrong once there is room again, or ""."""
    if saved_iteration(run) < promised:
        return f"step {promised} is lost"
    ended = lab.bring_back(run)
    return "" if ended.status == 0 and outcome(run) == whole else ended.said or "not identical"


def test_a_disk_that_is_full_from_a_call_on(
    lab: Lab, whole: Whole, tmp_path: Path, chosen: Callable[..., list[int]], count: Any
) -> None:
    story, bad = Story(lab, tmp_path / "story", None, {}), {}
    needs_room = [n for n, call in enumerate(story.calls) if call.what in ("create", "write", "mkdir")]
    tried = chosen(needs_room)
    for number in tried:
        run = story.prepared(f"full-{number}")
        ended = story.go(run, FAULT=f"full:{number}")
        promised = calls.acknowledged(story.calls, number)
        wrong = refused(ended, run) or goes_on(lab, run, promised, whole)
        if wrong:
            bad[number] = wrong
    print(bad)
    count("R4", tried=len(tried), held=len(tried) - len(bad), note="full from a call on")


def test_a_limit_on_the_size_of_a_file(
    lab: Lab, whole: Whole, tmp_path: Path, chosen: Callable[..., list[int]], count: Any
) -> None:
    """From more than what is said, for that goes into files too, to a little less than a state's tensors."""
    tried, bad = chosen([*range(1200, 1600, 40), *range(4000, 600_000, 60_000)]), {}
    for size in tried:
        run = tmp_path / str(size) / "run"
        wrong = refused(lab.bring_back(run, LIMIT_FSIZE=str(size)), run) or goes_on(lab, run, 0, whole)
        if wrong:
            bad[size] = wrong
    print(bad)
    count("R4", tried=len(tried), held=len(tried) - len(bad), note="RLIMIT_FSIZE")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, to be resized; only root may make one."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", place], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a file system: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def resize(place: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", "tmpfs", place], check=True)


def test_a_small_file_system(
    small: Path, lab: Lab, whole: Whole, chosen: Callable[..., list[int]], count: Any
) -> None:
    tried, bad = chosen(range(4, 4000, 250)), {}
    for kilobytes in tried:
        resize(small, f"{kilobytes}k")
        run = small / str(kilobytes)
        first = lab.bring_back(run)
        wrong = "" if first.status == 0 else refused(first, run)
        saved = saved_iteration(run)
        resize(small, "64m")
        wrong = wrong or goes_on(lab, run, saved, whole)
        if wrong:
            bad[kilobytes] = wrong
        subprocess.run(["rm", "-rf", run], check=True)
    print(bad)
    count("R4", tried=len(tried), held=len(tried) - len(bad), note="a tmpfs of 4 kB to 4 MB")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_an_output_that_is_full(lab: Lab, tmp_path: Path, count: Any) -> None:
    """`kilolayer train > log` on a full disk."""
    words = ["train", *OPTIONS, "--no-tensorboard", "--device", "cpu", "--out", str(tmp_path / "run")]
    env = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*lab.program, *words], stdout=full, stderr=subprocess.PIPE, text=True, env=env, timeout=200
        )
    said = "kilolayer: cannot write the output: No space left on device\n"
    count("R4", tried=1, held=int((done.returncode, done.stderr) == (2, said)), note="> /dev/full")


def test_figures_for_tensorboard_that_find_no_room(
    lab: Lab, whole: Whole, tmp_path: Path, chosen: Callable[..., list[int]], count: Any
) -> None:
    """TensorBoard writes in a thread of its own, whose failures must not show as tracebacks."""
    pytest.importorskip("tensorboard")
    tried, bad = chosen(range(6)), {}
    for call in tried:
        run = tmp_path / str(call)
        env = {"FAULT_UNDER": str(run / "tensorboard"), "FAULT": f"full:{call}"}
        ended = lab.start_run(run, "--tensorboard", **env).end()
        if wrong := refused(ended, run) or goes_on(lab, run, 0, whole):
            bad[call] = wrong
    print(bad)
    count("R4", tried=len(tried), held=len(tried) - len(bad), note="TensorBoard")
