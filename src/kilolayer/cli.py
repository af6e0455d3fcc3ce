"""The command line: parses, calls, and turns what is wrong with it into one line.

A command is a word in `COMMANDS`: `kilolayer.commands.<word>` has a dataclass of that name, capitalised,
whose fields are the options, and a function of that name, which takes them and returns the exit status.
`check-data` is `check_data` there, and its dataclass `CheckData`.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from importlib import import_module
from itertools import dropwhile, takewhile
from typing import Annotated, Any, Union, get_type_hints

import tyro

from kilolayer.commands.flags import with_words
from kilolayer.errors import InputError

COMMANDS = (
    "demo",
    "train",
    "evaluate",
    "predict",
    "models",
    "show",
    "analyse",
    "audit",
    "recipes",
    "reproduce",
    "report",
    "bench",
    "lens",
    "check-data",
    "doctor",
    "completion",
)

ABOUT = """The laboratory for residual networks a thousand layers deep.

To begin: kilolayer demo. Also: kilolayer train --help, kilolayer --version."""


def run(argv: Sequence[str]) -> int:
    """Carries out a command line and returns its exit status. Raises `InputError` where it is wrong."""
    options = parse(argv or ["--help"])
    if options is None:
        return 0
    home = sys.modules[type(options).__module__]
    status: int = getattr(home, home.__name__.rpartition(".")[2])(options)
    return status


def parse(argv: Sequence[str]) -> Any:
    """The options of the command, or None where help was asked for and given."""
    check_words(argv)
    boxed = io.StringIO()
    try:
        with redirect_stderr(boxed):
            commands = _commands(brief=argv[0].startswith("-"))
            return tyro.cli(commands, args=list(with_words(argv)), prog="kilolayer", description=ABOUT)
    except SystemExit as end:
        if not end.code:
            return None
        command = argv[0] if argv[0] in COMMANDS else ""
        raise InputError(
            f"{unboxed(boxed.getvalue())}; see {f'kilolayer {command}'.strip()} --help"
        ) from None


def options_type(command: str) -> Any:
    """The dataclass of a command's options."""
    home = import_module(f"kilolayer.commands.{command.replace('-', '_')}")
    return getattr(home, "".join(word.capitalize() for word in command.split("-")))


def _commands(*, brief: bool) -> Any:
    """All commands as one type; `brief`: only the first paragraph of what they say of themselves."""
    named = []
    for name in COMMANDS:
        options = options_type(name)
        description = _documentation(options)
        if brief:
            description = description.partition("\n\n")[0]
        named.append(Annotated[options, tyro.conf.subcommand(name, description=description)])
    return Union[tuple(named)]  # noqa: UP007 - made of a tuple


def _documentation(options: Any) -> str:
    """The docstring of a dataclass; from its source where `python -OO` has dropped it."""
    if sys.flags.optimize < 2:
        return inspect.cleandoc(options.__doc__)
    (definition,) = ast.parse(inspect.getsource(options)).body
    return ast.get_docstring(definition) or ""  # type: ignore[arg-type]


def check_words(argv: Sequence[str]) -> None:
    """Refuses an unknown command or option, naming the nearest; tyro does so less plainly."""
    if argv[0].startswith("-"):
        if argv[0] not in ("-h", "--help", "--tyro-print-completion"):
            raise InputError(f"unknown option {argv[0]}; a command comes first: {', '.join(COMMANDS)}")
        return
    if argv[0] not in COMMANDS:
        raise InputError(f"unknown command {argv[0]!r}; {_nearest(argv[0], COMMANDS)}")
    known = ["--help", *flags(options_type(argv[0]))]
    for word in argv[1:]:
        if word == "--":
            break
        flag = word.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in known:
            raise InputError(f"kilolayer {argv[0]} has no option {flag}; {_nearest(flag, known)}")


def flags(options: Any) -> Iterator[str]:
    """The options' names as they are written, without those that go by their place."""
    hints = get_type_hints(options, include_extras=True)
    for field in fields(options):
        if is_dataclass(field.default):
            yield from flags(type(field.default))
        elif tyro.conf.Positional not in getattr(hints[field.name], "__metadata__", ()):
            name = field.name.replace("_", "-")
            yield f"--{name}"
            if isinstance(field.default, bool):
                yield f"--no-{name}"


def _nearest(word: str, known: Sequence[str]) -> str:
    near = get_close_matches(word, known, n=1, cutoff=0.5)
    return f"nearest: {near[0]}" if near else f"allowed: {', '.join(known)}"


def unboxed(text: str) -> str:
    """What tyro says in a box, on one line: the words between the title and the first rule below it."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    lines = [line.strip("│ ") for line in plain.splitlines()[1:]]
    # Without UTF-8 the box is drawn with hyphens, and has a rule below its title too.
    words = list(dropwhile(_is_rule, lines))
    if words and words[0].startswith("Missing from"):
        words = words[:2]
    said = " ".join(" ".join(takewhile(lambda line: not _is_rule(line), words)).split()).rstrip(".")
    said = said.removeprefix("Error parsing ")
    return said[:1].lower() + said[1:] if said else "the command line cannot be read"


def _is_rule(line: str) -> bool:
    return re.match(r"[─╰-]{4}", line) is not None
