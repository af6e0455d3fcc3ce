"""What a run records is what happened: the rate of the step, the least error, the weights that had it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from kilolayer.networks import build, describe
from kilolayer.runs import Run
from kilolayer.training import OneCycle, evaluate
from kilolayer.training import trainer as trainer_module
from kilolayer.training.memory_plan import plan_memory
from kilolayer.units import ARRANGEMENTS, BASIC, Unit
from tiny_runs import tiny, train, training_of, with_recipe

ERRORS = (60.0, 20.0, 40.0)
"""Of the three epochs of a tiny run: the least is neither the first nor the last, nor the greatest."""


@pytest.mark.parametrize(("held_out", "monitor"), [(0, "test"), (20, "validation")])
def test_best_is_the_least_error_and_its_epoch(
    held_out: int, monitor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def measured(*args: Any, **options: Any) -> Any:
        asked.append(ERRORS[min(len(asked), 2)])
        return replace(evaluate(*args, **options), error=asked[-1])

    monkeypatch.setattr(trainer_module, "evaluate", measured)
    training = train(tmp_path / "run", tiny(validation=held_out))
    rows, result = Run(tmp_path / "run").metrics(), Run(tmp_path / "run").result()
    assert [row[f"{monitor}_error"] for row in rows] == list(ERRORS)
    assert result is not None
    assert (result[f"best_{monitor}_error"], result["best_epoch"]) == (20.0, 2)
    assert (training.state.best_error, training.state.best_epoch) == (20.0, 2)


def test_the_selected_weights_are_those_of_the_best_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    training, states = training_of(tiny(validation=20)), []

    def measured(*args: Any, **options: Any) -> Any:
        states.append({key: value.clone() for key, value in training.model.state_dict().items()})
        return replace(evaluate(*args, **options), error=ERRORS[min(len(states) - 1, 2)])

    monkeypatch.setattr(trainer_module, "evaluate", measured)
    for _ in training.steps():
        pass
    best = training.state.best_weights
    assert best.keys() == states[1].keys()
    assert all(torch.equal(best[key], states[1][key]) for key in best)
    assert not all(torch.equal(best[key], states[2][key]) for key in best)


def test_the_recorded_rate_is_that_of_the_epoch_s_last_step() -> None:
    """On a schedule of which no two steps have one rate."""
    rate = OneCycle(0.1, 7, rise=0.33)
    assert len({rate(t) for t in range(8)}) == 8
    training = training_of(with_recipe(tiny(), rate=rate))
    used: list[float] = []
    recorded: dict[int, float] = {}
    for step in training.steps():
        used.append(training.state.optimizer.param_groups[0]["lr"])
        if step.epoch:
            recorded[step.iteration] = step.epoch.learning_rate
    assert used == [rate(t) for t in range(7)]
    assert recorded == {3: used[2], 6: used[5], 7: used[6]}


def counted(unit: Unit, batch: int) -> tuple[int, int]:
    """The bytes of maps that autograd saves in a forward pass, and those of weights and momenta."""
    model = build(replace(describe("preact_resnet20_cifar"), unit=unit))
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    sizes: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and storage.nbytes() > 10**5:
            alive.append(tensor)  # so that no address is used twice
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        model(torch.randn(batch, 3, 32, 32))
    weights = sum(4 * p.numel() for p in model.parameters())
    return sum(sizes.values()), 2 * weights


@pytest.mark.parametrize("arrangement", ARRANGEMENTS.values(), ids=ARRANGEMENTS)
def test_the_predicted_peak_holds_what_autograd_saves_and_little_more(arrangement: Any) -> None:
    unit = replace(BASIC, arrangement=arrangement)
    saved, state = counted(unit, batch=64)
    network = replace(describe("preact_resnet20_cifar"), unit=unit)
    peak = plan_memory(network, "fastest", 64, "fp32", process_bytes=5).peak
    assert state <= peak.state_bytes <= state + 40_000 * network.depth
    assert saved <= peak.step_bytes <= 1.15 * saved
    # Four maps of the largest size: 64 images, 16 channels, 32 × 32.
    assert peak.working_bytes == 4 * 4 * 64 * 16 * 32 * 32
    assert peak.total_bytes == 5 + peak.state_bytes + peak.step_bytes + peak.working_bytes


def test_the_largest_map_decides_the_working_memory() -> None:
    """Of a bottleneck's maps the widest, 64 channels of 32 × 32, and not those of 16."""
    peak = plan_memory(describe("preact_resnet29_bottleneck_cifar"), "fastest", 64, "fp32").peak
    assert peak.working_bytes == 4 * 4 * 64 * 64 * 32 * 32
