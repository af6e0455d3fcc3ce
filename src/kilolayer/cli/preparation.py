"""Prepares a training: reads and checks the options, the data and the weights, and writes nothing.

Every rank of a distributed run prepares by itself. No rank waits for another one here, so the caller may
compare the outcomes of all ranks once, at the end.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kilolayer.cli import resuming
from kilolayer.cli.assemble import assemble_experiment, model_name
from kilolayer.cli.init_advice import advise_on_init
from kilolayer.cli.options import TrainingOptions, UnitOptions
from kilolayer.data import Data, Splits, load
from kilolayer.data.registry import DATASETS
from kilolayer.errors import InputError
from kilolayer.networks import Network
from kilolayer.runs import Run, data_record, tensorboard
from kilolayer.runs.snapshots import check_snapshot_count
from kilolayer.system.ranks import is_main_process
from kilolayer.system.terminal import print_text
from kilolayer.training import DistributedContext, Experiment, Trainer
from kilolayer.training.device import check_threads
from kilolayer.training.experiment import InitialWeights
from kilolayer.units.extensions import split_reference
from kilolayer.weights import init_from_file, initial_network, load_initial_weights

SLOW_CPU_SIDE = 224
"""From this side on, in pixels, training is slow on a CPU. It is the default for images of several sizes."""


@dataclass(frozen=True)
class PreparedRun:
    """A trainer, the folder of its run, and its data at their present path."""

    trainer: Trainer
    folder: Path
    data: Data


def prepare_run(options: TrainingOptions, run: Run | None, context: DistributedContext) -> PreparedRun | None:
    """A new run, or `run` continued; None where `run` is finished already. Raises `InputError`."""
    if options.tensorboard and (run is None or run.result() is None):
        tensorboard.require_tensorboard()
    if run is None:
        return prepare_new_run(options, context)
    return prepare_resumed_run(run, options, context)


def prepare_new_run(options: TrainingOptions, context: DistributedContext) -> PreparedRun:
    """A new run with the options' experiment. Raises `InputError`."""
    use_threads(options.compute.threads)
    experiment, splits, model = _assemble(options, context)
    trainer = Trainer(experiment, splits, context)
    if options.compute.kernels == "fused":
        _check_fusion(trainer)
    match = load_initial_weights(trainer)
    if match and match.notes:
        warn("; ".join(match.notes))
    check_snapshot_count(options.snapshots, trainer.num_epochs)
    data = re.sub(r"[^\w.-]+", "_", Path(options.data.data).name) or "data"
    folder = Path(options.out or f"runs/{model}-{data}-s{options.seed}-{resuming.run_suffix()}")
    if advice := advise_on_init(experiment, splits, (folder.parent, Path("runs")), folder):
        warn(advice)
    _warn_of_size(experiment, options, context)
    return PreparedRun(trainer, folder, experiment.data)


def prepare_resumed_run(
    run: Run, options: TrainingOptions, context: DistributedContext
) -> PreparedRun | None:
    """The run's own experiment; None if it is finished. Raises `InputError`."""
    if resuming.is_resume_auto(options):
        requested, splits, _ = _assemble(options, context)
        resuming.reject_other_settings(run, requested, options)
        data = requested.data
    if resuming.is_finished(run, options):
        return None
    experiment = run.experiment()
    use_threads(options.compute.threads or resuming.previous_threads(run))
    if not resuming.is_resume_auto(options):
        data, splits = _load_data_of_run(run, options)
    trainer = Trainer(experiment, splits, context)
    # A saved state contains the initial weights; their file may no longer exist.
    if experiment.init is not None and (options.start_over or run.latest_checkpoint() is None):
        load_initial_weights(trainer)
    return PreparedRun(trainer, run.path, data)


def make_data_record(prepared: PreparedRun, run: Run | None) -> dict[str, Any]:
    """The run's record of its data, from the main rank. Raises `InputError` where the data changed."""
    if not prepared.trainer.context.is_main:
        return {}
    data, fingerprints = prepared.data, data_record.data_fingerprints(prepared.trainer)
    if run is not None:
        known_data = (run.experiment().data, data_record.locate_data(run))
        moved = all((data.source, data.folder) != (known.source, known.folder) for known in known_data)
        data_record.check_same_data(run, fingerprints, path_given=moved)
    return data_record.record_data(prepared.folder, data, fingerprints)


def _assemble(options: TrainingOptions, context: DistributedContext) -> tuple[Experiment, Splits, str]:
    """The experiment that the options describe, its data, and the network's name."""
    init = init_from_file(options.init) if options.init is not None else None
    network = _network_of(init, options) if init else None
    if network and options.data.image_size is None:
        options = replace(options, data=replace(options.data, image_size=network.image_size))
    experiment, splits = assemble_experiment(options, context.device, init=init, network=network)
    model = _source_name(options.init) if network else model_name(options, splits.image_size)
    return experiment, splits, model


def _network_of(init: InitialWeights, options: TrainingOptions) -> Network | None:
    """The network that the weights file describes, unless the options name another network or unit."""
    text = options.unit.unit
    only_loads_code = text is not None and not split_reference(text)[1]
    unit = replace(options.unit, unit=None) if only_loads_code else options.unit
    return initial_network(init) if options.model is None and unit == UnitOptions() else None


def _source_name(init: str | None) -> str:
    """A short name of the run or file whose weights a network begins from."""
    path = Path(init or "")
    folder = path if path.is_dir() else path.resolve().parent
    word = folder.name if path.is_dir() or path.name == "weights.safetensors" else path.stem
    return re.sub(r"[^\w.-]+", "_", word) or "weights"


def _load_data_of_run(run: Run, options: TrainingOptions) -> tuple[Data, Splits]:
    """A run's data, read from their present path."""
    data = resuming.data_of_run(run, options.data)
    if data != run.experiment().data:
        warn(f"reading the data from {data.folder if data.source in DATASETS else data.source}")
    return data, load(data)


def _warn_of_size(experiment: Experiment, options: TrainingOptions, context: DistributedContext) -> None:
    """Images of several sizes are resized to 224 pixels by default; on a CPU this warns that it is slow."""
    size = experiment.network.image_size
    chosen = options.data.image_size is not None or options.init is not None
    if context.device.type == "cpu" and size >= SLOW_CPU_SIDE and not chosen:
        warn(f"images of {size}×{size} pixels are slow on a CPU; --image-size 64 is faster")


def _check_fusion(trainer: Trainer) -> None:
    """Warns where fused kernels compute only some units. Raises `InputError` where nothing is fused."""
    report = trainer.kernels
    if report is None:
        return
    plain = [choice for choice in report.unit_choices if choice.reason]
    reasons = "; ".join(dict.fromkeys(choice.reason for choice in plain))
    if report.is_plain:
        raise InputError(
            f"no fused kernels for this network: of its units, {reasons}; use --kernels auto or plain"
        )
    if plain:
        total = sum(choice.units for choice in report.unit_choices)
        warn(
            f"{report.fused_units} of {total} units are fused as a whole; of the others: {reasons}; "
            f"--explain lists every unit"
        )


def use_threads(threads: int | None) -> None:
    """Sets the number of CPU threads; None leaves it as it is. Raises `InputError`."""
    if threads is not None:
        check_threads(threads)
        torch.set_num_threads(threads)


def warn(text: str) -> None:
    """Prints a line on standard error, on the main rank."""
    # A closed stream or a full disk must not change how the command ends.
    with suppress(OSError):
        if is_main_process():
            print_text(f"kilolayer: {text}", stderr=True)
