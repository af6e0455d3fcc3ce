"""A run's figures for TensorBoard, beside its own record: DIR/tensorboard."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, BinaryIO

from kilolayer.errors import InputError
from kilolayer.runs.folder import TENSORBOARD, Run
from kilolayer.system.opened_folder import storage_error

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


def tensorboard_writer(run: Run) -> Callable[[dict[str, Any]], None]:
    """A function that writes each row of metrics.jsonl to the run's tensorboard/, by iteration.

    When a stopped run continues, TensorBoard hides what it wrote after its last checkpoint. Raises
    `InputError` where TensorBoard is missing; the function raises `StorageError` where it cannot write.
    """
    require_tensorboard()
    name, files = f"events.out.tfevents.{int(time.time()):010d}.{secrets.token_hex(4)}", list[BinaryIO]()

    def write(row: dict[str, Any]) -> None:
        # The import takes a second.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        step, events = row["iteration"], []
        if not files:
            # The first row says from which iteration on an earlier start is void.
            events.append(Event(file_version="brain.Event:2"))
            events.append(Event(step=step, session_log=SessionLog(status=SessionLog.START)))
        for key, tag in TAGS.items():
            if key in row:
                values = [Summary.Value(tag=tag, simple_value=row[key])]
                events.append(Event(step=step, summary=Summary(value=values)))
        run.check()
        try:
            if not files:
                files.append(run.create_file(TENSORBOARD, name))
            records = RecordWriter(files[0])
            for event in events:
                event.wall_time = time.time()
                records.write(event.SerializeToString())
            records.flush()
        except OSError as error:
            raise storage_error(f"cannot write {run.file(TENSORBOARD)}", error, run.path) from error

    return write
