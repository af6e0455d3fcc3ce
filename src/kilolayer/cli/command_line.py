"""Parses a command line and executes its command. A mistake in it becomes an error of one line.

A command is a word in `COMMANDS`. Its module `kilolayer.cli.<word>` holds the dataclass `<Word>Options`,
whose fields are the options, and the function `execute`, which takes it and returns the exit status. For
`check-data` these are `kilolayer.cli.check_data` and `CheckDataOptions`.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from itertools import dropwhile, pairwise, takewhile
from typing import Any

import tyro

from kilolayer.cli.command_table import COMMANDS, options_class, options_of
from kilolayer.cli.help_text import print_help
from kilolayer.cli.old_flags import replace_old_flags, suggest_flag
from kilolayer.cli.option_types import fill_bare_options
from kilolayer.errors import InputError, suggest

HELP = ("-h", "--help")


def run_command_line(argv: Sequence[str]) -> int:
    """Executes a command line and returns the exit status. Raises `InputError` for a mistake in it."""
    if not argv or any(word in HELP for word in takewhile(lambda word: word != "--", argv)):
        check_words(argv or HELP)
        print_help(argv[0] if argv and argv[0] in COMMANDS else None)
        return 0
    options = parse(argv)
    _load_own_unit(options)
    module = sys.modules[type(options).__module__]
    status: int = module.execute(options)
    return status


def _load_own_unit(options: Any) -> None:
    """Runs the file that --unit names, and no other. Descriptions that are read later may need its kinds."""
    unit = getattr(options, "unit", None)
    text = unit if isinstance(unit, str) else getattr(unit, "unit", None)
    if text:
        from kilolayer.units import extensions

        path, name = extensions.split_reference(text)
        module = extensions.load_unit_file(path or text)
        if name and not hasattr(module, name):
            extensions.load_part(text)  # says what the file defines


def parse(argv: Sequence[str]) -> Any:
    """The options of a command line, as the command's dataclass. Raises `InputError` for a mistake."""
    command, *words = check_words(argv)
    boxed = io.StringIO()
    try:
        with redirect_stderr(boxed):
            return tyro.cli(
                options_class(command), args=list(fill_bare_options(words)), prog=f"kilolayer {command}"
            )
    except SystemExit:
        error = unbox_error(boxed.getvalue())
        raise InputError(_not_csv(error, words) or f"{error}; see kilolayer {command} --help") from None


def _not_csv(error: str, words: Sequence[str]) -> str | None:
    """The error for a word after --csv that is no name of a CSV file; --csv may stand alone."""
    behind = [word for flag, word in pairwise(words) if flag == "--csv"]
    if behind and error.startswith(f"unrecognized options: {behind[0]}"):
        return f"--csv {behind[0]!r}: the name must end in .csv; - is standard output"
    return None


def check_words(argv: Sequence[str]) -> list[str]:
    """The command line with new flags instead of old ones.

    Raises:
        InputError: there is no such command or option; the message suggests the nearest one.
    """
    command, *words = argv
    if command in HELP:
        return [command, *words]
    if command.startswith("-"):
        raise InputError(f"unknown option {command}; a command comes first: {', '.join(COMMANDS)}")
    if command not in COMMANDS:
        raise InputError(f"unknown command {command!r}; {suggest(command, COMMANDS)}")
    allowed = [*HELP, *command_flags(command)]
    words = replace_old_flags(words, allowed)
    if sum(word.partition("=")[0] == "--unit" for word in words) > 1:
        raise InputError("--unit is given more than once; name one file, which may import others")
    for word in takewhile(lambda word: word != "--", words):
        flag = word.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in allowed:
            raise InputError(f"kilolayer {command} has no option {flag}; {suggest_flag(flag, allowed)}")
    return [command, *words]


def command_flags(command: str) -> list[str]:
    """The flags of a command, without its positional arguments."""
    return [flag for option in options_of(command) for flag in option.flags]


def unbox_error(text: str) -> str:
    """The text of tyro's error box on one line, without its title.

    We parse the box because tyro's structured errors (`tyro._errors`) are private and unstable.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    lines = [line.strip("│ ") for line in plain.splitlines()[1:]]
    # Without UTF-8 the box is drawn with hyphens, and has a rule below its title as well.
    words = list(dropwhile(_is_rule, lines))
    if words and words[0].startswith("Missing from"):
        words = words[:2]
    said = " ".join(" ".join(takewhile(lambda line: not _is_rule(line), words)).split()).rstrip(".")
    said = said.removeprefix("Error parsing ")
    if said[:2].isupper():  # a placeholder such as NAME
        return said
    return said[:1].lower() + said[1:] if said else "the command line cannot be read"


def _is_rule(line: str) -> bool:
    return re.match(r"[─╰-]{4}", line) is not None
