"""What `torch.save` wrote before PyTorch 1.6: five pickles on end, then the storages' bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kilolayer.data.wording import quoted
from kilolayer.errors import InputError
from kilolayer.weights import opcodes, zipped

MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
PICKLES = 5  # magic number, protocol, the system, the object, the keys of its storages


def load(path: Path) -> Any:
    """What the file holds. Raises `InputError`."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            for _ in range(PICKLES):
                opcodes.check(file, path, size, legacy=True)
    except OSError as error:
        raise InputError(f"{quoted(path)}: cannot be read ({error.strerror})") from None
    return zipped.loaded(path, mmap=False)
