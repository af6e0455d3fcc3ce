"""What a unit's fields may hold, and what a wrong one says."""

import pytest

from kilolayer.errors import InputError
from kilolayer.units import (
    Aggregated,
    Basic,
    Bottleneck,
    Dropout,
    ExclusiveGate,
    Identity,
    Projection,
    Scaled,
    ShortcutGate,
    Unit,
    Zero,
    ZeroPad,
    layout,
    parse_shortcut,
)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Bottleneck(stride_on="5x5"), "Bottleneck.stride_on is '5x5'; allowed: '1x1', '3x3'"),
        (lambda: Bottleneck(widen=0), "Bottleneck.widen is 0; allowed: a whole number from 1"),
        (lambda: Basic(dropout=1.0), "Basic.dropout is 1.0; allowed: 0 up to but not including 1"),
        (lambda: Basic(dropout=float("nan")), "Basic.dropout is nan; allowed: 0 up to but not including 1"),
        (lambda: Basic(widen=True), "Basic.widen is True; allowed: a whole number from 1"),
        (lambda: Aggregated(cardinality=0), "Aggregated.cardinality is 0; allowed: a whole number from 1"),
        (lambda: Aggregated(d=1.5), "Aggregated.d is 1.5; allowed: a whole number from 1"),
        (lambda: Aggregated(form="c"), "Aggregated.form is 'c'; allowed: 'split', 'concatenated', 'grouped'"),
        (lambda: ExclusiveGate(float("nan")), "ExclusiveGate.bias is nan; allowed: a finite number"),
        (lambda: ShortcutGate(float("-inf")), "ShortcutGate.bias is -inf; allowed: a finite number"),
        (
            lambda: ExclusiveGate(at_downsample="no"),
            "ExclusiveGate.at_downsample is 'no'; allowed: 'apply', 'skip'",
        ),
        (lambda: Scaled("half"), "Scaled.shortcut is 'half'; allowed: a finite number"),
        (lambda: Dropout(1.0), "Dropout.p is 1.0; allowed: 0 up to but not including 1"),
        (lambda: ZeroPad("bn"), "ZeroPad.reads is 'bn'; allowed: 'raw', 'preactivated'"),
        (lambda: Unit(arrangement="original"), "Unit.arrangement is 'original'; allowed: an Arrangement"),
        (
            lambda: Unit(downsample=Identity()),
            "Unit.downsample is Identity(); allowed: Projection, ZeroPad, or one of your own",
        ),
        (
            lambda: Unit("basic"),
            "Unit.branch is 'basic'; allowed: Basic, OneLayer, Bottleneck, Aggregated, or one of your own",
        ),
    ],
)
def test_a_bad_field_is_named_with_its_value_and_what_is_allowed(make, message):
    with pytest.raises(InputError) as error:
        make()
    assert str(error.value) == message


def test_shapes_that_cannot_be_made_say_what_to_do():
    with pytest.raises(InputError, match=r"cannot go from 16 to 4 channels; use downsample=Projection\(\)"):
        layout(Unit(), 16, 4)
    with pytest.raises(InputError, match="d·width must be a multiple of 64"):
        layout(Unit(Aggregated(32, 4)), 16, 8)


@pytest.mark.parametrize(
    ("text", "shortcut"),
    [
        ("identity", Identity()),
        ("zero", Zero()),
        ("scaled:0.5", Scaled(0.5)),
        ("scaled:0.5,0.5", Scaled(0.5, 0.5)),
        ("exclusive_gate:-6", ExclusiveGate(-6.0)),
        ("exclusive_gate", ExclusiveGate()),
        ("shortcut_gate:0", ShortcutGate(0.0)),
        ("dropout:0.1", Dropout(0.1)),
        ("projection", Projection()),
    ],
)
def test_a_shortcut_is_written_in_one_word(text, shortcut):
    assert parse_shortcut(text) == shortcut
    assert type(parse_shortcut(text)) is type(shortcut)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "scaled:abc",
            "shortcut 'scaled:abc' has a value that is no number; allowed: scaled[:shortcut[,branch]]",
        ),
        ("dropout:0.1,0.2", "shortcut 'dropout:0.1,0.2' has too many values; allowed: dropout[:p]"),
        ("dropout:1", "Dropout.p is 1.0; allowed: 0 up to but not including 1"),
        ("shortcut_gate:nan", "ShortcutGate.bias is nan; allowed: a finite number"),
        ("identity:1", "shortcut 'identity:1' has too many values; allowed: identity"),
    ],
)
def test_a_shortcut_that_cannot_be_read_says_what_can(text, message):
    with pytest.raises(InputError) as error:
        parse_shortcut(text)
    assert str(error.value) == message


def test_an_unknown_shortcut_lists_the_known():
    with pytest.raises(InputError, match=r"unknown shortcut 'highway'; allowed: identity, zero, scaled\[:"):
        parse_shortcut("highway")
