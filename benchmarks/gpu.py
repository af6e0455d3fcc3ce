"""One measurement on a GPU: checks, kernels, training steps, or a network trained by a recipe.

    python benchmarks/gpu.py check-units --networks preact_resnet110_cifar --out OUT
    python benchmarks/gpu.py check-compiled --networks preact_resnet110_cifar --out OUT
    python benchmarks/gpu.py check-graphs --out OUT
    python benchmarks/gpu.py steps --networks preact_resnet1001_cifar --out OUT
    python benchmarks/gpu.py recipe --networks preact_resnet110_cifar --ways graph --runs RUN --out OUT
    python benchmarks/gpu.py kernels --out OUT

`gpu_session.py` calls these in an order that fits into a quarter of an hour. Each measurement is a line of
OUT/rows.jsonl as soon as it is made. No measurement begins after --seconds; what is left out says "not run".
An illegal access ends everything in its process, so each call is a process of its own. The script needs
PyTorch, Triton, NumPy, Pillow and safetensors; `recipe` needs cattrs too. --rehearse runs every line that
needs no GPU, in small, on a CPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

if "--rehearse" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported

import torch
from gpu_kernels import ceilings, rows, synchronize
from gpu_travel import read_pictures
from torch import nn

from kilolayer.data import Augmentation, Data, Images, Splits
from kilolayer.data import load as load_data
from kilolayer.kernels import fuse
from kilolayer.kernels.gpu import self_check as gpu_check
from kilolayer.kernels.gpu import triton_unit as gpu_unit
from kilolayer.networks import Network, build, cifar, describe
from kilolayer.runs.start_environment import environment_record
from kilolayer.training import (
    DistributedContext,
    Experiment,
    Recipe,
    Steps,
    Trainer,
    network_for_data,
    recipe_by_name,
    recipe_for_data,
)
from kilolayer.training.compilation import compile_units
from kilolayer.units import BASIC, FULL_PREACT
from kilolayer.units.modules import ResidualUnit

SMALL = replace(cifar(8, replace(BASIC, arrangement=FULL_PREACT)), image_size=8)
FAST = {"precision": "bf16", "memory_format": "channels_last"}
Row = dict[str, Any]


@dataclass(frozen=True)
class Way:
    """How a network is trained: fields of the experiment, and who computes 3×3 convolutions in our units.

    `proofs`: the checks that must have passed before its speed means anything.
    """

    changes: dict[str, Any]
    proofs: tuple[str, ...] = ()
    three_by_three: str = "triton"

    @property
    def gpu_only(self) -> bool:
        return self.changes.get("kernels") == "fused" or "graph" in self.changes or "compile" in self.changes


WAYS = {
    "bf16, channels last, eager": Way(FAST),
    "Triton, graph": Way(
        {**FAST, "kernels": "fused", "graph": True}, ("units by triton", "graph: Triton, graph")
    ),
    "graph": Way({**FAST, "graph": True}, ("graph: graph",)),
    "units compiled, graph": Way(
        {**FAST, "compile": "units", "graph": True}, ("units compiled", "graph: units compiled, graph")
    ),
    "Triton": Way({**FAST, "kernels": "fused"}, ("units by triton",)),
    "Triton, cuDNN's 3×3, graph": Way(
        {**FAST, "kernels": "fused", "graph": True},
        ("units by cudnn", "graph: Triton, cuDNN's 3×3, graph"),
        "cudnn",
    ),
    "units compiled": Way({**FAST, "compile": "units"}, ("units compiled",)),
    "fp32, channels first, eager": Way({}),
}
"""The most telling first: what the time does not suffice for is left out from the end."""


@dataclass
class Session:
    """One call of this script: where, how long, and where its rows go."""

    options: argparse.Namespace
    device: torch.device
    deadline: float

    def going_on(self) -> bool:
        return time.monotonic() < self.deadline

    @property
    def rehearse(self) -> bool:
        return bool(self.options.rehearse)

    @property
    def networks(self) -> list[tuple[str, Network]]:
        if self.rehearse:
            return [("rehearsal", SMALL)]
        return [(name, describe(name)) for name in self.options.networks]

    def write(self, row: Row) -> None:
        line = json.dumps({"part": self.options.part, **row}, ensure_ascii=False) + "\n"
        # Other processes append to the same file; one write is one line.
        with open(self.options.out / "rows.jsonl", "ab", buffering=0) as file:
            file.write(line.encode())
        print(line, end="", flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--networks", nargs="+", default=["preact_resnet110_cifar"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--pictures", type=Path, help="for the recipe: what gpu_travel.py wrote; else digits")
    parser.add_argument("--runs", type=Path, help="for the recipe: the folder of its run")
    parser.add_argument("--seed", type=int, default=0, help="of the recipe")
    parser.add_argument("--iterations", type=int, help="of the recipe, otherwise 64,000")
    parser.add_argument("--rehearse", action="store_true", help="tiny, on the CPU too: does every line run?")
    options = parser.parse_args(arguments)
    if not (torch.cuda.is_available() or options.rehearse):
        parser.error("there is no GPU here; --rehearse runs everything in small on the CPU")
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    session = Session(options, device, time.monotonic() + options.seconds)
    head = {
        "environment": environment_record(DistributedContext(device), "bf16"),
        "triton": import_module("triton").__version__,
    }
    session.write({**head, "rehearsal": session.rehearse})
    for row in PARTS[options.part](session):
        session.write(row)
    return 0


def check_units(session: Session) -> Iterator[Row]:
    """Every kind of unit by our kernels, output and gradients, against double precision."""
    for name, network in session.networks:
        for unit, module, side in _kinds(session, network):
            shape = _check_shape(session, side)
            for by in ("triton", "cudnn"):
                row = _or_why(session, lambda m=module, s=shape, b=by: _units_errors(m, s, b))
                yield {"proof": f"units by {by}", "network": name, "unit": unit, **row}


def check_compiled(session: Session) -> Iterator[Row]:
    """Every kind of unit by torch.compile, likewise."""
    for name, network in session.networks:
        for unit, module, side in _kinds(session, network):
            shape = _check_shape(session, side)
            row = _or_why(session, lambda m=module, s=shape: _errors(m, s, _compiled), WAYS["units compiled"])
            yield {"proof": "units compiled", "network": name, "unit": unit, **row}


def check_graphs(session: Session) -> Iterator[Row]:
    """Steps that a graph replays against the same steps without one."""
    for name, way in WAYS.items():
        if "graph" in way.changes:
            row = _or_why(session, lambda w=way: _graph_check(session, w), way)
            yield {"proof": f"graph: {name}", **row}


def _kinds(session: Session, network: Network) -> list[tuple[str, Any, int]]:
    model = build(network).to(session.device, memory_format=torch.channels_last)
    fuse(model, "triton", verify=False)
    return list(gpu_check.distinct_units(model))


def _check_shape(session: Session, side: int) -> tuple[int, int, int]:
    return (2 if session.rehearse else session.options.batch_size, side, side)


def _units_errors(module: Any, shape: tuple[int, ...], by: Any) -> Row:
    gpu_unit.CONV3X3_BACKEND = by
    return _errors(module, shape, gpu_check.triton_forward)


def _compiled(unit: ResidualUnit) -> nn.Module:
    compile_units(unit)
    return unit


def _errors(module: Any, shape: tuple[int, ...], of: Callable[[ResidualUnit], Any]) -> Row:
    started = time.monotonic()
    layers, kernel_errors = gpu_check.relative_errors(module, shape, of)
    return {
        "fine": not gpu_check.exceeds_tolerance(layers, kernel_errors),
        "layers": layers, "errors": kernel_errors,
        "seconds_with_compilation": time.monotonic() - started,
    }  # fmt: skip


def _graph_check(session: Session, way: Way, steps: int = 8) -> Row:
    ends = []
    for replayed in (True, False, False):
        training = trained_on_noise(session, describe("preact_resnet20_cifar"), way)
        if not replayed:
            training._graph = None
        for _ in range(steps):
            training.take_step()
        ends.append(training.tensors())
    equal = [all(torch.equal(one[key], ends[1][key]) for key in one) for one in ends]
    return {"fine": equal[0], "the same bits": equal[0], "the same bits without a graph": equal[2]}


def kernels(session: Session) -> Iterator[Row]:
    """Every kernel of a unit against the bytes that it moves."""
    top = ceilings(session.device, rehearse=session.rehearse)
    yield {"ceilings": top}
    for row in rows(session.device, rehearse=session.rehearse, going_on=session.going_on):
        if "not run" not in row:
            row["share_of_copy"] = row["bytes_per_second"] / top["copy_bytes"]
            row["share_of_product"] = row["flops"] / top["bf16_flops"]
        yield row


def steps(session: Session) -> Iterator[Row]:
    """Of each network every way, and a peer's network in its own default way, stepping in turns."""
    top = ceilings(session.device, rehearse=session.rehearse)
    yield {"ceilings": top}
    for name, network in session.networks:
        turns: dict[str, Callable[[], None]] = {}
        for way in session.options.ways:
            row = _or_why(session, lambda w=way, d=network, t=turns: _enter(session, d, w, t), WAYS[way])
            yield {"network": name, "way": way, **row}
        for peer, make in peers(network.depth):
            row = _or_why(session, lambda p=peer, m=make, t=turns: _enter_peer(session, p, m, t))
            yield {"network": name, "way": peer, **row}
        for row in _in_turns(session, network, turns, top):
            yield {"network": name, **row}
        turns.clear()
        _release(session)


def _enter(session: Session, network: Network, way: str, turns: dict[str, Callable[[], None]]) -> Row:
    _release(session)
    base, started = _memory(session), time.monotonic()
    training = trained_on_noise(session, network, WAYS[way])

    def step() -> None:
        gpu_unit.CONV3X3_BACKEND = WAYS[way].three_by_three  # type: ignore[assignment]
        training.take_step()

    return _warm(session, step, turns, way, base, started)


def _enter_peer(
    session: Session, name: str, make: Callable[[], nn.Module], turns: dict[str, Callable[[], None]]
) -> Row:
    base, started = _memory(session), time.monotonic()
    size = 2 if session.rehearse else session.options.batch_size
    model = make().to(session.device)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    x = torch.randn(size, 3, 32, 32, device=session.device)
    labels = torch.randint(10, (size,), device=session.device)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()

    return _warm(session, step, turns, name, base, started)


def _warm(
    session: Session,
    step: Callable[[], None],
    turns: dict[str, Callable[[], None]],
    name: str,
    base: int,
    started: float,
) -> Row:
    """Some steps until everything is compiled and captured; then counted by the profiler."""
    if session.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(2 if session.rehearse else 6):
        step()
    synchronize(session.device)
    row = {
        "start_seconds": time.monotonic() - started,
        "peak_memory_bytes": _memory(session, peak=True) - base,
    }
    turns[name] = step
    try:
        return row | _profiled(session, step)
    except Exception as error:  # its time can be taken all the same
        return row | {"kernels_per_step": f"not run: {_reason(error)}"}


def _profiled(session: Session, step: Callable[[], None]) -> Row:
    if session.device.type != "cuda":
        return {"kernels_per_step": "not run: needs a GPU"}
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step()
        synchronize(session.device)
    on_device = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return {
        "kernels_per_step": len(on_device),
        "device_milliseconds": sum(event.device_time for event in on_device) / 1e3,
    }


def _in_turns(
    session: Session, network: Network, turns: dict[str, Callable[[], None]], top: dict[str, float]
) -> Iterator[Row]:
    times: dict[str, list[float]] = {name: [] for name in turns}
    size = 4 if session.rehearse else session.options.batch_size
    for _ in range(2 if session.rehearse else 9):
        for name, step in list(turns.items()):
            if not session.going_on() and all(times.values()):
                continue
            try:
                times[name].append(_turn(session, step))
            except Exception as error:  # one way that fails does not end the others
                traceback.print_exc()
                del turns[name], times[name]
                yield {"way": name, "not run": _reason(error)}
    operations = 6 * network.multiply_adds
    for name, taken in times.items():
        speed = size / median(taken)
        yield {
            "way": name, "batch_size": size, "turns": len(taken),
            "seconds_per_step": median(taken), "least": min(taken), "most": max(taken),
            "images_per_second": speed, "roofline_share": speed * operations / top["bf16_flops"],
        }  # fmt: skip


def _turn(session: Session, step: Callable[[], None], steps: int = 5) -> float:
    synchronize(session.device)
    started = time.perf_counter()
    for _ in range(1 if session.rehearse else steps):
        step()
    synchronize(session.device)
    return (time.perf_counter() - started) / (1 if session.rehearse else steps)


def peers(depth: int) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """The same network from pytorchcv where that is at hand, in its own default way."""
    names = {
        8: "preresnet20_cifar10", 110: "preresnet110_cifar10",
        164: "preresnet164bn_cifar10", 1001: "preresnet1001_cifar10",
    }  # fmt: skip
    if find_spec("pytorchcv") and depth in names:
        # Its model_provider would import torchvision.
        module = import_module("pytorchcv.models.preresnet_cifar")
        yield f"pytorchcv {names[depth]}, fp32, eager", getattr(module, names[depth])


def train_by_recipe(session: Session) -> Iterator[Row]:
    """A network by P2's recipe of 64,000 steps, from its last checkpoint on, until --seconds are over."""
    from kilolayer.runs import Run, train_run

    options = session.options
    ((name, base),) = session.networks
    (way,) = options.ways
    splits = read_pictures(options.pictures) if options.pictures else load_data(Data("digits", subset=64))
    network = network_for_data(
        base, classes=splits.num_classes, in_chans=splits.in_chans, image_size=splits.image_size
    )
    experiment = Experiment(
        network,
        Data(str(options.pictures or "digits")),
        _recipe(session, splits),
        seed=options.seed,
        evaluate_every=8,
        **({} if session.rehearse else WAYS[way].changes),
    )
    gpu_unit.CONV3X3_BACKEND = WAYS[way].three_by_three  # type: ignore[assignment]
    started = time.monotonic()
    with Run.open_or_create(options.runs, experiment) as run:
        training = Trainer(experiment, splits, DistributedContext(session.device))
        ready = time.monotonic()
        for _ in train_run(run, training, stop=lambda: not session.going_on(), save_seconds=60):
            pass
        synchronize(session.device)
        yield {
            "network": name, "way": way, "seed": options.seed, "data": splits.name,
            "recipe": experiment.recipe.name, "iteration": training.state.iteration,
            "done": training.is_finished,
            "start_seconds": ready - started, "seconds": time.monotonic() - ready, "result": run.result(),
        }  # fmt: skip


def _recipe(session: Session, splits: Splits) -> Recipe:
    paper_recipe = recipe_by_name("paper", len(splits.train))
    if session.rehearse:
        paper_recipe = replace(recipe_for_data(paper_recipe, Data("digits")), batch_size=8).with_iterations(
            16
        )
    return paper_recipe.with_iterations(session.options.iterations or paper_recipe.iterations)


def trained_on_noise(session: Session, network: Network, way: Way) -> Trainer:
    """A training on random images of the network's size, which lie on the device."""
    gpu_unit.CONV3X3_BACKEND = way.three_by_three  # type: ignore[assignment]
    size = 4 if session.rehearse else session.options.batch_size
    count, side = (16 if session.rehearse else 10_000), network.image_size
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    images = Images(pixels, torch.randint(10, (count,), generator=generator))
    splits = Splits("noise", tuple("0123456789"), images, None, lambda: images)
    plan = Recipe("noise", 10_000, Steps(0.01), size, augmentation=Augmentation())
    experiment = Experiment(network, Data("digits"), plan, **way.changes)
    return Trainer(experiment, splits, DistributedContext(session.device))


def _or_why(session: Session, call: Callable[[], Row], way: Way | None = None) -> Row:
    """What `call` measures, or in words why there is nothing; one way that fails does not end the others."""
    if way and way.gpu_only and session.device.type != "cuda":
        return {"not run": "needs a GPU"}
    if not session.going_on():
        return {"not run": "the time was over"}
    try:
        return call()
    except Exception as error:
        traceback.print_exc()
        return {"not run": _reason(error)}


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _memory(session: Session, *, peak: bool = False) -> int:
    if session.device.type != "cuda":
        return 0
    return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()


def _release(session: Session) -> None:
    gc.collect()
    with suppress(RuntimeError):
        if session.device.type == "cuda":
            torch.cuda.empty_cache()


PARTS: dict[str, Callable[[Session], Iterator[Row]]] = {
    "check-units": check_units,
    "check-compiled": check_compiled,
    "check-graphs": check_graphs,
    "kernels": kernels,
    "steps": steps,
    "recipe": train_by_recipe,
}

if __name__ == "__main__":
    raise SystemExit(main())
