"""Single Triton kernels of the residual unit, compared with the bytes that they move; part of
benchmarks/gpu.py.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import batch_norm, conv2d

from kilolayer.kernels.gpu import launch
from kilolayer.kernels.gpu.launch import MapLoad
from kilolayer.units import BatchNorm

CACHE = 200e6
"""Bytes over which the smaller of a convolution's maps is rotated: more than a GPU's cache holds."""
Calls = Callable[[], object]


@dataclass(frozen=True)
class ConvSite:
    """A convolution of a basic unit or a bottleneck: `inputs` → `outputs` channels, on maps of `side`."""

    images: int
    inputs: int
    outputs: int
    kernel: int
    side: int

    def __str__(self) -> str:
        return f"{self.kernel}×{self.kernel} {self.inputs}→{self.outputs}, {self.side}×{self.side}"

    @property
    def pixels(self) -> int:
        return self.images * self.side**2


SHAPES = [
    (16, 64, 1, 32), (16, 16, 3, 32), (64, 16, 1, 32), (32, 128, 1, 16), (32, 32, 3, 16), (128, 32, 1, 16),
    (64, 256, 1, 8), (64, 64, 3, 8), (256, 64, 1, 8),
]  # fmt: skip
"""Of preact 110, 164 and 1001: channels in and out, the convolution's side, the map's."""


def conv_sites(rehearse: bool) -> list[ConvSite]:
    """The convolutions of preact 110, 164 and 1001 at batch 128."""
    if rehearse:
        return [ConvSite(2, 16, 16, kernel, 4) for kernel in (1, 3)]
    return [ConvSite(128, *shape) for shape in SHAPES]


@dataclass
class Maps:
    """Random inputs of every kernel at a site; one set of several."""

    t: Tensor
    g: Tensor
    u: Tensor
    weight: Tensor
    norm: BatchNorm
    measured: Tensor
    coefficients: Tensor


def random_maps(site: ConvSite, device: torch.device) -> Maps:
    t = _map(site.images, site.inputs, site.side, device)
    g, u = (_map(site.images, site.outputs, site.side, device) for _ in range(2))
    norm = BatchNorm(site.inputs).to(device)
    weight = torch.randn(site.outputs, site.inputs, site.kernel, site.kernel, device=device)
    measured = launch.bn_finalize(norm, norm.weight, norm.bias, launch.channel_sums(t), site.pixels)
    last = weight.to(memory_format=torch.channels_last)
    return Maps(t, g, u, last, norm, measured, torch.randn(3, site.outputs, device=device))


def _map(images: int, channels: int, side: int, device: torch.device) -> Tensor:
    x = torch.randn(images, channels, side, side, device=device)
    return x.bfloat16().to(memory_format=torch.channels_last)


def kernels(site: ConvSite) -> Iterator[tuple[str, int, int, Callable[[Maps], object]]]:
    """Of every kernel: its name, the bytes it must move, its floating-point operations, and the call."""
    i, o = (2 * site.pixels * channels for channels in (site.inputs, site.outputs))
    product = 2 * site.pixels * site.inputs * site.outputs * site.kernel**2
    half = site.kernel // 2

    def read(m: Maps) -> MapLoad:
        return launch.bn_relu_load(m.t, m.measured)

    def back(m: Maps) -> MapLoad:
        return launch.bn_gradient_load(m.g, m.u, m.coefficients)

    def norm(m: Maps) -> Tensor:
        return batch_norm(m.t, None, None, m.norm.weight.detach(), m.norm.bias.detach(), True).relu()

    def both(m: Maps) -> object:
        weight, output_mask = m.weight.bfloat16(), [True, True, False]
        return torch.ops.aten.convolution_backward(
            m.g, m.t, weight, None, [1, 1], [half] * 2, [1, 1], False, [0, 0], 1, output_mask
        )

    yield "BN statistics", i, 0, lambda m: launch.channel_sums(m.t)
    yield "BN-ReLU", 2 * i, 0, lambda m: launch.bn_relu_forward(m.t, m.measured)
    yield (
        "BN-ReLU backward, sums",
        2 * i,
        0,
        lambda m: launch.relu_backward(m.t, m.t, m.measured, stored=False),
    )
    yield "BN-ReLU backward, dx", 3 * o, 0, lambda m: launch.bn_backward(m.g, m.u, m.coefficients)
    yield "addition with sums", 3 * o, 0, lambda m: launch.add_with_sums(m.g, m.u)
    yield "convolution", i + o, product, lambda m: launch.conv_forward(read(m), m.weight)
    yield (
        "convolution and addition",
        i + 2 * o,
        product,
        lambda m: launch.conv_forward(read(m), m.weight, m.g),
    )
    into = 2 * o + 2 * i
    yield (
        "convolution backward, dx", into, product,
        lambda m: launch.conv_dgrad(back(m), m.weight, m.t, m.measured),
    )  # fmt: skip
    yield (
        "convolution backward, dw",
        2 * o + i,
        product,
        lambda m: launch.conv_wgrad(back(m), read(m), m.weight),
    )
    yield "PyTorch's BN and ReLU", 5 * i, 0, norm
    yield "PyTorch's convolution", i + o, product, lambda m: conv2d(m.t, m.weight.bfloat16(), padding=half)
    yield "PyTorch's convolution backward", into, 2 * product, both


def rows(device: torch.device, *, rehearse: bool, going_on: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    """Every kernel at every site; then the convolutions with other block sizes, stages and programs."""
    for site in conv_sites(rehearse):
        sets = [random_maps(site, device) for _ in range(_sets(site, device))]
        for name, size, operations, call in kernels(site):
            yield _row(site, name, size, operations, call, sets, going_on)
    for site in conv_sites(rehearse):
        sets = [random_maps(site, device) for _ in range(_sets(site, device))]
        for changes in variants(rehearse):
            before = {name: getattr(launch, name) for name in changes}
            vars(launch).update(changes)
            try:
                for name, size, operations, call in kernels(site):
                    if name.startswith("convolution"):
                        row = _row(site, name, size, operations, call, sets, going_on)
                        yield row | {"with": changes}
            finally:
                vars(launch).update(before)


def variants(rehearse: bool) -> list[dict[str, int]]:
    """Constants of `launch` to try, one at a time."""
    all_of_them = [{"ROWS": 64}, {"ROWS": 256}, {"STAGES": 3}, {"PROGRAMS": 132}, {"PROGRAMS": 528}]
    return all_of_them[:1] if rehearse else all_of_them


def _row(
    site: ConvSite,
    name: str,
    size: int,
    operations: int,
    call: Callable[[Maps], object],
    sets: list[Maps],
    going_on: Callable[[], bool],
) -> dict[str, Any]:
    head = {"place": str(site), "kernel": name, "bytes": size}
    if not going_on():
        return head | {"not run": "the minutes were over"}
    try:
        took = seconds(call, sets)
    except Exception as error:  # a kernel that fails must not end the others
        traceback.print_exc()
        return head | {"not run": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}
    return head | {"microseconds": 1e6 * took, "bytes_per_second": size / took, "flops": operations / took}


def _sets(site: ConvSite, device: torch.device) -> int:
    if device.type == "cpu":
        return 1
    return math.ceil(CACHE / (2 * site.pixels * min(site.inputs, site.outputs)))


def seconds(call: Callable[[Maps], object], sets: list[Maps]) -> float:
    """The median seconds of one call over all sets; on a GPU inside a graph, so without launch times."""
    for maps in sets:
        call(maps)
    if sets[0].t.device.type == "cpu":
        started = time.perf_counter()
        call(sets[0])
        return time.perf_counter() - started
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        # Keep the results: freed memory would be reused and stay in the cache.
        results = [call(maps) for maps in sets]
    times = []
    for _ in range(12):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / len(sets))
    del results
    return median(times[2:])


def ceilings(device: torch.device, *, rehearse: bool) -> dict[str, float]:
    """Bytes per second of a large copy (read plus written), and bf16 operations per second of a large
    product.
    """
    side, length = (64, 10_000) if rehearse else (8192, 2**30)
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randint(255, (length,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return {
        "copy_bytes": 2 * length / _best(lambda: target.copy_(source), device),
        "bf16_flops": 2 * side**3 / _best(lambda: torch.mm(a, b), device),
    }


def _best(call: Calls, device: torch.device, repeats: int = 10) -> float:
    times = []
    for _ in range(repeats + 3):
        synchronize(device)
        started = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return median(times[3:])


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
