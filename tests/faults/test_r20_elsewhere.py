"""R20, R13: a run goes on elsewhere: data and run moved or copied, other users' settings, clocks, machines.

It goes on identically, or a warning names what differs and the run goes on. Data that changed are refused.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from harness import OPTIONS, Lab, outcome
from test_r5_signals import Whole
from test_r17_stopping import pictures

Cases = Callable[..., list[Any]]
FIXED = ("--no-tensorboard", "--device", "cpu", "--save-every", "0")
FAULTS = str(Path(__file__).parent)
DAY = 24 * 3600
CLOCKS = (-3653 * DAY, -DAY, DAY, 3653 * DAY)


def command(*words: str, folder: Path | None = None, code: str = "", **env: str) -> tuple[int, str]:
    """A command in an interpreter of its own, from another working folder; `code` runs before it."""
    program = f"{code}\nimport sys\nfrom kilolayer.__main__ import main\nsys.exit(main(sys.argv[1:]))"
    given = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"} | env
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        capture_output=True, text=True, cwd=folder, env=given, timeout=300,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data") / "pictures", 40)


PICTURES = ("--model", "preact_resnet8_cifar", "--iterations", "4", "--batch-size", "8", "--image-size", "32")


@pytest.fixture(scope="module")
def of_pictures(lab: Lab, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    run = tmp_path_factory.mktemp("pictures") / "run"
    options = (*PICTURES, "--threads", "1", "--precision", "fp32", *FIXED)
    ended = lab.run("train", "--data", str(data), *options, "--out", str(run))
    assert ended.status == 0, ended.err
    return outcome(run)


def change(data: Path, part: int) -> None:
    """Another picture, or another class, of one in so many."""
    path = sorted(data.rglob("*.png"))[part]
    shutil.copy(sorted(data.rglob("*.png"))[part + 1], path)


def test_data_that_moved(
    data: Path, of_pictures: Whole, lab: Lab, tmp_path: Path, chosen: Cases, count: Any
) -> None:
    """Moved, linked, copied with other times, both moved together, changed; a sweep's run is one of them."""
    tried, bad = chosen(["moved", "changed", "linked", "copied anew", "together", "unsaid", "evaluated"]), {}
    for how in tried:
        project = tmp_path / how.replace(" ", "-")
        (project / "runs").mkdir(parents=True)
        shutil.copytree(data, project / "pictures")
        options = (*PICTURES, "--threads", "1", "--precision", "fp32", *FIXED)
        status, said = command(
            "train", "--data", "pictures", *options, "--out", "runs/a", folder=project,
            code=f"import sys; sys.path.insert(0, {FAULTS!r}); import seeded; seeded.signal_at_step(2, 15)",
        )  # fmt: skip
        assert status == 143, said
        new, run = tmp_path / f"{project.name}-new", project / "runs/a"
        words = ["train", "--resume", str(run), "--data", str(new), *FIXED]
        if how == "together":
            project.rename(new)
            run, words = new / "runs/a", ["train", "--resume", f"{new.name}/runs/a", *FIXED]
        elif how == "linked":
            new.symlink_to(project / "pictures")
        elif how == "copied anew":
            shutil.copytree(project / "pictures", new, copy_function=shutil.copyfile)
        else:
            (project / "pictures").rename(new)
        if how == "changed":
            change(new, 5)
        if how == "unsaid":
            words = ["train", "--resume", str(run), *FIXED]
        status, said = command(*words, folder=tmp_path)
        if how in ("changed", "unsaid"):
            says = (
                "other images or labels in the" if how == "changed" else "name the data's new place: --data"
            )
            right = status == 2 and says in said and "Traceback" not in said
        else:
            right = status == 0 and outcome(run) == of_pictures
        if how == "evaluated":
            shutil.move(new, tmp_path / "newest")
            status, said = command("evaluate", str(run), "--data", str(tmp_path / "newest"), folder=tmp_path)
            right = right and status == 0
        if not right:
            bad[how] = f"status {status}: {said[-600:]}"
    print(bad)
    count("R20", tried=len(tried), held=len(tried) - len(bad), note="data that moved")


PLACES = {
    "another working folder": {},
    "the run moved": {},
    "the run copied": {},
    "reached by a link": {},
    "another umask": {"code": "import os; os.umask(0o077)"},
    "another name of the machine": {"code": "import socket; socket.gethostname = lambda: 'elsewhere'"},
    "another locale and time zone": {"LC_ALL": "C", "TZ": "Asia/Kathmandu"},
    "another hash seed": {"PYTHONHASHSEED": "7"},
    "no home": {"HOME": "/nonexistent"},
    "more threads in the environment": {"OMP_NUM_THREADS": "2"},
}


def stopped(lab: Lab, run: Path) -> None:
    assert lab.bring_back(run, SIGNAL_AT_STEP="5:15").status == 143


def test_the_run_elsewhere(lab: Lab, whole: Whole, tmp_path: Path, chosen: Cases, count: Any) -> None:
    tried, bad = chosen([*PLACES]), {}
    for where in tried:
        run = tmp_path / where.replace(" ", "-") / "run"
        stopped(lab, run)
        if where == "the run moved":
            run = run.rename(tmp_path / "moved")
        elif where == "the run copied":
            run = shutil.copytree(run, tmp_path / "copied")
        elif where == "reached by a link":
            (tmp_path / "link").symlink_to(run)
            run = tmp_path / "link"
        status, said = command("train", "--resume", str(run), *FIXED, folder=tmp_path, **PLACES[where])
        if status != 0 or outcome(run) != whole or "another environment" in said:
            bad[where] = f"status {status}: {said[-600:]}"
    print(bad)
    count("R20", tried=len(tried), held=len(tried) - len(bad), note="the run elsewhere")


MACHINES: dict[str, tuple[dict[str, str], str]] = {
    "another PyTorch": ({"code": "import torch; torch.__version__ = '2.99.0'"}, "torch 2.99.0 (was "),
    "no AVX-512 for PyTorch": ({"ATEN_CPU_CAPABILITY": "default"}, "torch build "),
    "no AVX-512 for oneDNN": (
        {"ONEDNN_MAX_CPU_ISA": "AVX2"},
        "limited to ONEDNN_MAX_CPU_ISA=AVX2 (was nothing)",
    ),
    "another processor": (
        {"code": "import kilolayer.runs.start_environment as s; s.processor_name = lambda: 'Other CPU'"},
        "processor Other CPU (was ",
    ),
    "another release": ({"code": "import kilolayer; kilolayer.__version__ = '9.9'"}, "kilolayer 9.9 (was "),
    "another number of threads": ({"threads": "2"}, "threads 2 (was 1)"),
}


def test_another_machine_is_named(lab: Lab, whole: Whole, tmp_path: Path, chosen: Cases, count: Any) -> None:
    """The run goes on and ends; the warning names the entry that differs."""
    tried, bad = chosen([*MACHINES]), {}
    for machine in tried:
        run = tmp_path / machine.replace(" ", "-")
        stopped(lab, run)
        env, entry = MACHINES[machine]
        words = ("--threads", env["threads"]) if "threads" in env else ()
        given = {key: value for key, value in env.items() if key != "threads"}
        status, said = command("train", "--resume", str(run), *FIXED, *words, folder=tmp_path, **given)
        if status != 0 or "continues in another environment" not in said or entry not in said:
            bad[machine] = f"status {status}: {said[-600:]}"
    print(bad)
    count("R20", tried=len(tried), held=len(tried) - len(bad), note="another machine is named")


def test_the_clock_years_off(lab: Lab, whole: Whole, tmp_path: Path, chosen: Cases, count: Any) -> None:
    """On resuming and in the middle, forward and back; the library's clock moves after some of its calls."""
    tried, bad = chosen([*product(CLOCKS, (0, 40, 90))]), {}
    for by, call in tried:
        run = tmp_path / f"{by}-{call}" / "run"
        run.parent.mkdir()
        under = {"FAULT_UNDER": str(run.parent)}
        first = lab.bring_back(run, SIGNAL_AT_STEP="4:15", FAULT_CLOCK=f"{call}:{by}", **under)
        second = lab.bring_back(run, SIGNAL_AT_STEP="6:15", FAULT_CLOCK=f"0:{-by}", **under)
        last = lab.bring_back(run)
        if (first.status, second.status, last.status) != (143, 143, 0) or outcome(run) != whole:
            bad[by, call] = f"{first.said} {second.said} {last.said}"
    print(bad)
    count("R13", tried=len(tried), held=len(tried) - len(bad), note="by a day and by ten years")


@pytest.mark.usefixtures("takes_long")
@pytest.mark.skipif(shutil.which("faketime") is None, reason="faketime is not installed")
def test_a_clock_that_is_wrong_from_the_beginning(lab: Lab, whole: Whole, tmp_path: Path, count: Any) -> None:
    dates, bad = ("1971-01-01 00:00:00", "2037-12-31 00:00:00"), {}
    for number, date in enumerate(dates):
        run = tmp_path / str(number)
        words = [sys.executable, "-m", "kilolayer", "train", *OPTIONS, *FIXED, "--out", str(run)]
        done = subprocess.run(["faketime", date, *words], capture_output=True, text=True, timeout=300)
        if done.returncode != 0 or outcome(run) != whole:
            bad[date] = done.stderr
    print(bad)
    count("R13", tried=len(dates), held=len(dates) - len(bad), note="faketime")
