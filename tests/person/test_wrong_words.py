"""A word or a path that is wrong: one line that names the nearest, whatever command it was given to."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from terminal import KILOLAYER, on_terminal

from kilolayer.__main__ import main
from kilolayer.cli.command_table import COMMANDS, options_of
from kilolayer.errors import suggest

CHOICES = [
    (command, option.flags[0], option.choices)
    for command in COMMANDS
    for option in options_of(command)
    if option.choices and option.flags
]
WORDS = {
    "train --shortcut identiy": "nearest: identity;",
    "train --arrangement full": "nearest: full_preactivation",
    "train --activation-memory smalest": "nearest: smallest",
    "train --data cifar1": "nearest: cifar10;",
    "train --model preact_resnet11_cifr": "nearest: preact_resnet",
    "analyse gradiant resnet20_cifar": "WHAT: 'gradiant' is unknown; nearest: gradient",
    "reproduce p2-tabel-1": "nearest: p2-table-1",
    "recipes papr": "nearest: paper;",
    "completion bsh": "nearest: bash",
    "demo --depths a": "--depths: 'a' is not a whole number",
    "train --lr 0,1": "with a point: 0.1",
}
PATHS = (
    "evaluate rnus/a", "predict rnus/a x.png", "show rnus/a", "analyse gradient rnus/a",
    "train --resume rnus/a", "train --model rnus/a", "report rnus/a", "reproduce --resume rnus/a",
    "audit rnus/a.pt", "bench rnus/a", "check-data rnus/a", "train --data rnus/a",
)  # fmt: skip


def refused(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(line.split()) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    return shown.err


@pytest.mark.parametrize(("command", "flag", "choices"), CHOICES, ids=[f"{c} {f}" for c, f, _ in CHOICES])
def test_every_choice_names_the_nearest(
    command: str, flag: str, choices: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    longest = max(choices, key=len)
    if command == "train" and flag == "--compile":
        pytest.skip("a word behind it may be another option's")
    said = refused(f"{command} {flag} {longest[:-1] if len(longest) > 3 else longest + 'x'}", capsys)
    if "missing" not in said:  # of what goes by its place
        assert f"nearest: {longest}" in said or any(f"nearest: {each}" in said for each in choices)


@pytest.mark.parametrize("line", WORDS)
def test_the_nearest_word_is_named(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert WORDS[line] in refused(line, capsys)


@pytest.mark.parametrize("line", PATHS)
def test_a_missing_path_is_named_as_one(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a.pt").touch()
    said = refused(line, capsys)
    assert "no such file or folder; nearest: runs/a" in said
    assert "unknown model" not in said
    assert sorted(tmp_path.rglob("*")) == [tmp_path / each for each in ("runs", "runs/a", "runs/a.pt")]


def test_a_run_s_folder_is_shown_as_its_network(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(folder / "runs" / "tiny")]) == 0
    assert "8 layers" in capsys.readouterr().out
    assert "options that change units" in refused(f"show {folder}/runs/tiny --shortcut zero", capsys)


def test_what_begins_alike_is_nearest() -> None:
    assert suggest("full", ("original", "full_preactivation")).startswith("nearest: full_preactivation")
    assert suggest("zzz", ("a", "b")) == "allowed: a, b"


@pytest.mark.parametrize("width", [30, 50])
def test_a_terminal_gets_a_long_error_between_words(width: int, tmp_path: Path) -> None:
    words = ["train", "--ema", "0.1", "--frobnicate"]
    shown = on_terminal(words, width=width, folder=tmp_path)
    lines = shown.raw.decode().splitlines()
    piped = subprocess.run([*KILOLAYER, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert shown.status == piped.returncode == 2
    assert piped.stderr.count("\n") == 1
    assert len(lines) > 1
    assert max(map(len, lines)) <= width
    assert " ".join(line.strip() for line in lines) == piped.stderr.strip()
