"""What `torch.save` wrote before PyTorch 1.6: five pickles on end, then the storages' bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kilolayer.errors import InputError
from kilolayer.system.message_text import quote
from kilolayer.weights import pickle_scanner, zip_torch

MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
PICKLES = 5  # magic number, protocol, the system, the object, the keys of its storages


def load_legacy(path: Path) -> Any:
    """What the file holds. Raises `InputError`."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            for _ in range(PICKLES):
                pickle_scanner.scan_pickle(file, path, size, legacy=True)
    except OSError as error:
        raise InputError(f"{quote(path)}: cannot be read ({error.strerror})") from None
    return zip_torch.load_tensors(path, mmap=False)
