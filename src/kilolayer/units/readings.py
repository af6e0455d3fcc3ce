"""The properties of a layer that the builder of networks and the analyses read."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from kilolayer.errors import InputError

if TYPE_CHECKING:
    from torch import nn

Style = Literal["conv", "norm", "activation", "other"]


class Layer(Hashable, Protocol):
    """A layer that can be built: `kilolayer.units.ops.Op` is one."""

    @property
    def name(self) -> str:
        """The name in a state dict, before the number; empty for the class's name."""

    @property
    def label(self) -> str:
        """The text in a drawing."""

    @property
    def is_random(self) -> bool:
        """Whether the layer may draw random numbers in training."""

    def module(self) -> nn.Module:
        """A new module that computes the layer."""


class NoReading(InputError):
    """A reading that a kind of layer does not have; the message names the kind and the reading.

    >>> from kilolayer.units import Op
    >>> try:
    ...     Op().module()
    ... except NoReading as error:
    ...     print(error)
    a layer of kind Op does not define its module: write the method module()
    """


@dataclass(frozen=True)
class SavedForBackward:
    """What autograd saves for a layer: its input, its output, and `extra_numbers` for each image."""

    input: bool = False
    output: bool = False
    extra_numbers: int = 0


@dataclass(frozen=True)
class MeasuredReadings:
    """Channels and side of the output, multiply-adds of one image, and the tensors saved for one image."""

    output: tuple[int, int]
    multiply_adds: int
    saved: SavedForBackward
