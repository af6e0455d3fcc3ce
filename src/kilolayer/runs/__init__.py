"""Runs on disk: created, recorded, continued, read."""

from kilolayer.runs.folder import Run
from kilolayer.runs.recorder import train_run, trainer_environment
from kilolayer.runs.start_environment import environment_record
from kilolayer.runs.weights_file import SavedNetwork, read_weights, write_weights

__all__ = [
    "Run",
    "SavedNetwork",
    "environment_record",
    "read_weights",
    "train_run",
    "trainer_environment",
    "write_weights",
]
