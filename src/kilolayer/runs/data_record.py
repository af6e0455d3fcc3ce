"""A run's record of its data: their path and fingerprints, written at every start and checked on resuming.

A path relative to the working folder is recorded relative to the run's folder, so that the run resumes from
any working folder, and after run and data were moved together. Absolute paths are recorded only if you gave
them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kilolayer.data.config import Data
from kilolayer.data.registry import DATASETS
from kilolayer.errors import InputError
from kilolayer.runs.checkpoints import UnusableStates
from kilolayer.runs.records import DataRecord
from kilolayer.system.folders import expand_home

if TYPE_CHECKING:
    from kilolayer.data.images import Images
    from kilolayer.runs.folder import Run
    from kilolayer.training.trainer import Trainer

DATA_KEY = "data"
"""The record's key in environment.json; its value is {"path": …, "fingerprints": {"training set": …}}."""


def record_data(run: Path, data: Data, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """The record of a start's data, for environment.json."""
    path = getattr(data, _path_field(data))
    is_relative = path is not None and not os.path.isabs(expand_home(path))
    recorded = os.path.relpath(os.path.realpath(path), os.path.realpath(run)) if is_relative else path
    return {DATA_KEY: {"path": recorded, "fingerprints": dict(fingerprints)}}


def data_fingerprints(trainer: Trainer) -> dict[str, str]:
    """The fingerprint of every part of the data, by its name; reads the test set."""
    return {**trainer.fingerprints, "test set": trainer.splits.test.fingerprint()}


def locate_data(run: Run) -> Data:
    """The run's data, with the path at which its last start read them if that differs from its config."""
    data = run.experiment().data
    configured, recorded = getattr(data, _path_field(data)), _last_data_record(run).get("path")
    if not isinstance(recorded, str):
        return data
    path = os.path.normpath(os.path.join(os.path.realpath(run.path), expand_home(recorded)))
    if not os.path.exists(path) or (
        configured and os.path.realpath(expand_home(configured)) == os.path.realpath(path)
    ):
        return data
    # CIFAR in its usual folder may have been read from a path since.
    return replace(data, folder=path) if data.source in DATASETS else replace(data, source=path)


def check_same_data(run: Run, fingerprints: Mapping[str, str], *, path_given: bool) -> None:
    """Raises `InputError` naming each part of the data that has changed since the run began.

    path_given: you gave a new path to the data; then the run must have a record to compare them with.
    """
    recorded = recorded_fingerprints(run)
    if not recorded and path_given:
        raise InputError(
            f"{run.path} has no record of its data to compare those of --data with; resume it with the path "
            "it began with, or begin a new run"
        )
    changed = [
        name for name, fingerprint in fingerprints.items() if recorded.get(name, fingerprint) != fingerprint
    ]
    if changed:
        unchanged = [name for name in fingerprints if name in recorded and name not in changed]
        raise InputError(
            f"the data are not those that {run.path} began with: other images or labels in the "
            f"{' and the '.join(changed)}{'; the same ' + ' and '.join(unchanged) if unchanged else ''}; "
            "bring the data back, or begin a new run"
        )


PART_TITLES = {"train": "training set", "validation": "validation set", "test": "test set"}
"""The names of the fingerprints, by the part of the data."""


def check_same_part(run: str, part: str, images: Images, recorded: Mapping[str, str]) -> None:
    """Raises `InputError` where the run recorded other images or labels for this part of its data.

    If one picture has changed, another fifth is drawn as the test set, with pictures that were trained on.
    """
    title = PART_TITLES[part]
    if recorded.get(title, fingerprint := images.fingerprint()) != fingerprint:
        raise InputError(
            f"the {title} of the run's data is not that of {run}: pictures or labels were changed, added, "
            "deleted or damaged since, so that the test set may hold pictures that were trained on; bring "
            "the data back, or name new pictures: --data PATH --part all"
        )


def _path_field(data: Data) -> str:
    return "folder" if data.source in DATASETS else "source"


def _last_data_record(run: Run) -> DataRecord:
    noted = [start["data"] for start in run.environments() if "data" in start]
    return noted[-1] if noted else {}


def recorded_fingerprints(run: Run) -> Mapping[str, str]:
    """The fingerprints of the run's data; those of its checkpoint in a run of an earlier release."""
    noted = _last_data_record(run).get("fingerprints")
    if isinstance(noted, dict):
        return noted
    try:
        checkpoint = run.latest_checkpoint()
    except UnusableStates:  # who continues is told, or has said --start-over
        return {}
    return checkpoint.counters["data"] if checkpoint else {}
