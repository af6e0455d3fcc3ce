"""R17: every signal that asks to stop acts as SIGTERM; others are passed over, or end a run that goes on."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from harness import OPTIONS, Ended, Lab, outcome, wait_until
from test_r5_signals import STEPS, Whole, goes_on, sent, wrong_with
from test_r9_ranks import both as both
from test_r9_ranks import torchrun

from kilolayer.system.signals import STOP_SIGNALS

STOPS = [number for number in STOP_SIGNALS if number.name not in ("SIGTERM", "SIGINT", "SIGUSR1")]
"""R5 has the others."""
PASSED_OVER = ("SIGPIPE", "SIGXFSZ", "SIGWINCH", "SIGURG", "SIGCHLD", "SIGCONT")
ENDING = ("SIGQUIT", "SIGABRT", "SIGVTALRM", "SIGPROF", "SIGIO", "SIGTRAP", "SIGSYS", "SIGBUS", "SIGSEGV")
Cases = Callable[..., list[Any]]


def test_after_every_step(lab: Lab, whole: Whole, tmp_path: Path, chosen: Cases, count: Any) -> None:
    tried, bad = chosen([*product(STOPS, range(1, STEPS + 1))]), {}
    for number, step in tried:
        run = tmp_path / f"{number.name}-{step}"
        ended = lab.bring_back(run, "--save-every", "300", SIGNAL_AT_STEP=f"{step}:{int(number)}")
        if wrong := wrong_with(ended, run, at_least=step) or goes_on(lab, run, whole):
            bad[number.name, step] = wrong
    print(bad)
    count("R17", tried=len(tried), held=len(tried) - len(bad), note="after a step")


def test_while_it_saves(lab: Lab, whole: Whole, tmp_path: Path, chosen: Cases, count: Any) -> None:
    tried, bad = chosen([*product(STOPS, range(2, 180, 16))]), {}
    for number, call in tried:
        run = tmp_path / f"{number.name}-{call}" / "run"
        run.parent.mkdir()
        ended = lab.bring_back(run, FAULT_UNDER=str(run.parent), FAULT=f"signal:{call}:{int(number)}")
        if wrong := wrong_with(ended, run) or goes_on(lab, run, whole):
            bad[number.name, call] = wrong
    print(bad)
    count("R17", tried=len(tried), held=len(tried) - len(bad), note="while saving")


def test_at_moments_of_the_whole_command(
    lab: Lab, whole: Whole, tmp_path: Path, chosen: Cases, count: Any
) -> None:
    """In an interpreter of its own: import, warm-up, training, evaluation, saving."""
    tried, bad = chosen([*product(range(0, 300, 10), (signal.SIGHUP, signal.SIGXCPU))]), {}
    for hundredths, number in tried:
        run = tmp_path / f"{number.name}-{hundredths}"
        ended = sent(lab, run, number, hundredths / 100)
        if wrong := wrong_with(ended, run) or goes_on(lab, run, whole):
            bad[number.name, hundredths] = wrong
    print(bad)
    count("R17", tried=len(tried), held=len(tried) - len(bad), note="after CPU time")


def test_a_second_signal_while_the_first_one_saves(
    lab: Lab, whole: Whole, tmp_path: Path, chosen: Cases, count: Any
) -> None:
    """Only a second Ctrl-C insists; then the state of the step before is what is left."""
    pairs = [("SIGTERM", "SIGTERM"), ("SIGHUP", "SIGTERM"), ("SIGTERM", "SIGINT"), ("SIGINT", "SIGINT")]
    tried, bad = chosen([*product(pairs, range(68, 92, 3))]), {}
    for (first, second), call in tried:
        run = tmp_path / f"{first}-{second}-{call}" / "run"
        run.parent.mkdir()
        ended = lab.bring_back(
            run,
            SIGNAL_AT_STEP=f"4:{int(signal.Signals[first])}",
            FAULT_UNDER=str(run.parent),
            FAULT=f"signal:{call}:{int(signal.Signals[second])}",
        )
        insists = second == "SIGINT" and "state saved" not in ended.err
        wrong = "" if insists and (ended.status, ended.err) == (143, "") else wrong_with(ended, run)
        if wrong := wrong or goes_on(lab, run, whole):
            bad[first, second, call] = wrong
    print(bad)
    count("R17", tried=len(tried), held=len(tried) - len(bad), note="a second one while saving")


def test_signals_that_ask_for_nothing(
    lab: Lab, whole: Whole, tmp_path: Path, chosen: Cases, count: Any
) -> None:
    tried, bad = chosen([*product(PASSED_OVER, (2, 5))]), {}
    for name, step in tried:
        run = tmp_path / f"{name}-{step}"
        ended = lab.bring_back(run, SIGNAL_AT_STEP=f"{step}:{int(signal.Signals[name])}")
        if ended.status != 0 or outcome(run) != whole:
            bad[name, step] = f"status {ended.status}: {ended.said}"
    print(bad)
    count("R17", tried=len(tried), held=len(tried) - len(bad), note="passed over")


def test_signals_that_end_a_run_at_once(
    lab: Lab, whole: Whole, tmp_path: Path, chosen: Cases, count: Any
) -> None:
    """Nothing is saved for them, and nothing that was saved is lost."""
    tried, bad = chosen([*product(ENDING, (2, 5))]), {}
    for name, step in tried:
        run, number = tmp_path / f"{name}-{step}", signal.Signals[name]
        ended = lab.bring_back(run, SIGNAL_AT_STEP=f"{step}:{int(number)}")
        wrong = "" if ended.status == -number else f"status {ended.status}"
        if wrong := wrong or goes_on(lab, run, whole):
            bad[name, step] = wrong
    print(bad)
    count("R17", tried=len(tried), held=len(tried) - len(bad), note="ended at once")


# Terminals


def program(run: Path) -> list[str]:
    """A run as a program of its own, with the words of `harness.OPTIONS`, or its continuation."""
    words = ["--resume"] if (run / "config.json").exists() else [*OPTIONS, "--out"]
    fixed = ["--no-tensorboard", "--device", "cpu", "--save-every", "0"]
    return [sys.executable, "-m", "kilolayer", "train", *fixed, *words, str(run)]


TAKES_THE_TERMINAL = "import fcntl, os, sys, termios\nfcntl.ioctl(0, termios.TIOCSCTTY, 0)\n" + (
    "os.execvp(sys.argv[1], sys.argv[1:])"
)


def with_terminal_closed(run: Path, mark: str, before: tuple[str, ...] = ()) -> int:
    """The exit status of a run whose terminal is closed when a file of it is there."""
    end, terminal = pty.openpty()
    words = [sys.executable, "-c", TAKES_THE_TERMINAL, *before, *program(run)]
    streams: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
    with subprocess.Popen(words, **streams, start_new_session=True) as process:
        os.close(terminal)
        wait_until(lambda: process.poll() is not None or any(run.glob(mark)))
        os.close(end)
        return process.wait(200)


MARKS = ("metrics.jsonl", "config.json", "checkpoints/*.json", "weights.safetensors")
IGNORING = ("sh", "-c", "trap '' HUP; exec \"$@\"", "sh")


def test_the_terminal_is_closed(lab: Lab, whole: Whole, tmp_path: Path, chosen: Cases, count: Any) -> None:
    """As it is, and as nohup starts it."""
    tried, bad = chosen([*product((False, True), MARKS)]), {}
    for outlives, mark in tried:
        run = tmp_path / f"{mark.partition('/')[0]}-{outlives}"
        status = with_terminal_closed(run, mark, IGNORING if outlives else ())
        is_right = status == 0 if outlives else status in (0, 143)
        if wrong := ("" if is_right else f"status {status}") or goes_on(lab, run, whole):
            bad[outlives, mark] = wrong
    print(bad)
    count("R17", tried=len(tried), held=len(tried) - len(bad), note="the terminal closed")


@pytest.mark.usefixtures("takes_long")
def test_stopped_by_ctrl_z_and_gone_on(
    lab: Lab, whole: Whole, tmp_path: Path, chosen: Cases, count: Any
) -> None:
    tried, bad = chosen(["config.json", "metrics.jsonl"]), {}
    for mark in tried:
        run = tmp_path / mark
        with subprocess.Popen(program(run), stderr=subprocess.PIPE, text=True) as process:
            wait_until(lambda run=run, mark=mark: (run / mark).exists())
            process.send_signal(signal.SIGTSTP)
            process.send_signal(signal.SIGCONT)
            err = process.communicate(timeout=200)[1]
        if process.returncode != 0 or outcome(run) != whole:
            bad[mark] = err
    print(bad)
    count("R17", tried=len(tried), held=len(tried) - len(bad), note="SIGTSTP, SIGCONT")


# Other commands, and several processes


def pictures(folder: Path, number: int = 600) -> Path:
    import numpy as np
    from PIL import Image

    for index in range(number):
        path = folder / "train" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 255, (96, 96, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    return folder


def of_group(group: int) -> list[int]:
    """The processes of a session that are still there."""
    alive = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == group and fields[0] != "Z":
            alive.append(int(path.parent.name))
    return alive


def interrupted(
    words: list[str], number: int, seconds: float, env: dict[str, str]
) -> tuple[Ended, list[int]]:
    """How a command of a session of its own ends after a signal, and which of its processes are left."""
    given = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"} | env
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-m", "kilolayer", *words],
        stdout=pipe, stderr=pipe, text=True, env=given, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, number)
            out, err = process.communicate(timeout=200)
        left = of_group(process.pid)
    return Ended(process.returncode, out, err), left


COMMANDS = ("evaluate", "check-data", "pictures", "kernels", "demo")


def test_other_commands(lab: Lab, tmp_path: Path, chosen: Cases, count: Any) -> None:
    """Evaluating, reading pictures, training on them, compiling kernels, a sweep: the group gets it."""
    data, run = pictures(tmp_path / "data"), tmp_path / "run"
    assert lab.bring_back(run).status == 0
    numbers = (signal.SIGHUP, signal.SIGXCPU, signal.SIGTERM, signal.SIGUSR2)
    tried = chosen([*product(COMMANDS, numbers, (0.3, 1.5, 2.5, 4.0))])
    bad = {}
    for name, number, seconds in tried:
        cache = tmp_path / f"cache-{name}-{number.name}-{seconds}"
        out = tmp_path / f"{name}-{number.name}-{seconds}"
        trained = [
            "--model",
            "preact_resnet20_cifar",
            "--epochs",
            "40",
            "--batch-size",
            "64",
            "--no-tensorboard",
        ]
        words = {
            "evaluate": ["evaluate", str(run)],
            "check-data": ["check-data", str(data)],
            "pictures": ["train", "--data", str(data), "--image-size", "32", *trained, "--out", str(out)],
            "kernels": ["train", "--precision", "bf16", *trained, "--out", str(out)],
            "demo": ["demo", "--depths", "8,14", "--iterations", "400", "--workers", "2", "--out", str(out)],
        }[name]
        ended, left = interrupted(words, number, seconds, {"XDG_CACHE_HOME": str(cache)})
        begins = (0, 143, -number) if seconds < 1 else (0, 143)  # before Python has reached our code
        if ended.status not in begins or "Traceback" in ended.err or left:
            bad[name, number.name, seconds] = f"status {ended.status}, left {left}: {ended.err[-300:]}"
        shutil.rmtree(cache, ignore_errors=True)
        shutil.rmtree(out, ignore_errors=True)
    print(bad)
    count("R17", tried=len(tried), held=len(tried) - len(bad), note="other commands, and their workers")


@pytest.mark.usefixtures("takes_long")
def test_ranks(both: Whole, tmp_path: Path, chosen: Cases, count: Any) -> None:
    """One rank gets it, and both save and stop together."""
    tried, bad = chosen([*product((1, 0), (5, 1, 8), ("SIGHUP", "SIGXCPU"))]), {}
    for rank, step, name in tried:
        run, mark = tmp_path / f"{rank}-{step}-{name}", tmp_path / f"{rank}-{step}-{name}.mark"
        job = torchrun(run, RANK_FAULT=f"{rank}:{step}:{name}", FAULT_ONCE=str(mark))
        again = torchrun(run)
        if not mark.exists() or not (job.status == 0 or "state saved" in job.err):
            bad[rank, step, name] = f"status {job.status}: {job.err[-2000:]}"
        elif again.status != 0 or outcome(run) != both:
            bad[rank, step, name] = f"resumed: status {again.status}: {again.err[-2000:]}"
    print(bad)
    count("R17", tried=len(tried), held=len(tried) - len(bad), note="one of two ranks")
