"""One repeat of the work that is compared: a whole training step, or a forward pass without gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kilolayer.bench.building import Built
from kilolayer.bench.checks import IMAGES, cross_entropy, finite, logits
from kilolayer.bench.contestant import ENGINES, OURS_ALONE, QUANTISED, Contestant
from kilolayer.errors import InputError
from kilolayer.networks import ResidualNetwork


def inputs(found: Built, batch_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """A batch of normally distributed images and labels of ten classes, the same for everyone."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(batch_size, found.channels, found.image_side, found.image_side, generator=source)
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
    if not any(parameter.requires_grad for parameter in found.module.parameters()):
        raise InputError("no parameter of it requires a gradient, so it has nothing to train; add --infer")
    optimizer = torch.optim.SGD(found.module.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        with _precision(found, x):
            out = logits(found.module, x)
        loss = functional.cross_entropy(out.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        finite(loss)  # reading it waits for a GPU to be done

    with _precision(found, x):
        first = logits(found.module, x[:IMAGES])
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
            out = logits(module, images)
        out.sum().item()
        return out

    return run, x


def _precision(found: Built, x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, torch.bfloat16, found.precision == "bf16", cache_enabled=False)
