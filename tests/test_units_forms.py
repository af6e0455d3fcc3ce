"""ResNeXt's three forms are one unit (PX, Fig. 3)."""

from dataclasses import replace
from itertools import permutations

import pytest
import torch
from torch import nn

from kilolayer.errors import InputError
from kilolayer.networks import Network, Stage, Stem, build, convert_form
from kilolayer.units import (
    AGGREGATED,
    ARRANGEMENTS,
    BOTTLENECK,
    Aggregated,
    ExclusiveGate,
    build_unit,
    layout,
)
from kilolayer.units import convert_unit_form as convert_unit

FORMS = ("split", "concatenated", "grouped")
PLACES = {"same": (32, 8, 1), "strided": (32, 16, 2), "after the stem": (16, 8, 1)}


def aggregated(form, arrangement="original", **changes):
    branch = Aggregated(cardinality=4, d=16, form=form)
    return replace(AGGREGATED, branch=branch, arrangement=ARRANGEMENTS[arrangement], **changes)


def randomised(module):
    """BN away from its start of 1, 0, 0 and 1, where mistakes would not show."""
    for tensor in module.state_dict().values():
        nn.init.uniform_(tensor, 0.5, 1.5) if tensor.dim() == 1 else nn.init.normal_(tensor)
    return module.double()


def pair(source, target, place, arrangement, **changes):
    """One unit in two forms with the same weights."""
    layouts = [layout(aggregated(form, arrangement, **changes), *PLACES[place]) for form in (source, target)]
    units = [randomised(build_unit(made)) for made in layouts]
    units[1].load_state_dict(convert_unit(units[0].state_dict(), *layouts))
    return units, layouts


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize(("source", "target"), list(permutations(FORMS, 2)))
def test_the_forms_agree(source, target, arrangement, place):
    """In float64, with the batch's statistics and with the running ones, which also stay together."""
    (one, other), layouts = pair(source, target, place, arrangement)
    x = torch.randn(2, PLACES[place][0], 6, 6, dtype=torch.float64)
    torch.testing.assert_close(one(x), other(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(one.eval()(x), other.eval()(x), rtol=1e-10, atol=1e-10)
    trained = convert_unit(one.state_dict(), *layouts)
    torch.testing.assert_close(trained, dict(other.state_dict()), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("source", "target"), list(permutations(FORMS, 2)))
def test_there_and_back_is_bit_equal(source, target):
    (one, _), (here, there) = pair(source, target, "strided", "original", h=ExclusiveGate(batch_norm=True))
    state = one.state_dict()
    back = convert_unit(convert_unit(state, here, there), there, here)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize("place", PLACES)
def test_the_forms_have_the_same_size(place):
    sizes = {layout(aggregated(form), *PLACES[place]).parameters for form in FORMS}
    work = {layout(aggregated(form), *PLACES[place]).multiply_adds(8) for form in FORMS}
    assert len(sizes) == len(work) == 1


def test_other_units_are_not_forms_of_one():
    here = layout(aggregated("split"), 32, 8)
    for other in (layout(aggregated("grouped"), 16, 8), layout(BOTTLENECK, 32, 8)):
        with pytest.raises(InputError, match="not two forms of one unit"):
            convert_unit(build_unit(here).state_dict(), here, other)


@pytest.mark.parametrize("arrangement", ["original", "full_preactivation"])
@pytest.mark.parametrize(("source", "target"), list(permutations(FORMS, 2)))
def test_whole_networks_change_form(source, target, arrangement):
    stages = (Stage(2, 8), Stage(2, 16, 2))
    description = Network(Stem(16), stages, aggregated(source, arrangement), image_size=8)
    model = randomised(build(description)).eval()
    converted = convert_form(model, target)
    assert converted.description.unit == aggregated(target, arrangement)
    assert not converted.training
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(converted(x), model(x), rtol=1e-9, atol=1e-9)
    back = convert_form(converted, source).state_dict()
    assert all(torch.equal(back[key], value) for key, value in model.state_dict().items())


def test_only_aggregated_networks_have_forms():
    model = build(Network(Stem(16), (Stage(1, 4),), BOTTLENECK))
    with pytest.raises(InputError, match=r"only aggregated \(ResNeXt\) units have forms; this is Bottleneck"):
        convert_form(model, "split")


def test_unknown_forms_are_refused():
    model = build(Network(Stem(16), (Stage(1, 8),), aggregated("split")))
    with pytest.raises(InputError, match=r"Aggregated\.form is 'd'"):
        convert_form(model, "d")
