"""Weights on disk: safetensors with the network's description, classes and input statistics."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kilolayer.data import InputStatistics
from kilolayer.errors import InputError, missing_path_error
from kilolayer.networks import Network, ResidualNetwork, build
from kilolayer.runs.tensor_bytes import save
from kilolayer.system import durable
from kilolayer.system.message_text import listing
from kilolayer.units.extensions import UnitFileError
from kilolayer.values import from_json, to_json

HEADER_KEY = "kilolayer"
VARIANCE_SUFFIX = "running_var"
SMALL_NETWORK = 10_000_000
"""The parameters that a description may have beyond the numbers of its file: load_state then says which."""
SMALL_HEADER = 1_000_000
"""The bytes that any header may have. A larger one has at most as many as the tensors."""


@dataclass(frozen=True)
class WeightsHeader:
    """What the header says about the tensors. `sha256` covers the tensors and the rest of the header."""

    network: Network
    classes: tuple[str, ...]
    sha256: str = ""

    def __post_init__(self) -> None:
        if len(self.classes) != self.network.num_classes:
            raise InputError(f"{len(self.classes)} class names for {self.network.num_classes} classes")


@dataclass(frozen=True)
class SavedNetwork:
    """A trained network: its module (in evaluation mode), its classes, and its input's normalisation.

    `model` reads `statistics.normalize(pixels)`, with pixels from 0 to 255.
    """

    model: ResidualNetwork
    classes: tuple[str, ...]
    statistics: InputStatistics


def write_weights(
    path: Path,
    network: Network,
    state: Mapping[str, Tensor],
    classes: tuple[str, ...],
    statistics: InputStatistics,
) -> None:
    """Writes a network's state dict, its description, classes and input statistics to `path`, durably.

    The tensors have the state dict's keys; the statistics are `input.mean` and `input.scale`.

    >>> import tempfile
    >>> from kilolayer.networks import describe
    >>> network = describe("preact_resnet8_cifar", num_classes=2)
    >>> statistics = InputStatistics(torch.zeros(3, 1, 1), torch.ones(3, 1, 1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "weights.safetensors"
    ...     write_weights(path, network, build(network).state_dict(), ("cat", "dog"), statistics)
    ...     read_weights(path).classes
    ('cat', 'dog')
    """
    durable.write_file(path, weights_content(network, state, classes, statistics))


def weights_content(
    network: Network, state: Mapping[str, Tensor], classes: tuple[str, ...], statistics: InputStatistics
) -> bytes:
    """The file that `write_weights` writes."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    tensors |= {f"input.{name}": value.contiguous() for name, value in statistics.tensors().items()}
    description = WeightsHeader(network, classes)
    described = replace(description, sha256=tensors_checksum(tensors, to_json(description, indent=None)))
    # One entry: safetensors writes several in random order, and equal weights must be equal files.
    return save(tensors, {HEADER_KEY: to_json(described, indent=None)})


def read_weights(path: str | Path) -> SavedNetwork:
    """The trained network in `path`. No code in the file is run.

    Raises `InputError` where the file is damaged or is not one of ours.
    """
    path = Path(path)
    tensors, header = read_tensors(path)
    if HEADER_KEY not in header:
        raise InputError(f"{path} has no network description in its header; it was not written by kilolayer")
    try:
        description = from_json(header[HEADER_KEY], WeightsHeader, str(path))
    except UnitFileError:
        raise
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    # Files of the first release have no checksum.
    checksum_matches = description.sha256 in ("", tensors_checksum(tensors, _unsigned(header[HEADER_KEY])))
    inputs = {name: tensors.pop(f"input.{name}", None) for name in ("mean", "scale")}
    if inputs["mean"] is None or inputs["scale"] is None:
        raise InputError(f"{path} has no input statistics (input.mean, input.scale)")
    _check_size(description.network, tensors, path)
    model = build(description.network)
    load_state(model, tensors, path)
    if not checksum_matches:
        raise InputError(f"{path} is damaged: its checksum is not the one in its header")
    try:
        check_tensor_values(tensors)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    statistics = InputStatistics(mean=inputs["mean"], scale=inputs["scale"])
    return SavedNetwork(model.eval(), description.classes, statistics)


def _check_size(network: Network, tensors: Mapping[str, Tensor], path: Path) -> None:
    """A header of a few bytes can describe a network that would fill the memory; refuse to build it."""
    num_values = sum(value.numel() for value in tensors.values())
    layers, parameters = network.num_learned_layers, network.parameters
    if layers > len(tensors) or parameters > num_values + SMALL_NETWORK:
        raise InputError(
            f"{path} holds weights of another network: {len(tensors):,} tensors of {num_values:,} numbers, "
            f"but its header describes {layers:,} layers of {parameters:,} parameters"
        )


def tensors_checksum(tensors: Mapping[str, Tensor], header: str) -> str:
    """SHA-256 over the header's text without its checksum, then names, types, shapes and bytes by name."""
    digest = hashlib.sha256(header.encode(errors="replace"))
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _unsigned(header: str) -> str:
    """The header's text with an empty checksum, of which the checksum is taken.

    We change the text and not the fields, because an older release's fields have other names.
    """
    return re.sub(r'"sha256": "[0-9a-f]{64}"\}$', '"sha256": ""}', header)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the header of a safetensors file; runs no code in it."""
    try:
        with path.open("rb") as opened:
            _check_header(path, opened)
        with path.open("rb") as opened, safe_open(_utf8_name(path, opened), "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise missing_path_error(path) from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file: {str(error).splitlines()[0]}") from None


def _check_header(path: Path, file: BinaryIO) -> None:
    """A header of tensors without numbers would take more memory than its file."""
    header = int.from_bytes(file.read(8), "little")
    tensors = file.seek(0, os.SEEK_END) - 8 - header
    if tensors >= 0 and header > SMALL_HEADER + tensors:
        raise InputError(
            f"{path} is not a file of weights: its header has {header:,} bytes for {tensors:,} of tensors; "
            f"allowed: {SMALL_HEADER + tensors:,}"
        )


def _utf8_name(path: Path, opened: BinaryIO) -> str:
    """A path to the open file that safetensors accepts: it takes only names in UTF-8."""
    try:
        return os.fsencode(path).decode()
    except UnicodeDecodeError:
        return f"/dev/fd/{opened.fileno()}"


def check_tensor_values(state: Mapping[str, Tensor]) -> None:
    """Raises `InputError` naming the tensors that no trained network can have.

    They hold values that are not finite, or variances below 0, of which BN would take the root.
    """
    bad = [name for name, value in state.items() if not bool(value.isfinite().all())]
    if bad:
        raise InputError(
            f"{len(bad):,} tensors of the weights hold values that are not finite: {listing(bad, 5)}"
        )
    bad = [
        name for name, value in state.items() if name.endswith(VARIANCE_SUFFIX) and bool((value < 0).any())
    ]
    if bad:
        raise InputError(f"{len(bad):,} tensors of the weights hold variances below 0: {listing(bad, 5)}")


def load_state(model: ResidualNetwork, tensors: dict[str, Tensor], path: Path) -> None:
    """Loads all tensors; `InputError` counts the matching ones where the weights are another network's."""
    expected: dict[str, Any] = model.state_dict()
    matched = sum(key in expected and expected[key].shape == value.shape for key, value in tensors.items())
    if matched != len(expected) or len(tensors) != len(expected):
        raise InputError(
            f"{path} holds weights of another network: {matched} of {len(expected)} tensors match, "
            f"{len(tensors)} are in the file"
        )
    model.load_state_dict(tensors)
