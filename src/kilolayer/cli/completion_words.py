"""The completions at the cursor. The scripts of `kilolayer completion` ask for them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from glob import glob

from kilolayer.cli.command_table import COMMANDS, Option, options_of
from kilolayer.data.registry import DATASETS
from kilolayer.system.printer import print_data

FILES, FOLDERS = "<files>", "<folders>"
"""Placeholders for paths, which the shell completes."""


def _networks() -> Sequence[str]:
    from kilolayer.networks import list_models

    return list_models()


def _recipes() -> Sequence[str]:
    from kilolayer.cli.options import RECIPE_NAMES

    return RECIPE_NAMES


def _analyses() -> Sequence[str]:
    from kilolayer.cli.analyse import ANALYSIS_NAMES

    return (*ANALYSIS_NAMES, "all")


def _tables() -> Sequence[str]:
    from kilolayer.papers import tables

    return [table.name for table in tables()]


def _shortcuts() -> Sequence[str]:
    return ("identity", "zero", "projection", "scaled:", "dropout:", "exclusive_gate:", "shortcut_gate:")


VALUE_SOURCES: dict[str, Callable[[], Sequence[str]]] = {
    "show NAME": lambda: (*_networks(), FILES),
    "[PATTERN]": _networks,
    "MODEL...": _networks,
    "--model": _networks,
    "WHAT": _analyses,
    "NETWORK_OR_RUN...": lambda: (*_networks(), FILES),
    "[TABLE...]": _tables,
    "[NAME...]": _recipes,
    "SHELL": lambda: ("bash", "zsh", "fish", "tcsh"),
    "PATH": lambda: (*DATASETS, FILES),
    "--data": lambda: (*DATASETS, FILES),
    "--shortcut": _shortcuts,
    "--device": lambda: ("auto", "cpu", "cuda"),
    "--activation-memory": lambda: ("fastest", "balanced", "smallest"),
    "--init": lambda: (FILES,),
}
"""The values of a flag or a metavar; the command stands in front where commands differ."""
FOLDER_WORDS, FILE_WORDS = ("DIR",), ("FILE", "RUN", "IMAGE", "WEIGHTS")


def print_completions(shell: str, words: Sequence[str]) -> None:
    """Prints the completions of the last of `words`, one a line."""
    if shell == "tcsh":
        line = os.environ.get("COMMAND_LINE", "")
        words = [*_split(line)[1:], *([""] if line.endswith(" ") else [])]
    # bash gives "--recipe=sh" as three words.
    words = [word for word in words[:-1] if word != "="] + [words[-1].removeprefix("=") if words else ""]
    flag, equals, word = words[-1].partition("=") if words[-1].startswith("--") else ("", "", words[-1])
    if equals:
        completions = [
            f"{flag}={completion}"
            for completion in completions_at([*words[:-1], flag, word])
            if completion[0] != "<"
        ]
    else:
        completions = list(completions_at(words))
    for completion in completions:
        for text in _paths(word) if shell == "tcsh" and completion[0] == "<" else (completion,):
            print_data(f"{text}\n")


def completions_at(words: Sequence[str]) -> Iterator[str]:
    """The completions of the last of `words`, `FILES` and `FOLDERS` among them."""
    *before, word = words
    if not before:
        yield from (
            completion for completion in (*COMMANDS, "--help", "--version") if completion.startswith(word)
        )
    elif before[0] in COMMANDS:
        yield from (
            completion
            for completion in _in_command(*before, word=word)
            if completion[0] == "<" or completion.startswith(word)
        )


def _in_command(command: str, *before: str, word: str) -> Iterator[str]:
    options = options_of(command)
    by_flag = {flag: option for option in options for flag in option.flags}
    places = [option for option in options if not option.flags]
    num_positionals = 0
    value_of: Option | None = None
    for argument in before:
        if argument in by_flag:
            value_of = by_flag[argument] if by_flag[argument].metavar else None
        elif value_of is not None:
            value_of = None
        else:
            num_positionals += 1
    if value_of is not None:
        yield from _values(command, value_of)
        return
    if places and not word.startswith("-"):
        positional = places[min(num_positionals, len(places) - 1)]
        if num_positionals < len(places) or positional.metavar.rstrip("]").endswith("..."):
            yield from _values(command, positional)
    if word.startswith("-") or not places:
        yield from (flag for flag in ("--help", *by_flag) if flag not in before)


def _values(command: str, option: Option) -> Sequence[str]:
    name = option.flags[0] if option.flags else option.metavar
    source = VALUE_SOURCES.get(f"{command} {name}") or VALUE_SOURCES.get(name)
    if source is not None:
        return source()
    if option.choices:
        return option.choices
    if any(word in option.metavar for word in FILE_WORDS):
        return (FILES,)
    return (FOLDERS,) if option.metavar in FOLDER_WORDS else ()


def _paths(word: str) -> list[str]:
    """Paths that begin with `word`, for tcsh, which cannot complete paths beside words."""
    return [f"{path}/" if os.path.isdir(path) else path for path in sorted(glob(f"{word}*"))]


def _split(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:  # a quote that is still open
        return line.split()
