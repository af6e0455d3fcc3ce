"""Compares a state dict with a network by name and shape, and loads it where it fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kilolayer.errors import InputError
from kilolayer.runs.weights_file import check_tensor_values
from kilolayer.system.message_text import listing, truncate

COUNTER = ".num_batches_tracked"
"""BN's count of batches is not a weight: our state dicts have none, nor have files from before PyTorch 0.4.1.
"""


@dataclass(frozen=True)
class WeightMatch:
    """How a state dict fits a network: `matched` of `total` tensors, and the names of all others.

    mismatched: tensors of another shape or an unfit type, in words. notes: how the state was adapted before,
        in words.
    """

    matched: int
    total: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether every tensor matches and none is left over."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        problems = {"missing": self.missing, "unexpected": self.unexpected, "wrong": self.mismatched}
        parts = [
            f"{len(names):,} {problem}: {listing([truncate(name, 120) for name in names], 5)}"
            for problem, names in problems.items()
            if names
        ]
        return "; ".join([f"matched {self.matched:,} of {self.total:,} tensors", *parts])


def match_weights(model: nn.Module, state: Mapping[str, Tensor]) -> WeightMatch:
    """How `state` fits `model`. The model is unchanged.

    >>> model = torch.nn.Linear(2, 3)
    >>> match = match_weights(model, {"weight": torch.zeros(3, 2), "scale": torch.ones(1)})
    >>> match.matched, match.missing, match.unexpected
    (1, ('bias',), ('scale',))
    """
    model_state = _tensors_to_load(model, state)
    shared = [name for name in model_state if name in state]
    wrong = {name: reason for name in shared if (reason := _mismatch(model_state[name], state[name]))}
    return WeightMatch(
        matched=len(shared) - len(wrong),
        total=len(model_state),
        missing=tuple(name for name in model_state if name not in state),
        unexpected=tuple(name for name in state if name not in model_state and not name.endswith(COUNTER)),
        mismatched=tuple(f"{name} ({reason})" for name, reason in wrong.items()),
    )


def load_weights(model: nn.Module, state: Mapping[str, Tensor], *, strict: bool = True) -> WeightMatch:
    """Loads `state` into `model`, and returns how it fits.

    A tensor that is missing, has another shape or is not finite is always an error, and so are variances
    below 0 and weights
    that are all 0: no tensor keeps its random initialisation. `strict=False` only ignores tensors that the
        network does not have.

    Raises `InputError` with counts and names, and leaves the model unchanged.

    >>> model = torch.nn.Linear(2, 3)
    >>> print(load_weights(model, {"weight": torch.ones(3, 2), "bias": torch.zeros(3)}))
    matched 2 of 2 tensors
    """
    match = match_weights(model, state)
    if not match.matched:
        raise InputError(f"the weights belong to another network: {match}")
    if match.missing or match.mismatched or (strict and match.unexpected):
        raise InputError(f"the weights do not fit the network: {match}")
    tensors = {name: state[name] for name in _tensors_to_load(model, state)}
    check_tensor_values(tensors)
    if not any(bool(value.any()) for value in tensors.values()):
        raise InputError("every weight is 0: these are not trained weights")
    model.load_state_dict({name: state.get(name, value) for name, value in model.state_dict().items()})
    return match


def _tensors_to_load(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's tensors, without the counters that `state` lacks."""
    model_state: dict[str, Tensor] = model.state_dict()
    return {name: value for name, value in model_state.items() if name in state or not name.endswith(COUNTER)}


def _mismatch(expected: Tensor, actual: Tensor) -> str | None:
    if expected.shape != actual.shape:
        return f"{_sizes(actual)}, not {_sizes(expected)}"
    if expected.dtype.is_floating_point != actual.dtype.is_floating_point or actual.dtype == torch.bool:
        return f"{actual.dtype}, not {expected.dtype}".replace("torch.", "")
    return None


def _sizes(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "one number"
