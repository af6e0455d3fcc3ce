"""Descriptions survive JSON, and JSON that is none is refused."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kilolayer.errors import InputError
from kilolayer.networks import Network, Stage, Stem, describe, list_models
from kilolayer.units import (
    Aggregated,
    Arrangement,
    Basic,
    Bottleneck,
    Dropout,
    ExclusiveGate,
    Identity,
    OneLayer,
    Projection,
    Scaled,
    ShortcutGate,
    Unit,
    Zero,
    ZeroPad,
)
from kilolayer.values import from_json, to_json

counts = st.integers(1, 4)
numbers = st.floats(-10, 10, width=32, allow_subnormal=False)
shares = st.floats(0, 1, exclude_max=True)
strides_on = st.sampled_from(["1x1", "3x3"])
at_downsample = st.sampled_from(["apply", "skip"])
layers = st.lists(st.sampled_from(["BN", "ReLU"]), max_size=3).map(tuple)

branches = st.one_of(
    st.builds(Basic, counts, shares),
    st.just(OneLayer()),
    st.builds(Bottleneck, counts, strides_on),
    st.builds(
        Aggregated, counts, counts.map(lambda d: 64 * d), st.sampled_from(["split", "grouped"]), strides_on
    ),
)
shortcuts = st.one_of(
    st.sampled_from([Identity(), Zero(), Projection()]),
    st.builds(Scaled, numbers, numbers, at_downsample),
    st.builds(ExclusiveGate, numbers, at_downsample, st.booleans()),
    st.builds(ShortcutGate, numbers, at_downsample, st.booleans()),
    st.builds(Dropout, shares, at_downsample),
)
units = st.builds(
    Unit,
    branches,
    shortcuts,
    st.builds(Arrangement, layers, layers, layers, layers),
    st.sampled_from([ZeroPad(), ZeroPad("preactivated"), Projection()]),
)
networks = st.builds(
    Network,
    st.builds(
        Stem, channels=st.just(1), kernel=st.sampled_from([1, 3, 7]), stride=counts, pool=st.booleans()
    ),
    # Widths that never shrink, which option A could not follow.
    st.lists(st.builds(Stage, counts, counts, counts), min_size=1, max_size=3).map(
        lambda stages: tuple(sorted(stages, key=lambda stage: stage.width))
    ),
    units,
    num_classes=counts,
    in_chans=counts,
    image_size=st.integers(512, 1024),
)


@settings(deadline=None)
@given(unit=units)
def test_every_unit_survives_json(unit):
    back = from_json(to_json(unit), Unit)
    assert back == unit
    assert (type(back.h), type(back.branch)) == (type(unit.h), type(unit.branch))


@settings(deadline=None)
@given(network=networks)
def test_every_network_survives_json(network):
    assert from_json(to_json(network), Network) == network
    assert from_json(to_json(network, indent=None), Network).parameters == network.parameters


@pytest.mark.parametrize("name", list_models())
def test_every_named_network_survives_json(name):
    network = describe(name)
    text = to_json(network)
    assert from_json(text, Network) == network
    assert to_json(from_json(text, Network)) == text


def test_json_reads_like_the_value():
    assert json.loads(to_json(Unit(h=Scaled(0.5)))) == {
        "branch": {"type": "Basic", "widen": 1, "dropout": 0.0},
        "h": {"type": "Scaled", "shortcut": 0.5, "branch": 1.0, "at_downsample": "apply"},
        "arrangement": {"before": [], "between": ["BN", "ReLU"], "after": ["BN"], "f": ["ReLU"]},
        "downsample": {"type": "ZeroPad", "reads": "raw"},
    }


def test_what_is_left_out_is_the_default():
    assert from_json('{"h": {"type": "Zero"}}', Unit) == Unit(h=Zero())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not JSON: "),
        ('{"shortcut": 1}', r"not a Unit: no field 'shortcut', allowed: branch"),
        (
            '{"h": {"type": "Scaled", "shortcut": "half"}}',
            r"not a Unit: h\.shortcut is 'half'; allowed: a number",
        ),
        ('{"h": {"type": "Highway"}}', r"not a Unit: h"),
        ('{"branch": {"type": "Bottleneck", "widen": 0}}', r"not a Unit: branch: Bottleneck\.widen is 0"),
        ('{"arrangement": {"before": ["GELU"]}}', r"not a Unit: arrangement\.before\[0\] is 'GELU'"),
        ('{"h": {"type": "Scaled", "shortcut": NaN}}', r"line 1: h\.shortcut is NaN; allowed: a finite"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(text, message):
    with pytest.raises(InputError, match=message) as error:
        from_json(text, Unit)
    assert "\n" not in str(error.value)


def test_a_refused_value_is_told_why():
    with pytest.raises(InputError, match="widen is 0; allowed: a whole number from 1"):
        from_json('{"branch": {"type": "Bottleneck", "widen": 0}}', Unit)


def test_descriptions_are_read_without_pytorch():
    code = """
import sys
from kilolayer.networks import Network, describe
from kilolayer.values import from_json, to_json
from_json(to_json(describe("resnet50")), Network)
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
