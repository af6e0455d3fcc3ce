"""S9: a hostile text wherever a command takes or finds a name; nothing of it steers a terminal."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.torch import save_file
from torch import zeros

from kilolayer.__main__ import main
from kilolayer.cli.command_line import COMMANDS
from kilolayer.cli.command_table import options_of

OWNED = "\x1b]0;owned\x07\x1b[2J\r\x9b5n\u202egnp"
NAME = OWNED.replace("/", "")
Words = list[str]


def class_folder(root: Path) -> Words:
    for split in ("train", "test"):
        for name in (NAME, "dog"):
            (root / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(root / split / name / "1.png")
    return ["check-data", str(root)]


def picture(root: Path) -> Words:
    for name in ("cat", "dog"):
        (root / name).mkdir()
        (root / name / f"{NAME}.png").write_bytes(b"\x89PNG damaged")
    return ["check-data", str(root)]


def folder_itself(root: Path) -> Words:
    (root / NAME / "cat").mkdir(parents=True)
    return ["check-data", str(root / NAME)]


def not_text(root: Path) -> Words:
    (root / "cat").mkdir()
    (root / "cat" / os.fsdecode(b"\xff\x1b[2J.png")).write_bytes(b"")
    return ["check-data", str(root)]


def parquet_column(root: Path) -> Words:
    pq.write_table(pa.table({NAME: [1], "other": [OWNED]}), root / "train.parquet")
    return ["check-data", str(root)]


def label_file(root: Path) -> Words:
    Image.new("RGB", (8, 8)).save(root / "1.png")
    (root / "labels.csv").write_text(f"file,label\n1.png,{NAME}\n", encoding="utf-8")
    return ["check-data", str(root)]


def weights_header(root: Path) -> Words:
    save_file({NAME: zeros(2)}, root / "w.safetensors", {"kilolayer": OWNED, NAME: OWNED})
    return ["evaluate", str(root / "w.safetensors")]


def weights_keys(root: Path) -> Words:
    save_file({NAME: zeros(2)}, root / "w.safetensors")
    return ["evaluate", str(root / "w.safetensors"), "--model", "resnet8_cifar", "--data", "digits"]


def unit_file(root: Path) -> Words:
    (root / "unit.py").write_text(f"raise ValueError({OWNED!r})\n", encoding="utf-8")
    return ["show", f"{root / 'unit.py'}:mine"]


def class_list(root: Path) -> Words:
    (root / "names.json").write_text(f'["{NAME.encode("unicode_escape").decode()}"', encoding="utf-8")
    save_file({"a": zeros(2)}, root / "w.safetensors")
    return ["predict", str(root / "w.safetensors"), "x.png", "--classes", str(root / "names.json")]


PLACES = (
    class_folder,
    picture,
    folder_itself,
    not_text,
    parquet_column,
    label_file,
    weights_header,
    weights_keys,
    unit_file,
    class_list,
)


def flag_calls() -> list[Words]:
    """Each command with the hostile text as its first word, and as the value of each of its options."""
    flags = [
        (command, option.flags[0]) for command in COMMANDS for option in options_of(command) if option.flags
    ]
    return [[command, NAME] for command in COMMANDS] + [[command, flag, NAME] for command, flag in flags]


def is_harmless(words: Sequence[str]) -> bool:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(list(words))
        except Exception as error:
            print(f"{words}: {type(error).__name__}: {error}", file=err)
            status = 1
    said = out.getvalue() + err.getvalue()
    held = status in (0, 1, 2) and "Traceback" not in said and not set(said) & set("\x1b\x07\r\x9b\u202e")
    if status == 2:
        held = held and err.getvalue().rstrip("\n").count("\n") == 0
    if not held or (status == 1 and words[0] != "check-data"):
        print(f"{words}: {status}: {said!r}")
        return False
    return True


@pytest.mark.parametrize("place", PLACES)
def test_no_name_that_is_found_steers_the_terminal(
    place: Callable[[Path], Words], tmp_path: Path, count: Callable[..., None]
) -> None:
    count("S9", tried=1, held=int(is_harmless(place(tmp_path))), note="names in files")


def test_no_word_that_is_given_steers_the_terminal(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chosen: Callable[[Sequence[Any]], list[Any]],
    count: Callable[..., None],
) -> None:
    monkeypatch.chdir(tmp_path)
    calls = chosen(flag_calls())
    held = sum(map(is_harmless, calls))
    assert not list(tmp_path.rglob("checkpoints"))
    count("S9", tried=len(calls), held=held, note="words of the command line")
