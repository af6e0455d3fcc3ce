"""Continuing a run: the options that --resume allows, and the settings in the run's folder."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kilolayer.cli.options import ComputeOptions, DataOptions, TrainingOptions, changed_flags
from kilolayer.errors import InputError
from kilolayer.system.folders import expand_home
from kilolayer.system.printer import print_line

if TYPE_CHECKING:
    from kilolayer.data import Data
    from kilolayer.runs import Run
    from kilolayer.training import DistributedContext, Experiment, Recipe

ALLOWED_WITH_RESUME = (
    *("--resume", "--device", "--threads", "--save-every", "--tensorboard", "--unit"),
    *("--data", "--data-folder", "--download", "--start-over"),
)
SETTING_NAMES = {
    "recipe.name": "--recipe",
    "recipe.iterations": "steps (--epochs, --iterations)",
    "recipe.batch_size": "--batch-size",
    "recipe.rate.peak": "--lr",
}
"""The options that set these fields of an experiment, where their names differ."""
AUTO = "auto"
"""The value of --resume that begins the run in --out, or continues it."""
LOCATIONS = ("data.source", "data.folder", "data.download", "init.path")
"""Fields of an experiment that name places of files. The files' contents are compared by fingerprints."""


def is_resume_auto(options: TrainingOptions) -> bool:
    """Whether --resume is the word `auto`. Without --out a folder named `auto` is meant, if there is one."""
    return options.resume == AUTO and (options.out is not None or not os.path.isdir(AUTO))


def run_to_continue(options: TrainingOptions, context: DistributedContext) -> Run | None:
    """The run to continue; None where a run begins. The main rank decides, because it makes the folder.

    Raises `InputError`.
    """
    from kilolayer.runs import Run
    from kilolayer.training.distributed import on_main_rank

    if options.resume is None:
        return None
    if not is_resume_auto(options):
        return Run.open(options.resume)
    folder = Path(str(options.out))
    begun = on_main_rank(context, lambda: str(folder) if os.path.lexists(folder / "config.json") else "")
    return Run.open(begun) if begun else None


def data_of_run(run: Run, options: DataOptions) -> Data:
    """The run's data at their present path: the options' path, or the path of the last start."""
    from kilolayer.data.registry import DATASETS
    from kilolayer.runs.data_record import locate_data
    from kilolayer.system.message_text import quote

    data = locate_data(run)
    data = replace(
        data,
        source=options.data if options.data != type(options).data else data.source,
        folder=options.data_folder or data.folder,
        download=options.download or data.download,
    )
    if data.source not in DATASETS and not os.path.exists(expand_home(data.source)):
        raise InputError(
            f"data: {quote(data.source)} does not exist; to continue {run.path} name the data's new place: "
            "--data PATH"
        )
    return data


def reject_other_settings(run: Run, requested: Experiment, options: TrainingOptions) -> None:
    """Raises `InputError` naming each setting in which `requested` differs from the run's experiment.

    For settings left to the machine, the choice at the run's beginning counts.
    """
    from kilolayer.system.message_text import listing

    began = run.experiment()
    then = {**_settings(began), "snapshots": run.planned_snapshots()}
    now = {**_settings(_as_chosen(began, requested, options.compute)), "snapshots": options.snapshots}
    names = [name for name in {**then, **now} if then.get(name) != now.get(name) and name not in LOCATIONS]
    if names:
        differences = [
            f"{SETTING_NAMES.get(name, name)} {_in_words(then.get(name))} (now {_in_words(now.get(name))})"
            for name in _chosen(names, began.recipe, requested.recipe)
        ]
        raise InputError(
            f"{run.path} was begun with other settings: {listing(differences)}; give the same settings, or "
            "choose another --out"
        )


def _chosen(names: list[str], began: Recipe, now: Recipe) -> list[str]:
    """The differing settings that the user chose; the other differences follow from them."""
    if _base(began) != _base(now):  # another recipe: its settings follow
        return [name for name in names if name == "recipe.name" or not name.startswith("recipe.")]
    follows = ["recipe.name"]
    if began.with_iterations(now.iterations).rate == now.rate:
        follows += [name for name in names if name.startswith("recipe.rate.")]
    independent = [name for name in names if name not in follows]
    return independent or names


def _base(recipe: Recipe) -> str:
    return recipe.name.partition("@")[0]


def _as_chosen(began: Experiment, experiment: Experiment, compute: ComputeOptions) -> Experiment:
    is_given = {
        "precision": compute.precision != "auto",
        "memory_format": compute.memory_format != "auto",
        "kernels": compute.kernels != "auto",
        "evaluation": compute.kernels != "auto",  # follows from the kernels
        "graph": compute.cuda_graph != "auto",
    }
    return replace(
        experiment,
        **{name: getattr(began, name) for name, given_by_user in is_given.items() if not given_by_user},
    )


def _settings(experiment: Experiment) -> dict[str, Any]:
    from kilolayer.values import to_json_value

    return dict(_flat(to_json_value(experiment)))


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The numbers and words in a JSON value, each with its path, such as recipe.rate.peak."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _flat(item, f"{name}.{key}" if name else str(key))
    if not isinstance(value, dict | list):
        yield name, value


def _in_words(value: Any) -> str:
    return "none" if value is None else str(value)


def is_torchrun_restart() -> bool:
    """Whether torchrun restarted this command (--max-restarts); it then continues its own run."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def run_suffix() -> str:
    """Four characters that make a run's folder unique; under torchrun they are the same at every restart."""
    job = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return secrets.token_hex(2) if job == "none" else blake2b(job.encode(), digest_size=2).hexdigest()


def is_finished(run: Run, options: TrainingOptions) -> bool:
    """Whether the run is done. Raises `InputError` where it cannot continue, or cannot begin anew."""
    result = run.result()
    if result is None:
        return False
    if result.get("status") != "done":
        raise InputError(f"{run.path} cannot continue: {result.get('reason', 'it diverged')}")
    if options.start_over:
        raise InputError(f"{run.path} is finished; a finished run is not begun anew: choose another --out")
    print_line(f"{run.path} is done: test error {result['test_error']:.2f} %")
    return True


def reject_changed_options(options: TrainingOptions) -> None:
    """Raises `InputError` naming the options that a resumed run cannot take."""
    if options.start_over and options.resume is None:
        raise InputError("--start-over begins a run anew that lies in a folder already; add --resume DIR")
    if options.resume is None or is_resume_auto(options):
        if options.resume and options.out is None:
            raise InputError(
                "--resume auto begins or continues the run in --out DIR; add --out DIR, or name the "
                "folder of a run: --resume DIR"
            )
        return
    refused = [flag for flag in changed_flags(options) if flag not in ALLOWED_WITH_RESUME]
    if refused:
        raise InputError(
            f"--resume takes everything from the run's config.json; leave out {', '.join(refused)}"
        )


def previous_threads(run: Run) -> int | None:
    """The number of threads that the run had: with another number its results would not repeat."""
    starts = run.environments()
    return min(starts[-1]["threads"], os.cpu_count() or 1) if starts else None
