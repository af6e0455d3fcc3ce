"""kilolayer train: trains an experiment in a run's folder, from the beginning or from a saved state."""

from __future__ import annotations

import gc
import re
import shlex
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kilolayer.cli import resuming
from kilolayer.cli.option_types import OptionalFile, Switch, Whole
from kilolayer.cli.options import RunOptions, UnitOptions
from kilolayer.data.registry import DATASETS
from kilolayer.errors import InputError
from kilolayer.system.ranks import is_main_process

if TYPE_CHECKING:
    from kilolayer.data import Data, Splits
    from kilolayer.networks import Network
    from kilolayer.runs import Run
    from kilolayer.system.stopping import StopRequest
    from kilolayer.training import DistributedContext, Experiment, Trainer
    from kilolayer.training.experiment import InitialWeights

    Prepared = tuple[Trainer, Path, Data]
    """A trainer, the folder of its run, and its data at their present path."""

MOST_SECONDS = 10**9
SLOW_CPU_SIDE = 224
"""From this side on, in pixels, training is slow on a CPU. It is the default for images of several sizes."""


@dataclass(frozen=True)
class TrainOptions(RunOptions):
    """Train a network and record the run in a folder.

    Without options it trains 20 layers on the digits that come with the package.

    Ctrl-C saves the state, and --resume continues. For a job that may be restarted, --out DIR --resume auto
    begins the run or continues it.
    """

    init: OptionalFile = None
    """Begin from the weights of this file or run; otherwise from random weights. The classifier is new if the
    classes differ, and the stem is adapted to another number of channels; every other tensor must fit.
    Without --model the network and the size of the images are the file's."""
    explain: Switch = False
    """Print the choices for speed and memory with their reasons, measure three steps, and write nothing."""
    save_every: Whole = 300
    """Seconds between two saves of the state; it is saved at the end of every epoch too."""
    tensorboard: bool = find_spec("tensorboard") is not None
    """Write DIR/tensorboard too (on if TensorBoard is installed)."""


def execute(options: TrainOptions) -> int:
    """Trains, and returns the exit status: 0 when finished, 143 when stopped with the state saved."""
    resuming.reject_changed_options(options)
    if not 0 <= options.save_every <= MOST_SECONDS:
        raise InputError(f"--save-every is {options.save_every}; allowed: seconds from 0 to {MOST_SECONDS:,}")
    from kilolayer.training import distributed_context
    from kilolayer.training.distributed import on_all_ranks

    with distributed_context(options.compute.device) as context:
        status = _train_in_context(options, context)
        # All ranks leave together, and the objects that hold gloo's threads are freed first: an interpreter
        # that ends before these threads aborts.
        on_all_ranks(context, lambda: None)
        gc.collect()
        return status


def _train_in_context(options: TrainOptions, context: DistributedContext) -> int:
    from kilolayer.cli.explaining import explain_training
    from kilolayer.runs import trainer_environment
    from kilolayer.system.stopping import stoppable
    from kilolayer.training.distributed import on_all_ranks

    before = resuming.run_to_continue(options, context)
    prepared = (
        _prepare_new_run(options, context)
        if before is None
        else _prepare_resumed_run(before, options, context)
    )
    if prepared is None:
        return 0
    training, folder, data = prepared
    if options.explain:
        return explain_training(training)
    noted = on_all_ranks(context, lambda: _data_note(training, folder, data, before))
    with ExitStack() as resources:
        stop = resources.enter_context(stoppable())
        new = options.resume is None and not resuming.is_torchrun_restart()
        here_now = trainer_environment(training) | noted
        run = _claim_folder(
            folder, training, here_now, new=new, snapshots=options.snapshots, resources=resources
        )
        # Another process may have finished the run before this one had the lock.
        return 0 if resuming.is_finished(run) else _run_training(run, training, here_now, stop, options)


def _data_note(training: Trainer, folder: Path, data: Data, before: Run | None) -> dict[str, Any]:
    """The run's record of its data. Raises `InputError` where the data changed since the run began."""
    from kilolayer.runs import data_record

    if not training.context.is_main:
        return {}
    fingerprints = data_record.data_fingerprints(training)
    if before is not None:
        known_data = (before.experiment().data, data_record.locate_data(before))
        moved = all((data.source, data.folder) != (known.source, known.folder) for known in known_data)
        data_record.check_same_data(before, fingerprints, path_given=moved)
    return data_record.record_data(folder, data, fingerprints)


def _assemble(options: TrainOptions, context: DistributedContext) -> tuple[Experiment, Splits, str]:
    """The experiment that the options describe, its data, and the network's name."""
    from kilolayer.cli.assemble import assemble_experiment, model_name
    from kilolayer.training.distributed import on_all_ranks
    from kilolayer.weights import init_from_file

    init = (
        on_all_ranks(context, lambda: init_from_file(str(options.init))) if options.init is not None else None
    )
    network = _network_of(init, options) if init else None
    if network and options.data.image_size is None:
        options = replace(options, data=replace(options.data, image_size=network.image_size))
    experiment, splits = on_all_ranks(
        context, lambda: assemble_experiment(options, context.device, init=init, network=network)
    )
    model = _source(options.init) if network else model_name(options, splits.image_size)
    return experiment, splits, model


def _prepare_new_run(options: TrainOptions, context: DistributedContext) -> Prepared:
    """A new run: everything is read and checked, and nothing is written."""
    from kilolayer.cli.init_advice import advise_on_init
    from kilolayer.runs import tensorboard
    from kilolayer.runs.snapshots import check_snapshot_count as check_snapshots
    from kilolayer.training import Trainer
    from kilolayer.training.distributed import on_all_ranks
    from kilolayer.weights import load_initial_weights

    if options.tensorboard:
        tensorboard.require_tensorboard()
    _use_threads(options.compute.threads)
    experiment, splits, model = _assemble(options, context)
    training = on_all_ranks(context, lambda: Trainer(experiment, splits, context))
    fit = on_all_ranks(context, lambda: load_initial_weights(training))
    if fit and fit.notes:
        _warn("; ".join(fit.notes))
    on_all_ranks(context, lambda: check_snapshots(options.snapshots, training.num_epochs))
    data = re.sub(r"[^\w.-]+", "_", Path(options.data.data).name) or "data"
    name = f"{model}-{data}-s{options.seed}-{resuming.run_suffix()}"
    folder = Path(options.out or f"runs/{name}")
    if warning := advise_on_init(experiment, splits, (folder.parent, Path("runs")), folder):
        _warn(warning)
    _hint_at_size(experiment, options, context)
    return training, folder, experiment.data


def _hint_at_size(experiment: Experiment, options: TrainOptions, context: DistributedContext) -> None:
    """Images of several sizes are resized to 224 pixels by default; on a CPU this warns that it is slow."""
    size = experiment.network.image_size
    chosen = options.data.image_size is not None or options.init is not None
    if context.device.type == "cpu" and size >= SLOW_CPU_SIDE and not chosen:
        _warn(f"images of {size}×{size} pixels are slow on a CPU; --image-size 64 is faster")


def _network_of(init: InitialWeights, options: TrainOptions) -> Network | None:
    """The network that the weights file describes, unless the options name another network."""
    from kilolayer.weights import initial_network

    return initial_network(init) if options.model is None and options.unit == UnitOptions() else None


def _source(init: str | None) -> str:
    """A short name of the run or file whose weights a network begins from."""
    path = Path(init or "")
    folder = path if path.is_dir() else path.resolve().parent
    word = folder.name if path.is_dir() or path.name == "weights.safetensors" else path.stem
    return re.sub(r"[^\w.-]+", "_", word) or "weights"


def _prepare_resumed_run(run: Run, options: TrainOptions, context: DistributedContext) -> Prepared | None:
    """The run's own experiment; None if it is finished."""
    from kilolayer.runs import tensorboard
    from kilolayer.training import Trainer
    from kilolayer.training.distributed import on_all_ranks
    from kilolayer.weights import load_initial_weights

    if resuming.is_resume_auto(options):
        requested, splits, _ = _assemble(options, context)
        on_all_ranks(context, lambda: resuming.reject_other_settings(run, requested, options))
        data = requested.data
    if resuming.is_finished(run):
        return None
    if options.tensorboard:
        tensorboard.require_tensorboard()
    experiment = run.experiment()
    _use_threads(options.compute.threads or resuming.previous_threads(run))
    if not resuming.is_resume_auto(options):
        data, splits = _data_of(run, options, context)
    training = on_all_ranks(context, lambda: Trainer(experiment, splits, context))
    # A saved state contains the initial weights; their file may no longer exist.
    if experiment.init is not None and run.latest_checkpoint() is None:
        on_all_ranks(context, lambda: load_initial_weights(training))
    return training, run.path, data


def _data_of(run: Run, options: TrainOptions, context: DistributedContext) -> tuple[Data, Splits]:
    """A run's data, read from their present path."""
    from kilolayer.data import load
    from kilolayer.training.distributed import on_all_ranks

    data = on_all_ranks(context, lambda: resuming.data_of_run(run, options.data))
    if data != run.experiment().data:
        _warn(f"reading the data from {data.folder if data.source in DATASETS else data.source}")
    return data, on_all_ranks(context, lambda: load(data))


def _claim_folder(
    folder: Path,
    training: Trainer,
    environment: dict[str, Any],
    *,
    new: bool,
    snapshots: int,
    resources: ExitStack,
) -> Run:
    """The run's folder. Only the main rank makes it and holds its lock."""
    from kilolayer.runs import Run
    from kilolayer.training.distributed import on_main_rank

    def take() -> str:
        claimed = Run.open_or_create(
            folder, training.experiment, new=new, snapshots=snapshots, environment=environment
        )
        return str(resources.enter_context(claimed).path)

    return Run.open(on_main_rank(training.context, take))


def _run_training(
    run: Run, training: Trainer, environment: dict[str, Any], stop: StopRequest, options: TrainOptions
) -> int:
    from kilolayer.report import training_summary
    from kilolayer.report.training_progress import training_display
    from kilolayer.runs import train_run
    from kilolayer.runs.tensorboard import tensorboard_writer
    from kilolayer.system.stopping import STOPPED_STATUS

    shows = options.tensorboard and training.context.is_main
    write = tensorboard_writer(run.file("tensorboard")) if shows else lambda row: None
    display = training_display(training)
    with ExitStack() as screen:

        def on_start() -> None:
            training_summary.print_training_start(run, training)
            screen.enter_context(display)

        def on_epoch(row: dict[str, Any]) -> None:
            write(row)
            display.epoch(row)

        seconds = options.save_every
        hear: dict[str, Any] = {"on_start": on_start, "on_epoch": on_epoch}
        for _ in train_run(run, training, stop=stop, save_seconds=seconds, environment=environment, **hear):
            display.step()
    if not training.is_finished:
        _warn(
            f"stopped at iteration {training.state.iteration:,}, state saved; to continue:\n  {_resume(run)}"
        )
        return STOPPED_STATUS
    if training.context.is_main:
        training_summary.print_training_result(run)
    return 0


def _use_threads(threads: int | None) -> None:
    if threads is None:
        return
    import torch

    from kilolayer.training.device import check_threads

    check_threads(threads)
    torch.set_num_threads(threads)


def _resume(run: Run) -> str:
    from kilolayer.units import extensions

    return shlex.join(["kilolayer", "train", "--resume", str(run.path), *extensions.unit_option()])


def _warn(text: str) -> None:
    from kilolayer.system.terminal import print_text

    # A closed stream or a full disk must not change how the command ends.
    with suppress(OSError):
        if is_main_process():
            print_text(f"kilolayer: {text}", stderr=True)
