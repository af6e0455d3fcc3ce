"""Errors that you or the machine can mend, and what they say about a word or a path."""

import errno
import os
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path


class KilolayerError(ValueError):
    """The base of every error that is no bug: its text says what was wrong, what is allowed, and what next.

    The command line prints the text on one line and exits with status 2. Every other exception is a bug of
    ours and keeps its traceback.
    """


class InputError(KilolayerError):
    """You gave Kilolayer a value, a file or a combination of options that it cannot use."""


class StorageError(KilolayerError):
    """The system refused to read or write a file: the disk is full, or permission is missing."""


class MemoryShortageError(KilolayerError):
    """The CPU or the GPU has too little memory free."""


class RankError(KilolayerError):
    """The processes of one run cannot work together: one did not start, or one has ended."""


def single_value_error(error: BaseException) -> InputError | None:
    """The error to show where `error` is PyTorch's complaint about a BN with one value per channel."""
    match = re.search(r"Expected more than 1 value per channel .* size torch.Size\((.*)\)", str(error))
    return match and InputError(
        f"a BN would see one value per channel in a batch of {match[1]}, which has no variance; take a "
        "--batch-size of 2 or more, or a larger --image-size"
    )


_OUT_OF_MEMORY_PHRASES = (
    "can't allocate memory",  # PyTorch's CPU allocator
    "could not create a primitive",  # oneDNN
    "std::bad_alloc",  # C++
    "annot allocate memory",  # the system
    "failed to map segment from shared object",  # the system's loader, which loads a part of a package
    "PyObject pointer is null",  # safetensors
)
_TOO_MANY = {
    "can't start new thread": "threads",
    "Resource temporarily unavailable": "threads or processes",
    "Too many open files": "open files",
}
"""What the system says where it allows no more of something."""


def shortage_error(error: BaseException) -> MemoryShortageError | None:
    """The error to show where `error` says that the machine is short of memory, threads or open files."""
    if isinstance(error, OSError) and error.filename is not None and error.errno != errno.ENOMEM:
        return None
    for phrase, noun in _TOO_MANY.items():
        if phrase in str(error):
            return MemoryShortageError(
                f"this machine allows no more {noun}; nothing was changed: allow more (ulimit -u, ulimit -n, "
                "or the container's limit of processes), or take --threads 1 and fewer --workers"
            )
    return out_of_memory_error(error)


def out_of_memory_error(error: BaseException) -> MemoryShortageError | None:
    """The error to show where `error` is some library's way of saying that memory ran out."""
    message = str(error)
    is_memory_error = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if not is_memory_error and not any(phrase in message for phrase in _OUT_OF_MEMORY_PHRASES):
        return None
    requested = re.search(r"(?:tried to allocate|Tried to allocate) ([\d.]+ \w+)", message)
    return MemoryShortageError(
        f"out of memory{f' (asked for {requested[1]})' if requested else ''}; nothing was changed: take a "
        "smaller --batch-size, --activation-memory smallest or --precision bf16, or free memory and go on "
        "with --resume"
    )


_READ_BY_LIBRARIES = ("TORCH", "PYTORCH", "ATEN", "MPL", "MATPLOTLIB", "SOURCE_DATE_EPOCH", "TRITON", "TZ")
"""How the environment variables begin that libraries of ours read."""


def environment_error(error: BaseException) -> KilolayerError | None:
    """The error to show where a library cannot use an environment variable, or has no temporary folder.

    None where our own code raised it, which is a bug.
    """
    text = str(error)
    if "No usable temporary directory" in text:
        return StorageError("no folder for temporary files can be written; set TMPDIR to one that can")
    last = error.__traceback__
    while last and last.tb_next:
        last = last.tb_next
    if last is None or Path(last.tb_frame.f_code.co_filename).is_relative_to(Path(__file__).parent):
        return None
    for name, value in os.environ.items():
        if name.startswith(_READ_BY_LIBRARIES) and value and (name in text or repr(value) in text):
            reason = _first_line(text)
            return InputError(f"{name} is {value!r} in the environment ({reason}); correct or unset it")
    return None


def _first_line(text: str) -> str:
    return next((line.strip()[:200] for line in text.splitlines() if line.strip()), "")


MAX_LISTED = 12
"""With more allowed words than this, only the nearest is named."""


def suggest(word: str, allowed: Sequence[str], cutoff: float = 0.5) -> str:
    """The nearest allowed word, and the other allowed ones, for a message about an unknown `word`.

    >>> suggest("papr", ["paper", "short"])
    'nearest: paper; allowed: paper, short'
    >>> suggest("xyz", ["paper", "short"])
    'allowed: paper, short'
    """
    nearest, every = nearest_word(word, allowed, cutoff), f"allowed: {', '.join(allowed)}"
    if nearest is None:
        return every
    return f"nearest: {nearest}" + (f"; {every}" if len(allowed) <= MAX_LISTED else "")


def nearest_word(word: str, allowed: Sequence[str], cutoff: float = 0.5) -> str | None:
    """The word of `allowed` that begins with `word`, or else is most like it; None if none is like it.

    >>> nearest_word("papr", ["paper", "short"]), nearest_word("xyz", ["paper", "short"])
    ('paper', None)
    """
    lower = {name.lower(): name for name in reversed(allowed)}
    longer = [name for name in lower if word and name.startswith(word.lower())]
    nearest = sorted(longer, key=len) or get_close_matches(word.lower(), lower, n=1, cutoff=cutoff)
    return lower[nearest[0]] if nearest else None


def missing_path_error(path: str | Path) -> InputError:
    """The error for a missing file or folder; it names the nearest path that exists."""
    nearest = _nearest_path(Path(os.path.expanduser(path)))
    return InputError(
        f"{_quoted(path)}: no such file or folder{f'; nearest: {_quoted(nearest)}' if nearest else ''}"
    )


def _quoted(path: str | Path) -> str:
    """The path, quoted if a terminal could not show it as it is."""
    return str(path) if str(path).isprintable() else repr(str(path))


def looks_like_path(word: str) -> bool:
    """Whether a word can only mean a file or folder: it has a separator, or a file's ending.

    >>> looks_like_path("runs/mine"), looks_like_path("paper")
    (True, False)
    """
    endings = (".py", ".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".json", ".zip", ".tar", ".gz")
    return os.sep in word or word.startswith((".", "~")) or word.lower().endswith(endings)


def _nearest_path(path: Path) -> Path | None:
    """The path with every missing part replaced by the nearest one that exists; None if none is near."""
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
