"""A contestant's module, ready to run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn

from kilolayer.bench.contestant import ENGINES, OURS_ALONE, Contestant
from kilolayer.errors import InputError
from kilolayer.kernels import fuse, pool
from kilolayer.networks import ResidualNetwork, build, describe
from kilolayer.training.device import choose_precision
from kilolayer.training.experiment import Precision
from kilolayer.training.memory import MemoryPlan, arranged


@dataclass(frozen=True)
class Built:
    """The module as it stands in its memory format, how to call it, and in which precision."""

    module: nn.Module
    precision: Precision
    channels_last: bool
    plan: MemoryPlan | None = None
    choices: tuple[str, ...] = ()


def built(one: Contestant, device: torch.device, batch_size: int, *, infer: bool, seed: int = 0) -> Built:
    """Builds it. Raises `InputError` where a package is missing or does not know the model."""
    torch.manual_seed(seed)
    plain = one.variant == "plain"
    pooled = one.variant in OURS_ALONE and device.type == "cpu"
    allocation = (pool.use(),) if pooled else ()
    module = _ours(one) if one.ours else _theirs(one)
    if one.variant in OURS_ALONE and not isinstance(module, ResidualNetwork):
        raise InputError(
            f"{one.name}: {one.model} gives {type(module).__name__}, which is not ours; "
            f"allowed for others: @plain, @eager, @{', @'.join(ENGINES)}"
        )
    fusable = (
        module.description if one.variant in OURS_ALONE and isinstance(module, ResidualNetwork) else None
    )
    precision: Precision = "fp32" if plain else choose_precision("auto", device, fusable)
    module = module.to(device).train(not infer)
    if not plain:
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    found = Built(module, precision, not plain, choices=allocation)
    if isinstance(module, ResidualNetwork) and one.variant == "fast" and not infer:
        return _made_fast(found, module, one, batch_size, device)
    return found


def _made_fast(
    found: Built, module: ResidualNetwork, one: Contestant, batch_size: int, device: torch.device
) -> Built:
    chosen = found.choices
    if device.type == "cpu" and found.precision == "bf16":
        chosen += (str(fuse(module)),)
    plan = arranged(module, one.memory, batch_size, found.precision, device)
    return replace(found, plan=plan, choices=chosen)


def _ours(one: Contestant) -> nn.Module:
    return build(describe(one.model))


def _theirs(one: Contestant) -> nn.Module:
    maker = _maker(one)
    try:
        with redirect_stdout(StringIO()):  # some of them talk
            made = maker()
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise InputError(f"{one.name}: {one.source} cannot make it: {str(error).splitlines()[0]}") from error
    if not isinstance(made, nn.Module):
        raise InputError(
            f"{one.name} gives {type(made).__name__}; allowed: a function that returns an nn.Module"
        )
    return made


def _maker(one: Contestant) -> Callable[[], Any]:
    if one.source.endswith(".py"):
        return _from_file(one)
    try:
        if one.source == "timm":
            timm = import_module("timm")
            return lambda: timm.create_model(one.model)
        if one.source == "torchvision":
            models = import_module("torchvision.models")
            return lambda: models.get_model(one.model, weights=None)
        provider = import_module("pytorchcv.model_provider")
        return lambda: provider.get_model(one.model)
    except ImportError:
        raise InputError(f"{one.name} needs {one.source}: pip install {one.source}") from None
    except RuntimeError as error:
        # torchvision raises this beside a PyTorch that it was not built for, and timm imports torchvision.
        raise InputError(
            f"{one.name}: {one.source} cannot be imported ({str(error).splitlines()[0]}); "
            f"install the torchvision that was built for PyTorch {torch.__version__}"
        ) from None


def _from_file(one: Contestant) -> Callable[[], Any]:
    spec = spec_from_file_location("kilolayer_bench_peer", one.source)
    assert spec is not None and spec.loader is not None  # noqa: S101, PT018 - it ends in .py
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"{one.name}: {one.source} cannot be imported: {error}") from error
    found = getattr(module, one.model, None)
    if not callable(found):
        raise InputError(f"{one.name}: {one.source} has no function {one.model}")
    return found  # type: ignore[no-any-return]


def image_side(one: Contestant, module: nn.Module) -> int:
    """The side of the square images that it is meant for: its own, 32 for CIFAR's names, else 224."""
    if isinstance(module, ResidualNetwork):
        return module.description.image_size
    return 32 if "cifar" in one.model or "svhn" in one.model else 224


def counts(module: nn.Module, x: Tensor) -> tuple[int, int]:
    """Trainable parameters, and multiply-adds for one of the images `x` (PyTorch's counter, halved)."""
    from torch.utils.flop_counter import FlopCounterMode

    parameters = sum(parameter.numel() for parameter in module.parameters())
    if isinstance(module, ResidualNetwork):
        return parameters, module.description.multiply_adds
    was_training = module.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.eval()(x[:1])
    module.train(was_training)
    return parameters, counter.get_total_flops() // 2
