"""One repeat of the work that is compared: a whole training step, or a forward pass without gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kilolayer.bench.building import Built
from kilolayer.bench.checks import IMAGES, cross_entropy
from kilolayer.bench.contestant import ENGINES, OURS_ALONE, QUANTISED, Contestant
from kilolayer.networks import ResidualNetwork


def inputs(found: Built, batch_size: int, side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """A batch of normally distributed images and labels of ten classes: the same for everyone."""
    source = torch.Generator().manual_seed(0)
    channels = next(p for p in found.module.parameters() if p.ndim == 4).shape[1]
    x = torch.randn(batch_size, channels, side, side, generator=source)
    labels = torch.randint(10, (batch_size,), generator=source)
    if found.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    return x.to(device), labels.to(device)


@dataclass(frozen=True)
class Work:
    """One repeat, and the loss of the first few images by the very path that is timed."""

    step: Callable[[], object]
    loss: float


def training(one: Contestant, found: Built, x: Tensor, labels: Tensor) -> Work:
    """Forward, mean cross-entropy, backward, SGD with momentum and weight decay: as `Training` steps."""
    optimizer = torch.optim.SGD(found.module.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        with _precision(found, x):
            logits = found.module(x)
        loss = functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        # Reading the loss waits for a GPU to be done.
        if not loss.isfinite().item():
            raise ValueError(f"{one.name}: the loss is not finite")

    with _precision(found, x):
        first = found.module(x[:IMAGES])
    return Work(step, cross_entropy(first.detach(), labels[:IMAGES]))


def inference(one: Contestant, found: Built, x: Tensor, labels: Tensor) -> Work:
    """Logits of the batch."""
    run, x = _engine(one, found, x) if one.variant in ENGINES else _ours_or_eager(one, found, x)
    return Work(lambda: run(x), cross_entropy(run(x), labels[:IMAGES]))


Run = Callable[[Tensor], Any]


def _engine(one: Contestant, found: Built, x: Tensor) -> tuple[Run, Tensor]:
    from kilolayer.inference import onnx, openvino

    threads = torch.get_num_threads()
    if one.variant in QUANTISED:
        return onnx.quantized_session(found.module, x, threads, QUANTISED[one.variant]), x
    return (onnx if one.variant == "onnxruntime" else openvino).session(found.module, x, threads), x


def _ours_or_eager(one: Contestant, found: Built, x: Tensor) -> tuple[Run, Tensor]:
    from kilolayer.inference import fold

    module = found.module
    if isinstance(module, ResidualNetwork) and one.variant in OURS_ALONE:
        dtype = torch.bfloat16 if found.precision == "bf16" else torch.float32
        module, x = fold(module, dtype), x.to(dtype)
        found = replace(found, precision="fp32")  # as autocast goes: the weights are bf16 themselves

    @torch.inference_mode()
    def run(images: Tensor) -> Tensor:
        with _precision(found, images):
            logits: Tensor = module(images)
        logits.sum().item()
        return logits

    return run, x


def _precision(found: Built, x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, torch.bfloat16, found.precision == "bf16", cache_enabled=False)
