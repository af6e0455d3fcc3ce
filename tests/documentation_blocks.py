"""The blocks of code in README.md and docs/, and how each is run.

A page is one test: its blocks run in their order, in one temporary folder and one Python namespace. A comment
directly above a block (`% …` in MyST, `<!-- … -->` in the README) says what differs, several parts by `;`:

    not run: REASON     it needs what a test does not have (a download, a GPU, hours)
    slow                it runs in the slow suite only
    exits N             the command ends with this status
    prints              every line of this block of text stands in what the command before it printed;
                        … stands for any characters
    prints alike        the same, and each number may be another one: another machine rounds differently

`:caption: NAME` of a code block, and a literalinclude, put a file into the folder.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from kilolayer.__main__ import main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SHELL = {"sh", "bash", "shell", "console"}
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts),
]

_FENCE = re.compile(r"^(?P<fence>[`:]{3,})(?P<info>\S.*)?$")
_MARK = re.compile(r"^(?:% ?(?P<myst>.*)|<!-- ?(?P<html>.*?) ?-->)$")
_OPERATORS = re.compile(r"[|&;<>$`]|\s\*|\bcd ")


BYTES_OF_A_START = 400 * 10**6
"""About what a process of kilolayer holds before it builds a network."""


@dataclass(frozen=True)
class Block:
    """A fenced block with what the comment above it says."""

    page: Path
    line: int
    language: str
    text: str
    caption: str = ""
    include: str = ""
    marks: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def reason(self) -> str:
        """Why it is not run; empty where it is."""
        return next(
            (mark.removeprefix("not run:").strip() for mark in self.marks if mark.startswith("not run")), ""
        )

    @property
    def slow(self) -> bool:
        return "slow" in self.marks

    @property
    def status(self) -> int:
        return next((int(mark.removeprefix("exits ")) for mark in self.marks if mark.startswith("exits ")), 0)

    @property
    def runs(self) -> bool:
        """Whether it is a command or Python, and nothing to be read only."""
        return self.language in {*SHELL, "python"} and not self.caption


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in their order."""
    rows = page.read_text(encoding="utf-8").splitlines()
    return list(_blocks(page, rows))


def _blocks(page: Path, rows: list[str]) -> Iterator[Block]:
    number, ends = 0, set[int]()
    while number < len(rows):
        opened = _FENCE.match(rows[number])
        if opened is None or number in ends:
            number += 1
            continue
        end = next(
            (n for n in range(number + 1, len(rows)) if rows[n].rstrip() == opened["fence"]), len(rows)
        )
        language, _, rest = (opened["info"] or "").strip().partition(" ")
        body = rows[number + 1 : end]
        options = {}
        if language in {"{code-block}", "{code-cell}", "{literalinclude}"}:
            while body and (option := re.match(r":(\w+):\s*(.*)", body[0])):
                options[option[1]] = option[2]
                body = body[1:]
        include = rest if language == "{literalinclude}" else ""
        language = {"{code-block}": rest, "{literalinclude}": ""}.get(language, language)
        # Sections and admonitions are containers of blocks; one goes into them.
        if not language.startswith("{"):
            marks = tuple(_marks(rows, number))
            text = "\n".join(body) + "\n"
            yield Block(page, number + 1, language, text, options.get("caption", ""), include, marks)
            number = end + 1
        else:
            ends.add(end)
            number += 1


def _marks(rows: list[str], number: int) -> Iterator[str]:
    found = _MARK.match(rows[number - 1]) if number else None
    if found:
        yield from (part.strip() for part in (found["myst"] or found["html"] or "").split(";"))


@dataclass
class Reader:
    """Who follows a page: in a folder, with what the page has defined so far."""

    folder: Path
    namespace: dict[str, Any]
    printed: str = ""

    @classmethod
    def at(cls, folder: Path) -> Reader:
        (folder / "docs").symlink_to(DOCS)
        return cls(folder, {"__name__": "page"})

    def follow(self, block: Block) -> None:
        """Runs the block, or raises an error that names its place."""
        if block.include:
            source = block.page.parent / block.include
            shutil.copy(source, self.folder / source.name)
        elif block.caption:
            (self.folder / block.caption).write_text(block.text, encoding="utf-8")
        elif {"prints", "prints alike"} & {*block.marks}:
            self._compare(block)
        elif block.reason or not block.runs:
            return
        elif block.language == "python":
            self._python(block)
        else:
            self._shell(block)

    def _python(self, block: Block) -> None:
        page = block.place.rpartition(":")[0]
        code = compile("\n" * block.line + block.text, page, "exec", dont_inherit=True)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(code, self.namespace)  # noqa: S102
        self.printed = out.getvalue()

    def _shell(self, block: Block) -> None:
        printed = []
        for line in commands(block):
            status, text = self._command(line)
            printed.append(text)
            assert status == block.status, f"{block.place}: exit status {status} of\n{line}\n{text}"
        self.printed = "\n".join(printed)

    def _command(self, line: str) -> tuple[int, str]:
        words = [] if _OPERATORS.search(line) else shlex.split(line, comments=True)
        if words[:1] == ["kilolayer"]:
            out = io.StringIO()
            with (
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(out),
                # A reader's command has a process of its own; this one holds what a thousand tests left.
                mock.patch("kilolayer.training.memory_plan.resident_bytes", return_value=BYTES_OF_A_START),
            ):
                status = main(words[1:])
            return status, out.getvalue()
        return self._bash(line)

    def _bash(self, line: str) -> tuple[int, str]:
        """A command of the shell, in which `kilolayer` and `python` are this interpreter's."""
        tools = self.folder / ".bin"
        tools.mkdir(exist_ok=True)
        for name, module in (("kilolayer", "-m kilolayer"), ("python", "")):
            (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
            (tools / name).chmod(0o755)
        path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]])
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line],
            cwd=self.folder, env=os.environ | {"PATH": path}, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return done.returncode, done.stdout

    def _compare(self, block: Block) -> None:
        alike = "prints alike" in block.marks
        rows = [row for row in block.text.splitlines() if row.strip()]
        missing = [row for row in rows if not _stands_in(row, self.printed, alike)]
        assert not missing, f"{block.place}: not printed:\n" + "\n".join(missing) + f"\nbut\n{self.printed}"


def _stands_in(row: str, printed: str, alike: bool) -> bool:
    words = r"\s+".join(re.escape(word).replace("…", r"\S*") for word in row.split())
    if alike:
        words = re.sub(r"\d[\d,]*(\\\.\d+)?", lambda number: r"[\d.,]+", words)
    return re.search(words, printed) is not None


def commands(block: Block) -> list[str]:
    """Command lines; of a `console` block those behind the prompt."""
    rows = block.text.splitlines()
    if block.language == "console":
        shown = re.findall(r"^\$ ((?:.*\\\n)*.*)", block.text, re.MULTILINE)
        rows = [line for row in shown for line in row.splitlines()]
    elif re.search(r"^(for|if|while|trap)\b|<<", block.text, re.M):
        return [block.text]
    joined = "\n".join(rows).replace("\\\n", " ")
    return [row for row in joined.splitlines() if row.strip() and not row.lstrip().startswith("#")]
