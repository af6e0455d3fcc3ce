"""A folded network is the network, with fewer passes over memory."""

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from kilolayer.kernels import im2col, unavailable_reason
from kilolayer.kernels.folded_layers import FoldedConv, FoldedNorm
from kilolayer.kernels.folding import fold
from kilolayer.kernels.im2col import FoldedStemConv
from kilolayer.kernels.native_run import NativeUnitRun
from kilolayer.networks import Network, Stage, Stem, build, describe
from kilolayer.units import (
    AGGREGATED,
    ARRANGEMENTS,
    BASIC,
    BOTTLENECK,
    FULL_PREACT,
    ONE_LAYER,
    ORIGINAL,
    Aggregated,
    BatchNorm,
    Bottleneck,
    Dropout,
    ExclusiveGate,
    Projection,
    Scaled,
    Unit,
    Zero,
    ZeroPad,
)

UNITS = {
    **{f"{name} {kind}": replace(unit, arrangement=arrangement)
       for name, arrangement in ARRANGEMENTS.items()
       for kind, unit in (("basic", BASIC), ("bottleneck", BOTTLENECK), ("one-layer", ONE_LAYER))},
    "plain": replace(BASIC, h=Zero()),
    "gated": replace(BASIC, h=ExclusiveGate(-1.0, batch_norm=True)),
    "scaled": replace(BASIC, h=Scaled(0.5, 0.5)),
    "dropped out": replace(BASIC, h=Dropout(0.5)),
    "projections": replace(BASIC, h=Projection()),
    "preactivated padding": replace(BASIC, arrangement=FULL_PREACT, downsample=ZeroPad("preactivated")),
    "paths": Unit(Aggregated(2, 32, form="split"), downsample=Projection()),
    "grouped": replace(AGGREGATED, branch=Aggregated(2, 32)),
}  # fmt: skip


def lived(unit):
    """A small network whose BNs have seen something."""
    torch.manual_seed(1)
    stages = (
        (Stage(2, 64), Stage(2, 128, 2))
        if isinstance(unit.branch, Aggregated)
        else (Stage(2, 4), Stage(2, 8, 2))
    )
    model = build(Network(Stem(4), stages, unit, image_size=8))
    for module in model.modules():
        if isinstance(module, BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-4)])
def test_folding_changes_rounding_only(unit, dtype, tolerance):
    model = lived(unit).to(dtype)
    x = torch.randn(3, 3, 8, 8, dtype=dtype)
    with torch.no_grad():
        plain, folded = model(x), fold(model)(x)
    torch.testing.assert_close(folded, plain, rtol=tolerance, atol=tolerance * plain.abs().max().item())


def test_in_bf16_it_errs_no_more_than_autocast_does():
    model = lived(replace(BOTTLENECK, arrangement=FULL_PREACT))
    x = torch.randn(8, 3, 8, 8)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            autocast = model(x).float()
        folded = fold(model, torch.bfloat16)(x.bfloat16()).float()
    assert (folded - exact).norm() < 2 * (autocast - exact).norm()


def kinds(model):
    return [sum(type(module) is kind for module in model.modules()) for kind in (BatchNorm, FoldedNorm)]


def test_of_a_preactivated_bottleneck_two_norms_of_three_are_folded():
    """What is left stands behind an addition: one in each unit but the first, and the last of all."""
    folded = fold(build(describe("preact_resnet29_bottleneck_cifar")))
    assert kinds(folded) == [0, 9]


def test_of_an_original_network_all_norms_are_folded():
    assert kinds(fold(build(describe("resnet20_cifar")))) == [0, 0]


def without_affine(norm):
    norm.weight = norm.bias = None


def without_bias(norm):
    norm.bias = None


def without_statistics(norm):
    norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    norm.track_running_stats = False


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("change", [without_affine, without_bias, without_statistics])
@pytest.mark.parametrize("arrangement", [ORIGINAL, FULL_PREACT])
def test_a_bn_of_other_arguments_folds_or_stays(arrangement, change, dtype):
    model = lived(replace(BASIC, arrangement=arrangement))
    for norm in [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)][::2]:
        change(norm)
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        plain, folded = model(x), fold(model, dtype)(x.to(dtype)).float()
    assert (folded - plain).norm() < (1e-5 if dtype is torch.float32 else 0.05) * plain.norm()


class DoubledConv(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class DoubledNorm(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Leaky(nn.ReLU):
    def forward(self, x):
        return nn.functional.leaky_relu(x, 0.1)


def of_class(kind):
    def change(layer):
        layer.__class__ = kind

    return change


def reflecting(conv):
    conv.padding_mode, conv._reversed_padding_repeated_twice = "reflect", [1, 1, 1, 1]


def same_padding(conv):
    conv.padding = "same"


def with_forward(layer):
    forward = layer.forward
    layer.forward = lambda x: 2 * forward(x)


OTHERS = {
    "convolution's class": ("conv2", of_class(DoubledConv)),
    "BN's class": ("bn1", of_class(DoubledNorm)),
    "ReLU's class": ("relu1", of_class(Leaky)),
    "reflected border": ("conv2", reflecting),
    "padding in words": ("conv2", same_padding),
}
REPLACED = {"convolution's forward": ("conv2", with_forward), "BN's forward": ("bn1", with_forward)}
"""Whose closures keep the weights that they had, and so their type."""


@pytest.mark.parametrize(
    ("name", "change", "dtype"),
    [
        *((*each, dtype) for each in OTHERS.values() for dtype in (torch.float32, torch.bfloat16)),
        *((*each, torch.float32) for each in REPLACED.values()),
    ],
)
@pytest.mark.parametrize("arrangement", [ORIGINAL, FULL_PREACT])
def test_a_layer_that_computes_something_else_stays(arrangement, name, change, dtype):
    model = settled(f"{'pre-activated' if arrangement is FULL_PREACT else 'original'} basic, 8", 0)
    model = copy.deepcopy(model)
    change(model.stage1[1].F.get_submodule(name))
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        plain, folded = model(x), fold(model, dtype)(x.to(dtype)).float()
    assert (folded - plain).norm() < (1e-5 if dtype is torch.float32 else 0.1) * plain.norm()


def test_sync_batch_norm_folds_as_batch_norm_does():
    model = lived(BASIC)
    x = torch.randn(3, 3, 8, 8)
    synced = fold(nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)))
    assert torch.equal(synced(x), fold(model)(x))


def test_the_network_itself_stays_as_it_was():
    model = lived(BASIC).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fold(model)
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(isinstance(module, FoldedConv) for module in model.modules())


WHOLE = {
    f"{name} {kind}, {size}": (replace(unit, arrangement=arrangement), widths, size)
    for name, arrangement in (("pre-activated", FULL_PREACT), ("original", ORIGINAL))
    for kind, unit, widths, size in (
        ("basic", BASIC, (16, 48), 8),
        ("basic", BASIC, (32, 64), 7),
        ("bottleneck", BOTTLENECK, (16, 32), 12),
        ("one-layer", ONE_LAYER, (16, 32), 9),
        ("projected", replace(BOTTLENECK, downsample=Projection()), (16, 32), 8),
        ("projected basic", replace(BASIC, downsample=Projection()), (32, 48), 8),
        ("stride on the 3×3", replace(BOTTLENECK, branch=Bottleneck(stride_on="3x3")), (16, 32), 9),
        ("padding of an activation", replace(BASIC, downsample=ZeroPad("preactivated")), (16, 32), 10),
        ("padded bottleneck", replace(BOTTLENECK, downsample=ZeroPad("preactivated")), (16, 32), 8),
    )
}


@cache
def settled(name, seed):
    """A network of three units a stage, the second with a stride, whose BNs know its own activations."""
    unit, widths, size = WHOLE[name]
    torch.manual_seed(seed)
    stages = tuple(Stage(3, width, stride) for width, stride in zip(widths, (1, 2), strict=True))
    model = build(Network(Stem(16), stages, unit, image_size=size))
    for norm in model.modules():
        if isinstance(norm, BatchNorm):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.3)
    for _ in range(30):
        model(torch.randn(16, 3, size, size))
    return model.eval()


def excess(name, scale=1.0, threads=1):
    """By how much whole runs err more than autocast, on average: of one network's few figures it is luck."""
    ratios = []
    for seed in range(4):
        model = settled(name, seed)
        x = scale * torch.randn(16, 3, WHOLE[name][2], WHOLE[name][2])
        with torch.no_grad():
            exact = copy.deepcopy(model).double()(x.double())
            with torch.autocast("cpu", torch.bfloat16):
                autocast = model(x).double()
            torch.set_num_threads(threads)
            try:
                found = fold(model, torch.bfloat16)(x.bfloat16()).double()
            finally:
                torch.set_num_threads(1)
        ratios.append((found - exact).norm() / (autocast - exact).norm())
    return sum(ratios) / len(ratios)


@pytest.mark.skipif(unavailable_reason() is not None, reason=str(unavailable_reason()))
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", WHOLE)
def test_whole_runs_of_units_err_no_more_than_autocast_does(name, threads):
    assert excess(name, threads=threads) < 1.2


@pytest.mark.skipif(unavailable_reason() is not None, reason=str(unavailable_reason()))
@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("name", ["pre-activated bottleneck, 12", "original basic, 8"])
def test_whole_runs_take_any_magnitude(name, scale):
    """Of images far from what its BNs know; where fp16 is multiplied, its numbers end at 65504."""
    assert excess(name, scale) < 1.2


@pytest.mark.skipif(unavailable_reason() is not None, reason=str(unavailable_reason()))
@pytest.mark.parametrize("name", WHOLE)
def test_a_stage_is_one_run_and_a_copy_of_it_gives_its_bits(name):
    folded = fold(settled(name, 0), torch.bfloat16)
    assert [len(m.units) for m in folded.modules() if isinstance(m, NativeUnitRun)] == [3, 3]
    x = torch.randn(5, 3, WHOLE[name][2], WHOLE[name][2]).bfloat16()
    with torch.no_grad():
        assert torch.equal(folded(x), copy.deepcopy(folded)(x))


@pytest.mark.parametrize("unit", ["original basic", "full_preactivation bottleneck", "gated", "plain"])
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "value"),
    [("weight", torch.nan), ("weight", torch.inf), ("running_var", torch.nan), ("running_var", -1000.0)],
)
def test_a_network_that_is_not_finite_gives_no_ordinary_numbers(kind, value, dtype, unit):
    model = lived(UNITS[unit])
    name = next(name for name in model.state_dict() if name.startswith("stage") and name.endswith(kind))
    model.state_dict()[name].fill_(value)
    x = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert model(x).isnan().all()
        assert fold(model, dtype)(x.to(dtype or x.dtype)).isnan().all()


@pytest.mark.skipif(unavailable_reason() is not None, reason=str(unavailable_reason()))
@pytest.mark.parametrize("name", WHOLE)
def test_a_nan_goes_where_it_goes_in_plain_layers(name):
    model, side = settled(name, 0), WHOLE[name][2]
    folded = fold(model, torch.bfloat16)
    with torch.no_grad():
        x = model.stem(torch.randn(3, 3, side, side))
        x[1, :, side // 2, side // 2] = torch.nan
        plain, whole = x, x.bfloat16().contiguous(memory_format=torch.channels_last)
        for stage in model.stage_names:
            plain, whole = model.get_submodule(stage)(plain), folded.get_submodule(stage)(whole)
            assert plain[1].isnan().any()
            assert torch.equal(whole.isnan(), plain.isnan())


@pytest.mark.skipif(unavailable_reason() is not None, reason=str(unavailable_reason()))
@pytest.mark.parametrize("arrangement", [ORIGINAL, FULL_PREACT], ids=["original", "pre-activated"])
@pytest.mark.parametrize("kernel", [5, 7])
def test_a_stem_of_many_pixels_is_the_kernels(kernel, arrangement, monkeypatch):
    """Its error is autocast's at most, where it is computed by them: not where they multiply bf16."""
    monkeypatch.setattr(im2col, "mul_dtype", lambda: "fp32")
    torch.manual_seed(0)
    unit = replace(BASIC, arrangement=arrangement)
    model = build(Network(Stem(16, kernel, 2, pool=True), (Stage(1, 16),), unit, image_size=21))
    for _ in range(30):
        model(torch.randn(16, 3, 21, 21))
    stem = fold(model.eval(), torch.bfloat16).stem
    assert isinstance(stem[0], FoldedStemConv)
    x = torch.randn(9, 3, 21, 21).bfloat16()
    with torch.no_grad():
        exact = copy.deepcopy(model.stem).double()(x.double())
        with torch.autocast("cpu", torch.bfloat16):
            autocast = model.stem(x).double()
        found = stem(x).double()
    assert (found - exact).norm() < 1.1 * (autocast - exact).norm()


def test_what_the_kernels_do_not_compute_is_folded_layer_by_layer():
    """Another precision, channels that are no multiples of 16, gates."""
    model = build(describe("preact_resnet20_cifar"))
    assert not any(isinstance(module, NativeUnitRun) for module in fold(model).modules())
    narrow = build(Network(Stem(4), (Stage(3, 4),), BASIC, image_size=8))
    assert not any(isinstance(module, NativeUnitRun) for module in fold(narrow, torch.bfloat16).modules())
    gated = build(Network(Stem(16), (Stage(3, 16),), Unit(h=ExclusiveGate(-1.0)), image_size=8))
    assert not any(isinstance(module, NativeUnitRun) for module in fold(gated, torch.bfloat16).modules())
