"""Everything that is to be measured on a GPU, in one script: checks, kernels, training steps, a short recipe.

    python benchmarks/gpu.py --only check --out $OUT
    python benchmarks/gpu.py --only kernels --out $OUT
    python benchmarks/gpu.py --only steps --out $OUT
    python benchmarks/gpu.py --only recipe --out $OUT
    python benchmarks/gpu.py --rehearse --out /tmp/rehearsal     # tiny, on a CPU, no timing means anything

Each part writes OUT/gpu-PART.json after every row, and begins no row when its minutes (--minutes, of the
whole call) are over; what was left out says "not run". After an illegal access all else in a process fails,
so checks and kernels want calls of their own. Needs PyTorch, Triton, NumPy, Pillow and safetensors, with src
on PYTHONPATH.
"""

# ruff: noqa: E402 - Triton reads the environment when it is imported
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

PARTS = ("check", "kernels", "steps", "recipe")

if "--rehearse" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported

import torch
from gpu_kernels import ceilings, rows, synchronize
from torch import nn

from kilolayer.data import Augmentation, Data, Images, Splits
from kilolayer.data import load as load_data
from kilolayer.kernels import fuse
from kilolayer.kernels.gpu import check as gpu_check
from kilolayer.kernels.gpu import unit as gpu_unit
from kilolayer.networks import Network, build, cifar, describe
from kilolayer.runs.environment import environment
from kilolayer.training import Experiment, Place, Recipe, Steps, Training, fitted, recipe, with_data
from kilolayer.units import BASIC, FULL_PREACT

NETWORKS = ("preact_resnet110_cifar", "preact_resnet164_cifar", "preact_resnet1001_cifar")
SMALL = replace(cifar(8, replace(BASIC, arrangement=FULL_PREACT)), image_size=8)
FAST = {"precision": "bf16", "channels_last": True}


@dataclass(frozen=True)
class Way:
    """How a network is trained: fields of the experiment, and who computes 3×3 convolutions in our units."""

    changes: dict[str, Any]
    three_by_three: str = "triton"

    @property
    def gpu_only(self) -> bool:
        return self.changes.get("kernels") == "fused" or "graph" in self.changes or "compile" in self.changes


WAYS = {
    "fp32, channels first, eager": Way({}),
    "bf16, channels last, eager": Way(FAST),
    "graph": Way({**FAST, "graph": True}),
    "Triton, graph": Way({**FAST, "kernels": "fused", "graph": True}),
    "Triton, cuDNN's 3×3, graph": Way({**FAST, "kernels": "fused", "graph": True}, "cudnn"),
    "units compiled, graph": Way({**FAST, "compile": "units", "graph": True}),
    "units compiled": Way({**FAST, "compile": "units"}),
    "Triton": Way({**FAST, "kernels": "fused"}),
}


@dataclass
class Session:
    """One call of this script: where, how long, and what it has found."""

    options: argparse.Namespace
    device: torch.device
    deadline: float

    def going_on(self) -> bool:
        return time.monotonic() < self.deadline

    @property
    def rehearse(self) -> bool:
        return bool(self.options.rehearse)

    def save(self, part: str, found: list[dict[str, Any]]) -> None:
        path = self.options.out / f"gpu-{part}.json"
        head = {"environment": environment(Place(self.device), "bf16"), "rehearsal": self.rehearse}
        whole = {
            **head,
            "triton": import_module("triton").__version__,
            "ceilings": self.ceilings,
            "rows": found,
        }
        path.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def __post_init__(self) -> None:
        self.ceilings = ceilings(self.device, rehearse=self.rehearse)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--data", default="digits", help="for the recipe")
    parser.add_argument("--epochs", type=int, default=15, help="of the recipe")
    parser.add_argument("--rehearse", action="store_true", help="tiny, on the CPU too: does every line run?")
    options = parser.parse_args(arguments)
    if not (torch.cuda.is_available() or options.rehearse):
        parser.error("there is no GPU here; --rehearse runs everything in small on the CPU")
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    session = Session(options, device, time.monotonic() + 60 * options.minutes)
    for part in options.only:
        found: list[dict[str, Any]] = []
        for row in PART[part](session):
            found.append(row)
            print(part, json.dumps(row, ensure_ascii=False), flush=True)
            session.save(part, found)
    return 0


def checks(session: Session) -> Iterator[dict[str, Any]]:
    """Every kind of unit against double precision, then steps as graphs against the same steps without."""
    names = [SMALL] if session.rehearse else [*map(describe, NETWORKS[:2]), describe("resnet110_cifar")]
    for network in names:
        model = build(network).to(session.device, memory_format=torch.channels_last)
        fuse(model, "triton")
        for name, module, side in gpu_check.kinds(model):
            for by in ("triton", "cudnn"):
                shape = (2 if session.rehearse else session.options.batch_size, side, side)
                row = _or_why(session, lambda m=module, s=shape, b=by: _unit_check(m, s, b))
                yield {"what": f"unit {name} of {network.depth} layers, 3×3 by {by}", **row}
    for name, way in WAYS.items():
        if "graph" not in way.changes:
            continue
        yield {
            "what": f"graph against no graph: {name}",
            **_or_why(session, lambda w=way: _graph_check(session, w), way),
        }


def _unit_check(module: Any, shape: tuple[int, ...], by: Any) -> dict[str, Any]:
    gpu_unit.THREE_BY_THREE, started = by, time.monotonic()
    layers, kernels = gpu_check.errors(module, shape)
    return {
        "fine": not gpu_check.too_large(layers, kernels), "layers": layers, "kernels": kernels,
        "seconds_with_compilation": time.monotonic() - started,
    }  # fmt: skip


def _graph_check(session: Session, way: Way, steps: int = 8) -> dict[str, Any]:
    ends = []
    for replayed in (True, False, False):
        training = trained_on_noise(session, describe("preact_resnet20_cifar"), way)
        if not replayed:
            training._replay = None
        for _ in range(steps):
            training._step()
        ends.append(training.tensors())
    same = [all(torch.equal(one[key], ends[1][key]) for key in one) for one in ends]
    return {"fine": same[0], "the same bits": same[0], "the same bits without a graph": same[2]}


def kernels(session: Session) -> Iterator[dict[str, Any]]:
    for row in rows(session.device, rehearse=session.rehearse, going_on=session.going_on):
        if "not run" not in row:
            row["share_of_copy"] = row["bytes_per_second"] / session.ceilings["copy_bytes"]
            row["share_of_product"] = row["flops"] / session.ceilings["bf16_flops"]
        yield row


def steps(session: Session) -> Iterator[dict[str, Any]]:
    """Of each network every way, stepping in turns."""
    for network in [SMALL] if session.rehearse else map(describe, session.options.networks):
        turns: dict[str, tuple[Callable[[], None], dict[str, Any]]] = {}
        for name in session.options.ways:
            row = _or_why(
                session, lambda n=name, d=network, t=turns: _entered(session, d, WAYS[n], t, n), WAYS[name]
            )
            yield {"network": network.depth, "way": name, **row}
        for peer, make in peers(network.depth):
            row = _or_why(session, lambda p=peer, m=make, t=turns: _peer_entered(session, p, m, t))
            yield {"network": network.depth, "way": peer, **row}
        yield from _in_turns(session, network, turns)
        turns.clear()
        _release(session)


def _entered(
    session: Session, network: Network, way: Way, turns: dict[str, Any], name: str
) -> dict[str, Any]:
    _release(session)
    base = _memory(session)
    started = time.monotonic()
    training = trained_on_noise(session, network, way)

    def step() -> None:
        gpu_unit.THREE_BY_THREE = way.three_by_three  # type: ignore[assignment]
        training._step()

    return _warmed(session, step, turns, name, base, started)


def _peer_entered(
    session: Session, name: str, make: Callable[[], nn.Module], turns: dict[str, Any]
) -> dict[str, Any]:
    base, started = _memory(session), time.monotonic()
    size = session.options.batch_size
    model = make().to(session.device)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    x = torch.randn(size, 3, 32, 32, device=session.device)
    labels = torch.randint(10, (size,), device=session.device)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()

    return _warmed(session, step, turns, name, base, started)


def _warmed(
    session: Session, step: Callable[[], None], turns: dict[str, Any], name: str, base: int, started: float
) -> dict[str, Any]:
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
        return row | {"kernels_per_step": f"not run: {_said(error)}"}


def _profiled(session: Session, step: Callable[[], None]) -> dict[str, Any]:
    if session.device.type != "cuda":
        return {"kernels_per_step": "not run: needs a GPU"}
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        step()
        synchronize(session.device)
    on_device = [event for event in seen.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return {
        "kernels_per_step": len(on_device),
        "device_milliseconds": sum(event.device_time for event in on_device) / 1e3,
    }


def _in_turns(session: Session, network: Network, turns: dict[str, Any]) -> Iterator[dict[str, Any]]:
    took: dict[str, list[float]] = {name: [] for name in turns}
    size = 4 if session.rehearse else session.options.batch_size
    for _ in range(2 if session.rehearse else 9):
        for name, step in list(turns.items()):
            if not session.going_on() and all(took.values()):
                continue
            try:
                took[name].append(_turn(session, step))
            except Exception as error:  # one way that fails does not end the others
                traceback.print_exc()
                del turns[name], took[name]
                yield {"network": network.depth, "way": name, "not run": _said(error)}
    operations = 6 * network.multiply_adds
    for name, times in took.items():
        speed = size / median(times)
        yield {
            "network": network.depth, "way": name, "batch_size": size, "turns": len(times),
            "seconds_per_step": median(times), "least": min(times), "most": max(times),
            "images_per_second": speed, "roofline_share": speed * operations / session.ceilings["bf16_flops"],
        }  # fmt: skip


def _turn(session: Session, step: Callable[[], None], steps: int = 5) -> float:
    synchronize(session.device)
    started = time.perf_counter()
    for _ in range(1 if session.rehearse else steps):
        step()
    synchronize(session.device)
    return (time.perf_counter() - started) / (1 if session.rehearse else steps)


def peers(depth: int) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """The same network from packages that are here, in their own default way."""
    names = {110: "preresnet110_cifar10", 164: "preresnet164bn_cifar10", 1001: "preresnet1001_cifar10"}
    if find_spec("pytorchcv") and depth in names:
        provider = import_module("pytorchcv.model_provider")
        yield f"pytorchcv {names[depth]}", lambda: provider.get_model(names[depth])


def short_recipe(session: Session) -> Iterator[dict[str, Any]]:
    """A network trained to the end by two ways: the loss of every epoch, the error, the time."""
    data = Data(session.options.data, subset=64 if session.rehearse else None)
    splits = load_data(data)
    base = SMALL if session.rehearse else describe(NETWORKS[0])
    made = with_data(recipe("short", len(splits.train)), data)
    each = max(1, len(splits.train) // made.batch_size)
    made = made.shortened(2 if session.rehearse else each * session.options.epochs)
    if session.rehearse:
        made = replace(made, batch_size=8)
    network = fitted(base, classes=splits.num_classes, in_chans=splits.in_chans, image_size=splits.image_size)
    for name in ("bf16, channels last, eager", "Triton, graph"):
        experiment = Experiment(network, data, made, **WAYS[name].changes)
        gpu_unit.THREE_BY_THREE = WAYS[name].three_by_three  # type: ignore[assignment]
        row = _or_why(session, lambda e=experiment: _to_the_end(session, e, splits), WAYS[name])
        yield {"network": network.depth, "way": name, "data": splits.name, **row}


def _to_the_end(session: Session, experiment: Experiment, splits: Splits) -> dict[str, Any]:
    training = Training(experiment, splits, Place(session.device))
    started, losses = time.monotonic(), []
    for step in training.steps(lambda: not session.going_on()):
        if step.epoch:
            losses.append(step.epoch.train_loss)
    final = training.conclude(lambda: False)
    synchronize(session.device)
    return {
        "seconds": time.monotonic() - started, "steps": training.iteration, "train_losses": losses,
        "test_error": final.last.error if final else None,
    }  # fmt: skip


def trained_on_noise(session: Session, network: Network, way: Way) -> Training:
    """A training on random images of the network's size, which lie on the device."""
    gpu_unit.THREE_BY_THREE = way.three_by_three  # type: ignore[assignment]
    size = 4 if session.rehearse else session.options.batch_size
    count, side = (16 if session.rehearse else 10_000), network.image_size
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    images = Images(pixels, torch.randint(10, (count,), generator=generator))
    splits = Splits("noise", tuple("0123456789"), images, None, lambda: images)
    plan = Recipe("noise", 10_000, Steps(0.01), size, augmentation=Augmentation())
    experiment = Experiment(network, Data("digits"), plan, **way.changes)
    return Training(experiment, splits, Place(session.device))


def _or_why(session: Session, call: Callable[[], dict[str, Any]], way: Way | None = None) -> dict[str, Any]:
    """What `call` found, or in words why there is nothing; one way that fails does not end the others."""
    if way and way.gpu_only and session.device.type != "cuda":
        return {"not run": "needs a GPU"}
    if not session.going_on():
        return {"not run": "the minutes were over"}
    try:
        return call()
    except Exception as error:
        traceback.print_exc()
        return {"not run": _said(error)}


def _said(error: Exception) -> str:
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


PART = {"check": checks, "kernels": kernels, "steps": steps, "recipe": short_recipe}

if __name__ == "__main__":
    raise SystemExit(main())
