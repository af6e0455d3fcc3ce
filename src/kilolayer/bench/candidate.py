"""What is compared: one of our networks in a variant, a package's network, or one from a file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from kilolayer.errors import InputError, missing_path_error
from kilolayer.networks import describe
from kilolayer.training.memory_budget import MEMORY_CHOICES, parse_memory

PACKAGES = ("timm", "torchvision", "pytorchcv")
QUANTISED_VARIANTS = {"onnxruntime-int8": "onnxruntime", "openvino-int8": "openvino"}
"""Variants with 8-bit integer weights and activations, and the engine that runs each."""
ENGINES = ("onnxruntime", "openvino", *QUANTISED_VARIANTS)
INFERENCE_VARIANTS = ("folded", *ENGINES)
VARIANTS = {
    "plain": "fp32, channels first, PyTorch's own layers and memory: the default of PyTorch",
    "eager": "bf16 where the hardware has it, channels last, PyTorch's own layers and memory",
    "fast": "the fastest here: eager with the native kernels and the memory pool; folded for inference",
    "folded": "eager, with BN folded into the convolutions (inference)",
    "onnxruntime": "exported, run by ONNX Runtime in fp32 (inference)",
    "openvino": "exported, run by OpenVINO in bf16 where the hardware has it (inference)",
    "onnxruntime-int8": "quantised on the benchmark's images, run by ONNX Runtime (inference)",
    "openvino-int8": "the same quantised file, run by OpenVINO (inference)",
}
KILOLAYER_VARIANTS = ("fast", "folded")


@dataclass(frozen=True)
class Candidate:
    """A network to compare: `source` is "kilolayer", a package or a file; `model` is its name there.

    `name` is the candidate as written; `variant` and `memory` say how it is run.
    """

    name: str
    source: str
    model: str
    variant: str
    memory: str = "fastest"

    @property
    def is_ours(self) -> bool:
        """Whether it is one of our networks, given by its name."""
        return self.source == "kilolayer"


def parse_candidate(name: str) -> Candidate:
    """The candidate called `preact_resnet110_cifar`, `…@plain`, `…@2GB`, `timm:NAME` or `FILE.py:FUNCTION`.

    After @ stands a variant, a choice of memory, or both joined by +. The default is `fast` for our networks
    and `plain` for others; a file's candidate may be `fast` if its function returns one of our networks.

    Raises `InputError` if the name cannot be understood or the file does not exist; packages are not looked
    up.

    >>> parse_candidate("preact_resnet110_cifar@plain").variant
    'plain'
    >>> parse_candidate("timm:resnet50").source
    'timm'
    """
    head, mark, tail = name.partition("@")
    source, _, model = head.rpartition(":")
    source = source or "kilolayer"
    if source == "kilolayer":
        if model.endswith(".py"):
            raise InputError(f"{name!r} names no function in the file; allowed: FILE.py:CALLABLE")
        describe(model)
    elif source not in PACKAGES:
        _check_file(name, source, model)
    words = tail.split("+") if mark else []
    variant, memory = _parse_suffix(name, words, source == "kilolayer", source in PACKAGES)
    return Candidate(name, source, model, variant, memory)


def check_candidate(candidate: Candidate, *, infer: bool) -> None:
    """Raises `InputError` if the candidate's variant is for training and this is inference, or vice versa."""
    if candidate.variant in INFERENCE_VARIANTS and not infer:
        allowed = ", ".join(f"@{name}" for name in VARIANTS if name not in INFERENCE_VARIANTS)
        raise InputError(
            f"{candidate.name!r}: {candidate.variant} is for inference: add --infer; for training: {allowed}"
        )
    if candidate.memory != "fastest" and infer:
        raise InputError(
            f"{candidate.name!r}: {candidate.memory} is a choice of memory for training; "
            "leave it out with --infer"
        )


def _parse_suffix(name: str, words: list[str], ours: bool, package: bool) -> tuple[str, str]:
    variants = [word for word in words if word in VARIANTS]
    memories = [word for word in words if word in MEMORY_CHOICES or re.match(r"\d", word)]
    for word in words:
        if word not in (*variants, *memories):
            allowed = ", ".join((*VARIANTS, *MEMORY_CHOICES))
            raise InputError(f"{name!r} asks for the variant {word!r}; allowed: {allowed}, or bytes as 2GB")
    variant, *extra_variants = variants or ["fast" if ours else "plain"]
    memory, *extra_memories = memories or ["fastest"]
    parse_memory(memory)
    if package and (variant in KILOLAYER_VARIANTS or memory != "fastest"):
        raise InputError(f"{name!r} is not ours; allowed for others: @plain, @eager, @{', @'.join(ENGINES)}")
    if extra_variants or extra_memories or (memory != "fastest" and variant != "fast"):
        raise InputError(f"{name!r}: allowed: one variant; a choice of memory only with fast: @fast+{memory}")
    return variant, memory


def _check_file(name: str, file: str, function: str) -> None:
    if not file.endswith(".py"):
        sources = ", ".join(f"{package}:NAME" for package in PACKAGES)
        raise InputError(
            f"{name!r} is not a candidate; allowed: a network's name, {sources}, FILE.py:CALLABLE"
        )
    if not Path(file).is_file():
        raise missing_path_error(file)
    if not function.isidentifier():
        raise InputError(f"{name!r}: {function!r} is not a function's name; allowed: FILE.py:CALLABLE")


def candidate_at_depth(name: str, depth: int) -> str:
    """The same kind of network at another depth: the name with its number replaced.

    >>> candidate_at_depth("preact_resnet110_cifar@plain", 1001)
    'preact_resnet1001_cifar@plain'
    """
    head, mark, tail = name.partition("@")
    return re.sub(r"(?<=[a-z])\d+", str(depth), head, count=1) + mark + tail
