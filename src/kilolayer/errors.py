"""The one exception that is the user's or the machine's fault."""

import re


class InputError(ValueError):
    """Something given to Kilolayer cannot be used: its text names what, where, and what is allowed.

    The command line prints the text on one line and exits with status 2; every other
    exception is a fault of ours and keeps its traceback.
    """


def one_value(error: BaseException) -> InputError | None:
    """What to do about it, where `error` is PyTorch's BN that has one value a channel to normalise."""
    said = re.search(r"Expected more than 1 value per channel .* size torch.Size\((.*)\)", str(error))
    return said and InputError(
        f"a BN would see one value a channel, in a batch of {said[1]}, which has no variance; take a "
        "--batch-size of 2 or more, or a larger --image-size"
    )


_SHORT = ("can't allocate memory", "could not create a primitive")
"""What PyTorch's allocator for the CPU says, and oneDNN."""


def out_of_memory(error: BaseException) -> InputError | None:
    """What to do about it, where `error` says in one of PyTorch's or Python's ways that memory is short."""
    said = str(error)
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if not named and not any(words in said for words in _SHORT):
        return None
    asked = re.search(r"(?:tried to allocate|Tried to allocate) ([\d.]+ \w+)", said)
    return InputError(
        f"out of memory{f' (asked for {asked[1]})' if asked else ''}; nothing was changed: take a smaller "
        "--batch-size, --grad-checkpointing or --precision bf16, or free memory and go on with --resume"
    )
