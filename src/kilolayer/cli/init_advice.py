"""Advice before a training from random weights on few images: which weights to begin from."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kilolayer.data.registry import DATASETS
from kilolayer.errors import KilolayerError
from kilolayer.runs import Run
from kilolayer.system.json_text import parse_json
from kilolayer.training import Experiment

if TYPE_CHECKING:
    from kilolayer.data import Splits

FEW_IMAGES = 100
"""With fewer images a class, random weights learn little: measured (docs/results, Fine-tuning)."""
LARGE_NETWORK = 100_000
"""A network with more parameters needs more than a few images."""
MAX_RUNS = 200
"""The most run folders that are searched for weights."""


def advise_on_init(
    experiment: Experiment, splits: Splits, folders: Iterable[Path], out: Path | None = None
) -> str | None:
    """Advice on the initial weights; None where weights are given, or there are enough images.

    A command stands on its own line. `folders` are searched for finished runs with suitable weights; `out` is
    the folder of this training.
    """
    if experiment.init is not None:
        return None
    a_class = len(splits.train) // splits.num_classes
    few = (
        a_class < FEW_IMAGES
        and experiment.network.parameters > LARGE_NETWORK
        and experiment.data.source not in DATASETS
    )
    if not few and experiment.recipe.name.partition("@")[0] != "finetune":
        return None
    why = (
        f"{a_class:,} images a class are few for {experiment.network.parameters:,} random weights"
        if few
        else "the recipe finetune expects trained weights"
    )
    return f"{why}; {_instead(next(source_runs(experiment, folders), None), out)}"


def _instead(source: Path | None, out: Path | None) -> str:
    if source is not None:
        return f"begin from a run's weights: --init {shlex.quote(str(source))} --recipe finetune"
    name = _free_name(out)
    return (
        f"train on a larger data set of the same kind first, then add --init {name} --recipe finetune\n"
        f"  kilolayer train --data cifar100 --download --out {name}"
    )


def _free_name(out: Path | None) -> Path:
    """A name for a run's folder that does not exist and is not `out`."""
    names = (Path(f"runs/source{suffix}") for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
    used = None if out is None else out.resolve()
    return next(name for name in names if not name.exists() and name.resolve() != used)


def source_runs(experiment: Experiment, folders: Iterable[Path]) -> Iterator[Path]:
    """Finished runs on other images with as many channels: the same network first, then the newest."""
    run_folders = [run for folder in dict.fromkeys(folders) for run in _runs(folder)]
    configs = ((run, _config(run)) for run in sorted(run_folders, key=_written, reverse=True)[:MAX_RUNS])
    fit = [(run, config) for run, config in configs if _is_source(config, experiment)]
    yield from (run for run, _ in sorted(fit, key=lambda pair: not _same_network(pair[1], experiment)))


def _runs(folder: Path) -> Iterator[Path]:
    try:
        yield from (path.parent for path in folder.glob("*/weights.safetensors"))
    except OSError:
        return


def _written(run: Path) -> float:
    try:
        return (run / "weights.safetensors").stat().st_mtime
    except OSError:
        return 0.0


def _config(run: Path) -> dict[str, Any]:
    """The run's experiment as JSON; empty where it cannot be read."""
    try:
        match parse_json(Run(run).read("config.json") or b""):
            case {"network": dict(network), "data": dict(data)}:
                return {"network": network, "data": data}
    except KilolayerError:
        pass
    return {}


def _is_source(config: dict[str, Any], experiment: Experiment) -> bool:
    if not config:
        return False
    source = config["data"].get("source")
    return config["network"].get("in_chans") == experiment.network.in_chans and source not in (
        "digits",
        experiment.data.source,
    )


def _same_network(config: dict[str, Any], experiment: Experiment) -> bool:
    from kilolayer.values import to_json_value

    adapted = ("num_classes", "in_chans", "image_size")
    network = to_json_value(experiment.network)
    return all(config["network"].get(key) == value for key, value in network.items() if key not in adapted)
