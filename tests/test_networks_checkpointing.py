"""Gradient checkpointing changes memory, and nothing else."""

import copy

import pytest
import torch

from kilolayer.networks import Network, Stage, Stem, build
from kilolayer.units import (
    BOTTLENECK,
    FULL_PREACT,
    Aggregated,
    Basic,
    BatchNorm,
    Bottleneck,
    OneLayer,
    Projection,
    ShortcutGate,
    Unit,
)

CHECKPOINTED = {
    "basic": Unit(),
    "dropout": Unit(Basic(dropout=0.5), arrangement=FULL_PREACT),
    "one-layer": Unit(OneLayer(), h=ShortcutGate(-1.0)),
    "bottleneck": Unit(Bottleneck(), arrangement=FULL_PREACT, downsample=Projection()),
    "split": Unit(Aggregated(2, 16, form="split"), downsample=Projection()),
}


def trained(model, x):
    """One forward and backward pass: the output, the gradients, the buffers."""
    torch.manual_seed(0)
    y = model(x)
    y.square().sum().backward()
    return y, [parameter.grad for parameter in model.parameters()], list(model.buffers())


@pytest.mark.parametrize("unit", CHECKPOINTED.values(), ids=CHECKPOINTED)
def test_checkpointing_changes_nothing_to_the_last_bit(unit):
    """The same output, gradients and running statistics, which see the batch once and not twice."""
    model = build(Network(Stem(4), (Stage(2, 4), Stage(2, 8, 2)), unit, image_size=8))
    saving = copy.deepcopy(model)
    saving.set_grad_checkpointing()
    x = torch.randn(4, 3, 8, 8)
    plain, checkpointed = trained(model, x), trained(saving, x)
    assert torch.equal(plain[0], checkpointed[0])
    for kept, recomputed in zip(plain[1] + plain[2], checkpointed[1] + checkpointed[2], strict=True):
        assert torch.equal(kept, recomputed)
    assert all(norm.momentum == 0.1 for norm in saving.modules() if isinstance(norm, BatchNorm))


@pytest.mark.parametrize(("enable", "passes"), [(True, 2), (False, 1)])
def test_checkpointing_computes_every_unit_twice(enable, passes):
    model = build(Network(Stem(4), (Stage(1, 4),), BOTTLENECK, image_size=8))
    model.set_grad_checkpointing(enable)
    calls = []
    model.stage1[0].F.register_forward_hook(lambda *_: calls.append(1))
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    assert len(calls) == passes
