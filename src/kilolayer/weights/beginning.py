"""A training that begins from the weights of a file instead of a random initialisation."""

from __future__ import annotations

import hashlib
from pathlib import Path

from kilolayer.data.wording import quoted
from kilolayer.errors import InputError
from kilolayer.training import Training
from kilolayer.training.experiment import Init
from kilolayer.weights.fitting import Fit, fit
from kilolayer.weights.reading import read_state_dict


def initial(path: str) -> Init:
    """The file as an experiment names it. Raises `InputError` where it cannot be read."""
    return Init(path, _sha256(path))


def begin(training: Training) -> Fit | None:
    """Loads the weights that the training's experiment names; None where it names none.

    To be called before its first step. Raises `InputError` where the file is gone, is another one than when
    the experiment was made, or does not fit the network in every tensor.
    """
    init = training.experiment.init
    if init is None:
        return None
    if _sha256(init.path) != init.sha256:
        raise InputError(f"{quoted(init.path)}: has changed since the run began; bring the file back")
    try:
        return fit(training.model, read_state_dict(init.path))
    except InputError as error:
        text = str(error)
        raise InputError(text if init.path in text else f"{quoted(init.path)}: {text}") from None


def _sha256(path: str) -> str:
    if not Path(path).is_file():
        raise InputError(f"{quoted(path)}: no such file of weights")
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{quoted(path)}: cannot be read ({error.strerror})") from None
