"""Checkpoints on disk: a file of tensors, and beside it a manifest with their checksums.

000000090-000001.safetensors    the tensors after 90 iterations and 1 closed epoch
000000090-000001.json           the manifest: format, counters, checksums of tensors, metrics and itself

The manifest is written last and commits the checkpoint: tensors without a manifest, or other than it says,
do not count as saved.
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
from torch import Tensor

from kilolayer.errors import InputError
from kilolayer.runs.tensor_bytes import load, save
from kilolayer.system import durable

NUM_KEPT = 2
FORMAT = 2
"""The format of a run's folder. Format 1, still read, had clock readings in metrics.jsonl and no checksum."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint.

    tensors, counters: what `Trainer.restore` takes.
    metrics_bytes: the length of metrics.jsonl when the checkpoint was saved.
    """

    name: str
    tensors: dict[str, Tensor]
    counters: dict[str, Any]
    metrics_bytes: int


class DamagedCheckpoint(ValueError):
    """A checkpoint that cannot be used: the text says which file, and why."""


def save_checkpoint(
    folder: Path, tensors: Mapping[str, Tensor], counters: dict[str, Any], metrics: bytes
) -> None:
    """Saves a checkpoint durably, and deletes all but the last two.

    metrics: the content of metrics.jsonl, which the checkpoint belongs to.
    """
    content = save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
    manifest = {
        "format": FORMAT,
        "counters": counters,
        "metrics_bytes": len(metrics),
        "metrics": _sha256(metrics),
        "tensors": _sha256(content),
    }
    path = folder / f"{_name(counters)}.json"
    # A run that stops right after a save saves again, and must not put the saved checkpoint at risk.
    if not _is_saved(path, manifest, metrics):
        path.unlink(missing_ok=True)
        durable.write_file(path.with_suffix(".safetensors"), content)
        durable.write_file(path, _manifest_bytes(manifest))
    newest = sorted(path.stem for path in folder.glob("0*.json"))[-NUM_KEPT:]
    _drop(folder, (name for name in _names(folder) if name not in newest))


def latest_checkpoint(folder: Path, metrics: bytes) -> Checkpoint | None:
    """The newest complete checkpoint, or None; a warning names each damaged one that is skipped.

    A checkpoint is damaged too if `metrics` does not begin with the metrics that it belongs to.
    """
    for name in reversed(_names(folder)):
        try:
            return _read(folder / f"{name}.json", metrics)
        except DamagedCheckpoint as damage:
            logger.warning("%s; using the checkpoint before it", damage)
    return None


def drop_newer(folder: Path, checkpoint: Checkpoint | None) -> None:
    """Removes the damaged checkpoints after `checkpoint`, and temporary files of killed processes."""
    if folder.is_dir():
        _drop(folder, (name for name in _names(folder) if checkpoint is None or name > checkpoint.name))
        durable.remove_temporary_files(folder)


def _names(folder: Path) -> list[str]:
    return sorted({path.stem for path in folder.glob("0*") if path.suffix in (".json", ".safetensors")})


def _drop(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        # The manifest goes first: if this is interrupted, the rest does not count as a checkpoint.
        (folder / f"{name}.json").unlink(missing_ok=True)
        (folder / f"{name}.safetensors").unlink(missing_ok=True)


def _read(path: Path, metrics: bytes) -> Checkpoint:
    manifest, state = _read_manifest(path), path.with_suffix(".safetensors")
    _check_name(path, manifest)
    content = _read_content(state)
    if _sha256(content) != manifest["tensors"]:
        raise DamagedCheckpoint(f"{state} is damaged: its checksum is not the one in its manifest")
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
        raise DamagedCheckpoint(
            f"{path} is the manifest of another checkpoint, {_name(manifest['counters'])}"
        )


def _is_saved(path: Path, manifest: dict[str, Any], metrics: bytes) -> bool:
    """Whether this checkpoint is complete on disk; its counters may differ in the seconds spent."""
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
    raise DamagedCheckpoint(f"{path} is damaged: its own checksum does not match")


def check_format(format: int, path: Path) -> None:
    """Raises `InputError` where a newer release wrote `path`."""
    if format > FORMAT:
        raise InputError(
            f"{path} was written by a newer release of kilolayer (format {format}; this one reads up to "
            f"{FORMAT}); nothing was changed; update kilolayer to continue"
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
