"""How networks start: He's normal, biased gates, BN as the identity."""

import math

import pytest
import torch
from torch import nn

from kilolayer.networks import build, describe
from kilolayer.units import ExclusiveGate, ShortcutGate


def convolutions(model):
    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]


@pytest.mark.parametrize("mode", ["fan_out", "fan_in"])
@pytest.mark.parametrize(
    "name", ["resnet8_cifar", "preact_resnet11_bottleneck_cifar", "resnext11_8x16d_cifar"]
)
def test_convolutions_start_from_hes_normal(name, mode):
    """Standard deviation √(2/(k²·channels)), of the outputs as in the released code, or of the inputs."""
    model = build(describe(name, initialisation=mode))
    for layer, conv in convolutions(model):
        channels = conv.out_channels if mode == "fan_out" else conv.in_channels // conv.groups
        expected = math.sqrt(2 / (channels * conv.kernel_size[0] ** 2))
        tolerance = 5 / math.sqrt(2 * conv.weight.numel())
        assert conv.weight.std().item() == pytest.approx(expected, rel=tolerance), layer
        assert conv.bias is None
    assert not model.classifier.bias.any()


@pytest.mark.parametrize(
    "gate", [ExclusiveGate(-6.0), ShortcutGate(-3.0), ExclusiveGate(-2.0, batch_norm=True)]
)
def test_gates_start_biased(gate):
    """P2, Sec. 3.1: b_g is initialised with a negative number; W_g like every convolution."""
    model = build(describe("resnet14_cifar", unit={"h": gate}))
    biases = [
        parameter for name, parameter in model.named_parameters() if ".g." in name and name.endswith("bias")
    ]
    assert len(biases) == 6
    assert all((bias == gate.bias).all() for bias in biases)


@pytest.mark.parametrize(
    "name", ["resnet8_cifar", "preact_resnet11_bottleneck_cifar", "resnext11_8x16d_cifar"]
)
def test_bn_starts_as_the_identity(name):
    norms = [module for module in build(describe(name)).modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) > 5
    for module in norms:
        assert (module.weight == 1).all()
        assert not module.bias.any()
        assert (module.eps, module.momentum) == (1e-5, 0.1)


def test_the_global_seed_decides_the_weights():
    def weights(seed):
        torch.manual_seed(seed)
        return build(describe("resnet8_cifar")).state_dict()["stage1.0.F.conv1.weight"]

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
