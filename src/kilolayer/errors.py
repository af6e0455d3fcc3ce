"""The one exception that is the user's or the machine's fault, and what it says of a word or a path."""

import os
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path


class InputError(ValueError):
    """Something given to Kilolayer cannot be used: its text names what, where, and what is allowed.

    The command line prints the text on one line and exits with status 2; every other
    exception is a fault of ours and keeps its traceback.
    """


def single_value_error(error: BaseException) -> InputError | None:
    """What to do about it, where `error` is PyTorch's BN that has one value a channel to normalise."""
    match = re.search(r"Expected more than 1 value per channel .* size torch.Size\((.*)\)", str(error))
    return match and InputError(
        f"a BN would see one value a channel, in a batch of {match[1]}, which has no variance; take a "
        "--batch-size of 2 or more, or a larger --image-size"
    )


_OUT_OF_MEMORY_PHRASES = ("can't allocate memory", "could not create a primitive")
"""What PyTorch's allocator for the CPU says, and oneDNN."""


def out_of_memory_error(error: BaseException) -> InputError | None:
    """What to do about it, where `error` says in one of PyTorch's or Python's ways that memory is short."""
    message = str(error)
    is_memory_error = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if not is_memory_error and not any(words in message for words in _OUT_OF_MEMORY_PHRASES):
        return None
    requested = re.search(r"(?:tried to allocate|Tried to allocate) ([\d.]+ \w+)", message)
    return InputError(
        f"out of memory{f' (asked for {requested[1]})' if requested else ''}; nothing was changed: take a smaller "
        "--batch-size, --grad-checkpointing or --precision bf16, or free memory and go on with --resume"
    )


MAX_LISTED = 12
"""More allowed words than this are not listed where one of them is near."""


def suggest(word: str, allowed: Sequence[str], cutoff: float = 0.5) -> str:
    """What to write in place of `word`: the nearest that is allowed, and what else is."""
    lower = {name.lower(): name for name in reversed(allowed)}
    longer = [name for name in lower if word and name.startswith(word.lower())]
    nearest = sorted(longer, key=len) or get_close_matches(word.lower(), lower, n=1, cutoff=cutoff)
    every = f"allowed: {', '.join(allowed)}"
    if not nearest:
        return every
    return f"nearest: {lower[nearest[0]]}" + (f"; {every}" if len(allowed) <= MAX_LISTED else "")


def missing_path_error(path: str | Path) -> InputError:
    """For a file or folder that is missing, with the nearest that is there."""
    nearest = _nearest_path(Path(os.path.expanduser(path)))
    return InputError(
        f"{_quoted(path)}: no such file or folder{f'; nearest: {_quoted(nearest)}' if nearest else ''}"
    )


def _quoted(path: str | Path) -> str:
    """The path as it is, quoted where a terminal would not show it so."""
    return str(path) if str(path).isprintable() else repr(str(path))


def looks_like_path(word: str) -> bool:
    """Whether a word can only mean a file or folder: it has a folder in it, or the ending of a file."""
    endings = (".py", ".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".json", ".zip", ".tar", ".gz")
    return os.sep in word or word.startswith((".", "~")) or word.lower().endswith(endings)


def _nearest_path(path: Path) -> Path | None:
    """The path with every part that is missing replaced by the nearest that is there."""
    existing = Path(path.anchor)
    for part in path.parts[1:] if path.anchor else path.parts:
        if not os.path.exists(existing / part):
            try:
                names = os.listdir(existing)
            except OSError:
                return None
            matches = get_close_matches(part, names, n=1)
            if not matches:
                return None
            part = matches[0]
        existing /= part
    return existing
