"""Names: every one describes a network, and a wrong one says what was meant."""

import subprocess
import sys

import pytest

import kilolayer
from kilolayer.errors import InputError
from kilolayer.networks import describe, list_models
from kilolayer.units import (
    FULL_PREACT,
    Aggregated,
    Basic,
    Bottleneck,
    Identity,
    OneLayer,
    Projection,
    Zero,
    ZeroPad,
)


@pytest.mark.parametrize("name", list_models())
def test_every_name_describes_a_network_of_its_depth(name):
    network = describe(name)
    digits = name.removeprefix("preact_").removeprefix("plain_").lstrip("abcdefghijklmnopqrstuvwxyz_")
    assert network.depth == int(digits.split("_")[0])
    assert (network.num_classes, network.image_size) == ((10, 32) if name.endswith("_cifar") else (1000, 224))
    assert (network.unit.arrangement == FULL_PREACT) == name.startswith(("preact_", "wide_resnet28"))
    assert (network.unit.h == Zero()) == name.startswith("plain")


def test_names_are_unique_and_mean_different_networks_or_are_synonyms_on_purpose():
    names = list_models()
    assert len(set(names)) == len(names)
    by_value = {}
    for name in names:
        by_value.setdefault(describe(name), []).append(name)
    synonyms = [names for names in by_value.values() if len(names) > 1]
    assert synonyms == [["resnet18", "resnet18_b"], ["resnet34", "resnet34_b"]]


@pytest.mark.parametrize(
    ("name", "branch"),
    [
        ("resnet110_cifar", Basic()),
        ("preact_resnet164_cifar", Bottleneck()),
        ("resnet1001_cifar", Bottleneck()),
        ("resnet1202_cifar", Basic()),
        ("resnet29_cifar", Bottleneck()),
        ("resnet110_bottleneck_cifar", Bottleneck()),
        ("resnet164_basic_cifar", Basic()),
        ("resnet110_onelayer_cifar", OneLayer()),
        ("resnet34", Basic()),
        ("resnet50", Bottleneck()),
        ("resnext50_32x4d", Aggregated(32, 4)),
        ("wide_resnet28_10_cifar", Basic(widen=10)),
        ("wide_resnet50_2", Bottleneck(widen=2, stride_on="3x3")),
    ],
)
def test_names_say_the_block(name, branch):
    assert describe(name).unit.branch == branch


@pytest.mark.parametrize(
    ("option", "h", "downsample"),
    [("a", Identity(), ZeroPad()), ("b", Identity(), Projection()), ("c", Projection(), Projection())],
)
def test_names_say_the_option(option, h, downsample):
    """P1, Sec. 4.1: A pads with zeros, B projects where the shape changes, C projects everywhere."""
    unit = describe(f"resnet34_{option}").unit
    assert (unit.h, unit.downsample) == (h, downsample)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet100_bottleneck_cifar", "depth 100 is not 9n+2; nearest: 92, 101"),
        ("resnet111_cifar", "depth 111 is not 6n+2; nearest: 110, 116"),
        ("resnet2_cifar", "depth 2 is not 6n+2; nearest: 8"),
        ("wide_resnet29_10_cifar", "depth 29 is not 6n+4; nearest: 28, 34"),
        ("resnet110", "allowed: 50, 101, 152, 200; did you mean resnet110_cifar?"),
        ("preact_resnet1001", "did you mean preact_resnet1001_cifar?"),
        ("wide_resnet28_10", "did you mean wide_resnet28_10_cifar?"),
        ("resnet18_cifar", "depth 18 is not 6n+2; nearest: 14, 20; did you mean resnet18?"),
        ("resnet50_basic", "depth 50 is not an ImageNet depth of basic units; allowed: 18, 34"),
        ("resnet110_onelayer", "allowed: none with one-layer units; did you mean resnet110_onelayer_cifar?"),
    ],
)
def test_an_impossible_depth_names_what_is_possible(name, message):
    with pytest.raises(InputError) as error:
        describe(name)
    assert str(error.value).startswith(f"{name}: depth ")
    assert str(error.value).endswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet5O", "resnet50"),
        ("ResNet50", "resnet50"),
        ("resnet_50", "resnet50"),
        ("preact_resnet_110_cifar", "preact_resnet110_cifar"),
        ("preact_resnet110-cifar", "preact_resnet110_cifar"),
        ("preactresnet164_cifar", "preact_resnet164_cifar"),
        ("resnet50_32x4d", "resnext50_32x4d"),
        ("wide_resnet50", "wide_resnet50_2"),
        ("plain_20_cifar", "plain20_cifar"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(name, nearest):
    with pytest.raises(InputError) as error:
        describe(name)
    text = str(error.value)
    assert text.startswith(f"unknown model {name!r}; nearest: {nearest}; names: [preact_]resnet<depth>")
    assert "\n" not in text


@pytest.mark.parametrize(
    "name",
    [
        "densenet121",
        "",
        "110",
        "resnet",
        "resnet050",
        "resnext50",
        "resnext50_0x4d",
        "resnet50_2",
        "wide_resnet28_cifar",
        "resnext29_8x64d_basic_cifar",
        "plain20_c_cifar",
        "preact_plain20_cifar",
        "resnet٥٠",
    ],
)
def test_what_is_no_name_is_refused(name):
    """A part that would say nothing is no name either: a plain net has no shortcut option."""
    with pytest.raises(InputError, match="unknown model"):
        describe(name)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"branch": {"stride_on": "5x5"}}, "resnet50: Bottleneck.stride_on is '5x5'; allowed: '1x1', '3x3'"),
        ({"branch": {"stride": 2}}, "resnet50: Bottleneck has no 'stride'; it has: widen, stride_on"),
        (
            {"unit": {"shortcut": Zero()}},
            "resnet50: Unit has no 'shortcut'; it has: branch, h, arrangement, downsample",
        ),
        ({"unit": {"h": "zero"}}, "resnet50: Unit.h is 'zero'; allowed: Identity, Zero, Scaled, "),
        ({"in_chans": 0}, "resnet50: Network.in_chans is 0; allowed: a whole number from 1"),
        ({"image_size": 2}, "resnet50: image size 2 is too small for a network that divides it by 32"),
    ],
)
def test_an_impossible_choice_is_named(choices, message):
    with pytest.raises(InputError) as error:
        describe("resnet50", **choices)
    assert str(error.value).startswith(message)


def test_an_ablation_is_one_line():
    changed = describe(
        "resnet110_cifar", unit={"h": Zero(), "arrangement": FULL_PREACT}, branch={"dropout": 0.1}
    )
    assert changed.unit.h == Zero()
    assert changed.unit.branch == Basic(dropout=0.1)
    assert changed.depth == 110


def test_patterns_list_names():
    assert list_models("preact_resnet1001*") == ["preact_resnet1001_cifar"]
    assert list_models("densenet*") == []
    assert kilolayer.list_models is list_models


def test_describing_does_not_wait_for_pytorch():
    """`--help` and `models` answer in a fraction of the second that importing PyTorch takes."""
    code = """
import sys, kilolayer
from kilolayer.networks.stage_table import stage_table
from kilolayer.report.unit_svg import unit_svg
from kilolayer.report.unit_text import unit_text
for name in kilolayer.list_models():
    network = kilolayer.describe(name)
    network.parameters, network.multiply_adds
unit_text(network.unit), unit_svg(network.unit), stage_table(network)
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
