"""`--help`: the description of a command, three examples, and its options with the most used ones first.

We do not use tyro's help page: it breaks lines where our source does, shows comments as help, and has no
groups of commands.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from kilolayer.cli.command_table import (
    GROUPS,
    MOST_USED,
    Option,
    command_description,
    command_summary,
    examples_of,
    group_text,
    options_of,
)
from kilolayer.system.terminal import DEFAULT_COLUMNS, print_text, terminal_size

ABOUT = "The laboratory for residual networks a thousand layers deep."
TEXT_COLUMN, NARROW_INDENT = 24, 6
"""The column of an option's text: beside its name, and on a narrow terminal below its name."""
WIDEST = 100


def print_help(command: str | None) -> None:
    """Prints the help of a command, or of the program."""
    width = min((terminal_size(sys.stdout) or (DEFAULT_COLUMNS, 0))[0], WIDEST)
    if command is None:
        _print_commands(width)
    else:
        _print_command(command, width)


def _print_commands(width: int) -> None:
    _wrapped("usage: kilolayer COMMAND ...", width)
    _wrapped(f"\n{ABOUT}", width)
    for group, commands in GROUPS.items():
        print_text(f"\n{group}", style="bold")
        for command in commands:
            _entry(command, command_summary(command), width, beside=14)
    _wrapped(
        "\nTo begin: kilolayer demo. Of each command: kilolayer COMMAND --help. Also: kilolayer --version.",
        width,
    )


def _print_command(command: str, width: int) -> None:
    options = options_of(command)
    places = " ".join(option.metavar for option in options if not option.flags)
    _wrapped(f"usage: kilolayer {command} {f'{places} ' if places else ''}[options]", width)
    for paragraph in command_description(command).split("\n\n"):
        _wrapped(f"\n{paragraph}", width)
    print_text("\nexamples", style="bold")
    for purpose, line in examples_of(command):
        _wrapped(f"  # {purpose}", width, hanging=4)
        print_text(f"  {line}", width=width)
    for heading, text, group_options in _groups(command, options):
        print_text(f"\n{heading}", style="bold")
        if text:
            _wrapped(f"  {text}", width)
        for option in group_options:
            _entry(_name(option), _text(option), width, beside=TEXT_COLUMN)


def _groups(command: str, options: Sequence[Option]) -> list[tuple[str, str, list[Option]]]:
    """Headings with their text and their options; empty groups are left out."""
    flags = MOST_USED.get(command, "").split()
    by_flag = {option.flags[0]: option for option in options if option.flags}
    first = [by_flag[flag] for flag in flags]
    remaining = [option for option in options if option.flags and option not in first]
    groups = [("arguments", "", [option for option in options if not option.flags])]
    groups.append(("most used", "", first))
    for name in dict.fromkeys(option.group for option in remaining):
        heading = f"{name} options" if name else "more options" if first else "options"
        group_options = [option for option in remaining if option.group == name]
        groups.append((heading, group_text(command, name) if name else "", group_options))
    return [group for group in groups if group[2]]


def _name(option: Option) -> str:
    return f"{', '.join(option.flags)} {option.metavar}".strip()


def _text(option: Option) -> str:
    return f"{option.help} (default: {option.default})" if option.default else option.help


def _entry(name: str, text: str, width: int, beside: int) -> None:
    """Prints a name and its text, side by side where there is room."""
    if width >= DEFAULT_COLUMNS or beside < TEXT_COLUMN:
        head = f"  {name:<{beside - 2}}"
        if len(head) <= beside and not head.endswith(name):
            _wrapped(f"{head}{text}", width, hanging=beside - 2)
            return
        indent = beside
    else:
        indent = NARROW_INDENT
    _wrapped(f"  {name.replace(',', ', ') if len(name) > width - 2 else name}", width, hanging=2)
    _wrapped(f"{' ' * indent}{text}", width)


def _wrapped(text: str, width: int, hanging: int = 0) -> None:
    print_text(text, hanging=hanging, width=width)


def example_words(line: str) -> list[str]:
    """The arguments that `kilolayer` gets from an example, without the shell's pipes and redirections."""
    inner = line.partition("$(")[2].rpartition(")")[0] or line
    return shlex.split(inner.partition(" > ")[0].partition(" | ")[0])[1:]
