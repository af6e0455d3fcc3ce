"""Published sizes, to the last digit."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kilolayer.networks import build, describe, list_models
from kilolayer.units import BatchNorm, ExclusiveGate

# Trainable parameters. P1, P2 and PX print them rounded; the digits are those of the released networks.
PARAMETERS = {
    "resnet20_cifar": 269_722,
    "resnet32_cifar": 464_154,
    "resnet44_cifar": 658_586,
    "resnet56_cifar": 853_018,
    "resnet110_cifar": 1_727_962,
    "resnet110_c_cifar": 1_826_202,
    "resnet1202_cifar": 19_421_274,
    "resnet164_cifar": 1_704_154,
    "resnet1001_cifar": 10_328_602,
    "plain20_cifar": 269_722,
    "plain32_cifar": 464_154,
    "plain44_cifar": 658_586,
    "plain56_cifar": 853_018,
    "preact_resnet110_cifar": 1_727_962,
    "preact_resnet164_cifar": 1_703_258,
    "preact_resnet1001_cifar": 10_327_706,
    "resnext29_8x64d_cifar": 34_426_698,
    "resnext29_16x64d_cifar": 68_155_210,
    "resnet18_b": 11_689_512,
    "resnet34_b": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "preact_resnet152": 60_185_128,
    "preact_resnet200": 64_666_152,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x4d": 44_177_704,
    "resnext101_64x4d": 83_455_272,
    # torchvision's, and Wide Residual Networks' own count:
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    "wide_resnet28_10_cifar": 36_479_194,
}
CIFAR_100 = {"preact_resnet164_cifar": 1_726_388, "preact_resnet1001_cifar": 10_350_836}

MULTIPLY_ADDS = {
    ("resnet20_cifar", None): 40_551_040,
    ("resnet110_cifar", None): 252_887_680,
    ("preact_resnet110_cifar", None): 252_887_680,
    ("preact_resnet164_cifar", "1x1"): 244_500_992,
    ("preact_resnet164_cifar", "3x3"): 247_646_720,
    ("preact_resnet1001_cifar", "1x1"): 1_487_849_984,
    ("preact_resnet1001_cifar", "3x3"): 1_490_995_712,
}
# Printed in billions, with the digits given.
BILLIONS = {
    ("resnet50", "1x1"): "3.858",
    ("resnet50", "3x3"): "4.089",
    ("preact_resnet200", "1x1"): "14.78",
    ("preact_resnet200", "3x3"): "15.01",
    ("resnext101_32x4d", "3x3"): "7.97",
}


def strided(name, stride_on):
    return describe(name, branch={"stride_on": stride_on} if stride_on else None)


def on_meta(description):
    with torch.device("meta"):
        return build(description)


@pytest.mark.parametrize(("name", "published"), PARAMETERS.items())
def test_parameters_as_published(name, published):
    assert describe(name).parameters == published


@pytest.mark.parametrize(("name", "published"), CIFAR_100.items())
def test_parameters_as_published_for_cifar_100(name, published):
    assert describe(name, num_classes=100).parameters == published


@pytest.mark.parametrize("stride_on", ["1x1", "3x3"])
@pytest.mark.parametrize("name", ["resnet50", "preact_resnet164_cifar"])
def test_the_place_of_the_stride_costs_no_parameters(name, stride_on):
    assert strided(name, stride_on).parameters == PARAMETERS[name]


def test_the_papers_10_2_million_counts_no_bn():
    """P2, Table 4: 10.2M for ResNet-1001 leaves out the scale and shift of its BNs."""
    model = on_meta(describe("preact_resnet1001_cifar"))
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    affine = sum(norm.weight.numel() + norm.bias.numel() for norm in norms)
    assert model.description.parameters - affine == 10_178_490


@pytest.mark.parametrize(("place", "published"), MULTIPLY_ADDS.items(), ids=str)
def test_multiply_adds_as_published(place, published):
    assert strided(*place).multiply_adds == published


@pytest.mark.parametrize(("place", "published"), BILLIONS.items(), ids=str)
def test_multiply_adds_as_published_in_billions(place, published):
    digits = len(published.split(".")[1])
    assert f"{strided(*place).multiply_adds / 1e9:.{digits}f}" == published


def test_resnext_has_the_complexity_of_its_resnet():
    """PX, Table 2: every C × d of the row costs what ResNet-50 does, within 5 %."""
    sizes = [describe(f"resnext50_{size}") for size in ("1x64d", "2x40d", "4x24d", "8x14d", "32x4d")]
    for size in sizes:
        assert size.parameters == pytest.approx(sizes[0].parameters, rel=0.05)
        assert size.multiply_adds == pytest.approx(sizes[0].multiply_adds, rel=0.05)
    assert sizes[0].parameters == describe("resnet50").parameters


@pytest.mark.parametrize("name", list_models())
def test_parameters_are_those_of_the_module(name):
    description = describe(name)
    model = on_meta(description)
    assert sum(parameter.numel() for parameter in model.parameters()) == description.parameters


SMALL = [
    describe(name, **options)
    for name, options in (
        ("resnet20_cifar", {}),
        ("resnet20_c_cifar", {"num_classes": 7, "in_chans": 1}),
        ("plain20_cifar", {"image_size": 33}),
        ("preact_resnet29_cifar", {"branch": {"stride_on": "3x3"}, "image_size": 30}),
        ("resnet110_onelayer_cifar", {}),
        ("wide_resnet28_10_cifar", {}),
        ("resnext29_8x64d_cifar", {}),
        ("resnext29_8x64d_cifar", {"branch": {"form": "split"}}),
        ("resnext29_8x64d_cifar", {"branch": {"form": "concatenated"}}),
        ("resnet18_a", {}),
        ("preact_resnet34", {"image_size": 225}),
        ("resnet50", {}),
        ("resnext50_32x4d", {"image_size": 129}),
        ("wide_resnet50_2", {}),
    )
]


@pytest.mark.parametrize("description", SMALL, ids=lambda network: f"{network.depth}-{network.image_size}")
def test_multiply_adds_are_those_that_pytorch_counts(description):
    """Half of `torch.utils.flop_counter`'s count, which takes a multiplication and an addition apart."""
    model = on_meta(description).eval()
    side = description.image_size
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, description.in_chans, side, side, device="meta"))
    assert counter.get_total_flops() == 2 * description.multiply_adds


def test_gates_are_counted():
    """P2, Table 1: a gate is a 1×1 convolution with bias in every unit."""
    description = describe("resnet8_cifar", unit={"h": ExclusiveGate()})
    bare = describe("resnet8_cifar")
    weights = 16 * 16 + 16 * 32 + 32 * 64
    assert description.parameters - bare.parameters == weights + 16 + 32 + 64
    work = 16 * 16 * 32**2 + 16 * 32 * 16**2 + 32 * 64 * 8**2
    assert description.multiply_adds - bare.multiply_adds == work
    model = on_meta(description).eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 32, 32, device="meta"))
    assert counter.get_total_flops() == 2 * description.multiply_adds
