"""The mechanism behind all commands: what fits, what is left out, what is never broken."""

from __future__ import annotations

import ast
import io
import re
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import kilolayer
from kilolayer.report.analysis_report import short_names
from kilolayer.report.document import Table
from kilolayer.system.printer import escape_line
from kilolayer.system.terminal import BAR, fit_progress_line, fit_table, print_text, wrap_command

SOURCE = Path(kilolayer.__file__).parent
TABLE = Table(
    "",
    ("name", "depth", "unit", "parameters", "error %"),
    (
        ("preact_resnet110_cifar", "110", "basic unit", "1,727,962", "6.37"),
        ("resnet20_cifar", "20", "", "9", "8.75"),
    ),
)


def printed(table: Table, width: int, **choices: object) -> str:
    console = Console(file=io.StringIO(), width=max(width, 1000), color_system=None)
    with console.capture() as captured:
        for part in fit_table(table, width, **choices):  # type: ignore[arg-type]
            console.print(part)
    return captured.get()


@pytest.mark.parametrize("width", range(20, 100, 3))
@pytest.mark.parametrize("blocks", [False, True])
def test_a_figure_is_whole_or_not_there(width: int, blocks: bool) -> None:
    said = printed(TABLE, width, blocks=blocks)
    cells = {cell for row in TABLE.rows for cell in row}
    assert set(re.findall(r"\d[\d,.]*", said)) <= set(re.findall(r"\d[\d,.]*", " ".join(cells)))
    assert "…" not in said
    if blocks:
        assert all(word in said for cell in cells for word in cell.split())
    missing = [name for name in TABLE.header if name.split()[0] not in said.partition("not shown")[0]]
    assert all(name in said.partition("not shown:")[2] for name in missing)


def test_the_first_to_go_is_the_one_named() -> None:
    said = printed(TABLE, 50, drop=("unit",))
    assert "not shown: unit;" in said
    assert "1,727,962" in said


@given(
    width=st.integers(12, 200),
    texts=st.lists(st.text("ab1 ,.", min_size=1, max_size=20), min_size=1, max_size=8),
)
def test_the_line_that_fills_never_wraps(width: int, texts: list[str]) -> None:
    first, *others = [text.strip() or "x" for text in texts]
    console = Console(file=io.StringIO(), width=1000, color_system=None)
    with console.capture() as captured:
        console.print(fit_progress_line([first[:9], *others, BAR], 0.3, width))
    line = captured.get().rstrip("\n")
    assert "\n" not in line
    assert len(line.rstrip()) <= max(width - 3, len(first[:9]))


@pytest.mark.parametrize("width", range(14))
def test_a_progress_line_fits_a_terminal_of_any_width(width: int) -> None:
    """In a single column nothing is left of it."""
    console = Console(file=io.StringIO(), width=1000, color_system=None)
    with console.capture() as captured:
        console.print(fit_progress_line(["epoch 1", BAR, "loss 2.3"], 0.3, width))
    assert len(captured.get().rstrip()) <= max(0, width - 3)


@given(st.lists(st.text("ab cd'", min_size=1, max_size=12), min_size=1, max_size=9), st.integers(20, 80))
def test_a_command_goes_on_as_a_shell_s_line(words: list[str], width: int) -> None:
    command = shlex.join(["kilolayer", *words])
    lines = wrap_command("  ", command, width)
    assert all(line.endswith(" \\") for line in lines[:-1])
    assert shlex.split("\n".join(lines).replace("\\\n", "")) == ["kilolayer", *words]


def test_sentences_break_between_words_and_keep_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("kilolayer.system.terminal.terminal_size", lambda stream: (30, 25))
    print_text("test error of all networks is 12.34 %, 252,887,680 multiply-adds")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 30
    assert "12.34 %," in lines[1]
    assert any("252,887,680" in line for line in lines)


def test_in_a_pipe_nothing_is_broken(capsys: pytest.CaptureFixture[str]) -> None:
    print_text("word " * 500)
    assert capsys.readouterr().out.count("\n") == 1


def test_names_of_others_move_no_cursor() -> None:
    assert escape_line("a\x1b[2Jb\rc") == "a\\u001b[2Jb\\u000dc"
    assert "\x1b" not in printed(Table("", ("class",), (("a\x1b[2J",),)), 80)


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_only_one_module_makes_consoles_and_tables(path: Path) -> None:
    """A command that makes its own would cut figures on a narrow terminal, and in a pipe."""
    if path.name == "terminal.py":
        return
    imported = {
        alias.name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rich")
        for alias in node.names
    }
    assert not imported & {"Console", "Table", "Progress", "track", "print"}


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["runs/net-digits-s0-3f2a"], ["net-digits-s0-3f2a"]),
        (["runs/net-digits-s0-3f2a", "runs/net-digits-s1-07bc"], ["s0-3f2a", "s1-07bc"]),
        (["resnet20_cifar", "resnet20_cifar-mine"], ["resnet20_cifar", "resnet20_cifar-mine"]),
        (["a/run", "b/run"], ["a/run", "b/run"]),
    ],
)
def test_headings_leave_out_what_all_names_share(names: list[str], shown: list[str]) -> None:
    assert short_names(names) == shown
