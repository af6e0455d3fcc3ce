"""A run's folder: complete and self-sufficient, `Run(path).weights()` needs nothing else.

config.json            the experiment
environment.json       versions, machine, command and date of every start
metrics.jsonl          a line per epoch
checkpoints/           the last two states: tensors, and beside them the JSON that seals them
weights.safetensors    the trained network
result.json            the final figures; written last, so a run that has it is done
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor

from kilolayer import durable
from kilolayer.errors import InputError
from kilolayer.runs import checkpoints
from kilolayer.runs.checkpoints import Checkpoint
from kilolayer.runs.weights import Weights, read_weights
from kilolayer.training.experiment import Experiment
from kilolayer.values import from_json, to_json


class Busy(InputError):
    """Another process holds the run."""


@dataclass(frozen=True)
class Run:
    """A run on disk."""

    path: Path

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """The run in the folder `path`; `InputError` where there is none."""
        run = cls(Path(path))
        if not run.file("config.json").is_file():
            raise InputError(f"{path} is not a run's folder: it has no config.json")
        return run

    @classmethod
    def create(cls, path: str | Path, experiment: Experiment) -> Run:
        """A new run in `path`; `InputError` where the folder holds anything."""
        run = cls(Path(path))
        if names := run._names():
            what = "another run" if "config.json" in names else "other files"
            raise InputError(
                f"{path} holds {what}; choose another --out, or continue a run with --resume {path}"
            )
        try:
            durable.make_folder(run.path)
            # Of two that begin at once only one can make this folder.
            run.file("checkpoints").mkdir()
        except FileExistsError:
            raise InputError(f"{path} holds another run; choose another --out") from None
        except OSError as error:
            raise durable.refusal(f"cannot make the folder {path}", error) from error
        durable.write(run.file("config.json"), to_json(experiment).encode())
        return run

    @classmethod
    @contextmanager
    def claim(cls, path: str | Path, experiment: Experiment) -> Iterator[Run]:
        """The run of `experiment` in `path`, begun where there is none, held against other processes.

        Raises `Busy` where another process holds it, `InputError` where the folder holds anything else;
        nothing is written then.
        """
        run = cls(Path(path))
        run._check_mine(experiment)
        try:
            durable.make_folder(run.path)
        except OSError as error:
            raise durable.refusal(f"cannot make the folder {path}", error) from error
        with run.lock():
            run._check_mine(experiment)
            if not run.file("config.json").exists():
                run.file("checkpoints").mkdir(exist_ok=True)
                durable.write(run.file("config.json"), to_json(experiment).encode())
            yield run

    def _check_mine(self, experiment: Experiment) -> None:
        names = self._names()
        if "config.json" in names:
            if self.experiment() != experiment:
                raise InputError(f"{self.path} holds a run of another experiment; choose another --out")
        # A run that was killed at its very beginning leaves no more than these.
        elif any(n not in (".lock", "checkpoints") and not n.startswith(".config.json.") for n in names):
            raise InputError(f"{self.path} holds other files; choose another --out")

    def _names(self) -> list[str]:
        """The names in the folder; none where there is no folder yet."""
        try:
            return [path.name for path in self.path.iterdir()] if self.path.exists() else []
        except NotADirectoryError:
            raise InputError(f"{self.path} is a file; choose another --out") from None
        except OSError as error:
            raise durable.refusal(f"cannot read the folder {self.path}", error) from error

    def file(self, name: str) -> Path:
        return self.path / name

    @contextmanager
    def lock(self) -> Iterator[None]:
        """An exclusive hold on the folder, free at once when its process ends; `Busy` where it is taken."""
        lock = FileLock(self.file(".lock"))
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise Busy(
                f"{self.path} is in use by another process; wait for it or choose another --out"
            ) from None
        except OSError as error:
            raise durable.refusal(f"cannot lock {self.path}", error) from error
        try:
            yield
        finally:
            lock.release()

    def experiment(self) -> Experiment:
        try:
            return from_json(self.file("config.json").read_text(encoding="utf-8"), Experiment)
        except ValueError as error:  # no JSON, no text, or an InputError that does not know the file
            raise InputError(f"{self.file('config.json')}: {error}") from None

    def result(self) -> dict[str, Any] | None:
        """The final figures, or None while the run is not done."""
        result: dict[str, Any] | None = self._json("result.json", dict)
        return result

    def environments(self) -> list[dict[str, Any]]:
        """On what the run was computed, a record for every start."""
        starts: list[dict[str, Any]] | None = self._json("environment.json", list)
        return starts or []

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a line torn by a crash is left out."""
        path = self.file("metrics.jsonl")
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return [_value(line, dict, f"{path}, line {number},") for number, line in enumerate(lines, 1)]

    def _json(self, name: str, kind: type) -> Any:
        path = self.file(name)
        return _value(path.read_bytes(), kind, str(path)) if path.exists() else None

    def weights(self) -> Weights:
        """The trained network. Raises `InputError` while the run is not done."""
        if not self.file("weights.safetensors").exists():
            raise InputError(
                f"{self.path} has no weights yet; finish it: kilolayer train --resume {self.path}"
            )
        return read_weights(self.file("weights.safetensors"))

    def write_json(self, name: str, value: Any) -> None:
        durable.write(self.file(name), json.dumps(value, indent=2, ensure_ascii=False).encode())

    def note_environment(self, environment: dict[str, Any]) -> None:
        """Adds a start to environment.json."""
        self.write_json("environment.json", [*self.environments(), environment])

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        durable.append(self.file("metrics.jsonl"), (json.dumps(row) + "\n").encode())

    def save(self, tensors: Mapping[str, Tensor], counters: dict[str, Any]) -> None:
        """Saves a state; once this returns, the run continues from it whatever happens."""
        checkpoints.write(self.file("checkpoints"), tensors, counters, self._metrics_bytes())

    def latest(self) -> Checkpoint | None:
        """The newest state that is whole, or None; a warning names a damaged one that is passed over."""
        return checkpoints.latest(self.file("checkpoints"), self._metrics_bytes())

    def rewind(self, checkpoint: Checkpoint | None) -> None:
        """Takes the folder back to what it was when `checkpoint` was saved."""
        metrics = self.file("metrics.jsonl")
        if metrics.exists():
            with metrics.open("rb+") as file:
                file.truncate(checkpoint.metrics_bytes if checkpoint else 0)
        checkpoints.drop_after(self.file("checkpoints"), checkpoint)
        durable.clean(self.path)

    def _metrics_bytes(self) -> int:
        metrics = self.file("metrics.jsonl")
        return metrics.stat().st_size if metrics.exists() else 0


def _value(content: bytes, kind: type, where: str) -> Any:
    try:
        value = json.loads(content)
    except ValueError:
        value = None
    if not isinstance(value, kind):
        raise InputError(f"{where} is damaged")
    return value
