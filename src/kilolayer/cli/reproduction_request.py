"""Turns the options of `kilolayer reproduce` into a `Request` and an engine for the sweep."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from kilolayer.cli.option_types import check_positive, check_seed_count
from kilolayer.cli.options import ReproductionOptions
from kilolayer.data.config import Data
from kilolayer.data.loading import open_source, split_indices
from kilolayer.errors import InputError
from kilolayer.papers import Plan, find_table, tables
from kilolayer.sweep import Engine, ProcessPool
from kilolayer.sweep.reproduction import SIZES, OwnRow, Request, Size
from kilolayer.training import choose_device, computation_options, evaluation_mode_for
from kilolayer.training.experiment import Kernels, memory_format_for
from kilolayer.units import extensions

if TYPE_CHECKING:
    from kilolayer.sweep.reproduction import Reproduction

SIZE_OPTIONS = ("image_size", "subset", "iterations", "batch_size", "evaluate_every")


def request_from_options(options: ReproductionOptions, looks: tuple[int, ...] | None = None) -> Request:
    """The sweep's request. Raises `InputError` for an option that cannot be used.

    looks: the numbers of seeds of a registered sweep; without --seeds there are as many as at the last.
    """
    runs = max(find_table(name).statistic.runs for name in options.tables)
    return Request(
        tables=options.tables,
        rows=options.rows,
        columns=options.columns,
        seeds=_seeds(options.seeds, runs if looks is None else looks[-1]),
        data=_data(options),
        recipe=options.recipe,
        size=_size(options),
        settings=options.settings,
        own_rows=_own_rows(options.row),
        **_computing(options),
    )


def _own_rows(texts: tuple[str, ...]) -> tuple[OwnRow, ...]:
    """The rows that --row defines. The code of their file runs."""
    rows: dict[str, OwnRow] = {}
    for text in texts:
        name, _, reference = text.partition("=")
        if not name.strip() or not extensions.split_reference(reference)[1]:
            raise InputError(f"--row is {text!r}; allowed: NAME=FILE.py:UNIT, as mine=mine.py:MyShortcut")
        if name in rows:
            raise InputError(f"--row has two rows called {name!r}; give them different names")
        field, value = extensions.load_part(reference)
        rows[name] = OwnRow(name, reference, **{field: value})
    if len(files := {extensions.split_reference(row.reference)[0] for row in rows.values()}) > 1:
        raise InputError(
            f"--row names several files, {', '.join(sorted(files))}; name one and let it load the others"
        )
    return tuple(rows.values())


def _computing(options: ReproductionOptions) -> dict[str, Any]:
    """How the runs are computed. A cluster's GPUs are on other machines, so we cannot query them here."""
    if options.engine != "ray" or not options.device.startswith("cuda"):
        return computation_options(choose_device(options.device), options.precision, options.kernels)
    precision = "bf16" if options.precision == "auto" else options.precision
    kernels: Kernels = "fused" if options.kernels == "fused" else "plain"
    return {
        "precision": precision,
        "memory_format": memory_format_for(precision),
        "kernels": kernels,
        "evaluation": evaluation_mode_for(kernels),
    }


def _data(options: ReproductionOptions) -> Data | None:
    if options.data is not None:
        return Data(options.data, folder=options.data_folder)
    if options.data_folder is None:
        return None
    used = {plan.data for plan in _plans(options)}
    if len(used) != 1:
        raise InputError(
            f"--data-folder is for one data set, and the tables use {', '.join(sorted(used))}; "
            f"set KILOLAYER_DATA, or give --data too"
        )
    return Data(used.pop(), folder=options.data_folder)


def _plans(options: ReproductionOptions) -> Iterator[Plan]:
    return (plan for name in options.tables for cell in find_table(name).cells for plan in cell.plans)


def _seeds(text: str | None, runs: int) -> tuple[int, ...]:
    if text is None:
        return tuple(range(runs))
    try:
        numbers = tuple(int(word) for word in text.removesuffix(",").split(","))
    except ValueError:
        numbers = (-1,)
    check_seed_count(len(numbers) if "," in text else numbers[0])
    chosen = numbers if "," in text else tuple(range(numbers[0]))
    if not chosen or min(chosen) < 0 or len(set(chosen)) != len(chosen):
        raise InputError(f"--seeds is {text!r}; allowed: a count from 1, or different seeds as 0,3,7")
    return chosen


def _size(options: ReproductionOptions) -> Size:
    size = SIZES[options.scale]
    overrides = {name: getattr(options, name) for name in SIZE_OPTIONS}
    changes = {name: value for name, value in overrides.items() if value is not None}
    if options.depths is not None:
        changes["depths"] = _depths(options)
    if options.image_size is not None:
        changes["imagenet_size"] = options.image_size
    if not changes:
        return size
    changed = replace(size, name=f"{size.name}, changed", **changes)
    changed.scale.describe()
    return changed


def _depths(options: ReproductionOptions) -> tuple[tuple[int, int], ...]:
    text = str(options.depths)
    try:
        pairs = [tuple(int(part) for part in pair.split("=")) for pair in text.split(",")]
        chosen = tuple((paper, ours) for paper, ours in pairs)
    except ValueError:
        raise InputError(f"--depths is {text!r}; allowed: pairs PAPER=OURS, as 110=56,164=83") from None
    # The depths of all tables: the command that repeats one cell names the depths of its whole sweep.
    paper_depths = sorted(
        {plan.depth for paper_table in tables() for cell in paper_table.cells for plan in cell.plans}
    )
    for paper, ours in chosen:
        if paper not in paper_depths or ours < 1:
            allowed = ", ".join(map(str, paper_depths))
            raise InputError(f"--depths has {paper}={ours}; allowed: from one of {allowed} to a depth from 1")
    return chosen


def check_reproduction_data(reproduction: Reproduction, fetch: bool) -> None:
    """Raises `InputError` for missing data, and for fewer images than a batch, before anything is written."""
    largest: dict[Data, int] = {}
    for run in reproduction.runs:
        data = run.experiment.data
        largest[data] = max(largest.get(data, 1), run.experiment.recipe.batch_size)
    for data, batch_size in largest.items():
        images = _images(replace(data, download=fetch))
        if batch_size > images:
            raise InputError(f"batch size {batch_size} is larger than the training set of {images:,} images")


def _images(data: Data) -> int:
    try:
        source = open_source(data)
    except InputError as error:
        if data.source == "imagenet":
            raise InputError("name the folder in which you have ImageNet: --data DIR") from None
        raise error
    return len(split_indices(source.count, data)[0])


def engine_from_options(options: ReproductionOptions, own_rows: Sequence[OwnRow] = ()) -> Engine:
    """The pool or the cluster that the options ask for. A cluster does not have the file of `own_rows`."""
    check_positive(options, "workers", "cores")
    if options.engine == "ray":
        if own_rows:
            raise InputError(
                "a row of your own runs on this machine, not on a Ray cluster; leave out --engine ray"
            )
        from kilolayer.sweep.ray_engine import RayEngine

        cores = cores_of_a_run(options) or 1
        return RayEngine(options.address, workers=options.workers, cpus=cores, device=options.device)
    if options.address is not None:
        raise InputError("--address names a Ray cluster; add --engine ray")
    return _pool(options)


def cores_of_a_run(options: ReproductionOptions) -> int | None:
    """The processor cores that each run gets, on which its figures depend; None: as PyTorch chooses."""
    if options.engine == "ray":
        return options.cores or 1
    if choose_device(options.device).type == "cuda":
        return options.cores
    return options.cores or max(1, (os.cpu_count() or 1) // _cpu_workers(options))


def _cpu_workers(options: ReproductionOptions) -> int:
    return options.workers or max(1, (os.cpu_count() or 1) // (options.cores or 1))


def _pool(options: ReproductionOptions) -> ProcessPool:
    device, cores = choose_device(options.device), cores_of_a_run(options)
    if device.type == "cuda":
        count = torch.cuda.device_count() if device.index is None else 1
        devices = [f"cuda:{device.index or number}" for number in range(count)]
        return ProcessPool(options.workers or count, threads=cores, devices=devices)
    return ProcessPool(_cpu_workers(options), threads=cores, devices=("cpu",))
