"""Who takes part: a network of ours in a variant, one of a package's, or one from a file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from kilolayer.errors import InputError, missing_path_error
from kilolayer.networks import describe
from kilolayer.training.memory_budget import MEMORY_CHOICES, parse_memory

PACKAGES = ("timm", "torchvision", "pytorchcv")
QUANTISED_VARIANTS = {"onnxruntime-int8": "onnxruntime", "openvino-int8": "openvino"}
"""Variants of which weights and activations are whole numbers of 8 bits, and what runs them."""
ENGINES = ("onnxruntime", "openvino", *QUANTISED_VARIANTS)
INFERENCE_VARIANTS = ("folded", *ENGINES)
VARIANTS = {
    "plain": "fp32, channels first, PyTorch's own layers and memory: what one gets without asking",
    "eager": "bf16 where the hardware has it, channels last, PyTorch's own layers and memory",
    "fast": "the best there is here: eager with the native kernels and the memory pool; folded for inference",
    "folded": "eager, with BN folded into the convolutions (inference)",
    "onnxruntime": "exported, run by ONNX Runtime in fp32 (inference)",
    "openvino": "exported, run by OpenVINO in bf16 where the hardware has it (inference)",
    "onnxruntime-int8": "quantised on the images of the race, run by ONNX Runtime (inference)",
    "openvino-int8": "the same quantised file, run by OpenVINO (inference)",
}
KILOLAYER_VARIANTS = ("fast", "folded")


@dataclass(frozen=True)
class Candidate:
    """`name` as written; `source` "kilolayer", a package or a file; `model` there; how it is run."""

    name: str
    source: str
    model: str
    variant: str
    memory: str = "fastest"

    @property
    def is_ours(self) -> bool:
        return self.source == "kilolayer"


def parse_candidate(name: str) -> Candidate:
    """The contestant called `preact_resnet110_cifar`, `…@plain`, `…@2GB`, `timm:NAME` or `FILE.py:CALLABLE`.

    After @ stand a variant, a choice of memory, or both joined by +. Without it ours is `fast`, and others
    are `plain`; a file's may be `fast` where its function gives a network of ours. Raises `InputError` for
    what cannot be understood; a file is looked for, a package is not.
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
    """Raises `InputError` where its variant is none of this work."""
    if candidate.variant in INFERENCE_VARIANTS and not infer:
        allowed = ", ".join(f"@{name}" for name in VARIANTS if name not in INFERENCE_VARIANTS)
        raise InputError(
            f"{candidate.name!r}: {candidate.variant} is for inference: add --infer; for training: {allowed}"
        )
    if candidate.memory != "fastest" and infer:
        raise InputError(
            f"{candidate.name!r}: {candidate.memory} is a choice of memory for training; leave it out with --infer"
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
        raise InputError(
            f"{name!r}: allowed is one variant, and a choice of memory beside fast alone: @fast+{memory}"
        )
    return variant, memory


def _check_file(name: str, file: str, function: str) -> None:
    if not file.endswith(".py"):
        sources = ", ".join(f"{package}:NAME" for package in PACKAGES)
        raise InputError(f"{name!r} is no contestant; allowed: a network's name, {sources}, FILE.py:CALLABLE")
    if not Path(file).is_file():
        raise missing_path_error(file)
    if not function.isidentifier():
        raise InputError(f"{name!r}: {function!r} is no name of a function; allowed: FILE.py:CALLABLE")


def candidate_at_depth(name: str, depth: int) -> str:
    """The same kind of network at another depth: its name with the number replaced."""
    head, mark, tail = name.partition("@")
    return re.sub(r"(?<=[a-z])\d+", str(depth), head, count=1) + mark + tail
