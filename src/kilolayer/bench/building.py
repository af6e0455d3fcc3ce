"""A contestant's module, ready to run."""

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

from kilolayer.bench.checks import logits
from kilolayer.bench.contestant import ENGINES, OURS_ALONE, Contestant
from kilolayer.errors import InputError
from kilolayer.kernels import fuse, pool
from kilolayer.networks import ResidualNetwork, build, describe
from kilolayer.training.device import choose_precision
from kilolayer.training.experiment import Precision
from kilolayer.training.memory import MemoryPlan, arranged


@dataclass(frozen=True)
class First:
    """The first contestant's name, images and number of classes: the others are given the same batch."""

    name: str
    image_side: int
    channels: int
    classes: int


@dataclass(frozen=True)
class Built:
    """The module as it stands in its memory format, how to call it, and in which precision."""

    module: nn.Module
    precision: Precision
    channels_last: bool
    image_side: int
    channels: int
    plan: MemoryPlan | None = None
    choices: tuple[str, ...] = ()


def built(
    one: Contestant,
    device: torch.device,
    batch_size: int,
    *,
    infer: bool,
    image_size: int | None = None,
    first: First | None = None,
) -> Built:
    """Builds it, for images of `image_size` where that is asked for.

    Raises `InputError` where a package is missing, does not know the model, or a file's code fails.
    """
    torch.manual_seed(0)
    plain = one.variant == "plain"
    pooled = one.variant in OURS_ALONE and device.type == "cpu"
    allocation = (pool.use(),) if pooled else ()
    module = _ours(one) if one.ours else _theirs(one)
    if one.variant in OURS_ALONE and not isinstance(module, ResidualNetwork):
        raise InputError(
            f"{one.name}: {one.model} gives {type(module).__name__}, which is not ours; "
            f"allowed for others: @plain, @eager, @{', @'.join(ENGINES)}"
        )
    side = _side(one, module, image_size, first)
    channels = _channels(one, module, first)
    if isinstance(module, ResidualNetwork):
        # What is counted and planned is for the images that it is given.
        module.description = replace(module.description, image_size=side)
    fusable = (
        module.description if one.variant in OURS_ALONE and isinstance(module, ResidualNetwork) else None
    )
    precision: Precision = "fp32" if plain else choose_precision("auto", device, fusable)
    module = module.to(device).train(not infer)
    if not plain:
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    found = Built(module, precision, not plain, side, channels, choices=allocation)
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
    with blamed(one.name, "making it"), redirect_stdout(StringIO()):  # some of them talk
        made = maker()
    if not isinstance(made, nn.Module):
        raise InputError(
            f"{one.name} gives {type(made).__name__}; allowed: a function that returns an nn.Module"
        )
    return made


@contextmanager
def blamed(name: str, moment: str, *, ours: bool = False) -> Iterator[None]:
    """Within, the code of a contestant runs: an `InputError` gets its name, and so does whatever else the
    code of others raises. A fault of `ours` stays what it is.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    except (Exception, SystemExit) as error:
        if ours:
            raise
        said = str(error).strip().partition("\n")[0]
        raise InputError(f"{name}: {moment} raised {type(error).__name__}{said and ': '}{said}") from error


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
    except ImportError as error:
        missing = (error.name or one.source).partition(".")[0]
        by = "" if missing == one.source else f", which {one.source} imports"
        raise InputError(f"{one.name} needs {missing}{by}: pip install {missing}") from None
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
    with blamed(one.name, "importing it"):
        spec.loader.exec_module(module)
    found = getattr(module, one.model, None)
    if not callable(found):
        raise InputError(f"{one.name}: {one.source} has no function {one.model}")
    return found  # type: ignore[no-any-return]


def _side(one: Contestant, module: nn.Module, asked: int | None, first: First | None) -> int:
    """Of the square images: as asked for, else the first contestant's own."""
    own = _own_side(one, module)
    if asked:
        return asked
    if first is None:
        if own is None:
            raise InputError(
                f"{one.name} comes first, and the side of its images is not known; add --image-size N, "
                "or name a network of ours before it"
            )
        return own
    if own not in (None, first.image_side):
        raise InputError(
            f"{one.name} is for images of {own} pixels a side, {first.name} for {first.image_side}; "
            "all have the same batch: add --image-size N"
        )
    return first.image_side


def _own_side(one: Contestant, module: nn.Module) -> int | None:
    """That of its description; of a package's by its name; a file does not say."""
    if isinstance(module, ResidualNetwork):
        return module.description.image_size
    if one.source.endswith(".py"):
        return None
    return 32 if "cifar" in one.model or "svhn" in one.model else 224


def _channels(one: Contestant, module: nn.Module, first: First | None) -> int:
    own = module.description.in_chans if isinstance(module, ResidualNetwork) else None
    if first is None:
        read = (part.in_channels for part in module.modules() if isinstance(part, nn.Conv2d))
        return own or next(read, 3)
    if own not in (None, first.channels):
        raise InputError(
            f"{one.name} is for images of {own} channels, {first.name} for {first.channels}; "
            "all have the same batch"
        )
    return first.channels


def counts(module: nn.Module, x: Tensor) -> tuple[int, int, int]:
    """Parameters, multiply-adds for one of the images `x` (PyTorch's counter, halved), and classes."""
    from torch.utils.flop_counter import FlopCounterMode

    parameters = sum(parameter.numel() for parameter in module.parameters())
    if isinstance(module, ResidualNetwork):
        return parameters, module.description.multiply_adds, module.description.num_classes
    was_training = module.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        classes = logits(module.eval(), x[:1]).shape[1]
    module.train(was_training)
    return parameters, counter.get_total_flops() // 2, classes
