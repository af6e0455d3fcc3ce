"""Networks as values: depth is a rule, and every field is checked."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kilolayer
from kilolayer.errors import InputError
from kilolayer.networks import Network, Stage, Stem, cifar, imagenet
from kilolayer.units import (
    BASIC,
    BOTTLENECK,
    ONE_LAYER,
    Basic,
    Unit,
)


@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 400))
def test_depth_is_a_rule(n):
    assert cifar(6 * n + 2, BASIC).depth == 6 * n + 2
    assert cifar(9 * n + 2, BOTTLENECK).depth == 9 * n + 2
    assert cifar(3 * n + 2, ONE_LAYER).depth == 3 * n + 2
    assert cifar(6 * n + 4, Unit(Basic(widen=2))).depth == 6 * n + 4


@settings(deadline=None)
@given(depth=st.integers(-10, 1000))
def test_every_other_depth_names_the_nearest(depth):
    try:
        network = cifar(depth, BOTTLENECK)
    except InputError as error:
        text = str(error)
        assert text.startswith(f"depth {depth} is not 9n+2; nearest: ")
        nearest = [int(d) for d in text.split("nearest: ")[1].split(", ")]
        assert all(cifar(d, BOTTLENECK).depth == d for d in nearest)
        assert len(nearest) == 1 or nearest[0] < depth < nearest[1]
    else:
        assert network.depth == depth


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152, 200])
def test_imagenet_depths(depth):
    """P1, Table 1; P2's ResNet-200 is {3, 24, 36, 3}."""
    assert imagenet(depth, BASIC if depth < 50 else BOTTLENECK).depth == depth


def test_the_papers_deepest_networks():
    """P2: ResNet-1001 has 111 bottlenecks in each of 3 stages, ResNet-110 18 basic units."""
    deepest = kilolayer.describe("preact_resnet1001_cifar")
    assert [(stage.units, stage.width) for stage in deepest.stages] == [(111, 16), (111, 32), (111, 64)]
    assert [deepest.unit.branch.out_channels(stage.width) for stage in deepest.stages] == [64, 128, 256]
    assert deepest.stem.channels == 16
    assert [stage.units for stage in kilolayer.describe("resnet110_cifar").stages] == [18, 18, 18]
    assert [stage.units for stage in kilolayer.describe("preact_resnet200").stages] == [3, 24, 36, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_chans": 0}, "Network.in_chans is 0; allowed: a whole number from 1"),
        ({"num_classes": True}, "Network.num_classes is True; allowed: a whole number from 1"),
        ({"image_size": 1}, "image size 1 is too small for a network that divides it by 2"),
        ({"initialisation": "xavier"}, "Network.initialisation is 'xavier'; allowed: 'fan_out', 'fan_in'"),
        ({"stages": ()}, "Network.stages is (); allowed: at least one stage"),
    ],
)
def test_a_bad_field_is_named(options, message):
    values = {"stem": Stem(4), "stages": (Stage(1, 4, 2),), "unit": BASIC} | options
    with pytest.raises(InputError) as error:
        Network(**values)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    "make", [lambda: Stem(0), lambda: Stem(kernel=4), lambda: Stage(0, 16), lambda: Stage(1, 16, 0)]
)
def test_stems_and_stages_are_checked_where_they_are_made(make):
    with pytest.raises(InputError, match=r"(Stem|Stage)\.\w+ is \d; allowed: "):
        make()


def test_a_stage_that_cannot_be_reached_is_refused_with_its_description():
    with pytest.raises(InputError, match="zero-padding shortcut"):
        Network(Stem(32), (Stage(1, 16),), BASIC)
