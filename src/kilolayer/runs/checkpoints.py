"""States of a training on disk: tensors, and beside them the JSON that seals them.

000000090-000001.safetensors    the tensors after 90 iterations, with 1 epoch closed
000000090-000001.json           the seal: counters, length of the metrics, checksums of the tensors and itself

The seal is written last and is the commit mark: a state without its seal, or other than it says, was
never saved.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from kilolayer import durable

KEPT = 2

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A state that was saved whole: `counters` of the training, and the length of the metrics then."""

    name: str
    tensors: dict[str, Tensor]
    counters: dict[str, Any]
    metrics_bytes: int


class Damaged(ValueError):
    """A state that cannot be continued from: its text says which file, and why."""


def write(folder: Path, tensors: Mapping[str, Tensor], counters: dict[str, Any], metrics_bytes: int) -> None:
    """Saves a state; once this returns it is there, whatever happens. All but the last two are dropped."""
    content = save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
    says = {"counters": counters, "metrics_bytes": metrics_bytes, "tensors": _sha256(content)}
    seal = folder / f"{counters['iteration']:09d}-{counters['epochs_closed']:06d}.json"
    # Who stops right after a save saves again: that must not put at risk what was saved.
    if not _holds(seal, says):
        seal.unlink(missing_ok=True)
        durable.write(seal.with_suffix(".safetensors"), content)
        durable.write(seal, _sealed(says))
    sealed = sorted(path.stem for path in folder.glob("0*.json"))[-KEPT:]
    _drop(folder, (name for name in _names(folder) if name not in sealed))


def latest(folder: Path, metrics_bytes: int) -> Checkpoint | None:
    """The newest state that is whole, or None; a warning names each damaged one that is passed over.

    A state is damaged too where the metrics that belong to it, of `metrics_bytes` now, are not all there.
    """
    for name in reversed(_names(folder)):
        try:
            return _read(folder / f"{name}.json", metrics_bytes)
        except Damaged as damage:
            logger.warning("%s; taking the state before it", damage)
    return None


def drop_after(folder: Path, checkpoint: Checkpoint | None) -> None:
    """Removes what is newer than `checkpoint`, which `latest` found to be damaged, and what kills left."""
    if folder.is_dir():
        _drop(folder, (name for name in _names(folder) if checkpoint is None or name > checkpoint.name))
        durable.clean(folder)


def _names(folder: Path) -> list[str]:
    return sorted({path.stem for path in folder.glob("0*") if path.suffix in (".json", ".safetensors")})


def _drop(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        # The seal goes first: what is left when this is cut short is no state.
        (folder / f"{name}.json").unlink(missing_ok=True)
        (folder / f"{name}.safetensors").unlink(missing_ok=True)


def _read(seal: Path, metrics_bytes: int) -> Checkpoint:
    says, state = _opened(seal), seal.with_suffix(".safetensors")
    content = _content(state)
    if _sha256(content) != says["tensors"]:
        raise Damaged(f"{state} is damaged: its checksum is not the one in its seal")
    if says["metrics_bytes"] > metrics_bytes:
        raise Damaged(f"{seal} belongs to lines of metrics.jsonl that are lost")
    try:
        return Checkpoint(seal.stem, load(content), says["counters"], says["metrics_bytes"])
    except SafetensorError as error:
        raise Damaged(f"{state} is damaged: {error}") from None


def _holds(seal: Path, says: dict[str, Any]) -> bool:
    """Whether this state is there already, whole; its counters can differ by the time spent only."""
    try:
        found, there = _read(seal, says["metrics_bytes"]), _opened(seal)
    except Damaged:
        return False
    return found.metrics_bytes == says["metrics_bytes"] and bool(there["tensors"] == says["tensors"])


def _sealed(says: dict[str, Any]) -> bytes:
    mark = _sha256(json.dumps(says, sort_keys=True).encode())
    return json.dumps({**says, "seal": mark}, indent=2, sort_keys=True).encode()


def _opened(seal: Path) -> dict[str, Any]:
    content = _content(seal)
    try:
        says: dict[str, Any] = json.loads(content)
        del says["seal"]
        if _sealed(says) == content:
            return says
    except (ValueError, KeyError, TypeError):
        pass
    raise Damaged(f"{seal} is damaged: its checksum is not its own")


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise Damaged(f"{path} is missing") from None
    except PermissionError as error:
        raise durable.refusal(f"cannot read {path}", error) from error
    except OSError as error:
        raise Damaged(f"{path} cannot be read: {error.strerror}") from None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
