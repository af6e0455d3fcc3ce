"""Two processes train as one: the same images, weights and figures, and masks of their own."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kilolayer.data import batch_at, make_batch, measure_statistics
from kilolayer.runs import Run, train_run
from kilolayer.training import Experiment, NonFinite, ProgressiveDepth, Trainer, distributed_context, evaluate
from kilolayer.training import trainer as trainer_module
from kilolayer.units import Basic, Unit
from tiny_runs import HERE, PREACT, network, outcome, splits_of, tiny, with_recipe

pytestmark = pytest.mark.slow

STEPS = 12


def experiment() -> Experiment:
    """Twelve steps, more than the eight after which the processes ask one another; some units rest."""
    unit: Unit = replace(PREACT, branch=Basic(dropout=0.5))
    chosen = tiny(unit, validation=20, network=network(unit, 2))
    return with_recipe(
        chosen, iterations=STEPS, ema=0.5, progressive_depth=ProgressiveDepth(0.5, ((0.5, 1.0),))
    )


def digest(tensors: dict[str, torch.Tensor]) -> str:
    parts = (value.detach().numpy().tobytes() for _, value in sorted(tensors.items()))
    return hashlib.sha256(b"".join(parts)).hexdigest()


def main(folder: str, stop_at: int, diverge: bool) -> None:
    """One of the processes: trains, and writes down what it saw."""
    torch.set_num_threads(1)
    seen: list[list[float]] = []
    masks: list[str] = []

    def spy(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        x, labels = make_batch(*args)
        seen.extend(x.flatten(1).tolist())
        return x, labels

    setattr(trainer_module, "make_batch", spy)  # noqa: B010 - replaced in this process only
    with distributed_context("cpu") as here:
        what = experiment()
        training = Trainer(what, splits_of(what), here)
        dropout = next(m for m in training.model.modules() if isinstance(m, torch.nn.Dropout))
        dropout.register_forward_hook(
            lambda module, args, out: masks.append(str(torch.initial_seed())) if module.training else None
        )
        run = Run.create(folder, what) if here.is_main and not Path(folder).exists() else Run(Path(folder))
        here.any(False)  # so that the other one does not look before the folder is there
        failed = ""
        try:
            for step in train_run(
                run, training, stop=lambda: here.is_main and 0 < stop_at <= training.state.iteration
            ):
                if diverge and not here.is_main and step.iteration == 2:
                    training.state.epoch_sums[1] = float("nan")
        except NonFinite as error:
            failed = str(error)
        notes = {
            "seen": seen,
            "masks": masks,
            "parameters": digest(dict(training.model.named_parameters())),
            "iteration": training.state.iteration,
            "done": training.is_finished,
            "failed": failed,
        }
        Path(f"{folder}.{here.rank}.json").write_text(json.dumps(notes))


def together(folder: Path, stop_at: int = 0, diverge: bool = False) -> list[dict[str, Any]]:
    """Both processes' notes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    words = [sys.executable, __file__, str(folder), str(stop_at), str(int(diverge))]
    processes = [
        subprocess.Popen(words, env=os.environ | common | {"RANK": rank, "LOCAL_RANK": rank})
        for rank in ("0", "1")
    ]
    try:
        assert [process.wait(timeout=150) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return [json.loads(Path(f"{folder}.{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("together") / "run"
    return folder, together(folder)


def test_together_they_see_the_images_of_the_whole_batch(whole: tuple[Path, list[dict[str, Any]]]) -> None:
    first, second = (notes["seen"] for notes in whole[1])
    what = experiment()
    splits, recipe = splits_of(what), what.recipe
    statistics = measure_statistics(splits.train, recipe.normalization)
    for step in range(STEPS):
        epoch, index = divmod(step, 3)
        positions = range(16 * index, 16 * index + 16)
        x, _ = batch_at(splits.train, statistics, recipe.augmentation, what.seed, epoch, positions)
        assert first[8 * step : 8 * step + 8] + second[8 * step : 8 * step + 8] == x.flatten(1).tolist()


def test_they_have_the_same_weights_and_masks_of_their_own(whole: tuple[Path, list[dict[str, Any]]]) -> None:
    first, second = whole[1]
    assert first["parameters"] == second["parameters"]
    assert len(first["masks"]) == len(second["masks"]) == STEPS
    assert len({*first["masks"], *second["masks"]}) == 2 * STEPS


def test_the_figures_are_those_of_one_process_on_the_same_weights(
    whole: tuple[Path, list[dict[str, Any]]],
) -> None:
    run, (first, second) = Run(whole[0]), whole[1]
    result, weights, what = run.result(), run.weights(), experiment()
    assert first["done"]
    assert second["done"]
    assert result is not None
    measured = evaluate(weights.model, splits_of(what).test, weights.statistics, context=HERE, num_classes=10)
    assert measured is not None
    assert result["test_error"] == measured.error
    assert result["test_top5_error"] == measured.top5_error
    assert result["test_loss"] == pytest.approx(measured.loss, rel=1e-6)
    assert run.environments()[0]["processes"] == 2


def test_stopped_by_one_and_resumed_together(
    whole: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    """The sums of an epoch under way are everyone's, and are saved as such."""
    stopped = together(tmp_path / "run", stop_at=7)
    assert [notes["iteration"] for notes in stopped] == [8, 8]
    resumed = together(tmp_path / "run")
    assert [notes["done"] for notes in resumed] == [True, True]
    assert outcome(tmp_path / "run") == outcome(whole[0])


def test_what_is_not_finite_in_one_ends_both(tmp_path: Path) -> None:
    notes = together(tmp_path / "run", diverge=True)
    assert all(note["failed"].startswith("the training loss is not finite at iteration 3 ") for note in notes)
    result = Run(tmp_path / "run").result()
    assert result is not None
    assert result["status"] == "diverged"


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), bool(int(sys.argv[3])))
