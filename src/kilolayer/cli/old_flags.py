"""Flags under their earlier names: still accepted, with a warning, and hidden from help and completion."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence

from kilolayer.errors import InputError
from kilolayer.system.ranks import is_main_process

OLD_FLAGS: dict[str, tuple[str, ...]] = {
    "--averaged": ("--ema",),
    "--channels-last": ("--memory-format", "channels_last"),
    "--graph": ("--cuda-graph",),
    "--growth": ("--progressive-depth",),
    "--memory": ("--activation-memory",),
    "--no-channels-last": ("--memory-format", "channels_first"),
    "--resize": ("--downsample",),
    "--resolution": ("--progressive-resize",),
    "--split": ("--part",),
}
"""Each old flag with the words that replace it. An old switch becomes a flag and its value."""


def replace_old_flags(words: Sequence[str], flags: Collection[str]) -> list[str]:
    """The words of a command with new flags instead of old ones, and a warning for each old flag.

    `flags` are the command's own. A flag that the command does not have under its new name stays as it is.

    Raises:
        InputError: a flag is given under its old and its new name.
    """
    end = words.index("--") if "--" in words else len(words)
    given = {_flag(word) for word in words[:end]}
    replaced: list[str] = []
    for word in words[:end]:
        old, new = _flag(word), OLD_FLAGS.get(_flag(word), ())
        if not new or old in flags or new[0] not in flags:
            replaced.append(word)
            continue
        if new[0] in given:
            raise InputError(f"{old} is an old name of {new[0]}; give {new[0]} once")
        given.add(new[0])
        if is_main_process():
            print(f"kilolayer: {old} is now called {' '.join(new)}", file=sys.stderr)
        _, equals, value = word.partition("=")
        replaced += [f"{new[0]}={value}"] if equals else new
    return [*replaced, *words[end:]]


def _flag(word: str) -> str:
    """The flag of `--flag=value`, with hyphens for underscores."""
    return word.partition("=")[0].replace("_", "-") if word.startswith("--") else word
