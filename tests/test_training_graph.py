"""A step that is captured and replayed is the step that it was; and units compiled by kind."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from kilolayer.cli.assemble import assemble_experiment
from kilolayer.cli.options import ComputeOptions, ExperimentOptions
from kilolayer.data import Augmentation, ColorJitter, ResizedCrop, batch_spec
from kilolayer.errors import InputError
from kilolayer.networks import cifar
from kilolayer.training import (
    SGD,
    AdamW,
    DistributedContext,
    Experiment,
    Optimizer,
    ProgressiveDepth,
    ProgressiveResize,
    Trainer,
    choose_graph,
)
from kilolayer.training.compilation import CompiledGatedUnit, CompiledUnit
from kilolayer.training.cuda_graph import CudaRecorder, GraphReplay, StepFunction, graph_unavailable_reason
from kilolayer.training.decisions import explain_decisions
from kilolayer.training.experiment import InitialWeights
from kilolayer.units import BASIC, FULL_PREACT, Dropout, ExclusiveGate
from kilolayer.values import from_json, to_json
from tiny_runs import HERE, PREACT, network, tiny, training_of, with_recipe

EVERYTHING = Augmentation(1, True, 3, ResizedCrop(), ColorJitter())


class Recorder:
    """In place of a CUDA graph: what a replay takes from the host is what it was when it was captured."""

    def __init__(self, training: Trainer) -> None:
        self.training = training
        self.log: list[str] = []

    def run_eagerly(self, step: StepFunction) -> None:
        self.log.append("aside")
        step()

    def capture(self, step: StepFunction) -> StepFunction:
        self.log.append("captured")
        frozen = copy.copy(self.training)

        def replay() -> None:
            self.log.append("replayed")
            frozen._train_step()

        return replay


def replaying(experiment: Experiment) -> tuple[Trainer, Recorder]:
    training = training_of(experiment)
    recorder = Recorder(training)
    training._graph = GraphReplay(training._train_step, recorder, training._step_tensors)
    return training, recorder


def steps_taken(training: Trainer) -> Iterator[dict[str, torch.Tensor]]:
    for _ in range(training.experiment.recipe.iterations):
        training.take_step()
        yield {key: value.clone() for key, value in training.tensors().items()}


def same(first: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return first.keys() == other.keys() and all(
        torch.equal(value, other[key]) for key, value in first.items()
    )


BF16 = tiny(precision="bf16", memory_format="channels_last")


@pytest.mark.parametrize("trunk", [1.0, 0.1, 0.0])
@pytest.mark.parametrize("optimizer", [SGD(nesterov=True), AdamW()], ids=["sgd", "adamw"])
@pytest.mark.parametrize("base", [tiny(), BF16], ids=["fp32", "bf16"])
def test_a_replayed_step_is_the_step(base: Experiment, optimizer: Optimizer, trunk: float) -> None:
    """Bit for bit, with the learning rate, the images and what chance decides changing under it."""
    begun = replace(base, graph=True, init=InitialWeights("w.pt", "0"))
    experiment = with_recipe(begun, augmentation=EVERYTHING, optimizer=optimizer, trunk_rate=trunk)
    training, recorder = replaying(experiment)
    for replayed, plain in zip(steps_taken(training), steps_taken(training_of(experiment)), strict=True):
        assert same(replayed, plain)
    # The captured step is taken once aside, to be compared.
    assert recorder.log == ["aside"] * 3 + ["captured", "aside"] + ["replayed"] * 4


def test_the_optimiser_of_a_graph_takes_the_same_steps() -> None:
    """Fused, with its learning rate in a tensor: the weights are the default's to fp32's last digits."""
    one, other = training_of(tiny()), training_of(tiny(graph=True))
    assert {group["fused"] for group in other.state.optimizer.param_groups} == {True}
    for first, second in zip(steps_taken(one), steps_taken(other), strict=True):
        for key, value in first.items():
            torch.testing.assert_close(second[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "changing",
    [
        {"progressive_resize": ProgressiveResize(0.5, ((0.5, 1.0),))},
        {"progressive_depth": ProgressiveDepth(0.5, ((0.5, 1.0),))},
    ],
    ids=["images", "depth"],
)
def test_where_what_is_fixed_changes_a_new_graph_is_captured(changing: dict[str, Any]) -> None:
    experiment = with_recipe(tiny(graph=True, network=network(units=2)), iterations=12, **changing)
    training, recorder = replaying(experiment)
    for replayed, plain in zip(steps_taken(training), steps_taken(training_of(experiment)), strict=True):
        assert same(replayed, plain)
    each = ["aside"] * 3 + ["captured", "aside"] + ["replayed"] * 3
    assert recorder.log == each * 2


def test_a_restored_training_lets_its_graph_go() -> None:
    experiment = tiny(graph=True)
    training, recorder = replaying(experiment)
    found = list(steps_taken(training))
    plain = training_of(experiment)
    for _ in range(2):
        plain.take_step()
    training.restore(plain.tensors(), plain.counters())
    for wanted in found[2:]:
        training.take_step()
        assert same(training.tensors(), wanted)
    assert recorder.log.count("captured") == 2


def test_a_capture_that_fails_says_what_failed_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PyTorch ends a capture behind the error in it, which fails too, and leaves its own stream in place."""
    seen = list[Any]()

    @contextmanager
    def capture(graph: object, stream: object) -> Iterator[None]:
        seen.append(gc.isenabled())
        try:
            yield
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    def fails() -> None:
        raise RuntimeError("Cannot copy between CPU and CUDA tensors\nand more")

    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "outside")
    monkeypatch.setattr(torch.cuda, "set_stream", seen.append)
    recorder = CudaRecorder.__new__(CudaRecorder)
    recorder._stream = object()  # type: ignore[assignment]
    with pytest.raises(InputError) as refused:
        recorder.capture(fails)
    why = "Cannot copy between CPU and CUDA tensors"
    assert str(refused.value) == f"a CUDA graph cannot hold the step ({why}); use --cuda-graph off"
    assert seen == [False, "outside"]
    assert gc.isenabled()


def test_a_graph_that_holds_something_stale_is_found_out() -> None:
    training, recorder = replaying(tiny(graph=True))

    def captured(step: StepFunction) -> StepFunction:
        frozen = copy.copy(training)
        frozen._batch_spec = training._batch_spec.map_tensors(torch.zeros_like)
        return frozen._train_step

    recorder.capture = captured  # type: ignore[method-assign]
    with pytest.raises(
        InputError, match=r"graph's first step changes a tensor differently .*use --cuda-graph off"
    ):
        list(steps_taken(training))


WAITS = ("_local_scalar_dense", "nonzero", "lift_fresh", "_unique2", "equal")


class Watch(TorchDispatchMode):
    """Notes what on a GPU would wait for it, or bring numbers from the host."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.seen += [name] if name in WAITS else []
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("memory", ["fastest", "balanced"])
def test_nothing_in_a_step_waits_for_the_device(memory: str) -> None:
    experiment = with_recipe(replace(BF16, graph=True, activation_memory=memory), augmentation=EVERYTHING)
    training = training_of(experiment)
    training.take_step()
    training._prepare_step()
    with Watch() as watch:
        training._train_step()
    assert watch.seen == []
    with Watch() as watch:
        training.state.epoch_sums[1].item()
        torch.tensor([1.0])
    assert watch.seen == ["_local_scalar_dense", "lift_fresh"]


def test_a_range_of_positions_is_a_view_of_what_the_device_has() -> None:
    chosen = batch_spec(50, EVERYTHING, 0, 0, range(16, 32), HERE.device)
    again = batch_spec(50, EVERYTHING, 0, 0, range(16, 32), HERE.device)
    pairs = zip(chosen.tensors(), again.tensors(), strict=True)
    assert all(one.data_ptr() == other.data_ptr() for one, other in pairs)


@pytest.mark.parametrize(
    ("dropout", "world", "why"),
    [(True, 1, "dropout draws new random numbers at every step"), (False, 2, "the ranks exchange gradients")],
)
def test_what_no_graph_can_hold_is_refused(dropout: bool, world: int, why: str) -> None:
    gpu = torch.device("cuda")
    assert str(graph_unavailable_reason(gpu, has_dropout=dropout, world_size=world)).startswith(why)
    assert graph_unavailable_reason(gpu, has_dropout=False, world_size=1) is None
    unit = replace(BASIC, arrangement=FULL_PREACT, **({"h": Dropout(0.5)} if dropout else {}))
    training = training_of(tiny(unit, graph=True))
    training.context = DistributedContext(gpu, world_size=world)
    with pytest.raises(InputError, match=f"the step cannot be a CUDA graph: {why}.*; use --cuda-graph off"):
        training._graph_replay()


def test_without_a_gpu_a_graph_is_one_clear_line() -> None:
    with pytest.raises(
        InputError, match=r"^--cuda-graph on needs a GPU, and the device is cpu; use --cuda-graph off$"
    ):
        assemble_experiment(ExperimentOptions(compute=ComputeOptions(cuda_graph="on", device="cpu")))
    with pytest.raises(InputError, match="graph is 'yes'; allowed: auto, off, on"):
        choose_graph("yes", HERE.device)
    gpu = torch.device("cuda")
    assert [choose_graph(name, gpu) for name in ("auto", "off", "on")] == [False, False, True]
    # A run that began on a GPU goes on here, step by step.
    assert training_of(tiny(graph=True))._graph is None


def test_what_runs_on_a_gpu_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    training = training_of(tiny())
    training.context = DistributedContext(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    said = explain_decisions(training)
    assert (
        said["step"] == "kernel by kernel: a CUDA graph (--cuda-graph on) has not been measured on a GPU yet"
    )
    assert "Triton's (--kernels fused) have not been measured on a GPU yet" in said["kernels"]
    training.experiment = tiny(graph=True)
    assert explain_decisions(training)["step"] == "one CUDA graph, as asked"


@pytest.mark.parametrize(
    ("unit", "kind", "depths"),
    [(PREACT, CompiledUnit, (14, 26)), (replace(PREACT, h=ExclusiveGate(-1.0)), CompiledGatedUnit, (8,))],
)
@pytest.mark.slow
def test_units_compiled_by_kind_train_as_they_did(
    unit: Any, kind: type[nn.Module], depths: tuple[int, ...]
) -> None:
    """Deep or not, as many graphs are compiled as there are kinds of units."""
    compiled, losses = [], {}
    for depth in depths:
        network = replace(cifar(depth, unit), in_chans=1, image_size=8)
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        for how in ("off", "units"):
            training = training_of(tiny(network=network, compile=how))
            for _ in range(2):
                training.take_step()
            losses[how] = training.state.epoch_sums[1].item()
        assert losses["units"] == pytest.approx(losses["off"], rel=1e-3)
        compiled.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        assert any(type(module) is kind for module in training.model.modules())
        # Evaluation, copies and the state dict are those of the units as they were.
        training._evaluate(training.splits.test, lambda: False)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled[-1]
        assert (
            copy.deepcopy(training.model).state_dict().keys()
            == training_of(tiny(network=network)).model.state_dict().keys()
        )
    assert len(set(compiled)) == 1


def test_experiments_say_what_is_compiled_and_read_what_older_ones_said() -> None:
    with pytest.raises(InputError, match="compile is 'all'; allowed: 'off', 'units', 'model'"):
        tiny(compile="all")
    with pytest.raises(InputError, match="compile and activation_memory 'balanced' exclude each other"):
        tiny(compile="units", activation_memory="balanced")
    text = to_json(tiny(compile="units", graph=True))
    assert from_json(text, Experiment) == tiny(compile="units", graph=True)
    for older, now in (("true", "model"), ("false", "off")):
        assert from_json(text.replace('"compile": "units"', f'"compile": {older}'), Experiment) == tiny(
            compile=now, graph=True
        )
