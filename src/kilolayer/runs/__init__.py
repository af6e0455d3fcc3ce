"""Runs on disk: created, recorded, continued, read."""

from kilolayer.runs.environment import environment
from kilolayer.runs.folder import Run
from kilolayer.runs.record import environment_of, record
from kilolayer.runs.weights import Weights, read_weights, write_weights

__all__ = ["Run", "Weights", "environment", "environment_of", "read_weights", "record", "write_weights"]
