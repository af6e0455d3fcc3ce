"""A run's data: where they lie, and what they are, noted at every start and looked at when it goes on.

A path that was given relative to the working folder is noted relative to the run's own folder: the run then
goes on from any working folder, and after both were moved together. No absolute path is noted that nobody
wrote.
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
from kilolayer.system.folders import expand_home

if TYPE_CHECKING:
    from kilolayer.data.images import Images
    from kilolayer.runs.folder import Run
    from kilolayer.training.trainer import Trainer

DATA_KEY = "data"
"""In a start of environment.json: {"path": …, "fingerprints": {"training set": …}}."""


def record_data(run: Path, data: Data, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """What a start says of its data."""
    path = getattr(data, _path_field(data))
    beside = path is not None and not os.path.isabs(expand_home(path))
    noted = os.path.relpath(os.path.realpath(path), os.path.realpath(run)) if beside else path
    return {DATA_KEY: {"path": noted, "fingerprints": dict(fingerprints)}}


def data_fingerprints(trainer: Trainer) -> dict[str, str]:
    """Of every part of the data by its name. The test set is read for it."""
    return {**trainer.fingerprints, "test set": trainer.splits.test.fingerprint()}


def locate_data(run: Run) -> Data:
    """The run's data with the path at which its last start found them, where that is another one now."""
    data = run.experiment().data
    configured, recorded = getattr(data, _path_field(data)), _last_data_record(run).get("path")
    if not isinstance(recorded, str):
        return data
    path = os.path.normpath(os.path.join(os.path.realpath(run.path), expand_home(recorded)))
    if not os.path.exists(path) or (
        configured and os.path.realpath(expand_home(configured)) == os.path.realpath(path)
    ):
        return data
    # A CIFAR that was in its usual folder may have been read from a path since.
    return replace(data, folder=path) if data.source in DATASETS else replace(data, source=path)


def check_same_data(run: Run, fingerprints: Mapping[str, str], *, path_given: bool) -> None:
    """Raises `InputError` naming each part of the data that is not what the run began with.

    `moved`: the data are said to lie elsewhere now; then they must be known, to be compared.
    """
    recorded = recorded_fingerprints(run)
    if not recorded and path_given:
        raise InputError(
            f"{run.path} does not say what its data were, so those of --data cannot be compared with them; "
            "go on with the path it was begun with, or begin a new run"
        )
    changed = [
        name for name, fingerprint in fingerprints.items() if recorded.get(name, fingerprint) != fingerprint
    ]
    if changed:
        unchanged = [name for name in fingerprints if name in recorded and name not in changed]
        raise InputError(
            f"the data are not those with which {run.path} began: other images or labels in the "
            f"{' and the '.join(changed)}{'; the same ' + ' and '.join(unchanged) if unchanged else ''}; bring the data "
            "back, or begin a new run"
        )


PART_TITLES = {"train": "training set", "validation": "validation set", "test": "test set"}
"""What the fingerprints are called, by the part."""


def check_same_part(run: str, part: str, images: Images, recorded: Mapping[str, str]) -> None:
    """Raises `InputError` where the run noted other images or labels for this part of its data.

    A picture that is changed, added, deleted or damaged draws another test fifth, of pictures trained on.
    """
    title = PART_TITLES[part]
    if recorded.get(title, fingerprint := images.fingerprint()) != fingerprint:
        raise InputError(
            f"the {title} of the run's data is not that of {run}: pictures or labels were changed, added, "
            "deleted or damaged since, and pictures that were trained on may count as test pictures; bring "
            "the data back; for new pictures name them: --data PATH --part all"
        )


def _path_field(data: Data) -> str:
    return "folder" if data.source in DATASETS else "source"


def _last_data_record(run: Run) -> dict[str, Any]:
    noted = [start[DATA_KEY] for start in run.environments() if isinstance(start.get(DATA_KEY), dict)]
    return noted[-1] if noted else {}


def recorded_fingerprints(run: Run) -> Mapping[str, str]:
    """The fingerprints of the run's data; in a run of an earlier release those of its state, if any."""
    noted = _last_data_record(run).get("fingerprints")
    if isinstance(noted, dict):
        return noted
    checkpoint = run.latest_checkpoint()
    return checkpoint.counters["data"] if checkpoint else {}
