"""Help as a person reads it: groups, examples that work, no words of the source, fit to the window."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from kilolayer.__main__ import main
from kilolayer.cli.command_line import COMMANDS, command_flags, parse
from kilolayer.cli.command_table import GROUPS, MOST_USED, examples_of, options_of
from kilolayer.cli.help_text import example_words

EXAMPLES = [(command, line) for command in COMMANDS for _, line in examples_of(command)]


def helped(
    command: str | None,
    width: int | None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> list[str]:
    for module in ("system.terminal", "cli.help_text"):
        monkeypatch.setattr(f"kilolayer.{module}.terminal_size", lambda stream: width and (width, 25))
    assert main([*([command] if command else []), "--help"]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_three_examples(command: str) -> None:
    assert len(examples_of(command)) >= 3


@pytest.mark.parametrize(("command", "line"), EXAMPLES, ids=[line for _, line in EXAMPLES])
def test_every_example_is_a_command_line(command: str, line: str) -> None:
    words = example_words(line)
    assert words[0] == command
    parse(words)


@pytest.mark.parametrize("width", [40, 60, 80, 200])
@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_fits_the_window(
    command: str | None, width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = helped(command, width, capsys, monkeypatch)
    long = [line for line in said if len(line) > min(width, 100) and " " in line.strip()]
    assert long == []
    # A line that goes on says so, and with its other lines is the example again.
    text = re.sub(r" \\\n +", " ", "\n".join(said))
    assert all(line in text for _, line in (examples_of(command) if command else []))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_all_options_and_nothing_of_the_source(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\n".join(helped(command, None, capsys, monkeypatch))
    assert all(flag in text for flag in command_flags(command))
    assert not re.search(r"noqa|RUF\d|fmt:|None|type: ignore|<class", text)
    assert all(option.help for option in options_of(command)), "an option says nothing of itself"


def test_commands_stand_in_groups(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = helped(None, None, capsys, monkeypatch)
    assert [line for line in said if line in GROUPS] == list(GROUPS)
    assert all(any(line.startswith(f"  {command} ") for line in said) for command in COMMANDS)


def test_the_options_that_matter_come_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for command, first in MOST_USED.items():
        said = helped(command, None, capsys, monkeypatch)
        shown = [match[1] for line in said if (match := re.match(r"  (--[\w-]+)", line))]
        assert shown[: len(first.split())] == first.split()


@pytest.mark.parametrize("words", ["--help", "train --help", "show --help", "bench -h"])
def test_help_needs_neither_torch_nor_much_else(words: str, tmp_path: Path) -> None:
    code = "import sys, kilolayer.__main__ as p; p.main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code, *shlex.split(words)], capture_output=True, text=True, check=True
    )
    assert not {"torch", "numpy", "matplotlib", "PIL"} & set(done.stderr.split())
