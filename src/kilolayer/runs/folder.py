"""A run's folder. It is self-sufficient: `Run(path).weights()` needs nothing else.

config.json            the experiment
registration.json      in a registered sweep, the registration under which the run began
environment.json       versions, machine, command and date of every start
metrics.jsonl          a line per epoch: figures that repeat bit for bit
timing.jsonl           a line per epoch: clock readings
checkpoints/           the last two checkpoints: tensors, each with a manifest (`kilolayer.runs.checkpoints`)
snapshots/             weights over the training, if you asked for them (`kilolayer.runs.snapshots`)
weights.safetensors    the trained network
predictions.safetensors  its class and loss for every test image (`kilolayer.runs.predictions`)
result.json            the final figures; written last, so that a run that has it is finished
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor

from kilolayer.errors import InputError, KilolayerError, missing_path_error
from kilolayer.runs import checkpoints
from kilolayer.runs.checkpoints import Checkpoint
from kilolayer.runs.snapshots import list_snapshots
from kilolayer.runs.snapshots import plan_snapshots as plan_snapshots
from kilolayer.runs.weights_file import SavedNetwork, read_weights
from kilolayer.system import durable
from kilolayer.training.experiment import Experiment
from kilolayer.units.extensions import UnitFileError
from kilolayer.values import from_json, to_json

_FILES_OF_A_START = (".lock", "checkpoints", "snapshots", "environment.json", "registration.json")
_UNFINISHED = (".config.json.", ".environment.json.", ".registration.json.")


JSON_ERRORS = "backslashreplace"
"""A file name that is not valid text is written to JSON as \\udcff, which JSON reads back."""


class RunInUse(KilolayerError):
    """Another process holds the run's lock."""


@dataclass(frozen=True)
class Run:
    """A run on disk: an experiment, its metrics and checkpoints, and in the end its trained network."""

    path: Path

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """The run in the folder `path`. Raises `InputError` where there is none, or a newer release's."""
        run = cls(Path(path))
        if not os.path.exists(run.path):
            raise missing_path_error(path)
        if not run.file("config.json").is_file():
            raise InputError(f"{path} is not a run's folder: it has no config.json")
        run._require_known_format()
        return run

    @classmethod
    def create(cls, path: str | Path, experiment: Experiment) -> Run:
        """A new run in `path`. Raises `InputError` where the folder is not empty."""
        with cls.open_or_create(path, experiment, new=True) as run:
            return run

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
    ) -> Iterator[Run]:
        """The run of `experiment` in `path`, created if it is missing, locked against other processes.

        new: refuse to open a run that exists.
        snapshots: how many snapshots a created run will have.
        environment: the first start, which a created run records before its experiment: a process that
            resumes it must know the number of threads.

        Raises `RunInUse` where another process holds it, and `InputError` where the folder holds anything
        else; nothing is written then.
        """
        run = cls(Path(path))
        run._check_free_or_same(experiment, new)
        try:
            durable.make_folder(run.path)
        except OSError as error:
            raise durable.storage_error(f"cannot make the folder {path}", error, run.path.parent) from error
        with run.lock():
            # Another process may have created it in the meantime.
            run._check_free_or_same(experiment, new)
            if not run.file("config.json").exists():
                plan_snapshots(run.path, snapshots)
                if environment is not None:
                    run.write_json("environment.json", [environment])
                durable.write_file(run.file("config.json"), to_json(experiment).encode(errors=JSON_ERRORS))
            yield run

    def _check_free_or_same(self, experiment: Experiment, new: bool) -> None:
        names = self._names()
        if "config.json" in names:
            self._check_same(experiment, new)
        # A run that was killed at its beginning leaves no other files.
        elif any(n not in _FILES_OF_A_START and not n.startswith(_UNFINISHED) for n in names):
            raise InputError(f"{self.path} holds other files; choose another --out")

    def _check_same(self, experiment: Experiment, new: bool) -> None:
        self._require_known_format()
        if new:
            raise InputError(
                f"{self.path} holds another run; choose another --out, "
                f"or continue it with --resume {quote(str(self.path))}"
            )
        if self.experiment() != experiment:
            raise InputError(f"{self.path} holds a run of another experiment; choose another --out")

    def _require_known_format(self) -> None:
        # A damaged start has no number; the damage is reported when the file is needed.
        starts = read_json(self.file("environment.json"), list) or []
        numbers = (start.get("format") for start in starts if isinstance(start, dict))
        newest = max((number for number in numbers if isinstance(number, int)), default=1)
        checkpoints.check_format(newest, self.path)

    def _names(self) -> list[str]:
        """The names of the files in the folder; none if the folder does not exist yet."""
        try:
            return [path.name for path in self.path.iterdir()] if self.path.exists() else []
        except NotADirectoryError:
            raise InputError(f"{self.path} is a file; choose another --out") from None
        except OSError as error:
            raise durable.storage_error(f"cannot read the folder {self.path}", error) from error

    def file(self, name: str) -> Path:
        """The path of a file in the folder."""
        return self.path / name

    @contextmanager
    def lock(self) -> Iterator[None]:
        """An exclusive lock on the folder, which ends with the process. Raises `RunInUse` if it is taken."""
        lock = FileLock(self.file(".lock"))
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise RunInUse(
                f"{self.path} is in use by another process; wait for it or choose another --out"
            ) from None
        except OSError as error:
            raise durable.storage_error(f"cannot lock {self.path}", error, self.path) from error
        try:
            yield
        finally:
            lock.release()

    def experiment(self) -> Experiment:
        """The experiment in config.json. Raises `InputError` where it cannot be read."""
        try:
            text = self.file("config.json").read_text(encoding="utf-8")
            return from_json(text, Experiment, str(self.path))
        except UnitFileError:
            raise
        except ValueError as error:  # not JSON, not text, or an InputError that does not name the file
            raise InputError(f"{self.file('config.json')}: {error}") from None

    def result(self) -> dict[str, Any] | None:
        """The final figures; None until the run is finished."""
        result: dict[str, Any] | None = self._json("result.json", dict)
        return result

    def environments(self) -> list[dict[str, Any]]:
        """The environments in which the run was computed, one for every start."""
        starts: list[dict[str, Any]] | None = self._json("environment.json", list)
        return starts or []

    def metrics(self) -> list[dict[str, Any]]:
        """The metrics of every epoch with its clock readings; a line cut short by a crash is left out.

        Clock readings that timing.jsonl has lost are left out, since nothing depends on them.
        """
        path = self.file("metrics.jsonl")
        rows = [
            _require_json(line, dict, f"{path}, line {n},") for n, line in enumerate(_complete_lines(path), 1)
        ]
        timing = {row["epoch"]: row for row in self._timing()}
        return [row | timing.get(row.get("epoch"), {}) for row in rows]

    def _timing(self) -> list[dict[str, Any]]:
        rows = (_parse_json(line, dict) for line in _complete_lines(self.file("timing.jsonl")))
        return [row for row in rows if row is not None and isinstance(row.get("epoch"), int)]

    def _json(self, name: str, kind: type) -> Any:
        path = self.file(name)
        return _require_json(path.read_bytes(), kind, str(path)) if path.exists() else None

    def weights(self) -> SavedNetwork:
        """The trained network. Raises `InputError` until the run is finished."""
        return read_weights(self.weights_file())

    def weights_file(self) -> Path:
        """The file of the trained network. Raises `InputError` until the run is finished."""
        if not self.file("weights.safetensors").exists():
            raise InputError(
                f"{self.path} has no weights yet; finish it: kilolayer train --resume {quote(str(self.path))}"
            )
        return self.file("weights.safetensors")

    def snapshots(self) -> tuple[tuple[int, Path], ...]:
        """The iteration and the weights file of every snapshot, from the initialisation on."""
        return list_snapshots(self.path)

    def write_json(self, name: str, value: Any) -> None:
        """Writes `value` as JSON to the file `name` of the folder, durably."""
        durable.write_file(
            self.file(name), json.dumps(value, indent=2, ensure_ascii=False).encode(errors=JSON_ERRORS)
        )

    def append_environment(self, environment: dict[str, Any]) -> None:
        """Appends a start to environment.json, unless it is the one with which the run was created."""
        starts = self.environments()
        if starts[-1:] != [environment]:
            self.write_json("environment.json", [*starts, environment])

    def append_metrics(self, row: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
        """Appends an epoch's metrics and its clock readings."""
        for name, line in (("metrics.jsonl", row), ("timing.jsonl", timing)):
            durable.append_file(self.file(name), (json.dumps(line) + "\n").encode())

    def save(self, tensors: Mapping[str, Tensor], counters: dict[str, Any]) -> None:
        """Saves a checkpoint durably: once this returns, the run can resume from it."""
        checkpoints.save_checkpoint(
            self.file("checkpoints"), tensors, counters, _read_bytes(self.file("metrics.jsonl"))
        )

    def latest_checkpoint(self) -> Checkpoint | None:
        """The newest complete checkpoint, or None; a warning names a damaged one that is skipped."""
        return checkpoints.latest_checkpoint(
            self.file("checkpoints"), _read_bytes(self.file("metrics.jsonl"))
        )

    def truncate(self, checkpoint: Checkpoint | None) -> None:
        """Cuts the folder back to what it was when `checkpoint` was saved."""
        durable.truncate_file(self.file("metrics.jsonl"), checkpoint.metrics_bytes if checkpoint else 0)
        self._truncate_timing(checkpoint.counters["epochs_closed"] if checkpoint else 0)
        checkpoints.drop_newer(self.file("checkpoints"), checkpoint)
        durable.remove_temporary_files(self.path)

    def _truncate_timing(self, epochs: int) -> None:
        path = self.file("timing.jsonl")
        content = "".join(json.dumps(row) + "\n" for row in self._timing() if row["epoch"] <= epochs).encode()
        if content != _read_bytes(path):
            durable.write_file(path, content)


def read_json(path: Path, kind: type) -> Any:
    """The JSON value of type `kind` in a file; None if the file is missing or damaged."""
    return _parse_json(path.read_bytes(), kind) if path.exists() else None


def _parse_json(content: bytes, kind: type) -> Any:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, kind) else None


def _require_json(content: bytes, kind: type, source: str) -> Any:
    value = _parse_json(content, kind)
    if value is None:
        raise InputError(f"{source} is damaged")
    return value


def _read_bytes(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _complete_lines(path: Path) -> list[bytes]:
    """The complete lines of a file: a crash may have cut the last one short."""
    return _read_bytes(path).split(b"\n")[:-1]
