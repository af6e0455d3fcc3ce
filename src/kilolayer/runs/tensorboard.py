"""A run's figures for TensorBoard, beside its own record: DIR/tensorboard."""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kilolayer.errors import InputError
from kilolayer.system import durable

TAGS = {
    "train_loss": "loss/train",
    "train_error": "error/train",
    "validation_loss": "loss/validation",
    "validation_error": "error/validation",
    "test_loss": "loss/test",
    "test_error": "error/test",
    "learning_rate": "learning rate",
    "images_per_second": "images per second",
}


def require_tensorboard() -> None:
    """Raises `InputError`, with what to install, where TensorBoard is missing."""
    if find_spec("tensorboard") is None:
        raise InputError("--tensorboard needs a package that is missing: pip install 'kilolayer[track]'")


def tensorboard_writer(folder: Path) -> Callable[[dict[str, Any]], None]:
    """A function that writes each row of metrics.jsonl to `folder`, by iteration.

    When a stopped run continues, TensorBoard hides what it wrote after its last checkpoint. Raises
    `InputError` where TensorBoard is missing; the function raises `StorageError` where it cannot write.
    """
    require_tensorboard()
    writers: list[Any] = []

    def write(row: dict[str, Any]) -> None:
        try:
            if not writers:
                writers.append(_writer(folder, row["iteration"]))
            for key, tag in TAGS.items():
                if key in row:
                    writers[0].add_scalar(tag, row[key], row["iteration"])
            writers[0].flush()
        except OSError as error:
            raise durable.storage_error(f"cannot write {folder}", error, folder.parent) from error

    return write


def _writer(folder: Path, iteration: int) -> Any:
    # The import takes a second. The first row says from which iteration on an earlier start is void.
    from torch.utils.tensorboard import SummaryWriter

    threading.excepthook = _on_thread_error
    return SummaryWriter(str(folder), purge_step=iteration)


def _on_thread_error(failed: threading.ExceptHookArgs) -> None:
    """TensorBoard writes in a thread; the next `flush` raises the same `OSError`."""
    if not isinstance(failed.exc_value, OSError):
        threading.__excepthook__(failed)
