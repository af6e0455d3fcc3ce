"""The inputs of `kilolayer analyse`: named networks, runs, weights files and the user's own modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from kilolayer.cli.assemble import describe_with_options
from kilolayer.cli.options import AnalysisInputOptions, UnitOptions
from kilolayer.data import Data, Images, InputStatistics, Splits, load, measure_statistics
from kilolayer.data.images import Source
from kilolayer.data.loading import open_source
from kilolayer.data.randomness import random_permutation
from kilolayer.errors import InputError
from kilolayer.measure.analyses import ANALYSES
from kilolayer.measure.analysis_input import AnalysisInput
from kilolayer.measure.preservation import preserve_state
from kilolayer.networks import Network, build
from kilolayer.networks.user_module import is_user_module, load_user_module
from kilolayer.runs import Run, read_weights
from kilolayer.runs.data_record import check_same_part
from kilolayer.runs.trained_network import open_trained
from kilolayer.system.terminal import print_text
from kilolayer.theory.mean_field import no_prediction_reason
from kilolayer.training import choose_device, network_for_data

MAX_IMAGES = 2000
"""The most images from which an untrained network's input statistics are measured."""


@dataclass(frozen=True)
class _NamedNetwork:
    """A named network without images. `data`, `statistics` and `noted` are those of its training."""

    name: str
    fresh: Callable[[int], nn.Module]
    network: Network | None = None
    model: nn.Module | None = None
    data: Data | None = None
    statistics: InputStatistics | None = None
    moments: tuple[tuple[int, Callable[[], nn.Module]], ...] = ()
    noted: Mapping[str, str] = field(default_factory=dict)


def load_analysis_inputs(
    names: Sequence[str], options: AnalysisInputOptions, unit: UnitOptions
) -> list[AnalysisInput]:
    """All named networks with their images. Raises `InputError` for one that is missing or does not fit."""
    if not names:
        raise InputError("name a network, a run, a weights file, or FILE.py:CALLABLE")
    places = [str(Path(name).resolve()) if Path(name).exists() else name for name in names]
    if twice := [name for name, path in zip(names, places, strict=True) if places.count(path) > 1]:
        raise InputError(
            f"{twice[0]} is named twice, and --unit and the like hold for both; to see two units side by "
            "side, train both and name the runs, or name FILE.py:CALLABLE, which returns one of the networks"
        )
    device = choose_device(options.device)
    return _make_names_distinct(names, [_load_input(options, unit, name, device) for name in names])


def print_missing_predictions(what: str, inputs: Sequence[AnalysisInput]) -> None:
    """Says once a network that mean-field theory has no prediction, where an analysis would show it."""
    entries = ANALYSES.values() if what == "all" else [ANALYSES[what]]
    if not any(entry.mean_field for entry in entries):
        return
    for subject in inputs:
        if subject.description and (why := no_prediction_reason(subject.description)):
            print_text(f"no mean-field prediction for {subject.name}: {why}", stderr=True)


def _make_names_distinct(words: Sequence[str], subjects: list[AnalysisInput]) -> list[AnalysisInput]:
    """Inputs with the same name take the words of the command line as names, because results go by name."""
    names = [subject.name for subject in subjects]
    pairs = zip(words, subjects, strict=True)
    return [
        replace(analysis_input, name=word) if names.count(analysis_input.name) > 1 else analysis_input
        for word, analysis_input in pairs
    ]


def _load_input(
    options: AnalysisInputOptions, unit: UnitOptions, name: str, device: torch.device
) -> AnalysisInput:
    splits = load(*_data(options, named := _find_network(name, unit)))
    noted = named.noted if options.data is None else {}
    if len(splits.train) < MAX_IMAGES:  # a subset has another fingerprint
        check_same_part(name, "train", splits.train, noted)

    def held_out(count: int) -> tuple[Tensor, Tensor]:
        check_same_part(name, "test", splits.test, noted)
        return _normalised(_chosen(splits.test, count, options.seed), statistics, device)

    statistics = (named.statistics or measure_statistics(splits.train, "channel")).to(device)
    if named.network is not None and named.model is None:
        named = _fitted(named, splits)
    elif named.network is not None:
        _check_fits(name, named.network, splits)
    images = _chosen(splits.train, options.batch_size, options.seed).to(device)
    subject = AnalysisInput(
        name=named.name,
        model=(named.model or named.fresh(options.seed)).to(device),
        x=statistics.normalize(images.pixels),
        labels=images.labels,
        build_fresh=lambda seed: named.fresh(seed).to(device),
        held_out=held_out,
        description=named.network,
        units=options.units if named.network is None else (),
        seeds=tuple(range(options.seed, options.seed + options.seeds)),
        snapshots=tuple((at, partial(_on, load, device)) for at, load in named.moments),
        trained=named.model is not None,
    )
    if named.network is None:
        _check_takes(subject, splits.num_classes)
    return subject


def _on(load: Callable[[], nn.Module], device: torch.device) -> nn.Module:
    return load().to(device)


def _find_network(name: str, unit: UnitOptions) -> _NamedNetwork:
    if is_user_module(name):
        return _NamedNetwork(name.rpartition(":")[2], lambda seed: load_user_module(name, seed))
    if Path(name).exists() or name.endswith(".safetensors"):
        network_file = open_trained(name)
        network, data = (
            network_file.weights.model.description,
            network_file.experiment.data if network_file.experiment else None,
        )
        statistics, moments, noted = (
            network_file.weights.statistics,
            _moments(Path(name)),
            network_file.fingerprints,
        )
        return _NamedNetwork(
            name, _built(network), network, network_file.weights.model, data, statistics, moments, noted
        )
    network = describe_with_options(name, unit)
    return _NamedNetwork(name, _built(network), network)


def _moments(path: Path) -> tuple[tuple[int, Callable[[], nn.Module]], ...]:
    """The snapshots of a run. Each is read when it is needed."""
    if not path.is_dir():
        return ()
    return tuple((at, lambda file=file: read_weights(file).model) for at, file in Run(path).snapshots())


def _built(network: Network) -> Callable[[int], nn.Module]:
    def fresh(seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return build(network)

    return fresh


def _fitted(named: _NamedNetwork, splits: Splits) -> _NamedNetwork:
    assert named.network is not None  # noqa: S101
    network = network_for_data(
        named.network,
        classes=splits.num_classes,
        in_chans=splits.in_chans,
        image_size=splits.image_size,
    )
    return replace(named, network=network, fresh=_built(network))


def _check_fits(name: str, network: Network, splits: Splits) -> None:
    if network.num_classes != splits.num_classes or network.in_chans != splits.in_chans:
        raise InputError(
            f"{name} has {network.num_classes} classes and {network.in_chans} input channels, "
            f"{splits.name} {splits.num_classes} and {splits.in_chans}"
        )


def _data(options: AnalysisInputOptions, named: _NamedNetwork) -> tuple[Data, Source]:
    """The options' data, or the run's own, opened, with no more images than an analysis needs."""
    run_data = named.data
    side = options.image_size or (named.network.image_size if named.model and named.network else None)
    if options.data is None and run_data is not None:
        data = replace(run_data, folder=options.data_folder or run_data.folder, download=options.download)
    elif options.data is None and named.model is not None:
        raise InputError(f"{named.name} is a weights file, which names no data; add --data")
    else:
        appearance = run_data.appearance if run_data else "shown"
        source = options.data or "digits"
        data = Data(source, options.data_folder, options.download, side, appearance=appearance)
    opened = open_source(data)
    most = opened.count - data.validation
    if options.batch_size > most:
        raise InputError(f"--batch-size is {options.batch_size}, but there are {most:,} training images")
    subset = min(max(MAX_IMAGES, options.batch_size), data.subset or most, most)
    return replace(data, subset=subset), opened


def _chosen(images: Images, count: int, seed: int) -> Images:
    order = torch.from_numpy(random_permutation(len(images), "analysis", seed)[:count].copy())
    return images[order]


def _normalised(images: Images, statistics: InputStatistics, device: torch.device) -> tuple[Tensor, Tensor]:
    images = images.to(device)
    return statistics.normalize(images.pixels), images.labels


def _check_takes(subject: AnalysisInput, classes: int) -> None:
    """Raises `InputError` where the user's module does not map the images to a logit for each class."""
    shape = "×".join(map(str, subject.x.shape))
    try:
        with preserve_state(subject.model), torch.no_grad():
            logits = subject.model(subject.x)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{subject.name} does not take a batch of {shape}: {reason}") from None
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < classes:
        gives = "×".join(map(str, logits.shape)) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"{subject.name} gives {gives} for a batch of {shape}, not {classes} logits each")
