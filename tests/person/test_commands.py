"""Every command as a person starts it: on terminals of several widths, in a pipe, into `head`."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from terminal import KILOLAYER, Shown, on_terminal

from conftest import QUICK
from kilolayer.cli.command_line import COMMANDS

LINES = {
    "demo": "demo --depths 8 --iterations 2 --out demo-WIDTH",
    "lens": "lens --no-browser",
    "show": "show preact_resnet1001_cifar",
    "models": "models",
    "train": f"train {shlex.join(QUICK)} --out run-WIDTH",
    "evaluate": "evaluate runs/tiny",
    "predict": "predict runs/tiny digit.png",
    "recipes": "recipes",
    "check-data": "check-data digits",
    "analyse": "analyse gradient resnet8_cifar preact_resnet8_cifar runs/tiny --batch-size 4",
    "audit": "audit net.py:make",
    "reproduce": "reproduce",
    "report": "report runs",
    "bench": "bench resnet8_cifar --batch-size 2 --repeats 1",
    "doctor": "doctor",
    "completion": "completion bash",
}
MORE = {
    "recipes compared": "recipes paper short smoke",
    "runs of a table": "reproduce p2-table-1 --dry-run",
    "a table": "reproduce p2-table-2 --scale smoke --data digits --iterations 2 --subset 64 --batch-size 16 "
    "--depths 110=8,164=11 --rows original --seeds 1 --out table-WIDTH",
    "explanation": "train --explain --model preact_resnet8_cifar --threads 1",
}
LIGHT = ("show", "models", "train", "predict", "recipes", "check-data", "completion")
"""What starts in a second; the others are left to the slow suite, but for one width."""
COLOUR = re.compile(rb"\x1b\[[0-9;]*[34][0-9][0-9;]*m|\x1b\[[0-9;]*38;")
FIGURE = re.compile(r"\d[\d,.]*\d|\d")


def lines(names: Sequence[str], *, quick: Sequence[str] = LIGHT) -> list[object]:
    """Command lines as parameters; those not in `quick` are marked slow."""
    every = {**LINES, **MORE}
    return [
        pytest.param(every[name], id=name, marks=[] if name in quick else [pytest.mark.slow])
        for name in names
    ]


# What differs from one time to the next.
CHANGING = ("train", "demo", "bench", "doctor", "lens", "reproduce p2-table-2", "report")
STEADY = [name for name, line in {**LINES, **MORE}.items() if not line.startswith(CHANGING)]
HEAVY = ("demo", "bench", "doctor", "a table", "lens")


def run(line: str, folder: Path, width: int, **env: str | None) -> Shown:
    unique = f"{width}-{len(list(folder.iterdir()))}"
    words = shlex.split(line.replace("WIDTH", unique))
    is_asked = [False]

    def end_the_lens(terminal: int, raw: bytes) -> None:
        if words[0] == "lens" and b"Ctrl-C" in raw and not is_asked[0]:
            is_asked[0] = True
            os.write(terminal, b"\x03")

    return on_terminal(words, folder=folder, width=width, env=env, meanwhile=end_the_lens)


def piped(line: str, folder: Path, **env: str) -> str:
    words = shlex.split(line.replace("WIDTH", f"pipe-{len(list(folder.iterdir()))}"))
    surroundings = {**os.environ, **env}
    done = subprocess.run(
        [*KILOLAYER, *words], cwd=folder, env=surroundings, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    return done.stdout


def figures(text: str) -> set[str]:
    return set(FIGURE.findall(text))


def test_every_command_has_a_line_here() -> None:
    assert set(LINES) == set(COMMANDS)


@pytest.mark.parametrize("line", lines([*LINES, *MORE], quick=[name for name in LINES if name not in HEAVY]))
def test_on_a_narrow_terminal(line: str, folder: Path) -> None:
    check_terminal(line, 60, folder)


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("line", lines([*LINES, *MORE], quick=()))
def test_on_a_terminal(line: str, width: int, folder: Path) -> None:
    check_terminal(line, width, folder)


def check_terminal(line: str, width: int, folder: Path) -> None:
    shown = run(line, folder, width)
    allowed = {"audit": (0, 1), "lens": (0, 143)}.get(line.partition(" ")[0], (0,))
    assert shown.status in allowed, shown.text
    assert "Traceback" not in shown.text
    assert shown.raw.rfind(b"\x1b[?25h") >= shown.raw.rfind(b"\x1b[?25l"), "the cursor is hidden"
    assert "━" not in shown.text, "a bar is left"
    names = re.sub(r"\S*/\S*|kilolayer .*", "", shown.text)  # paths and commands are the user's own
    assert not re.search(r"\d…|…\d", names), "a figure is cut"


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize("line", lines(STEADY, quick=("models", "recipes")))
def test_no_figure_is_cut_or_broken(line: str, width: int, folder: Path) -> None:
    assert figures(run(line, folder, width).text) <= figures(piped(line, folder))


@pytest.mark.parametrize("line", lines(STEADY))
def test_a_pipe_gets_all_whatever_the_terminal(line: str, folder: Path) -> None:
    said = piped(line, folder, COLUMNS="40")
    assert said == piped(line, folder, COLUMNS="200", FORCE_COLOR="1", TERM="xterm-256color")
    assert "\x1b" not in said
    assert "not shown:" not in said


@pytest.mark.parametrize(
    "line", lines([name for name in LINES if name not in HEAVY], quick=("models", "recipes"))
)
def test_into_head(line: str, folder: Path) -> None:
    words = shlex.join(
        [*KILOLAYER, *shlex.split(line.replace("WIDTH", f"head-{len(list(folder.iterdir()))}"))]
    )
    done = subprocess.run(
        ["bash", "-c", f"{words} | head -n 1"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("line", lines(["models", "train", "evaluate", "runs of a table"], quick=("models",)))
@pytest.mark.parametrize(
    "env",
    [
        {"NO_COLOR": "1"},
        {"TERM": "dumb"},
        {"TERM": None},
        {"COLUMNS": "0"},
        {"COLUMNS": "wide"},
        {"COLUMNS": "300"},
    ],
    ids=str,
)
def test_surroundings(line: str, env: dict[str, str | None], folder: Path) -> None:
    shown = run(line, folder, 70, **env)
    assert shown.status == 0
    assert not COLOUR.search(shown.raw) or "NO_COLOR" not in env
    if env.get("TERM", "") in ("dumb", None):
        assert b"\x1b" not in shown.raw
    plain = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", shown.raw.decode().replace("\r\n", "\n"))
    wide = [each for each in plain.split("\n") if len(each) > 70 and "\r" not in each]
    # The line of an epoch is left whole: a program can read it.
    assert all(re.match(r"epoch \d/\d  iteration", each) for each in wide)


@pytest.mark.parametrize("line", lines(["models", "show", "train", "evaluate"], quick=("models",)))
def test_in_a_c_locale(line: str, folder: Path) -> None:
    shown = run(line, folder, 70, LC_ALL="C", LANG="C", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    assert shown.status == 0
    assert "Traceback" not in shown.text
