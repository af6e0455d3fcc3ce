"""What is read from the program itself: the directives `command-line` and `analyses`.

`command-line` has every command with its examples and options, `analyses` a table of the analyses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive

from kilolayer.cli.command_table import (
    GROUPS,
    Option,
    command_description,
    command_summary,
    examples_of,
    group_text,
    options_of,
)
from kilolayer.measure.analyses import ANALYSES


class CommandLine(Directive):
    """One section for each command."""

    def run(self) -> list[nodes.Node]:
        return [_command(command) for commands in GROUPS.values() for command in commands]


def _command(command: str) -> nodes.section:
    section = nodes.section(ids=[f"kilolayer-{command}"], names=[f"kilolayer {command}"])
    section += nodes.title("", f"kilolayer {command}")
    for paragraph in (command_description(command) or command_summary(command)).split("\n\n"):
        section += nodes.paragraph("", paragraph)
    examples = "\n".join(f"# {meaning}\n{line}" for meaning, line in examples_of(command))
    section += nodes.literal_block(examples, examples, language="bash")
    options = options_of(command)
    for group in dict.fromkeys(option.group for option in options):
        if group:
            section += nodes.rubric("", f"{group} options")
            section += nodes.paragraph("", group_text(command, group))
        section += _option_list(command, [option for option in options if option.group == group])
    return section


def _option_list(command: str, options: list[Option]) -> nodes.definition_list:
    entries = nodes.definition_list()
    for option in options:
        name = f"{', '.join(option.flags)} {option.metavar}".strip()
        ids = [f"kilolayer-{command}{flag}" for flag in option.flags[:1]]
        text = f"{option.help} (default: {option.default})" if option.default else option.help
        entries += nodes.definition_list_item(
            "",
            nodes.term("", "", nodes.literal(name, name), ids=ids),
            nodes.definition("", nodes.paragraph("", text)),
        )
    return entries


class Analyses(Directive):
    """A table: the question that each analysis answers, its command, its source."""

    def run(self) -> list[nodes.Node]:
        rows = [
            (nodes.Text(entry.question), nodes.literal("", f"analyse {name}"), nodes.Text(entry.source))
            for name, entry in ANALYSES.items()
        ]
        return [_table([nodes.Text(text) for text in ("you ask", "command", "source")], rows)]


def _table(head: Sequence[nodes.Node], rows: Iterable[Sequence[nodes.Node]]) -> nodes.table:
    group = nodes.tgroup("", *(nodes.colspec(colwidth=1) for _ in head), cols=len(head))
    group += nodes.thead("", _row(head))
    group += nodes.tbody("", *map(_row, rows))
    return nodes.table("", group, classes=["docutils"])


def _row(cells: Sequence[nodes.Node]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", cell)) for cell in cells))


def setup(app: Any) -> dict[str, bool]:
    app.add_directive("command-line", CommandLine)
    app.add_directive("analyses", Analyses)
    return {"parallel_read_safe": True}
