"""Checkpoints on disk: a file of tensors, and beside it a manifest with their checksums.

000000090-000001.safetensors    the tensors after 90 iterations and 1 closed epoch
000000090-000001.json           the manifest: format, whose state it is, counters, metrics, checksums

The manifest is written last and commits the checkpoint: tensors without a manifest, or other than it says,
do not count as saved. What is passed over gets another name and stays: a disk that read badly once may read
well tomorrow.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from kilolayer.errors import InputError
from kilolayer.runs.records import Seal, check_seal, read_rows
from kilolayer.runs.tensor_bytes import load, save
from kilolayer.system.json_text import JsonError, parse_json
from kilolayer.system.memory_limit import available_memory
from kilolayer.system.opened_folder import OpenedFolder

FOLDER = "checkpoints"
NUM_KEPT = 2
FORMAT = 3
"""The format of a run's folder. Formats 1 and 2 are read: their manifests do not say whose state it is and do
not hold the metrics; in format 1 metrics.jsonl had clock readings, and the manifest no checksum."""
MAX_MANIFEST_BYTES = 2**26
MAX_TENSOR_BYTES = 2**40
"""Where the system does not say how much memory there is."""

_STATE = re.compile(r"([0-9]{9,}-[0-9]{6,})(\.json|\.safetensors)")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Owner:
    """Whose states they are: the run's random id (None in older runs) and the SHA-256 of its config.json."""

    run: str | None
    config: str


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint.

    tensors, counters: what `Trainer.restore` takes.
    metrics: the content of metrics.jsonl when the checkpoint was saved.
    """

    name: str
    tensors: dict[str, Tensor]
    counters: Mapping[str, Any]
    metrics: bytes


class DamagedCheckpoint(ValueError):
    """A checkpoint that cannot be used: the text says which file, and why."""


class UnusableStates(InputError):
    """A run has saved states, and none can be continued from; `--start-over` sets them aside."""


def save_checkpoint(
    folder: OpenedFolder,
    tensors: Mapping[str, Tensor],
    counters: dict[str, Any],
    metrics: bytes,
    owner: Owner,
) -> None:
    """Saves a checkpoint durably in the run's folder, and deletes all but the last two.

    metrics: the content of metrics.jsonl, which the checkpoint belongs to.
    """
    content = save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
    manifest = {
        "format": FORMAT,
        **({"run": owner.run} if owner.run else {}),
        "config": owner.config,
        "counters": counters,
        "metrics": metrics.decode(errors="surrogateescape"),
        "tensors": _sha256(content),
    }
    name = _name(counters)
    with folder.subfolder(FOLDER, create=True) as states:
        # A run that stops right after a save saves again, and must not put the saved checkpoint at risk.
        if not _is_saved(states, name, manifest):
            states.write(f"{name}.safetensors", content)
            states.write(f"{name}.json", _manifest_bytes(manifest))
        names = states.names()
        newest = sorted(_stems(names, ".json"), key=_numbers)[-NUM_KEPT:]
        for older in _stems(names, ".json", ".safetensors") - set(newest):
            # The manifest goes first: if this is interrupted, the rest does not count as a checkpoint.
            states.remove(f"{older}.json")
            states.remove(f"{older}.safetensors")


def latest_checkpoint(folder: OpenedFolder, metrics: bytes, owner: Owner) -> Checkpoint | None:
    """The newest complete checkpoint of the run in `folder`; None before the first was saved.

    A warning names each damaged one that is passed over. Raises `UnusableStates` where none is left, or where
    one is another run's or of another configuration, and `StorageError` where one cannot be read: then nobody
    knows whether it is good.
    """
    damages: list[DamagedCheckpoint] = []
    if folder.has_folder(FOLDER):
        with folder.subfolder(FOLDER) as states:
            names = states.names()
            for name in sorted(_stems(names, ".json", ".safetensors"), key=_numbers, reverse=True):
                try:
                    checkpoint = _read(states, name, metrics, owner)
                except DamagedCheckpoint as damage:
                    damages.append(damage)
                    continue
                for passed in damages:
                    logger.warning("%s; going on from the state before it, %s", passed, _KEPT)
                return checkpoint
            if _is_first_save_cut_short(names) and metrics.count(b"\n") <= 1:
                logger.warning("%s; beginning anew, %s", damages[0], _KEPT)
                damages = []
    if damages:
        raise UnusableStates(
            f"{folder.path} has {len(damages)} saved states, and none can be used: {damages[0]}; {START_OVER}"
        )
    if (epochs := metrics.count(b"\n")) > 1:
        raise UnusableStates(
            f"{folder.path} has the figures of {epochs:,} epochs and no saved state; {START_OVER}"
        )
    return None


START_OVER = (
    "bring back what is missing from a copy, or begin anew with --start-over, which sets aside what is there"
)
_KEPT = "and setting this one aside when the run continues"


def _is_first_save_cut_short(names: list[str]) -> bool:
    """Whether the only state is one whose first save ended between tensors and manifest.

    The first save is at the end of the first epoch or before: later there is always a manifest.
    """
    tensors = _stems(names, ".safetensors")
    return (
        not _stems(names, ".json") and len(tensors) == 1 and all(_numbers(name)[1] <= 1 for name in tensors)
    )


def set_aside(folder: OpenedFolder, after: str = "") -> None:
    """Gives all states after the one called `after` names that say so, and removes temporary files."""
    if not folder.has_folder(FOLDER):
        return
    with folder.subfolder(FOLDER) as states:
        states.remove_temporary_files()
        for name in states.names():
            if (state := _STATE.fullmatch(name)) and _numbers(state[1]) > _numbers(after):
                logger.warning("%s is set aside as %s", states.path / name, states.set_aside(name))


def saved_iteration(folder: OpenedFolder) -> int:
    """The iteration of the newest state with a manifest; 0 without one."""
    if not folder.has_folder(FOLDER):
        return 0
    with folder.subfolder(FOLDER) as states:
        return max((_numbers(name)[0] for name in _stems(states.names(), ".json")), default=0)


def _stems(names: list[str], *endings: str) -> set[str]:
    """The names of states that have a file with one of the endings."""
    return {state[1] for state in map(_STATE.fullmatch, names) if state and state[2] in endings}


def _numbers(name: str) -> tuple[int, ...]:
    """Iteration and closed epochs in a state's name, by which states are ordered; () in an empty one."""
    return tuple(map(int, re.findall("[0-9]+", name)))


def _read(states: OpenedFolder, name: str, metrics: bytes, owner: Owner) -> Checkpoint:
    path, manifest = states.path / f"{name}.json", _read_manifest(states, name)
    _check_name(path, manifest)
    _check_owner(path, manifest, owner)
    file = states.path / f"{name}.safetensors"
    content = states.read(file.name, available_memory() or MAX_TENSOR_BYTES)
    if content is None:
        raise DamagedCheckpoint(f"{file} is missing")
    if _sha256(content) != manifest["tensors"]:
        raise DamagedCheckpoint(f"{file} is damaged: its checksum is not the one in its manifest")
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise DamagedCheckpoint(f"{file} is damaged: {error}") from None
    metrics = _metrics_of(path, manifest, metrics)
    return Checkpoint(name, tensors, manifest["counters"], metrics)


def _check_name(path: Path, manifest: Seal) -> None:
    if path.stem != _name(manifest["counters"]):
        raise DamagedCheckpoint(
            f"{path} is the manifest of another checkpoint, {_name(manifest['counters'])}"
        )


def _check_owner(path: Path, manifest: Seal, owner: Owner) -> None:
    """Raises `UnusableStates` where a state is another run's, or of another configuration."""
    if None not in (owner.run, run := manifest.get("run")) and run != owner.run:
        raise UnusableStates(
            f"{path} is the state of another run: its id is {run}, and this run's {owner.run}; {START_OVER}"
        )
    if manifest.get("config", owner.config) != owner.config:
        raise UnusableStates(
            f"{path} was saved under another config.json (its SHA-256 was {manifest['config'][:12]}… and is "
            f"{owner.config[:12]}…): it was changed since, or the state is another run's; {START_OVER}"
        )


def _metrics_of(path: Path, manifest: Seal, metrics: bytes) -> bytes:
    """The metrics that a state belongs to; those of older formats must be there still."""
    if manifest.get("format", 1) > 2:
        then = manifest["metrics"].encode(errors="surrogateescape")
    else:
        then = metrics[: manifest["metrics_bytes"]]
        if len(then) < manifest["metrics_bytes"] or manifest.get("metrics", _sha256(then)) != _sha256(then):
            raise DamagedCheckpoint(f"{path} belongs to lines of metrics.jsonl that are lost or damaged")
    _check_metrics(path, then, manifest["counters"]["epochs_closed"])
    return then


def _check_metrics(path: Path, metrics: bytes, closed: int) -> None:
    """Raises `DamagedCheckpoint` unless there is a line for each closed epoch, in order."""
    try:
        epochs = [row["epoch"] for row in read_rows(metrics, f"{path}: metrics")]
    except InputError as error:
        raise DamagedCheckpoint(str(error)) from None
    if len(epochs) != closed or epochs != list(range(1, len(epochs) + 1)) or metrics[-1:] not in (b"", b"\n"):
        raise DamagedCheckpoint(f"{path}: metrics has other lines than those of its {closed:,} closed epochs")


def _name(counters: Mapping[str, Any]) -> str:
    return f"{counters['iteration']:09d}-{counters['epochs_closed']:06d}"


def _is_saved(states: OpenedFolder, name: str, manifest: dict[str, Any]) -> bool:
    """Whether this checkpoint is complete on disk; its counters may differ in the seconds spent."""
    owner = Owner(manifest.get("run"), manifest["config"])
    try:
        saved = _read_manifest(states, name)
        _read(states, name, b"", owner)
    except (DamagedCheckpoint, UnusableStates):
        return False
    return all(
        saved.get(key) == manifest.get(key) for key in ("format", "run", "config", "metrics", "tensors")
    )


def _manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    mark = _sha256(json.dumps(manifest, sort_keys=True).encode())
    return json.dumps({**manifest, "seal": mark}, indent=2, sort_keys=True).encode()


def _read_manifest(states: OpenedFolder, name: str) -> Seal:
    path = states.path / f"{name}.json"
    content = states.read(path.name, MAX_MANIFEST_BYTES)
    if content is None:
        raise DamagedCheckpoint(f"{path} is missing")
    try:
        value = parse_json(content, str(path), allow_nan=True, max_bytes=MAX_MANIFEST_BYTES)
    except JsonError:
        value = None
    if isinstance(value, dict) and value.pop("seal", None) and _manifest_bytes(value) == content:
        check_format(value.get("format", 1), path)
        return check_seal(value, path, content)
    raise DamagedCheckpoint(f"{path} is damaged: its own checksum does not match")


def check_format(format: object, path: Path) -> None:
    """Raises `InputError` where a newer release wrote `path`."""
    if isinstance(format, int) and format > FORMAT:
        raise InputError(
            f"{path} was written by a newer release of kilolayer (format {format}; this one reads up to "
            f"{FORMAT}); nothing was changed; update kilolayer to continue"
        )


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
