"""Building a candidate's module, ready to run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn

from kilolayer.bench.candidate import ENGINES, KILOLAYER_VARIANTS, Candidate
from kilolayer.bench.equivalence import compute_logits
from kilolayer.errors import InputError, KilolayerError
from kilolayer.kernels import fuse, use_cpu_pool
from kilolayer.networks import ResidualNetwork, build, describe
from kilolayer.training.computation import choose_precision
from kilolayer.training.experiment import Precision
from kilolayer.training.memory_plan import MemoryPlan, segment_model


@dataclass(frozen=True)
class BatchShape:
    """What the first candidate determines about the batch that all candidates receive."""

    name: str
    image_side: int
    channels: int
    classes: int


@dataclass(frozen=True)
class CandidateModule:
    """The module in its memory format and precision, and the images that it reads."""

    module: nn.Module
    precision: Precision
    channels_last: bool
    image_side: int
    channels: int
    plan: MemoryPlan | None = None
    choices: tuple[str, ...] = ()


def build_candidate(
    candidate: Candidate,
    device: torch.device,
    batch_size: int,
    *,
    infer: bool,
    image_size: int | None = None,
    first: BatchShape | None = None,
) -> CandidateModule:
    """Builds the candidate's module, for images of `image_size` if that is given.

    Raises `InputError` if a package is missing or does not know the model, or if a file's code fails.
    """
    torch.manual_seed(0)
    is_plain = candidate.variant == "plain"
    uses_pool = candidate.variant in KILOLAYER_VARIANTS and device.type == "cpu"
    allocation = (use_cpu_pool(device),) if uses_pool else ()
    module = _build_ours(candidate) if candidate.is_ours else _build_foreign(candidate)
    if candidate.variant in KILOLAYER_VARIANTS and not isinstance(module, ResidualNetwork):
        raise InputError(
            f"{candidate.name}: {candidate.model} returns {type(module).__name__}, "
            "which is not one of our networks; "
            f"allowed for others: @plain, @eager, @{', @'.join(ENGINES)}"
        )
    side = _image_side(candidate, module, image_size, first)
    channels = _image_channels(candidate, module, first)
    if isinstance(module, ResidualNetwork):
        # Counts and memory plans are for the images of the batch.
        module.description = replace(module.description, image_size=side)
    fusable = (
        module.description
        if candidate.variant in KILOLAYER_VARIANTS and isinstance(module, ResidualNetwork)
        else None
    )
    precision: Precision = "fp32" if is_plain else choose_precision("auto", device, fusable)
    module = module.to(device).train(not infer)
    if not is_plain:
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    built = CandidateModule(module, precision, not is_plain, side, channels, choices=allocation)
    if isinstance(module, ResidualNetwork) and candidate.variant == "fast" and not infer:
        return _apply_fast_path(built, module, candidate, batch_size, device)
    return built


def _apply_fast_path(
    built: CandidateModule,
    module: ResidualNetwork,
    candidate: Candidate,
    batch_size: int,
    device: torch.device,
) -> CandidateModule:
    chosen = built.choices
    if device.type == "cpu" and built.precision == "bf16":
        chosen += (str(fuse(module)),)
    plan = segment_model(module, candidate.memory, batch_size, built.precision, device)
    return replace(built, plan=plan, choices=chosen)


def _build_ours(candidate: Candidate) -> nn.Module:
    return build(describe(candidate.model))


def _build_foreign(candidate: Candidate) -> nn.Module:
    factory = _model_factory(candidate)
    with attribute_errors(candidate.name, "building it"), redirect_stdout(StringIO()):  # some of them print
        module = factory()
    if not isinstance(module, nn.Module):
        raise InputError(
            f"{candidate.name} returns {type(module).__name__}; allowed: a function that returns an nn.Module"
        )
    return module


@contextmanager
def attribute_errors(name: str, stage: str, *, ours: bool = False) -> Iterator[None]:
    """Turns what a candidate's code raises within into an `InputError` with the candidate's name.

    With `ours`, exceptions other than `InputError` pass unchanged: they are faults of Kilolayer.
    """
    try:
        yield
    except KilolayerError as error:
        raise InputError(f"{name}: {error}") from None
    except (Exception, SystemExit) as error:
        if ours:
            raise
        message = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{name}: {stage} raised {type(error).__name__}{message and ': '}{message}"
        ) from error


def _model_factory(candidate: Candidate) -> Callable[[], Any]:
    if candidate.source.endswith(".py"):
        return _factory_from_file(candidate)
    try:
        if candidate.source == "timm":
            timm = import_module("timm")
            return lambda: timm.create_model(candidate.model)
        if candidate.source == "torchvision":
            models = import_module("torchvision.models")
            return lambda: models.get_model(candidate.model, weights=None)
        provider = import_module("pytorchcv.model_provider")
        return lambda: provider.get_model(candidate.model)
    except ImportError as error:
        missing = (error.name or candidate.source).partition(".")[0]
        by = "" if missing == candidate.source else f", which {candidate.source} imports"
        raise InputError(f"{candidate.name} needs {missing}{by}: pip install {missing}") from None
    except RuntimeError as error:
        # torchvision raises this with a PyTorch that it was not built for; timm imports torchvision.
        raise InputError(
            f"{candidate.name}: {candidate.source} cannot be imported ({str(error).splitlines()[0]}); "
            f"install the torchvision that was built for PyTorch {torch.__version__}"
        ) from None


def _factory_from_file(candidate: Candidate) -> Callable[[], Any]:
    spec = spec_from_file_location("kilolayer_bench_peer", candidate.source)
    assert spec is not None and spec.loader is not None  # noqa: S101, PT018 - it ends in .py
    module = module_from_spec(spec)
    with attribute_errors(candidate.name, "importing it"):
        spec.loader.exec_module(module)
    factory = getattr(module, candidate.model, None)
    if not callable(factory):
        raise InputError(f"{candidate.name}: {candidate.source} has no function {candidate.model}")
    return factory  # type: ignore[no-any-return]


def _image_side(
    candidate: Candidate, module: nn.Module, requested: int | None, first: BatchShape | None
) -> int:
    """The side of the square images: as requested, or else the first candidate's own."""
    native_side = _native_side(candidate, module)
    if requested:
        return requested
    if first is None:
        if native_side is None:
            raise InputError(
                f"{candidate.name} comes first, and the size of its images is unknown; add --image-size N, "
                "or name one of our networks before it"
            )
        return native_side
    if native_side not in (None, first.image_side):
        raise InputError(
            f"{candidate.name} is for images of {native_side} pixels a side, "
            f"{first.name} for {first.image_side}; all get the same batch: add --image-size N"
        )
    return first.image_side


def _native_side(candidate: Candidate, module: nn.Module) -> int | None:
    """The side that a description states or a package's name implies; unknown for a file."""
    if isinstance(module, ResidualNetwork):
        return module.description.image_size
    if candidate.source.endswith(".py"):
        return None
    return 32 if "cifar" in candidate.model or "svhn" in candidate.model else 224


def _image_channels(candidate: Candidate, module: nn.Module, first: BatchShape | None) -> int:
    native_channels = module.description.in_chans if isinstance(module, ResidualNetwork) else None
    if first is None:
        conv_channels = (layer.in_channels for layer in module.modules() if isinstance(layer, nn.Conv2d))
        return native_channels or next(conv_channels, 3)
    if native_channels not in (None, first.channels):
        raise InputError(
            f"{candidate.name} is for images of {native_channels} channels, "
            f"{first.name} for {first.channels}; all get the same batch"
        )
    return first.channels


def count_work(module: nn.Module, x: Tensor) -> tuple[int, int, int]:
    """Parameters, multiply-adds for one of the images `x` (PyTorch's counter, halved), and classes."""
    from torch.utils.flop_counter import FlopCounterMode

    parameters = sum(parameter.numel() for parameter in module.parameters())
    if isinstance(module, ResidualNetwork):
        return parameters, module.description.multiply_adds, module.description.num_classes
    was_training = module.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        classes = compute_logits(module.eval(), x[:1]).shape[1]
    module.train(was_training)
    return parameters, counter.get_total_flops() // 2, classes
