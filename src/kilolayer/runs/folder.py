"""A run's folder. It is self-sufficient: `Run(path).weights()` needs nothing else.

config.json            the experiment
registration.json      in a registered sweep, the registration under which the run began
environment.json       versions, machine, command and date of every start
metrics.jsonl          a line per epoch: figures that repeat bit for bit
timing.jsonl           a line per epoch: clock readings
checkpoints/           the last two checkpoints: tensors, each with a manifest (`kilolayer.runs.checkpoints`)
NAME.set-aside         what a start could not use, as it was
snapshots/             weights over the training, if you asked for them (`kilolayer.runs.snapshots`)
weights.safetensors    the trained network
predictions.safetensors  its class and loss for every test image (`kilolayer.runs.predictions`)
result.json            the final figures; written last, so that a run that has it is finished
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import Any, BinaryIO

from torch import Tensor

from kilolayer.errors import InputError, missing_path_error
from kilolayer.runs import checkpoints
from kilolayer.runs.checkpoints import Checkpoint, Owner
from kilolayer.runs.records import (
    EndedRun,
    Start,
    TimingRow,
    read_record,
    read_result,
    read_rows,
    read_timing,
)
from kilolayer.runs.snapshots import FOLDER as SNAPSHOTS
from kilolayer.runs.snapshots import (
    checked_count,
    list_snapshots,
    plan_snapshots,
    planned_count,
    write_due_snapshot,
)
from kilolayer.runs.weights_file import SavedNetwork, read_weights
from kilolayer.system.folder_lock import HOLDER_NAME, LOCK_NAME, FolderInUse
from kilolayer.system.json_text import JsonError, parse_json
from kilolayer.system.opened_folder import OpenedFolder, open_folder, storage_error
from kilolayer.training.experiment import Experiment
from kilolayer.training.trainer import Trainer
from kilolayer.units.extensions import UnitFileError
from kilolayer.values import from_json, to_json

CONFIG, ENVIRONMENT, METRICS, TIMING = "config.json", "environment.json", "metrics.jsonl", "timing.jsonl"
RESULT, REGISTRATION = "result.json", "registration.json"
WEIGHTS, PREDICTIONS = "weights.safetensors", "predictions.safetensors"
TENSORBOARD = "tensorboard"
_FILES = (CONFIG, ENVIRONMENT, METRICS, TIMING, RESULT, REGISTRATION, WEIGHTS, PREDICTIONS)
_FOLDERS = (checkpoints.FOLDER, SNAPSHOTS, TENSORBOARD)
_FILES_OF_A_START = (LOCK_NAME, HOLDER_NAME, checkpoints.FOLDER, SNAPSHOTS, ENVIRONMENT, REGISTRATION)
_UNFINISHED = tuple(f".{name}." for name in (CONFIG, ENVIRONMENT, REGISTRATION))
_MAX_BYTES = {".json": 2**26, ".jsonl": 2**28}
"""The most bytes of a file that are read, by its ending."""

JSON_ERRORS = "backslashreplace"
"""A file name that is not valid text is written to JSON as \\udcff, which JSON reads back."""

logger = logging.getLogger(__name__)

RunInUse = FolderInUse


@dataclass(frozen=True)
class Run:
    """A run on disk: an experiment, its metrics and checkpoints, and in the end its trained network.

    below: the folder of the sweep that the run belongs to; below it no link is followed.
    locked: the folder, opened and locked by this process; otherwise it is opened for each access.
    """

    path: Path
    below: Path | None = field(default=None, compare=False)
    locked: OpenedFolder | None = field(default=None, compare=False, repr=False)

    @classmethod
    def open(cls, path: str | Path, *, below: Path | None = None) -> Run:
        """The run in the folder `path`. Raises `InputError` where there is none, or a newer release's."""
        run = cls(Path(path), below)
        if not os.path.exists(run.path):
            raise missing_path_error(path)
        if CONFIG not in run._names():
            raise InputError(f"{path} is not a run's folder: it has no config.json")
        run._require_readable()
        return run

    @classmethod
    def create(cls, path: str | Path, experiment: Experiment) -> Run:
        """A new run in `path`. Raises `InputError` where the folder is not empty."""
        with cls.open_or_create(path, experiment, new=True) as run:
            return replace(run, locked=None)

    @classmethod
    @contextmanager
    def open_or_create(
        cls,
        path: str | Path,
        experiment: Experiment,
        *,
        new: bool = False,
        snapshots: int = 0,
        environment: dict[str, Any] | None = None,
        below: Path | None = None,
    ) -> Iterator[Run]:
        """The run of `experiment` in `path`, created if it is missing, locked against other processes.

        new: refuse to open a run that exists.
        snapshots: how many snapshots a created run will have.
        environment: the first start, which a created run records before its experiment: a process that
            resumes it must know the number of threads.
        below: the sweep's folder, below which no link is followed.

        Raises `RunInUse` where another process holds it, and `InputError` where the folder holds anything
        else; nothing is written then.
        """
        run = cls(Path(path), below)
        run.check_free_or_same(experiment, new)
        with run.lock(create=True) as run:
            # Another process may have created it in the meantime.
            run.check_free_or_same(experiment, new)
            if CONFIG not in run._names():
                with run._opened() as folder:
                    plan_snapshots(folder, snapshots)
                if environment is not None:
                    run.write_json(ENVIRONMENT, [{"run": _new_id(), **environment}])
                run.write(CONFIG, to_json(experiment).encode(errors=JSON_ERRORS))
            yield run

    @property
    def has_begun(self) -> bool:
        """Whether the folder is a run's. Raises `InputError` where it holds links or devices."""
        if CONFIG not in self._names():
            return False
        self._require_readable()
        return True

    def check_free_or_same(self, experiment: Experiment, new: bool = False) -> None:
        """Raises `InputError` where the folder holds anything else than this experiment's run.

        new: that too.
        """
        names = self._names()
        if CONFIG in names:
            self._check_same(experiment, new)
        # A run that was killed at its beginning leaves no other files.
        elif any(n not in _FILES_OF_A_START and not n.startswith(_UNFINISHED) for n in names):
            raise InputError(f"{self.path} holds other files; choose another --out")

    def _check_same(self, experiment: Experiment, new: bool) -> None:
        self._require_readable()
        if new:
            raise InputError(
                f"{self.path} holds another run; choose another --out, "
                f"or continue it with --resume {quote(str(self.path))}"
            )
        if self.experiment() != experiment:
            raise InputError(f"{self.path} holds a run of another experiment; choose another --out")

    def _require_readable(self) -> None:
        """Raises `InputError` where a newer release wrote the run, or a name is a link's or a device's."""
        with self._opened() as folder:
            for name in _FILES:
                folder.has_file(name)
            for name in _FOLDERS:
                folder.has_folder(name)
        # A damaged start has no number; the damage is reported when the file is needed.
        try:
            starts = parse_json(self.read(ENVIRONMENT) or b"[]", allow_nan=True)
        except JsonError:
            starts = []
        entries = starts if isinstance(starts, list) else []
        numbers = (start.get("format") for start in entries if isinstance(start, dict))
        newest = max((number for number in numbers if isinstance(number, int)), default=1)
        checkpoints.check_format(newest, self.path)

    def _names(self) -> list[str]:
        """The names of the files in the folder; none if the folder does not exist yet."""
        try:
            with self._opened() as folder:
                return folder.names()
        except FileNotFoundError:
            return []

    def file(self, name: str) -> Path:
        """The path of a file in the folder, for messages; `read` and `write` reach its content."""
        return self.path / name

    @contextmanager
    def lock(self, *, create: bool = False) -> Iterator[Run]:
        """The run with its folder held: opened, and locked against other processes within the block.

        Raises `RunInUse` where another process has the lock.
        """
        with self._open(create) as folder:
            folder.lock()
            yield replace(self, locked=folder)

    @contextmanager
    def _opened(self) -> Iterator[OpenedFolder]:
        if self.locked is not None:
            yield self.locked
        else:
            with self._open() as folder:
                yield folder

    def _open(self, create: bool = False) -> OpenedFolder:
        try:
            return open_folder(self.path, below=self.below, create=create)
        except FileNotFoundError:
            raise
        except NotADirectoryError:
            raise InputError(f"{self.path} is a file; choose another --out") from None
        except OSError as error:
            attempt = f"cannot {'make' if create else 'read'} the folder {self.path}"
            raise storage_error(attempt, error, self.path.parent) from error

    def read(self, name: str) -> bytes | None:
        """The content of a plain file in the folder; None if it is missing.

        Raises `StorageError` where it cannot be read, `InputError` where it is a link or too large.
        """
        try:
            with self._opened() as folder:
                return folder.read(name, _MAX_BYTES[os.path.splitext(name)[1]])
        except FileNotFoundError:  # no folder
            return None

    def write(self, name: str, content: bytes) -> None:
        """Replaces a file of the folder durably. Raises `FolderLost` where it is no longer the run's."""
        with self._opened() as folder:
            folder.write(name, content)

    def create_file(self, subfolder: str, name: str) -> BinaryIO:
        """A new file in a folder of the run, to write to. Raises `OSError`."""
        with self._opened() as folder, folder.subfolder(subfolder, create=True) as inner:
            return inner.create(name)

    def check(self) -> None:
        """Raises `FolderLost` where this process holds the run, and its folder is no longer there."""
        if self.locked is not None:
            self.locked.check()

    def experiment(self) -> Experiment:
        """The experiment in config.json. Raises `InputError` where it cannot be read."""
        content = self.read(CONFIG)
        if content is None:
            raise InputError(f"{self.path} is not a run's folder: it has no config.json")
        try:
            return from_json(content.decode("utf-8"), Experiment, str(self.path))
        except UnitFileError:
            raise
        except ValueError as error:  # not JSON, not text, or an InputError that does not name the file
            raise InputError(f"{self.file(CONFIG)}: {error}") from None

    def owner(self) -> Owner:
        """Whose states are this run's."""
        ids = (start["run"] for start in self.environments() if "run" in start)
        return Owner(next(ids, None), hashlib.sha256(self.read(CONFIG) or b"").hexdigest())

    def result(self) -> EndedRun | None:
        """The final figures; None until the run is finished."""
        content = self.read(RESULT)
        return None if content is None else read_result(content, self.file(RESULT))

    def environments(self) -> list[Start]:
        """The environments in which the run was computed, one for every start."""
        content = self.read(ENVIRONMENT)
        return [] if content is None else read_record(content, list[Start], self.file(ENVIRONMENT))

    def metrics(self) -> list[dict[str, Any]]:
        """The metrics of every epoch with its clock readings; a line cut short by a crash is left out.

        Clock readings that timing.jsonl has lost are left out, since nothing depends on them.
        """
        rows = read_rows(self.read(METRICS) or b"", self.file(METRICS))
        timing = {row["epoch"]: row for row in self._timing()}
        return [{**row, **timing.get(int(row["epoch"]), {})} for row in rows]

    def _timing(self) -> list[TimingRow]:
        return read_timing(self.read(TIMING) or b"")

    def weights(self) -> SavedNetwork:
        """The trained network. Raises `InputError` until the run is finished."""
        return read_weights(self.weights_file())

    def weights_file(self) -> Path:
        """The file of the trained network. Raises `InputError` until the run is finished."""
        with self._opened() as folder:
            if folder.has_file(WEIGHTS):
                return self.file(WEIGHTS)
        result = self.result()
        if result is None:
            raise InputError(
                f"{self.path} has no weights yet; finish it: kilolayer train --resume {quote(str(self.path))}"
            )
        if result.get("status") != "done":
            raise InputError(f"{self.path} has no weights: {result.get('reason', 'it diverged')}")
        raise InputError(f"{self.path} is finished, but its {WEIGHTS} is missing; bring it back from a copy")

    def snapshots(self) -> tuple[tuple[int, Path], ...]:
        """The iteration and the weights file of every snapshot, from the initialisation on."""
        with self._opened() as folder:
            return list_snapshots(folder)

    def write_due_snapshot(self, trainer: Trainer) -> None:
        """Writes the current weights if a snapshot is planned at this end of an epoch."""
        with self._opened() as folder:
            write_due_snapshot(folder, trainer)

    def check_snapshot_plan(self, epochs: int) -> None:
        """Raises `InputError` where a run of `epochs` epochs cannot have the snapshots of its plan."""
        with self._opened() as folder:
            checked_count(folder, epochs)

    def planned_snapshots(self) -> int:
        """How many snapshots the run is planned to have."""
        with self._opened() as folder:
            return planned_count(folder)

    def write_json(self, name: str, value: Any) -> None:
        """Writes `value` as JSON to the file `name` of the folder, durably."""
        self.write(name, json.dumps(value, indent=2, ensure_ascii=False).encode(errors=JSON_ERRORS))

    def append_environment(self, environment: dict[str, Any]) -> None:
        """Appends a start to environment.json, unless it is the one with which the run was created.

        All starts carry the run's random id, which the first one of this release draws.
        """
        starts = self.environments()
        start = {"run": self.owner().run or _new_id(), **environment}
        if starts[-1:] != [start]:
            self.write_json(ENVIRONMENT, [*starts, start])

    def append_metrics(
        self, row: Mapping[str, Any], timing: Mapping[str, Any], before: bytes | None = None
    ) -> bytes:
        """Appends an epoch's metrics and its clock readings; the content of metrics.jsonl afterwards.

        before: its content, if you know it; a change on the disk does not spread then.
        """
        before = self.read(METRICS) or b"" if before is None else before
        metrics = before + _line(row)
        self.write(METRICS, metrics)
        self.write(TIMING, b"".join(map(_line, (*self._timing(), timing))))
        return metrics

    def save(
        self,
        tensors: Mapping[str, Tensor],
        counters: dict[str, Any],
        metrics: bytes | None = None,
        owner: Owner | None = None,
    ) -> None:
        """Saves a checkpoint durably: once this returns, the run can resume from it.

        metrics, owner: as they were when the process began, if you know them.
        """
        metrics = self.read(METRICS) or b"" if metrics is None else metrics
        with self._opened() as folder:
            checkpoints.save_checkpoint(folder, tensors, counters, metrics, owner or self.owner())

    def saved_iteration(self) -> int:
        """The iteration of the newest saved state; it is not read, and may be damaged."""
        with self._opened() as folder:
            return checkpoints.saved_iteration(folder)

    def latest_checkpoint(self) -> Checkpoint | None:
        """The newest complete checkpoint; None before the first was saved.

        A warning names a damaged one that is passed over. Raises `UnusableStates` where none is left, or one
        is another run's, and `StorageError` where one cannot be read.
        """
        with self._opened() as folder:
            return checkpoints.latest_checkpoint(folder, self.read(METRICS) or b"", self.owner())

    def cut_back(self, checkpoint: Checkpoint | None) -> None:
        """Makes the folder what it was when `checkpoint` was saved; what does not fit is set aside."""
        sealed, current = checkpoint.metrics if checkpoint else b"", self.read(METRICS)
        with self._opened() as folder:
            if sealed and not (current or b"").startswith(sealed):
                reason = f"set aside as {folder.set_aside(METRICS)}" if current else "missing or empty"
                logger.warning(
                    "%s is not what the state was saved with: it is %s, and written again from the state",
                    self.file(METRICS), reason,
                )  # fmt: skip
            if sealed != (current or b""):
                folder.write(METRICS, sealed)
            checkpoints.set_aside(folder, checkpoint.name if checkpoint else "")
            folder.remove_temporary_files()
        epochs, timing = checkpoint.counters["epochs_closed"] if checkpoint else 0, self.read(TIMING)
        content = b"".join(_line(row) for row in self._timing() if row["epoch"] <= epochs)
        if content != (timing or b""):
            self.write(TIMING, content)

    def start_over(self) -> None:
        """Sets aside everything that was computed, so that the run begins anew."""
        with self._opened() as folder:
            checkpoints.set_aside(folder)
            for name in (METRICS, TIMING, WEIGHTS, PREDICTIONS):
                if folder.has_file(name):
                    folder.set_aside(name)
            for _, path in list_snapshots(folder):
                with folder.subfolder(SNAPSHOTS) as snapshots:
                    snapshots.set_aside(path.name)


def _new_id() -> str:
    return secrets.token_hex(8)


def _line(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(row) + "\n").encode()
