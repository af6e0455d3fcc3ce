"""Fused units beside PyTorch's layers: single units and whole training steps, on one thread.

    python benchmarks/unit_kernels.py [--batch N] [--repeats N] [--networks NAME:BATCH …] [--out FILE]

Every unit and network is computed in turns in fp32 with channels first (PyTorch's default), in bf16 autocast
with channels last, and fused. The figures are medians of the process's own CPU seconds, so that other work on
the machine counts little. All three use the memory pool of training. The share is relative to this thread's
fastest matrix product, in bf16 or fp32. Memory is the resident size after two steps, each network in a
process of its own. Writes results/unit-kernels.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kilolayer import kernels
from kilolayer.bench.machine import fastest_dtype, measure_ceilings
from kilolayer.kernels import cpu_pool
from kilolayer.kernels.conv_chain import same_shape_chain
from kilolayer.kernels.native_unit import run_native_unit as fused_unit
from kilolayer.networks import build, describe
from kilolayer.runs.start_environment import environment_record
from kilolayer.training import DistributedContext
from kilolayer.training.memory_plan import resident_bytes
from kilolayer.units import BASIC, BOTTLENECK, FULL_PREACT, ORIGINAL, Unit, build_unit, layout

WAYS = ("fp32", "bf16", "fused")
CPU = torch.device("cpu")
SHAPES = ((16, 32), (32, 16), (64, 8), (128, 28), (256, 14))
"""Inner width and side of the CIFAR networks' stages, and of the two middle ones of the ImageNet networks."""
UNITS = {
    f"{kind}, {branch}": replace(unit, arrangement=arrangement)
    for kind, arrangement in (("pre-activated", FULL_PREACT), ("original", ORIGINAL))
    for branch, unit in (("basic", BASIC), ("bottleneck", BOTTLENECK))
}
NETWORKS = ("preact_resnet110_cifar:64", "preact_resnet164_cifar:64", "preact_resnet1001_cifar:8")

Work = dict[str, Callable[[], object]]


def seconds(work: Work, repeats: int) -> dict[str, float]:
    """The median CPU seconds of every way, measured in turns; the first turn is not counted."""
    taken: dict[str, list[float]] = {way: [] for way in work}
    for repeat in range(repeats + 1):
        for way, run in work.items():
            started = time.process_time()
            run()
            if repeat:
                taken[way].append(time.process_time() - started)
    return {way: statistics.median(times) for way, times in taken.items()}


def unit_work(unit: Unit, width: int, side: int, batch: int) -> Work:
    channels = unit.branch.out_channels(width)
    module = build_unit(layout(unit, channels, width))
    x, dy = torch.randn(2, batch, channels, side, side)
    chain = same_shape_chain(module)
    assert not isinstance(chain, str), chain  # noqa: S101 - of a benchmark

    def of(way: str) -> Callable[[], object]:
        low = way != "fp32"
        dtype, form = (
            (torch.bfloat16, torch.channels_last) if low else (torch.float32, torch.contiguous_format)
        )
        source = x.to(dtype).to(memory_format=form).requires_grad_()
        gradient = dy.to(dtype).to(memory_format=form)

        def run() -> None:
            with torch.autocast("cpu", torch.bfloat16, low, cache_enabled=False):
                y = fused_unit(chain, source, chain.parameters()) if way == "fused" else module(source)
            torch.autograd.grad(y, [source, *module.parameters()], gradient)

        return run

    return {way: of(way) for way in WAYS}


def stepper(model: nn.Module, way: str, x: Tensor, labels: Tensor) -> Callable[[], object]:
    """A function that runs one step of SGD in this way."""
    if way != "fp32":
        model, x = (value.to(memory_format=torch.channels_last) for value in (model, x))
    if way == "fused":
        kernels.fuse(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, way != "fp32", cache_enabled=False):
            logits = model(x)
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return step


def network_step(name: str, way: str, batch: int) -> Callable[[], object]:
    torch.manual_seed(0)
    model = build(describe(name))
    return stepper(model, way, torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,)))


def memory_of(name: str, way: str, batch: int) -> int:
    """Resident bytes after two steps, in a process of its own."""
    command = [sys.executable, __file__, "--resident", way, "--networks", f"{name}:{batch}"]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)  # noqa: S603


def resident_after_two_steps(name: str, way: str, batch: int) -> int:
    step = network_step(name, way, batch)
    step()
    step()
    return resident_bytes()


def row(name: str, flops: float, times: dict[str, float], ceiling: float, **more: Any) -> dict[str, Any]:
    """One line of the table; prints it too."""
    fused = times["fused"]
    figures = {
        "name": name,
        "seconds": times,
        "gflops": {way: flops / taken / 1e9 for way, taken in times.items()},
        "share_of_ceiling": flops / fused / ceiling,
        "faster_than_fp32": times["fp32"] / fused,
        "faster_than_bf16": times["bf16"] / fused,
        **more,
    }
    ratios = f"fp32 ×{figures['faster_than_fp32']:.2f}  bf16 ×{figures['faster_than_bf16']:.2f}"
    speed = f"{flops / fused / 1e9:5.0f} GFLOP/s {figures['share_of_ceiling']:4.0%}"
    print(f"{name:34} fused {1e3 * fused:8.1f} ms {speed}  {ratios}", flush=True)
    return figures


def unit_rows(batch: int, repeats: int, ceiling: float) -> list[dict[str, Any]]:
    rows = []
    for name, unit in UNITS.items():
        for width, side in SHAPES:
            size = batch if width < 128 else batch // 4
            unit_layout = layout(unit, unit.branch.out_channels(width), width)
            flops = 6 * size * unit_layout.multiply_adds(side)
            times = seconds(unit_work(unit, width, side, size), repeats)
            rows.append(row(f"{name} {width}, {side}×{side}", flops, times, ceiling))
    return rows


def network_rows(networks: list[str], repeats: int, ceiling: float) -> list[dict[str, Any]]:
    rows = []
    for network_name in networks:
        name, batch = network_name.split(":")
        size = int(batch)
        flops = 6 * size * describe(name).multiply_adds
        times = seconds({way: network_step(name, way, size) for way in WAYS}, repeats)
        memory = {way: memory_of(name, way, size) for way in WAYS}
        rows.append(row(network_name, flops, times, ceiling, resident_bytes=memory))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--batch", type=int, default=32, help="images of a unit's batch, on ImageNet's sizes a quarter"
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), metavar="NAME:BATCH")
    parser.add_argument("--out", type=Path, default=Path("results/unit-kernels.json"))
    parser.add_argument("--resident", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    allocation = cpu_pool.install_pool()
    if options.resident:
        name, batch = options.networks[0].split(":")
        print(resident_after_two_steps(name, options.resident, int(batch)))
        return
    if why := kernels.unavailable_reason():
        raise SystemExit(f"there are no kernels here: {why}")
    arithmetic, ceiling = fastest_dtype(measure_ceilings(CPU))
    record = {
        "environment": environment_record(
            DistributedContext(CPU), "bf16", channels_last=True, kernels="fused"
        ),
        "allocation": allocation,
        "ceiling_gflops": ceiling / 1e9,
        "ceiling_in": arithmetic,
        "units": unit_rows(options.batch, options.repeats, ceiling),
        "networks": network_rows(options.networks, options.repeats, ceiling),
    }
    options.out.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
