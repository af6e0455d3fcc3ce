"""States of a training on disk: tensors, and beside them the JSON that seals them.

000000090-000001.safetensors    the tensors after 90 iterations, with 1 epoch closed
000000090-000001.json           the seal: format, counters, checksums of the tensors, the metrics and itself

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

from kilolayer.errors import InputError
from kilolayer.system import durable

NUM_KEPT = 2
FORMAT = 2
"""Of a run's folder. 1 had clock readings in metrics.jsonl and no checksum of it; it is read still."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A state that was saved whole: `counters` of the training, and how long metrics.jsonl was then."""

    name: str
    tensors: dict[str, Tensor]
    counters: dict[str, Any]
    metrics_bytes: int


class DamagedCheckpoint(ValueError):
    """A state that cannot be continued from: its text says which file, and why."""


def save_checkpoint(
    folder: Path, tensors: Mapping[str, Tensor], counters: dict[str, Any], metrics: bytes
) -> None:
    """Saves a state; once this returns it is there, whatever happens. All but the last two are dropped."""
    content = save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
    manifest = {
        "format": FORMAT,
        "counters": counters,
        "metrics_bytes": len(metrics),
        "metrics": _sha256(metrics),
        "tensors": _sha256(content),
    }
    seal = folder / f"{_name(counters)}.json"
    # Who stops right after a save saves again: that must not put at risk what was saved.
    if not _is_saved(seal, manifest, metrics):
        seal.unlink(missing_ok=True)
        durable.write_file(seal.with_suffix(".safetensors"), content)
        durable.write_file(seal, _manifest_bytes(manifest))
    sealed = sorted(path.stem for path in folder.glob("0*.json"))[-NUM_KEPT:]
    _drop(folder, (name for name in _names(folder) if name not in sealed))


def latest_checkpoint(folder: Path, metrics: bytes) -> Checkpoint | None:
    """The newest state that is whole, or None; a warning names each damaged one that is passed over.

    A state is damaged too where the metrics that belong to it are not the beginning of `metrics`.
    """
    for name in reversed(_names(folder)):
        try:
            return _read(folder / f"{name}.json", metrics)
        except DamagedCheckpoint as damage:
            logger.warning("%s; taking the state before it", damage)
    return None


def drop_newer(folder: Path, checkpoint: Checkpoint | None) -> None:
    """Removes what is newer than `checkpoint`, which `latest` found to be damaged, and what kills left."""
    if folder.is_dir():
        _drop(folder, (name for name in _names(folder) if checkpoint is None or name > checkpoint.name))
        durable.remove_temporary_files(folder)


def _names(folder: Path) -> list[str]:
    return sorted({path.stem for path in folder.glob("0*") if path.suffix in (".json", ".safetensors")})


def _drop(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        # The seal goes first: what is left when this is cut short is no state.
        (folder / f"{name}.json").unlink(missing_ok=True)
        (folder / f"{name}.safetensors").unlink(missing_ok=True)


def _read(path: Path, metrics: bytes) -> Checkpoint:
    manifest, state = _read_manifest(path), path.with_suffix(".safetensors")
    _check_name(path, manifest)
    content = _read_content(state)
    if _sha256(content) != manifest["tensors"]:
        raise DamagedCheckpoint(f"{state} is damaged: its checksum is not the one in its seal")
    metrics_then = metrics[: manifest["metrics_bytes"]]
    if len(metrics_then) < manifest["metrics_bytes"] or manifest.get(
        "metrics", _sha256(metrics_then)
    ) != _sha256(metrics_then):
        raise DamagedCheckpoint(f"{path} belongs to lines of metrics.jsonl that are lost or damaged")
    try:
        return Checkpoint(path.stem, load(content), manifest["counters"], manifest["metrics_bytes"])
    except SafetensorError as error:
        raise DamagedCheckpoint(f"{state} is damaged: {error}") from None


def _name(counters: Mapping[str, Any]) -> str:
    return f"{counters['iteration']:09d}-{counters['epochs_closed']:06d}"


def _check_name(path: Path, manifest: Mapping[str, Any]) -> None:
    if path.stem != _name(manifest["counters"]):
        raise DamagedCheckpoint(f"{path} is the seal of another state, {_name(manifest['counters'])}")


def _is_saved(path: Path, manifest: dict[str, Any], metrics: bytes) -> bool:
    """Whether this state is there already, whole; its counters can differ by the time spent only."""
    try:
        checkpoint, saved_manifest = _read(path, metrics), _read_manifest(path)
    except DamagedCheckpoint:
        return False
    return checkpoint.metrics_bytes == manifest["metrics_bytes"] and bool(
        saved_manifest["tensors"] == manifest["tensors"]
    )


def _manifest_bytes(manifest: dict[str, Any]) -> bytes:
    mark = _sha256(json.dumps(manifest, sort_keys=True).encode())
    return json.dumps({**manifest, "seal": mark}, indent=2, sort_keys=True).encode()


def _read_manifest(path: Path) -> dict[str, Any]:
    content = _read_content(path)
    try:
        manifest: dict[str, Any] = json.loads(content)
        del manifest["seal"]
        is_intact = _manifest_bytes(manifest) == content
    except (ValueError, KeyError, TypeError, RecursionError):
        is_intact = False
    if is_intact:
        check_format(manifest.get("format", 1), path)
        return manifest
    raise DamagedCheckpoint(f"{path} is damaged: its checksum is not its own")


def check_format(format: int, path: Path) -> None:
    """Raises `InputError` where a newer release wrote `where`."""
    if format > FORMAT:
        raise InputError(
            f"{path} was written by a newer release of kilolayer (format {format}; this one reads up to "
            f"{FORMAT}); nothing was changed; update kilolayer to go on"
        )


def _read_content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DamagedCheckpoint(f"{path} is missing") from None
    except PermissionError as error:
        raise durable.storage_error(f"cannot read {path}", error) from error
    except OSError as error:
        raise DamagedCheckpoint(f"{path} cannot be read: {error.strerror}") from None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
