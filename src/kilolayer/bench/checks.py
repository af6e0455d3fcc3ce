"""Whether contestants do the same work: with equal weights they must come to the same loss."""

from __future__ import annotations

import os
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

TOLERANCE = 1e-3
"""Relative, of losses computed in fp32 in other orders of addition."""


def offer(module: nn.Module, path: str) -> None:
    """Leaves the weights of `module` at `path`, for others with the same tensors in the same order."""
    tensors = {f"{number:06d}": p.detach().cpu().contiguous() for number, p in enumerate(module.parameters())}
    partial = f"{path}.{os.getpid()}"
    save_file(tensors, partial)
    os.replace(partial, path)


def loss_with(module: nn.Module, path: str, x: Tensor, labels: Tensor) -> dict[str, Any]:
    """In evaluation and fp32: the loss on `x` with the weights at `path`; None where they do not fit."""
    own = [p.detach().clone() for p in module.parameters()]
    offered = list(load_file(path).values()) if os.path.exists(path) else []
    fits = [p.shape for p in own] == [p.shape for p in offered]
    was_training = module.training
    with torch.no_grad():
        if fits:
            _put(module, offered)
        logits = module.eval()(x[:8])
        loss = functional.cross_entropy(logits.float(), labels[:8]).item() if fits else None
        if fits:
            _put(module, own)
    module.train(was_training)
    return {"loss": loss, "classes": logits.shape[1]}


def _put(module: nn.Module, values: list[Tensor]) -> None:
    for parameter, value in zip(module.parameters(), values, strict=True):
        parameter.copy_(value)


def differences(rows: list[dict[str, Any]]) -> list[str]:
    """In words, where contestants do other work than the first."""
    found, first = [], rows[0]
    for row in rows[1:]:
        for key, called in (("multiply_adds", "multiply-adds"), ("parameters", "parameters")):
            if row[key] != first[key]:
                by = 100 * (row[key] / first[key] - 1)
                found.append(
                    f"{row['name']}: {row[key]:,} {called}, {first['name']} {first[key]:,} ({by:+.2f} %)"
                )
        mine, other = first["loss_with_equal_weights"], row["loss_with_equal_weights"]
        if mine is not None and other is not None and abs(mine - other) > TOLERANCE * abs(mine):
            found.append(
                f"{row['name']}: with equal weights the loss is {other:.5f}, of {first['name']} {mine:.5f}"
            )
    return found
