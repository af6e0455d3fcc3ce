"""The options for a weights file without metadata. This module does not import torch."""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from kilolayer.cli.option_types import OptionalName, OptionalText, choice_option
from kilolayer.errors import InputError
from kilolayer.system.json_text import parse_json, value_text
from kilolayer.system.message_text import listing, quote

PixelRange = Literal["auto", "0-1", "0-255"]


@dataclass(frozen=True)
class PixelStatistics:
    """A mean and a standard deviation for each channel, for pixels from 0 to 255."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class ForeignOptions:
    """For a weights file without metadata: a state dict in our names, from torch.save or safetensors."""

    model: OptionalName = None
    """The name of the file's network."""
    classes: OptionalText = None
    """The classes in the order of the outputs: a,b,c, or a FILE with one name a line or a JSON list."""
    mean: OptionalText = None
    """The mean that was subtracted from its input, one number for each channel: 0.485,0.456,0.406."""
    std: OptionalText = None
    """The deviation that its input was divided by, one number for each channel: 0.229,0.224,0.225."""
    pixel_range: Annotated[PixelRange, choice_option("auto", "0-1", "0-255")] = "auto"
    """The range of pixels that --mean and --std refer to; auto rejects numbers that fit both ranges."""

    def check_unused(self) -> None:
        """Raises `InputError` for an option that has a meaning only with --model."""
        changed = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        if changed:
            flag = f"--{changed[0].replace('_', '-')}"
            raise InputError(f"{flag} is for a weights file without metadata; add --model NAME")

    def class_names(self) -> tuple[str, ...] | None:
        """The names in --classes; None without it. Raises `InputError`."""
        return None if self.classes is None else _class_names(self.classes)

    def pixel_statistics(self) -> PixelStatistics | None:
        """The numbers in --mean and --std; None without both. Raises `InputError`."""
        if self.mean is None and self.std is None:
            return None
        if self.mean is None or self.std is None:
            raise InputError(
                f"--{'mean' if self.mean is None else 'std'} is missing. Give both --mean and --std, with "
                "one number for each channel."
            )
        mean, std = _numbers("--mean", self.mean), _numbers("--std", self.std)
        if len(mean) != len(std):
            raise InputError(f"--mean has {len(mean)} numbers and --std {len(std)}; give one a channel each")
        scale = _unit(mean, std, self.pixel_range)
        return PixelStatistics(tuple(scale * x for x in mean), tuple(scale * x for x in std))


NO_FOREIGN = ForeignOptions()


def _numbers(flag: str, text: str) -> list[float]:
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        raise InputError(
            f"{flag} is {text!r}; allowed: one number for each channel, as 0.485,0.456,0.406"
        ) from None
    least = "from 0" if flag == "--mean" else "above 0"
    if not all(math.isfinite(x) and (x > 0 or (x == 0 and flag == "--mean")) for x in numbers):
        raise InputError(f"{flag} is {text!r}; allowed: numbers {least}")
    return numbers


def _unit(mean: list[float], std: list[float], pixel_range: PixelRange) -> float:
    """The factor that converts the numbers to pixels from 0 to 255.

    Pixels from 0 to 1 have no mean and no deviation above 1. Nobody divides pixels from 0 to 255 by less
    than 1.

    Raises:
        InputError: the numbers fit both ranges, or neither.
    """
    fits = {"0-1": max(mean + std) <= 1, "0-255": max(mean) <= 255 and min(std) >= 1}
    possible = [name for name, fit in fits.items() if fit] if pixel_range == "auto" else [pixel_range]
    if len(possible) != 1:
        why = "fit pixels 0 … 1 and 0 … 255" if possible else "fit neither pixels 0 … 1 nor 0 … 255"
        raise InputError(f"--mean and --std {why}; add --pixel-range 0-1 or --pixel-range 0-255")
    if max(mean) > (255 if possible[0] == "0-255" else 1):
        raise InputError(f"--mean {max(mean):g} is above the largest pixel of --pixel-range {possible[0]}")
    return 255.0 if possible[0] == "0-1" else 1.0


def _class_names(text: str) -> tuple[str, ...]:
    is_file = os.path.exists(text)
    if not is_file and "," not in text:
        raise InputError(f"--classes {quote(text)}: no such file; allowed: a FILE, or names as a,b,c")
    names = _from_file(Path(text)) if is_file else [name.strip() for name in text.split(",")]
    if not all(names):
        raise InputError(f"--classes {quote(text)}: name {names.index('') + 1} is empty")
    twice = [quote(name) for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"--classes {quote(text)}: {len(twice)} duplicate names: {listing(twice)}")
    return tuple(names)


def _from_file(path: Path) -> list[str]:
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"--classes {quote(path)}: cannot be read as UTF-8 text ({error})") from None
    if path.suffix != ".json":
        return text.replace("\r\n", "\n").rstrip("\n").split("\n")
    names = parse_json(content, f"--classes {quote(path)}")
    if not isinstance(names, list):
        raise InputError(f"--classes {quote(path)}: is {value_text(names)}; allowed: a list of names")
    for number, name in enumerate(names, 1):
        if not isinstance(name, str):
            raise InputError(f"--classes {quote(path)}: name {number} is {value_text(name)}; allowed: text")
    return [str(name) for name in names]
