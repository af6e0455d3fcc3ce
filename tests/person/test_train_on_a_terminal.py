"""Training on a real terminal: the bar, and what is left when it is gone; stopping, going on, resizing."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from terminal import Shown, on_terminal, resize

from conftest import QUICK

LONG = ["train", *QUICK, "--epochs", "2000"]
EPOCH = re.compile(rb"epoch \d+/2000")


def bars(shown: Shown) -> list[str]:
    """The bar as it was to be seen, time after time."""
    return [line.strip() for frame in shown.frames for line in frame if re.match(r"epoch \d", line)]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_training_on_a_terminal(tmp_path: Path, width: int) -> None:
    shown = on_terminal(["train", *QUICK, "--out", "run"], folder=tmp_path, width=width)
    assert shown.status == 0, shown.text
    assert "Traceback" not in shown.text
    assert "next        kilolayer evaluate run" in shown.text
    seen = bars(shown)
    assert any(re.match(r"epoch 2/2 .*loss [\d.]+ .*error [\d.]+ %", line) for line in seen)
    assert all(len(line) < width for line in seen)


def stopped_by(key: bytes, folder: Path, width: int = 80) -> Shown:
    """A long training that gets this key when its bar shows its speed and the time left."""
    is_pressed = [False]

    def press(terminal: int, raw: bytes) -> None:
        if not is_pressed[0] and b" left" in raw and EPOCH.search(raw):
            is_pressed[0] = True
            os.write(terminal, key)

    return on_terminal([*LONG, "--out", "run"], folder=folder, width=width, meanwhile=press)


def test_the_bar_shows_all_and_ctrl_c_leaves_the_screen_clean(tmp_path: Path) -> None:
    shown = stopped_by(b"\x03", tmp_path)
    assert shown.status == 143, shown.text
    figures = r"epoch [\d,]+/2000 .*loss [\d.]+ .*error [\d.]+ % .*[\d:]+ left .*[\d,]+ images/s"
    assert any(re.match(figures, line) for line in bars(shown)), bars(shown)
    assert "kilolayer train --resume run" in shown.lines[-1]
    assert "━" not in shown.text
    assert "^C" not in shown.lines[-1]
    assert shown.raw.endswith(b"run\r\n")
    assert shown.raw.rfind(b"\x1b[?25h") > shown.raw.rfind(b"\x1b[?25l")
    on = on_terminal(["train", "--resume", "run"], folder=tmp_path, meanwhile=_press_at_the_bar())
    first = bars(on)[0]
    assert on.status == 143
    assert not first.startswith("epoch 1/"), first


def _press_at_the_bar() -> Callable[[int, bytes], None]:
    is_pressed = [False]

    def press(terminal: int, raw: bytes) -> None:
        if not is_pressed[0] and b" left" in raw:
            is_pressed[0] = True
            os.write(terminal, b"\x03")

    return press


def test_a_window_made_narrower_is_kept_to(tmp_path: Path) -> None:
    state = {"resized": 0, "pressed": 0}

    def narrow(terminal: int, raw: bytes) -> None:
        if not state["resized"] and b" left" in raw:
            state["resized"] = len(raw)
            resize(terminal, 50)
        elif state["resized"] and not state["pressed"] and raw.count(b"epoch", state["resized"]) > 6:
            state["pressed"] = 1
            os.write(terminal, b"\x03")

    shown = on_terminal([*LONG, "--out", "run"], folder=tmp_path, width=120, meanwhile=narrow)
    plain = re.sub(rb"\x1b\[[?0-9;]*[A-Za-z]", b"", shown.raw).decode()
    last = [part for part in re.split(r"[\r\n]", plain) if part.startswith("epoch")][-3:]
    assert last
    assert all(len(line.rstrip().removesuffix("^C")) < 48 for line in last), last


def test_what_goes_into_a_file_stays_out_of_the_terminal(tmp_path: Path) -> None:
    program = ["bash", "-c", 'exec "$@" 2> errors.txt', "_", sys.executable, "-m", "kilolayer"]
    shown = on_terminal(["train", *QUICK, "--out", "run"], program=program, folder=tmp_path)
    assert shown.status == 0
    assert bars(shown)
    assert b"\x1b" not in (tmp_path / "errors.txt").read_bytes()
    program[2] = 'exec "$@" > out.txt'
    shown = on_terminal(["train", *QUICK, "--out", "again"], program=program, folder=tmp_path)
    said = (tmp_path / "out.txt").read_text()
    assert "\x1b" not in said
    assert re.search(r"^epoch 2/2  iteration 4 ", said, re.MULTILINE)


def test_reading_pictures_shows_how_far_it_is(tmp_path: Path) -> None:
    from PIL import Image

    for split in ("train", "test"):
        for name in ("bee", "wasp"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for number in range(40):
                image = Image.new("RGB", (300, 300), (number, len(name), 3 * len(split)))
                image.save(tmp_path / "data" / split / name / f"{number}.png")
    words = ["train", *QUICK, "--data", "data", "--image-size", "32", "--validation", "0", "--out", "run"]
    shown = on_terminal(words, folder=tmp_path, width=60)
    assert shown.status == 0, shown.text
    assert "━" not in shown.text
    assert b"%" in shown.raw
