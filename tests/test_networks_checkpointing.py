"""Gradient checkpointing changes memory, and nothing else."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from kilolayer.networks import Network, Stage, Stem, build
from kilolayer.networks.module_state import changing_modules
from kilolayer.networks.recompute import Segment
from kilolayer.units import (
    BOTTLENECK,
    FULL_PREACT,
    RELU,
    Activation,
    Aggregated,
    Arrangement,
    Basic,
    BatchNorm,
    Bottleneck,
    CustomLayer,
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


class RunningScale(nn.Module):
    """Divides by a running mean of |x|, which it updates first."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("scale", torch.ones(channels, 1, 1))

    def forward(self, x):
        if self.training:
            self.scale.lerp_(x.detach().abs().mean((0, 2, 3))[:, None, None], 0.1)
        return x / (self.scale + 1e-5)


class NewBuffer(RunningScale):
    """As `RunningScale`, with a new tensor for each update."""

    def forward(self, x):
        self.scale = 0.9 * self.scale + 0.1 * x.detach().abs().mean((0, 2, 3))[:, None, None]
        return x * self.scale


class CountingScale(nn.Module):
    """Divides by the number of passes, counted in a buffer, an attribute, a plain tensor and a list."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64), persistent=False)
        self.passes, self.sum, self.means = 0, torch.zeros(()), []

    def forward(self, x):
        self.count += 1
        self.passes += 1
        self.sum += 1
        self.means.append(float(x.detach().mean()))
        return x / (self.count + self.passes + self.sum + len(self.means))


class PowerIteration(nn.Conv2d):
    """A 1×1 convolution whose weight is divided by its spectral norm, one power iteration a pass."""

    def __init__(self, channels):
        super().__init__(channels, channels, 1)
        self.register_buffer("u", torch.ones(channels))

    def forward(self, x):
        weight = self.weight.flatten(1)
        with torch.no_grad():
            v = nn.functional.normalize(weight.T @ self.u, dim=0)
            self.u.copy_(nn.functional.normalize(weight @ v, dim=0))
        return nn.functional.conv2d(x, self.weight / (self.u.clone() @ weight @ v), self.bias)


class NormReader(nn.Module):
    """Subtracts the running mean of its own batch normalisation, after this has been updated."""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        return self.norm(x) - self.norm.running_mean[:, None, None]


class HalfNorm(nn.BatchNorm2d):
    """A batch normalisation with another forward pass, which reads the running statistics."""

    def forward(self, x):
        return super().forward(x) - self.running_mean[:, None, None].tanh()


def spectral_convolution(channels):
    return spectral_norm(nn.Conv2d(channels, channels, 1))


def running_instance_norm(channels):
    return nn.InstanceNorm2d(channels, affine=True, track_running_stats=True)


CHANGING = [
    RunningScale,
    NewBuffer,
    CountingScale,
    PowerIteration,
    NormReader,
    HalfNorm,
    spectral_convolution,
    running_instance_norm,
]


@dataclass(frozen=True)
class Changing(Activation):
    """A layer that changes in its own forward pass."""

    kind: Callable[[int], nn.Module]
    normalises = True

    def layer(self, channels):
        return CustomLayer(self.kind, channels)


def state(model):
    """Parameters, all buffers and the attributes of `CountingScale`."""
    counting = [part for part in model.modules() if isinstance(part, CountingScale)]
    return [
        *(tensor.detach().clone() for tensor in (*model.parameters(), *model.buffers())),
        *(torch.tensor([part.passes, float(part.sum), *part.means]) for part in counting),
    ]


DIVISIONS = {"units": (Segment(1),) * 4, "parts": (Segment(4, parts=(2, 1, 1)),)}


@pytest.mark.parametrize("segments", DIVISIONS.values(), ids=DIVISIONS)
@pytest.mark.parametrize("kind", CHANGING, ids=lambda kind: kind.__name__)
def test_layers_that_change_in_their_forward_pass_change_once(kind, segments):
    """Output, gradients, buffers and weights after two steps have the same bits with recomputation."""
    layers = (Changing(kind), RELU)
    unit = Unit(arrangement=Arrangement(before=layers, between=layers))
    model = build(Network(Stem(4), (Stage(4, 4),), unit, image_size=8))
    saving = copy.deepcopy(model)
    saving.segments = {"stage1": segments}
    x = torch.randn(4, 3, 8, 8)
    before = state(model)
    for part in (model, saving):
        optimizer = torch.optim.SGD(part.parameters(), 1e-6)
        for _ in range(2):
            optimizer.zero_grad()
            trained(part, x)
            optimizer.step()
    assert not all(map(torch.equal, before, state(model)))
    assert all(tensor.isfinite().all() for tensor in state(model))
    gradients = [[parameter.grad for parameter in part.parameters()] for part in (model, saving)]
    for kept, recomputed in zip(state(model) + gradients[0], state(saving) + gradients[1], strict=True):
        assert torch.equal(kept, recomputed)


def test_batch_norms_of_pytorch_are_not_copied():
    """Recomputation copies the state of the layers that need it, and of no BN."""
    for unit in CHECKPOINTED.values():
        model = build(Network(Stem(4), (Stage(2, 4),), unit, image_size=8))
        to_copy, norms = changing_modules(*model.stage1)
        assert not to_copy
        assert norms == [part for part in model.stage1.modules() if isinstance(part, nn.BatchNorm2d)]


@pytest.mark.parametrize(("enable", "passes"), [(True, 2), (False, 1)])
def test_checkpointing_computes_every_unit_twice(enable, passes):
    model = build(Network(Stem(4), (Stage(1, 4),), BOTTLENECK, image_size=8))
    model.set_grad_checkpointing(enable)
    calls = []
    model.stage1[0].F.register_forward_hook(lambda *_: calls.append(1))
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    assert len(calls) == passes
