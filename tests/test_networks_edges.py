"""The edges of a pre-activation network (P2, Sec. 4): who reads the activated tensor, who the raw one."""

import pytest
import torch
from torch.nn import functional

from kilolayer.networks import Network, Stage, Stem, build
from kilolayer.units import (
    BASIC,
    BOTTLENECK,
    FULL_PREACT,
    Projection,
    Unit,
    ZeroPad,
)

PREACT_BASIC = Unit(arrangement=FULL_PREACT)
PREACT_BOTTLENECK = Unit(BOTTLENECK.branch, arrangement=FULL_PREACT, downsample=Projection())


def tiny(unit, units=1, **options):
    """Two stages of widths 4 and 8 on 8 × 8 images."""
    return Network(Stem(4), (Stage(units, 4), Stage(units, 8, 2)), unit, image_size=8, **options)


def inputs_of(model, *names):
    """What the named modules read in one forward pass."""
    read = {}
    for name in names:

        def record(_module, args, name=name):
            read[name] = args[0].detach().clone()

        model.get_submodule(name).register_forward_pre_hook(record)
    model(torch.randn(2, 3, 8, 8))
    return read


@pytest.mark.parametrize("unit", [PREACT_BASIC, PREACT_BOTTLENECK], ids=["basic", "bottleneck"])
def test_activations_stand_behind_the_stem_and_behind_the_last_addition(unit):
    model = build(tiny(unit, units=2))
    assert [type(module).__name__ for module in model.stem] == ["Conv2d", "BatchNorm2d", "ReLU"]
    assert next(iter(model.stage1[0].F.named_children()))[0] == "conv1"
    assert next(iter(model.stage1[1].F.named_children()))[0] == "bn1"
    assert [type(module).__name__ for module in model.final] == ["BatchNorm2d", "ReLU"]
    assert len(build(tiny(BASIC)).final) == 0


def test_both_paths_of_the_first_unit_read_the_activated_stem():
    read = inputs_of(build(tiny(PREACT_BOTTLENECK)), "stage1.0", "stage1.0.F.conv1", "stage1.0.h.conv1")
    assert torch.equal(read["stage1.0.F.conv1"], read["stage1.0"])
    assert torch.equal(read["stage1.0.h.conv1"], read["stage1.0"])
    assert read["stage1.0"].min() == 0


def activated(x, bn):
    return functional.batch_norm(x, None, None, bn.weight, bn.bias, training=True).relu()


@pytest.mark.parametrize("unit", [PREACT_BOTTLENECK, Unit(arrangement=FULL_PREACT, downsample=Projection())])
def test_projections_read_the_preactivated_tensor(unit):
    """P2, Sec. 4: where a unit changes shape, BN-ReLU stands before the split."""
    model = build(tiny(unit))
    read = inputs_of(model, "stage2.0", "stage2.0.F.conv1", "stage2.0.h.conv1")
    expected = activated(read["stage2.0"], model.stage2[0].p.bn1)
    torch.testing.assert_close(read["stage2.0.h.conv1"], expected)
    assert torch.equal(read["stage2.0.F.conv1"], read["stage2.0.h.conv1"])


@pytest.mark.parametrize("reads", ["raw", "preactivated"])
def test_option_a_reads_what_it_says(reads):
    model = build(tiny(Unit(arrangement=FULL_PREACT, downsample=ZeroPad(reads))))
    read = inputs_of(model, "stage2.0", "stage2.0.F.conv1", "stage2.0.h")
    assert torch.equal(read["stage2.0.h"], read["stage2.0"]) == (reads == "raw")
    assert torch.equal(read["stage2.0.h"], read["stage2.0.F.conv1"]) == (reads == "preactivated")


def test_a_raw_option_a_keeps_equation_4_whole_across_stages():
    """With F = 0 the input of the first unit comes out at the end, strided and padded with zeros."""
    model = build(tiny(PREACT_BASIC, units=3))
    for name, parameter in model.named_parameters():
        if ".F." in name:
            torch.nn.init.zeros_(parameter)
    first, last = inputs_of(model, "stage1.0", "final").values()
    assert torch.equal(last[:, :4], first[:, :, ::2, ::2])
    assert not last[:, 4:].any()


def test_a_whole_preactivation_network_written_by_hand():
    """P2's prose in four lines: stem, split behind its activation, projections, activation at the end."""
    model = build(tiny(PREACT_BOTTLENECK))
    x = torch.randn(2, 3, 8, 8)
    y = activated(functional.conv2d(x, model.stem.conv1.weight, padding=1), model.stem.bn1)
    y = by_hand(model.stage1[0], y, 1)
    y = by_hand(model.stage2[0], activated(y, model.stage2[0].p.bn1), 2)
    logits = model.classifier(activated(y, model.final.bn1).mean((2, 3)))
    torch.testing.assert_close(model(x), logits)


def by_hand(unit, x, stride):
    F = functional.conv2d(x, unit.F.conv1.weight, stride=stride)
    F = functional.conv2d(activated(F, unit.F.bn1), unit.F.conv2.weight, padding=1)
    F = functional.conv2d(activated(F, unit.F.bn2), unit.F.conv3.weight)
    return functional.conv2d(x, unit.h.conv1.weight, stride=stride) + F
