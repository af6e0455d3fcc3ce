"""Turns the options of the command line into an `Experiment`.

experiment, splits = assemble_experiment(
    ExperimentOptions(model="preact_resnet110_cifar", data=DataOptions("cifar10"))
)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from kilolayer.cli.options import DataOptions, ExperimentOptions, RecipeOptions, UnitOptions, changed_flags
from kilolayer.data.config import Data
from kilolayer.errors import InputError
from kilolayer.networks import Network, describe
from kilolayer.system.fp32 import FP32_MAX, FP32_MIN_NORMAL, fits_fp32
from kilolayer.training import (
    Experiment,
    ProgressiveDepth,
    ProgressiveResize,
    Recipe,
    network_for_data,
    recipe_by_name,
    recipe_for_data,
)
from kilolayer.training.memory_budget import parse_memory
from kilolayer.training.optimizer import OPTIMIZERS
from kilolayer.training.recipes import MAX_ITERATIONS
from kilolayer.units import (
    ARRANGEMENTS,
    Projection,
    ZeroPad,
    parse_shortcut,
)

if TYPE_CHECKING:
    import torch

    from kilolayer.data import Splits
    from kilolayer.data.images import Source
    from kilolayer.training.experiment import InitialWeights

T = TypeVar("T")
Changes = tuple[tuple[float, float], ...]
DOWNSAMPLES = {"zero_pad": ZeroPad(), "projection": Projection()}
SMALL_IMAGE_MODEL, LARGE_IMAGE_MODEL = "preact_resnet20_cifar", "preact_resnet18"


def assemble_experiment(
    options: ExperimentOptions,
    device: torch.device | None = None,
    *,
    init: InitialWeights | None = None,
    network: Network | None = None,
) -> tuple[Experiment, Splits]:
    """The experiment and its data, read and checked. Only --download writes anything.

    `init` holds the weights to begin from. `network` is trained where the options name no model.

    Raises:
        InputError: an option cannot be used. Quick checks come before the data are read.
    """
    with _flags_for_fields(options):
        return _assemble_experiment(options, device, init, network)


@contextmanager
def _flags_for_fields(options: ExperimentOptions) -> Iterator[None]:
    """An error about a field that an option gives names the option: `ema is 2.0` becomes `--ema is 2.0`."""
    try:
        yield
    except InputError as error:
        flags = {flag.removeprefix("--").replace("-", "_"): flag for flag in changed_flags(options)}
        # A field of one word is an ordinary word too, except where a clause begins with it.
        patterns = (
            rf"(?<!')\b{field}\b" if "_" in field else rf"(?:^|(?<=\band )){field}(?= (?:is|and|gives)\b)"
            for field in flags
        )
        pattern = "|".join(patterns)
        if not pattern:
            raise
        raise InputError(re.sub(pattern, lambda match: flags[match[0]], str(error))) from error


def _assemble_experiment(
    options: ExperimentOptions,
    device: torch.device | None,
    init: InitialWeights | None,
    network: Network | None,
) -> tuple[Experiment, Splits]:
    from kilolayer.data import load
    from kilolayer.training import (
        choose_device,
        choose_graph,
        choose_kernels,
        choose_precision,
        evaluation_mode_for,
    )

    compute, unit = options.compute, options.unit
    parse_memory(compute.activation_memory)
    device = device or choose_device(compute.device)
    named_network = describe_with_options(options.model, unit) if options.model else network
    frozen = _trunk_rate(options.recipe) == 0
    fusable = (
        None
        if frozen or compute.kernels == "plain"
        else named_network or describe_with_options(SMALL_IMAGE_MODEL, unit)
    )
    precision = choose_precision(compute.precision, device, fusable)
    # PyTorch's CPU convolutions are faster with channels last, in fp32 too.
    memory_format = compute.memory_format
    if memory_format == "auto":
        is_faster = precision == "bf16" or device.type == "cpu"
        memory_format = "channels_last" if is_faster else "channels_first"
    kernels = choose_kernels(
        compute.kernels,
        device,
        precision,
        channels_last=memory_format == "channels_last",
        is_compiled=compute.compile != "off",
        trunk_frozen=frozen,
    )
    graph = choose_graph(compute.cuda_graph, device)
    data, source = _data(options.data)
    # Checks the recipe before the data are read, which may take long. The number of images decides only how
    # many steps there are, so any number serves here.
    _recipe(options.recipe, data, 50_000)
    splits = load(data, source)
    base = named_network or describe_with_options(model_name(options, splits.image_size), unit)
    experiment = Experiment(
        network=network_for_data(
            base, classes=splits.num_classes, in_chans=splits.in_chans, image_size=splits.image_size
        ),
        data=data,
        recipe=_recipe(options.recipe, data, len(splits.train)),
        seed=options.seed,
        precision=precision,
        memory_format=memory_format,
        compile=compute.compile,
        graph=graph,
        kernels=kernels,
        evaluation=evaluation_mode_for(kernels),
        activation_memory=compute.activation_memory,
        evaluate_every=options.evaluate_every,
        init=init,
    )
    return experiment, splits


def model_name(options: ExperimentOptions, image_size: int) -> str:
    """The name of the model in the options, or of the default model for images of this size."""
    return options.model or (SMALL_IMAGE_MODEL if image_size < 64 else LARGE_IMAGE_MODEL)


def describe_with_options(name: str, options: UnitOptions) -> Network:
    """The network called `name`, with the options' changes to its residual unit."""
    unit: dict[str, Any] = {}
    if options.arrangement is not None:
        if options.arrangement not in ARRANGEMENTS:
            raise InputError(
                f"unknown arrangement {options.arrangement!r}; allowed: {', '.join(ARRANGEMENTS)}"
            )
        unit["arrangement"] = ARRANGEMENTS[options.arrangement]
    if options.shortcut is not None:
        unit["h"] = parse_shortcut(options.shortcut)
    if options.downsample is not None:
        unit["downsample"] = DOWNSAMPLES[options.downsample]
    branch = {"stride_on": options.stride_on, "dropout": options.dropout}
    network = describe(
        name, unit=unit, branch={key: value for key, value in branch.items() if value is not None}
    )
    return _with_user_unit(network, name, options) if options.unit else network


OPTIONS_OF_PART = {
    "h": ("shortcut",),
    "arrangement": ("arrangement",),
    "branch": ("stride_on", "dropout"),
    "downsample": ("downsample",),
}
"""The fields of a unit, and the options that set each of them."""


def _reject_duplicates(options: UnitOptions, parts: Iterable[str]) -> None:
    """Raises `InputError` where --unit and another option both set one of these parts."""
    for option in (option for part in parts for option in OPTIONS_OF_PART[part]):
        if getattr(options, option) is not None:
            flag = option.replace("_", "-")
            raise InputError(f"--unit and --{flag} set the same part of the unit; give one of them")


def _with_user_unit(network: Network, name: str, options: UnitOptions) -> Network:
    """`network` with the user's own unit, or with the user's own part in its unit."""
    from kilolayer.units import extensions

    text = str(options.unit)

    if not extensions.split_reference(text)[1]:
        raise InputError(f"--unit is {text!r}; allowed: FILE.py:NAME, with the name of the unit in the file")
    field, value = extensions.load_part(text)
    _reject_duplicates(options, OPTIONS_OF_PART if field == "unit" else (field,))
    unit = value if field == "unit" else replace(network.unit, **{field: value})
    if unit.branch.layers != network.unit.branch.layers:
        raise InputError(
            f"the branch of {text} has {unit.branch.layers} layers and those of {name} have "
            f"{network.unit.branch.layers}; name a --model of such units, or use cifar(DEPTH, unit) in Python"
        )
    return replace(network, unit=unit)


def _data(options: DataOptions) -> tuple[Data, Source]:
    """The description of the data, and the data set opened once: `load` reads the images from it."""
    from kilolayer.data.loading import open_source, open_with_validation

    count, split = _validation(options.validation)
    data = Data(
        source=options.data,
        folder=options.data_folder,
        download=options.download,
        image_size=options.image_size,
        validation=count or 0,
        subset=options.subset,
        skip_damaged=options.skip_damaged,
        appearance=options.appearance,
        train=options.train,
        test=options.test,
        validation_split=split,
        image_column=options.image_column,
        label_column=options.label_column,
    )
    if options.validation is None:
        return open_with_validation(data)
    return data, open_source(data)


def _validation(text: str | None) -> tuple[int | None, str | None]:
    """The number of images, or the name of a split, that `--validation` gives."""
    if text is None:
        return None, None
    try:
        return int(text), None
    except ValueError:
        return None, text


def _recipe(options: RecipeOptions, data: Data, images: int) -> Recipe:
    """The named recipe for this many training images, with the options' changes."""
    if options.epochs is not None and options.iterations is not None:
        raise InputError("--epochs and --iterations exclude each other; give one of them")
    base = recipe_for_data(recipe_by_name(options.recipe, images), data)
    changed = base if options.optimizer is None else _with_optimizer(base, options.optimizer)
    if options.batch_size is not None:
        changed = replace(changed, batch_size=options.batch_size)
    overrides = {name: getattr(options, name) for name in ("weight_decay", "label_smoothing", "ema")}
    changed = replace(changed, **{name: value for name, value in overrides.items() if value is not None})
    if options.no_flip:
        changed = replace(changed, augmentation=replace(changed.augmentation, flip=False))
    trunk_rate = _trunk_rate(options)
    if trunk_rate is not None:
        changed = replace(changed, trunk_rate=trunk_rate)
    if options.progressive_resize is not None:
        changed = replace(
            changed,
            progressive_resize=_shares(ProgressiveResize, "--progressive-resize", options.progressive_resize),
        )
    if options.progressive_depth is not None:
        changed = replace(
            changed,
            progressive_depth=_shares(ProgressiveDepth, "--progressive-depth", options.progressive_depth),
        )
    if options.lr is not None:
        changed = replace(changed, rate=changed.rate.scale_rate(_rate(options.lr) / changed.rate.peak))
    return changed.with_iterations(_iterations(options, base, changed, images))


def _trunk_rate(options: RecipeOptions) -> float | None:
    """The trunk's share of the learning rate in the options; None leaves it to the recipe."""
    if options.trunk_lr is not None and not 0 <= options.trunk_lr <= 1:
        raise InputError(f"--trunk-lr is {options.trunk_lr:g}; allowed: a share from 0 to 1, as 0.1")
    if options.freeze_trunk and options.trunk_lr:
        raise InputError("--freeze-trunk and --trunk-lr exclude each other; give one of them")
    return 0.0 if options.freeze_trunk else options.trunk_lr


def _with_optimizer(base: Recipe, name: str) -> Recipe:
    if name not in OPTIMIZERS:
        raise InputError(f"--optimizer is {name!r}; allowed: {', '.join(OPTIMIZERS)}")
    optimizer = OPTIMIZERS[name]
    return base if type(optimizer) is type(base.optimizer) else base.with_optimizer(optimizer)


def _shares(kind: Callable[[float, Changes], T], flag: str, text: str) -> T:
    """Reads 0.5,0.75@0.4,1@0.7: a first scale, then each SCALE@SHARE holds from that share of the run on."""
    try:
        first, *later = text.split(",")
        start, pairs = float(first), [tuple(map(float, pair.split("@"))) for pair in later]
        changes = tuple((share, scale) for scale, share in pairs)
    except ValueError:
        raise InputError(
            f"{flag} is {text!r}; allowed: SCALE, or SCALE,SCALE@SHARE,… as 0.5,0.75@0.4,1@0.7"
        ) from None
    try:
        return kind(start, changes)
    except InputError as error:
        reason = re.sub(r"( of)? ?Progressive[A-Za-z]+(\.changes)?", "", str(error)).strip()
        raise InputError(f"{flag} is {text!r}: {reason}") from None


def _iterations(options: RecipeOptions, base: Recipe, changed: Recipe, images: int) -> int:
    steps_per_epoch = max(1, images // changed.batch_size)
    for name in ("epochs", "iterations"):
        value = getattr(options, name)
        if value is not None and not 1 <= value <= MAX_ITERATIONS:
            raise InputError(f"--{name} is {value}; allowed: a whole number from 1 to {MAX_ITERATIONS:,}")
    if options.iterations is not None:
        return options.iterations
    if options.epochs is not None:
        return options.epochs * steps_per_epoch
    if changed.batch_size == base.batch_size:
        return base.iterations
    return max(1, round(base.iterations / max(1, images // base.batch_size) * steps_per_epoch))


def _rate(value: float) -> float:
    if not fits_fp32(value) or value <= 0:
        raise InputError(f"--lr is {value:g}; allowed: from {FP32_MIN_NORMAL:.2g} to {FP32_MAX:.2g}")
    return value
