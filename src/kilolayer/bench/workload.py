"""One repeat of the compared work: a training step, or a forward pass without gradients."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kilolayer.bench.candidate import ENGINES, KILOLAYER_VARIANTS, QUANTISED_VARIANTS, Candidate
from kilolayer.bench.candidate_module import CandidateModule
from kilolayer.bench.equivalence import IMAGES, compute_logits, finite_loss, mean_cross_entropy
from kilolayer.errors import InputError
from kilolayer.networks import ResidualNetwork


def random_batch(built: CandidateModule, batch_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Normally distributed images and labels of ten classes, the same for every candidate."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(batch_size, built.channels, built.image_side, built.image_side, generator=source)
    labels = torch.randint(10, (batch_size,), generator=source)
    if built.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    return x.to(device), labels.to(device)


@dataclass(frozen=True)
class Workload:
    """`step` runs one repeat; `loss` is the loss of the first few images by the same path that is timed."""

    step: Callable[[], object]
    loss: float


def training_workload(candidate: Candidate, built: CandidateModule, x: Tensor, labels: Tensor) -> Workload:
    """Forward pass, mean cross-entropy, backward pass, SGD with momentum and weight decay, as in training."""
    if not any(parameter.requires_grad for parameter in built.module.parameters()):
        raise InputError(
            "no parameter of this model requires a gradient, so it has nothing to train; add --infer"
        )
    optimizer = torch.optim.SGD(built.module.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        with _autocast(built, x):
            out = compute_logits(built.module, x)
        loss = functional.cross_entropy(out.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        finite_loss(loss)  # reading the value waits for a GPU

    with _autocast(built, x):
        first = compute_logits(built.module, x[:IMAGES])
    return Workload(step, mean_cross_entropy(first.detach(), labels[:IMAGES]))


def inference_workload(candidate: Candidate, built: CandidateModule, x: Tensor, labels: Tensor) -> Workload:
    """The logits of the batch."""
    run, x = (
        _engine_function(candidate, built, x)
        if candidate.variant in ENGINES
        else _eager_function(candidate, built, x)
    )
    return Workload(lambda: run(x), mean_cross_entropy(run(x), labels[:IMAGES]))


ImagesFunction = Callable[[Tensor], Any]


def _engine_function(
    candidate: Candidate, built: CandidateModule, x: Tensor
) -> tuple[ImagesFunction, Tensor]:
    from kilolayer.weights.onnx import onnx_session
    from kilolayer.weights.openvino import openvino_session

    threads = torch.get_num_threads()
    if candidate.variant in QUANTISED_VARIANTS:
        return quantized_session(built.module, x, threads, QUANTISED_VARIANTS[candidate.variant]), x
    session = onnx_session if candidate.variant == "onnxruntime" else openvino_session
    return session(built.module, x, threads), x


def quantized_session(module: nn.Module, x: Tensor, threads: int, engine: str) -> ImagesFunction:
    """`module`, quantised on the images `x` and run by "onnxruntime" or "openvino": for timing only."""
    from kilolayer.weights.onnx import onnx_file_session, quantize_onnx
    from kilolayer.weights.openvino import openvino_file_session

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantize_onnx(module, x, path)
        if engine == "onnxruntime":
            return onnx_file_session(path, threads)
        return openvino_file_session(path, x, threads)


def _eager_function(candidate: Candidate, built: CandidateModule, x: Tensor) -> tuple[ImagesFunction, Tensor]:
    from kilolayer.kernels import fold

    module = built.module
    if isinstance(module, ResidualNetwork) and candidate.variant in KILOLAYER_VARIANTS:
        dtype = torch.bfloat16 if built.precision == "bf16" else torch.float32
        module, x = fold(module, dtype), x.to(dtype)
        built = replace(built, precision="fp32")  # no autocast: the weights themselves are bf16

    @torch.inference_mode()
    def run(images: Tensor) -> Tensor:
        with _autocast(built, images):
            out = compute_logits(module, images)
        out.sum().item()
        return out

    return run, x


def _autocast(built: CandidateModule, x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, torch.bfloat16, built.precision == "bf16", cache_enabled=False)
