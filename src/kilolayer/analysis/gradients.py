"""How the gradient travels: its norm at the input of every residual unit (P2, Eq. 5)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kilolayer.networks import ResidualNetwork
from kilolayer.units import ResidualUnit
from kilolayer.units.modules import running_statistics_kept


def unit_gradients(model: ResidualNetwork, x: Tensor, labels: Tensor) -> list[float]:
    """‖∂E/∂x_l‖₂ for every unit l, from the first to the last, in training mode.

    E is the mean cross-entropy of the batch `x` (N, C, H, W), `labels` (N,); x_l is the whole batch's
    input to unit l. The network is left as it was: weights, gradients and running statistics.
    """
    inputs: list[Tensor] = []
    x = x.detach().requires_grad_()  # so that a gradient comes as far as a first unit behind frozen layers
    hooks = [
        module.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        for module in model.modules()
        if isinstance(module, ResidualUnit)
    ]
    was_training = model.training
    try:
        with running_statistics_kept(model.train()), torch.enable_grad():
            loss = functional.cross_entropy(model(x), labels)
            gradients = torch.autograd.grad(loss, inputs)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return [gradient.norm().item() for gradient in gradients]
