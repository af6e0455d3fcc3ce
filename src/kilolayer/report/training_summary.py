"""The summary that a training prints before it starts and after it ends."""

from __future__ import annotations

import shlex
import statistics

from kilolayer.data import Splits
from kilolayer.runs import Run
from kilolayer.runs.records import EndedRun
from kilolayer.system.message_text import listing
from kilolayer.system.terminal import print_rows
from kilolayer.training import Experiment, Trainer
from kilolayer.units import extensions


def print_training_start(run: Run, training: Trainer) -> None:
    """Prints the network, the data, the length, the device and the folder of a training."""
    experiment, splits, context = training.experiment, training.splits, training.context
    network, recipe = experiment.network, experiment.recipe
    length = f"{training.num_epochs:,} epochs, {recipe.iterations:,} steps of {recipe.batch_size}"
    side = network.image_size
    rows = {
        "network": f"{network.depth} layers, {network.parameters:,} parameters, images of {side}×{side}",
        "data": f"{splits.name}: {_counts(splits)}",
        **_lines("read", splits.origin),
        **_skipped(splits.skipped),
        **_lines("pictures", splits.looks),
        "recipe": f"{recipe.name}: {length}",
        **_beginning(experiment),
        "on": f"{context.device}, {experiment.precision}"
        + (f", {context.world_size} processes" if context.world_size > 1 else ""),
        "run": str(run.path),
    }
    if training.state.iteration:
        rows["continues"] = f"after step {training.state.iteration:,} of {recipe.iterations:,}"
    print_rows(rows)


def _counts(splits: Splits) -> str:
    """The number of images in each part."""
    trained, test = f"{len(splits.train):,} to train on", f"{len(splits.test):,} to test"
    if splits.validation is None:
        return f"{trained}, {test} (curves on these)"
    return f"{trained}, {len(splits.validation):,} held out, {test}"


def _lines(name: str, lines: tuple[str, ...]) -> dict[str, str]:
    """A row with several lines; no row without lines."""
    return {name: f"\n{'':<12}".join(lines)} if lines else {}


def _beginning(experiment: Experiment) -> dict[str, str]:
    """The run's initial weights, and the learning rate of its trunk."""
    rate = experiment.recipe.trunk_rate
    trunk = "frozen, only the classifier learns" if rate == 0 else f"{rate:g} of the learning rate"
    size, init = experiment.network.image_size, experiment.init
    begins = {"begins from": f"{init.path}, on images of {size} pixels"} if init else {}
    return begins | ({"trunk": trunk} if rate != 1 else {})


def _skipped(places: tuple[str, ...]) -> dict[str, str]:
    return {"skipped": f"{len(places):,} damaged images: {listing(places)}"} if places else {}


def print_training_result(run: Run) -> None:
    """Prints the final errors, and the next commands for the run."""
    result = run.result() or {}
    experiment = run.experiment()
    which = "mean of the weights" if experiment.recipe.ema else "last weights"
    # With five classes or fewer the top-5 error is always 0.
    top5 = f", top-5 {result['test_top5_error']:.2f} %" if experiment.network.num_classes > 5 else ""
    rows = {
        "test error": f"{result['test_error']:.2f} %{top5} ({which})",
        **_validation(result),
        "time": f"{_duration(result['train_seconds'])}{_sessions(run)}{_speed(run)}",
        "next": shlex.join(["kilolayer", "evaluate", str(run.path), *extensions.unit_option()]),
        "": shlex.join(["kilolayer", "predict", str(run.path), "IMAGE", *extensions.unit_option()]),
    }
    print_rows(rows)


def _validation(result: EndedRun) -> dict[str, str]:
    if "best_validation_error" not in result:
        return {}
    chosen = result.get("test_error_selected_on_validation")
    then = f"; those weights on the test set: {chosen:.2f} %" if chosen is not None else ""
    return {
        "validation": f"best {result['best_validation_error']:.2f} % at epoch {result['best_epoch']}{then}"
    }


def _sessions(run: Run) -> str:
    starts = len(run.environments())
    return f" over {starts} sessions" if starts > 1 else ""


def _speed(run: Run) -> str:
    speeds = [row["images_per_second"] for row in run.metrics() if "images_per_second" in row]
    return f", {statistics.median(speeds):,.0f} images/s" if speeds else ""


def _duration(seconds: float) -> str:
    minutes, seconds_left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (seconds_left, "s")]
    return " ".join(f"{amount} {unit}" for amount, unit in parts if amount) or f"{seconds:.1f} s"
