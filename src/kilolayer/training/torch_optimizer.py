"""A recipe's optimiser as PyTorch's: parameter groups, learning rates, and its tensors in a saved state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from kilolayer.networks import ResidualNetwork
from kilolayer.training.optimizer import SGD
from kilolayer.training.recipes import Recipe

STATE_NAMES = {
    "momentum_buffer": "momentum",
    "exp_avg": "exp_avg",
    "exp_avg_sq": "exp_avg_sq",
    "step": "step",
}
"""PyTorch's names for the tensors that an optimiser keeps for a parameter, and ours in a saved state."""
RATE_SHARE = "share_of_rate"
"""A group's learning rate as a share of the recipe's."""


def build_optimizer(
    model: ResidualNetwork, recipe: Recipe, graph_device: torch.device | None = None
) -> Optimizer:
    """The recipe's optimiser for the parameters of `model` that have gradients.

    graph_device: the device of a CUDA graph that will replay the optimiser; its learning rates are then
        tensors, which the graph reads.
    """
    groups = list(_parameter_groups(model, recipe))
    for group in groups:
        group["lr"] = 0.1 if graph_device is None else torch.tensor(0.1, device=graph_device)
    choice = recipe.optimizer
    if not isinstance(choice, SGD):
        # The fused one passes once over each weight: on a CPU five times as fast as operation by operation.
        return torch.optim.AdamW(
            groups, betas=choice.betas, eps=choice.eps, fused=True, capturable=graph_device is not None
        )
    optimizer = torch.optim.SGD(
        groups,
        momentum=choice.momentum,
        nesterov=choice.nesterov,
        fused=None if graph_device is None else True,
    )
    if graph_device is not None and recipe.progressive_depth.changes and choice.momentum:
        # The fused SGD wants a buffer for every weight or for none; from 0 the first step is the same.
        for parameter in model.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _parameter_groups(model: ResidualNetwork, recipe: Recipe) -> Iterator[dict[str, Any]]:
    """The parameters that learn, grouped by weight decay and by their share of the learning rate."""
    classifier = set(map(id, model.classifier.parameters()))
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 or recipe.decay == "all"
            share = 1.0 if id(parameter) in classifier else recipe.trunk_rate
            key = recipe.weight_decay if decays else 0.0, share
            groups.setdefault(key, []).append(parameter)
    for (decay, share), parameters in groups.items():
        yield {"params": parameters, "weight_decay": decay, RATE_SHARE: share}


def freeze_trunk(model: ResidualNetwork) -> None:
    """Only the classifier learns from now on; the layers before it compute as in evaluation."""
    for name, part in model.named_children():
        if name != "classifier":
            part.eval().requires_grad_(False)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Sets the learning rate of the next step."""
    for group in optimizer.param_groups:
        group_rate = rate * group[RATE_SHARE]
        # A CUDA graph reads the rate from this tensor.
        group["lr"] = group["lr"].fill_(group_rate) if isinstance(group["lr"], Tensor) else group_rate


def optimizer_tensors(optimizer: Optimizer) -> list[Tensor]:
    """The tensors that the optimiser keeps from step to step; not copies."""
    return [value for state in optimizer.state.values() for value in state.values() if value is not None]


def named_optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimiser's tensors by the parameter's name, as `momentum.NAME` or `exp_avg.NAME`."""
    return {
        f"{STATE_NAMES[key]}.{name}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
        if value is not None
    }


def expected_optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Tensors like those of `named_optimizer_tensors` once every parameter that learns had a gradient."""
    learning = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    found = named_optimizer_tensors(model, optimizer)
    for name, parameter in model.named_parameters():
        if id(parameter) in learning and isinstance(optimizer, torch.optim.AdamW):
            found |= {f"exp_avg.{name}": parameter, f"exp_avg_sq.{name}": parameter}
            found[f"step.{name}"] = torch.zeros(())
        elif id(parameter) in learning and optimizer.defaults["momentum"]:
            found[f"momentum.{name}"] = parameter
    return found


def load_optimizer_tensors(model: nn.Module, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Loads what `named_optimizer_tensors` gave."""
    for name, parameter in model.named_parameters():
        for key, saved_name in STATE_NAMES.items():
            saved = tensors.get(f"{saved_name}.{name}")
            if saved is not None:
                optimizer.state[parameter][key] = _copy_like(parameter, saved)


def _copy_like(parameter: Tensor, saved: Tensor) -> Tensor:
    """A copy of `saved` on the parameter's device, in its memory format."""
    if saved.shape != parameter.shape:
        return saved.to(parameter.device, copy=True)
    # The memory format decides the order of sums, and so their rounding.
    return torch.empty_like(parameter, requires_grad=False).copy_(saved)
