"""The choices for speed and memory, each with its reason, in words."""

from __future__ import annotations

import os

import torch

from kilolayer.kernels import unavailable_reason, use_cpu_pool
from kilolayer.training.computation import choose_precision
from kilolayer.training.experiment import CompileMode, EvaluationMode, Experiment
from kilolayer.training.memory_budget import format_bytes
from kilolayer.training.memory_plan import MemoryPlan
from kilolayer.training.trainer import Trainer


def explain_decisions(trainer: Trainer) -> dict[str, str]:
    """A line for each choice: device, precision, memory format, kernels, compiler, threads, memory."""
    context, experiment = trainer.context, trainer.experiment
    rows = {
        "device": _device(trainer),
        "precision": _precision(trainer),
        "format": _format(experiment.channels_last, experiment.precision),
        "kernels": str(trainer.kernels) if trainer.kernels else f"plain layers, {_why_plain(trainer)}",
        "compiler": COMPILER_TEXTS[experiment.compile],
        "evaluation": EVALUATION_TEXTS[experiment.evaluation],
    }
    if context.device.type == "cuda":
        rows |= {"kernels": _kernels(trainer), "step": _step(experiment.graph)}
    if context.device.type == "cpu":
        rows |= {"threads": _threads(), "allocation": use_cpu_pool(context.device)}
    return rows | {"memory": _memory(experiment, trainer.memory_plan), **_sizes(trainer.memory_plan)}


EVALUATION_TEXTS: dict[EvaluationMode, str] = {
    "plain": "layer by layer",
    "folded": "BN folded into the convolutions, faster than layer by layer",
}
COMPILER_TEXTS: dict[CompileMode, str] = {
    "off": "none: eager PyTorch",
    "units": "torch.compile on each kind of unit, as asked",
    "model": "torch.compile, as asked",
}


def _why_plain(trainer: Trainer) -> str:
    device, experiment = trainer.context.device, trainer.experiment
    reason = unavailable_reason(device) or unavailable_reason(
        device,
        precision=experiment.precision,
        channels_last=experiment.channels_last,
        is_compiled=experiment.compile != "off",
        trunk_frozen=experiment.recipe.trunk_frozen,
    )
    return f"without kernels: {reason}" if reason else "as asked"


def _kernels(trainer: Trainer) -> str:
    if trainer.kernels:
        return str(trainer.kernels)
    reason = "as asked or by default: Triton's (--kernels fused) have not been measured on a GPU yet"
    return f"PyTorch's layers, {reason}"


def _step(graph: bool) -> str:
    if graph:
        return "one CUDA graph, as asked"
    return "kernel by kernel: a CUDA graph (--cuda-graph on) has not been measured on a GPU yet"


def _device(trainer: Trainer) -> str:
    context = trainer.context
    if context.device.type == "cuda":
        return f"{context.device}, {torch.cuda.get_device_name(context.device)}"
    return "cpu, as asked" if torch.cuda.is_available() else "cpu: no GPU that PyTorch can use"


def _precision(trainer: Trainer) -> str:
    experiment = trainer.experiment
    fusable = experiment.network if trainer.kernels and trainer.kernels.fused_units else None
    best = choose_precision("auto", trainer.context.device, fusable)
    match experiment.precision, best:
        case "bf16", "bf16":
            dtype = trainer.kernels.multiplies_in if trainer.kernels else "bf16"
            return f"bf16 over fp32 weights, multiplied in {dtype}: faster here than fp32"
        case "bf16", _:
            return "bf16, as asked: fp32 is faster here"
        case _, "bf16":
            return "fp32, as asked: bf16 is faster here"
        case _:
            return "fp32: faster here than bf16"


def _format(channels_last: bool, precision: str) -> str:
    if not channels_last:
        return "channels first" + (
            ", as asked: channels last is faster in bf16" if precision == "bf16" else ""
        )
    return "channels last: bf16 convolutions are fastest in it" if precision == "bf16" else "channels last"


def _threads() -> str:
    return f"{torch.get_num_threads()}; this machine has {os.cpu_count()} cores"


def _memory(experiment: Experiment, plan: MemoryPlan) -> str:
    activation_memory = experiment.activation_memory
    if experiment.recipe.trunk_frozen:
        return f"{activation_memory}: of the frozen trunk nothing is kept, nothing is computed twice"
    if not plan.recomputed_share:
        return f"{activation_memory}: everything is kept, nothing is computed twice"
    numbers = ", ".join(f"{name} in {len(stage)}" for name, stage in plan.segments.items())
    percent = round(100 * plan.recomputed_share)
    return f"{activation_memory}: {percent} % more forward computation, segments: {numbers}"


def _sizes(plan: MemoryPlan) -> dict[str, str]:
    peak = plan.peak
    parts = {
        "process and data": peak.process_bytes,
        "weights and optimiser": peak.state_bytes,
        "activations and gradients": peak.step_bytes,
        "one unit at work": peak.working_bytes,
    }
    listed = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items())
    return {"predicted": f"{format_bytes(peak.total_bytes)} at the peak: {listed}"}
