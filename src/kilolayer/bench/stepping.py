"""One repeat of the work that is compared: a whole training step, or a forward pass without gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from kilolayer.bench.building import Built
from kilolayer.bench.contestant import ENGINES, Contestant
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


def training(one: Contestant, found: Built, x: Tensor, labels: Tensor) -> Callable[[], object]:
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

    return step


def inference(one: Contestant, found: Built, x: Tensor, labels: Tensor) -> Callable[[], object]:
    """Logits of the batch."""
    from kilolayer.inference import folded, onnx, openvino

    module = found.module
    if one.variant in ENGINES:
        run = (onnx if one.variant == "onnxruntime" else openvino).session(module, x, torch.get_num_threads())
        return lambda: run(x)
    if isinstance(module, ResidualNetwork) and one.variant in ("fast", "folded"):
        dtype = torch.bfloat16 if found.precision == "bf16" else torch.float32
        module, x = folded.fold(module, dtype), x.to(dtype)
        found = replace(found, precision="fp32")  # as autocast goes: the weights are bf16 themselves

    @torch.inference_mode()
    def step() -> None:
        with _precision(found, x):
            logits = module(x)
        logits.sum().item()

    return step


def _precision(found: Built, x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, torch.bfloat16, found.precision == "bf16", cache_enabled=False)
