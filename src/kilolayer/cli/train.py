"""kilolayer train: trains an experiment in a run's folder, from the beginning or from a saved state."""

from __future__ import annotations

import gc
import shlex
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kilolayer.cli import resuming
from kilolayer.cli.options import TrainingOptions
from kilolayer.errors import InputError

if TYPE_CHECKING:
    from kilolayer.cli.preparation import PreparedRun
    from kilolayer.runs import Run
    from kilolayer.system.stopping import StopRequest
    from kilolayer.training import DistributedContext, Trainer

MAX_SECONDS = 10**9


@dataclass(frozen=True)
class TrainOptions(TrainingOptions):
    """Train a network and record the run in a folder.

    Without options it trains 20 layers on the digits that come with the package.

    Ctrl-C saves the state, and --resume continues. For a job that may be restarted, --out DIR --resume auto
    begins the run or continues it.
    """


def execute(options: TrainOptions) -> int:
    """Trains, and returns the exit status: 0 when finished, 143 when stopped with the state saved."""
    resuming.reject_changed_options(options)
    if not 0 <= options.save_every <= MAX_SECONDS:
        raise InputError(f"--save-every is {options.save_every}; allowed: seconds from 0 to {MAX_SECONDS:,}")
    from kilolayer.training import distributed_context
    from kilolayer.training.distributed import on_all_ranks

    with distributed_context(options.compute.device) as context:
        status = _train(options, context)
        # All ranks leave together, and the objects that hold gloo's threads are freed first: an interpreter
        # that ends before these threads aborts.
        on_all_ranks(context, lambda: None)
        gc.collect()
        return status


def _train(options: TrainOptions, context: DistributedContext) -> int:
    from kilolayer.cli.explaining import explain_training
    from kilolayer.cli.preparation import make_data_record, prepare_run
    from kilolayer.runs import trainer_environment
    from kilolayer.system.stopping import stoppable
    from kilolayer.training.distributed import on_all_ranks

    begun = resuming.run_to_continue(options, context)
    prepared = on_all_ranks(context, lambda: prepare_run(options, begun, context))
    if prepared is None:
        return 0
    if options.explain:
        return explain_training(prepared.trainer)
    record = on_all_ranks(context, lambda: make_data_record(prepared, begun))
    environment = trainer_environment(prepared.trainer) | record
    with ExitStack() as resources:
        stop = resources.enter_context(stoppable())
        run = _claim_folder(prepared, environment, options, resources)
        # Another process may have finished the run before this one had the lock.
        if resuming.is_finished(run, options):
            return 0
        return _run_training(run, prepared.trainer, environment, stop, options)


def _claim_folder(
    prepared: PreparedRun, environment: dict[str, Any], options: TrainOptions, resources: ExitStack
) -> Run:
    """The run's folder. Only the main rank makes it and holds its lock."""
    from kilolayer.runs import Run
    from kilolayer.training.distributed import on_main_rank

    trainer = prepared.trainer
    new = options.resume is None and not resuming.is_torchrun_restart()

    claimed_runs: list[Run] = []

    def claim() -> str:
        claimed = Run.open_or_create(
            prepared.folder,
            trainer.experiment,
            new=new,
            snapshots=options.snapshots,
            environment=environment,
        )
        claimed_runs.append(resources.enter_context(claimed))
        if options.start_over and claimed_runs[0].result() is None:
            claimed_runs[0].start_over()
        return str(claimed_runs[0].path)

    path = on_main_rank(trainer.context, claim)
    return claimed_runs[0] if claimed_runs else Run.open(path)


def _run_training(
    run: Run, training: Trainer, environment: dict[str, Any], stop: StopRequest, options: TrainOptions
) -> int:
    from kilolayer.cli.preparation import warn
    from kilolayer.report import training_summary
    from kilolayer.report.training_progress import training_display
    from kilolayer.runs import train_run
    from kilolayer.runs.tensorboard import tensorboard_writer
    from kilolayer.system.stopping import STOPPED_STATUS

    shows = options.tensorboard and training.context.is_main
    write = tensorboard_writer(run) if shows else lambda row: None
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
        warn(
            f"stopped at iteration {training.state.iteration:,}, state saved; to continue:\n  {_resume(run)}"
        )
        return STOPPED_STATUS
    if training.context.is_main:
        training_summary.print_training_result(run)
    return 0


def _resume(run: Run) -> str:
    from kilolayer.units import extensions

    return shlex.join(["kilolayer", "train", "--resume", str(run.path), *extensions.unit_option()])
