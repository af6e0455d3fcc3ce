"""Flags under their earlier names: still accepted, with a warning, and hidden from help and completion."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from kilolayer.errors import InputError, nearest_word, suggest
from kilolayer.system.printer import print_line
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

SYNONYMS = {"--at-change": "--downsample", "--grad-checkpointing": "--activation-memory"}
"""Fields of older releases, which were never flags but may be tried as such. Each with its flag."""


def replace_old_flags(words: Sequence[str], flags: Collection[str]) -> list[str]:
    """The words of a command with new flags instead of old ones, and one warning for each old flag.

    `flags` are the command's own. A flag that the command does not have under its new name stays as it is.
    An old flag that is given twice counts as it is given last, as every flag does.

    Raises:
        InputError: a flag is given under its old and its new name.
    """
    end = words.index("--") if "--" in words else len(words)
    given = {_flag(word) for word in words[:end]}
    warned: set[str] = set()
    replaced: list[str] = []
    for word in words[:end]:
        old, new = _flag(word), OLD_FLAGS.get(_flag(word), ())
        if not new or old in flags or new[0] not in flags:
            replaced.append(word)
            continue
        if new[0] in given:
            raise InputError(f"{old} is the old name of {new[0]}, and both are given; leave out {old}")
        if is_main_process() and old not in warned:
            print_line(f"kilolayer: {old} is now called {' '.join(new)}", stderr=True)
        warned.add(old)
        _, equals, value = word.partition("=")
        replaced += [f"{new[0]}={value}"] if equals else new
    return [*replaced, *words[end:]]


def suggest_flag(flag: str, flags: Sequence[str]) -> str:
    """The flag of `flags` that is nearest to an unknown one, by today's names and by the old ones."""
    today = {old: new for old, (new, *_) in OLD_FLAGS.items()} | SYNONYMS
    outdated = [old for old, new in today.items() if new in flags and old not in flags]
    nearest = nearest_word(flag, [*flags, *outdated])
    return f"nearest: {today[nearest]}" if nearest in outdated else suggest(flag, flags)


def _flag(word: str) -> str:
    """The flag of `--flag=value`, with hyphens for underscores."""
    return word.partition("=")[0].replace("_", "-") if word.startswith("--") else word
