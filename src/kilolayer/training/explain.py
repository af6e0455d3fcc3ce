"""What was chosen for speed and memory, and why, in words."""

from __future__ import annotations

import os

import torch

from kilolayer.kernels import pool
from kilolayer.kernels.arithmetic import products
from kilolayer.kernels.ways import refusal
from kilolayer.training.budget import in_words
from kilolayer.training.device import choose_precision, no_kernels
from kilolayer.training.experiment import Compile, Evaluated, Experiment
from kilolayer.training.loop import Training
from kilolayer.training.memory import MemoryPlan


def choices(training: Training) -> dict[str, str]:
    """A line for every choice: device, precision, memory format, compiler, threads, allocation, memory."""
    place, experiment = training.place, training.experiment
    rows = {
        "device": _device(training),
        "precision": _precision(training),
        "format": _format(experiment.channels_last, experiment.precision),
        "kernels": str(training.kernels) if training.kernels else f"plain layers, {_why_plain(training)}",
        "compiler": COMPILERS[experiment.compile],
        "evaluation": EVALUATIONS[experiment.evaluation],
    }
    if place.device.type == "cuda":
        rows |= {"kernels": _kernels(training), "step": _step(experiment.graph)}
    if place.device.type == "cpu":
        rows |= {"threads": _threads(), "allocation": pool.use()}
    return rows | {"memory": _memory(experiment, training.memory), **_sizes(training.memory)}


EVALUATIONS: dict[Evaluated, str] = {
    "plain": "layer by layer",
    "folded": "BN folded into the convolutions, faster than layer by layer",
}
COMPILERS: dict[Compile, str] = {
    "off": "none: eager PyTorch",
    "units": "torch.compile on each kind of unit, as asked",
    "model": "torch.compile, as asked",
}


def _why_plain(training: Training) -> str:
    device, experiment = training.place.device, training.experiment
    why = refusal(device) or no_kernels(
        device,
        experiment.precision,
        experiment.channels_last,
        experiment.compile != "off",
        experiment.recipe.trunk_frozen,
    )
    return f"without kernels: {why}" if why else "as asked"


def _kernels(training: Training) -> str:
    if training.kernels:
        return str(training.kernels)
    why = "as asked or by default: Triton's (--kernels fused) have not been measured on a GPU yet"
    return f"PyTorch's layers, {why}"


def _step(graph: bool) -> str:
    if graph:
        return "one CUDA graph, as asked"
    return "kernel by kernel: a CUDA graph (--graph on) has not been measured on a GPU yet"


def _device(training: Training) -> str:
    place = training.place
    if place.device.type == "cuda":
        return f"{place.device}, {torch.cuda.get_device_name(place.device)}"
    return "cpu, as asked" if torch.cuda.is_available() else "cpu: no GPU that PyTorch can use"


def _precision(training: Training) -> str:
    experiment = training.experiment
    fusable = experiment.network if training.kernels and training.kernels.fused else None
    best = choose_precision("auto", training.place.device, fusable)
    match experiment.precision, best:
        case "bf16", "bf16":
            return f"bf16 over fp32 weights, multiplied in {_products(training)}: faster here than fp32"
        case "bf16", _:
            return "bf16, as asked: fp32 is faster here"
        case _, "bf16":
            return "fp32, as asked: bf16 is faster here"
        case _:
            return "fp32: faster here than bf16"


def _products(training: Training) -> str:
    """What is multiplied: the kernels choose for themselves."""
    on_cpu = training.place.device.type == "cpu"
    return products() if on_cpu and training.kernels and training.kernels.fused else "bf16"


def _format(channels_last: bool, precision: str) -> str:
    if not channels_last:
        return "channels first" + (
            ", as asked: channels last is faster in bf16" if precision == "bf16" else ""
        )
    return "channels last: what bf16 convolutions are fastest in" if precision == "bf16" else "channels last"


def _threads() -> str:
    return f"{torch.get_num_threads()}; this machine has {os.cpu_count()} cores"


def _memory(experiment: Experiment, found: MemoryPlan) -> str:
    asked = experiment.memory
    if experiment.recipe.trunk_frozen:
        return f"{asked}: of the frozen trunk nothing is kept, nothing is computed twice"
    if not found.recomputed:
        return f"{asked}: everything is kept, nothing is computed twice"
    numbers = ", ".join(f"{name} in {len(stage)}" for name, stage in found.segments.items())
    percent = round(100 * found.recomputed)
    return f"{asked}: {percent} % more forward computation, segments: {numbers}"


def _sizes(found: MemoryPlan) -> dict[str, str]:
    peak = found.peak
    parts = {
        "process and data": peak.process,
        "weights and optimiser": peak.state,
        "activations and gradients": peak.step,
        "one unit at work": peak.working,
    }
    listed = ", ".join(f"{name} {in_words(size)}" for name, size in parts.items())
    return {"predicted": f"{in_words(peak.total)} at the peak: {listed}"}
