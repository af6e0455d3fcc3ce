"""Which units are chains, and why others are none."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from kernel_cases import PREACT, made
from kilolayer.kernels import conv_chain as chains
from kilolayer.kernels.conv_chain import ConvChain, same_shape_chain, transition_chain
from kilolayer.units import (
    BASIC,
    BN_AFTER_ADDITION,
    BOTTLENECK,
    FULL_PREACT,
    RELU_BEFORE_ADDITION,
    RELU_ONLY_PREACT,
    Aggregated,
    Basic,
    BatchNorm,
    Projection,
    Scaled,
    ShortcutGate,
    Unit,
    ZeroPad,
    build_unit,
    layout,
)

REFUSED = {
    "its paths are gated": Unit(h=ShortcutGate(-1.0)),
    "its shortcut is not the identity": Unit(h=Scaled(0.5)),
    "F is not a sequence of BN-ReLU-convolution": Unit(arrangement=RELU_ONLY_PREACT),
    "its convolution is grouped": replace(Unit(Aggregated(2, 32)), arrangement=FULL_PREACT),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_unit_that_is_no_chain_says_why(why):
    unit = REFUSED[why]
    module = build_unit(layout(unit, unit.branch.out_channels(64), 64))
    assert same_shape_chain(module) == why


NO_TRANSITIONS = {
    "its paths are gated": (Unit(h=ShortcutGate(-1.0)), 2),
    "its shortcut is neither a projection nor padded": (Unit(h=Scaled(0.5)), 2),
    "the stride of its 3×3 convolution is not 2": (replace(BASIC, downsample=Projection()), 3),
    "its first BN includes pixels that no convolution reads": (
        replace(BOTTLENECK, arrangement=FULL_PREACT, downsample=ZeroPad("raw")),
        2,
    ),
    "the kernels do not support its arrangement": (replace(BASIC, arrangement=BN_AFTER_ADDITION), 2),
    "F is not a sequence of BN-ReLU-convolution": (replace(BASIC, arrangement=RELU_ONLY_PREACT), 2),
    "its convolution is grouped": (Unit(Aggregated(2, 32), downsample=Projection()), 1),
}


@pytest.mark.parametrize("why", NO_TRANSITIONS)
def test_a_change_of_shape_that_is_no_chain_says_why(why):
    unit, stride = NO_TRANSITIONS[why]
    assert transition_chain(build_unit(layout(unit, 32, 64, stride))) == why


@pytest.mark.parametrize("arrangement", [BN_AFTER_ADDITION, RELU_BEFORE_ADDITION])
def test_other_arrangements_are_refused(arrangement):
    assert (
        same_shape_chain(made(Unit(arrangement=arrangement), 16))
        == "the kernels do not support its arrangement"
    )


def test_odd_channels_are_refused():
    assert same_shape_chain(made(BASIC, 24)) == "its channels are not multiples of 16"


@pytest.mark.parametrize("bf16", [True, False])
def test_a_convolution_that_outgrows_the_cache_is_refused_where_pytorch_is_faster(bf16, monkeypatch):
    monkeypatch.setattr(chains, "multiplies_bf16_faster", lambda: bf16)
    assert isinstance(same_shape_chain(made(BASIC, 256)), ConvChain)
    why = "PyTorch's 3×3 convolution is faster for more than 256 channels"
    assert (
        same_shape_chain(made(BASIC, 512)) == why
        if bf16
        else isinstance(same_shape_chain(made(BASIC, 512)), ConvChain)
    )


def test_a_stride_is_refused():
    strided = build_unit(layout(replace(PREACT, h=Scaled(1.0)), 16, 16, 2))
    assert same_shape_chain(strided) == "its shortcut is not the identity"


OTHERWISE = {
    "dilated": nn.Conv2d(16, 16, 3, padding=2, dilation=2, bias=False),
    "not padded": nn.Conv2d(16, 16, 3, bias=False),
    "padded by reflection": nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect", bias=False),
}


@pytest.mark.parametrize("conv", OTHERWISE.values(), ids=OTHERWISE)
def test_other_convolutions_in_a_unit_are_refused(conv):
    module = made(PREACT, 16)
    module.F.conv2 = conv
    assert same_shape_chain(module) == "the kernels do not support its padding, stride or dilation"


def test_a_stride_of_two_numbers_is_refused():
    module = build_unit(layout(replace(BASIC, downsample=Projection()), 32, 64, 2))
    assert isinstance(transition_chain(module), ConvChain)
    module.F.conv1.stride = (2, 1)
    assert transition_chain(module) == "the kernels do not support its padding, stride or dilation"


STRANGERS = {
    "F.bn1": BatchNorm(32),
    "F.bn2": BatchNorm(32),
    "F.conv1": nn.Conv2d(16, 32, 3, padding=1, bias=False),
    "F.conv2": nn.Conv2d(16, 32, 3, padding=1, bias=False),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_layers_that_do_not_fit_together_are_refused(name):
    """What kernels would read or write beyond, PyTorch refuses when the layers run."""
    module = made(PREACT, 16)
    module.set_submodule(name, STRANGERS[name])
    assert same_shape_chain(module) == "a parameter is missing or does not fit the others"


def test_a_convolution_whose_weights_are_computed_is_refused():
    module = made(PREACT, 16)
    weight_norm(module.F.conv1)
    assert same_shape_chain(module) == "a parameter is missing or does not fit the others"


def test_a_shortcut_that_does_not_fit_is_refused():
    module = build_unit(layout(replace(BASIC, downsample=Projection()), 32, 64, 2))
    module.h.conv1 = nn.Conv2d(32, 48, 1, stride=2, bias=False)
    assert transition_chain(module) == "a parameter is missing or does not fit the others"


def test_dropout_is_refused():
    module = made(replace(PREACT, branch=Basic(dropout=0.5)), 16)
    assert same_shape_chain(module) == "F is not a sequence of BN-ReLU-convolution"
