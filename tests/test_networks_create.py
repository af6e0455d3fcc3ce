"""The conventions of `create_model`."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kilolayer.errors import InputError
from kilolayer.networks import FeatureNetwork, Network, Stage, Stem, build, create_model
from kilolayer.units import (
    AGGREGATED,
    Aggregated,
    Unit,
)


def tiny(unit, units=1, **options):
    """Two stages of widths 4 and 8 on 8 × 8 images."""
    return Network(Stem(4), (Stage(units, 4), Stage(units, 8, 2)), unit, image_size=8, **options)


@pytest.mark.parametrize("side", [8, 30, 33])
@pytest.mark.parametrize("name", ["preact_resnet11_bottleneck_cifar", "resnet8_cifar"])
def test_any_input_size(name, side):
    assert create_model(name, in_chans=1, num_classes=7)(torch.zeros(2, 1, side, side)).shape == (2, 7)


def test_an_imagenet_network_takes_odd_images():
    assert create_model("resnet18", num_classes=3).eval()(torch.zeros(1, 3, 65, 47)).shape == (1, 3)


def test_features_then_head_is_the_network():
    model = create_model("preact_resnet8_cifar").eval()
    x = torch.randn(2, 3, 16, 16)
    features = model.forward_features(x)
    assert features.shape == (2, 64, 4, 4)
    assert torch.equal(model.forward_head(features), model(x))
    assert torch.equal(model.forward_head(features, pre_logits=True), features.mean((2, 3)))


def test_the_classifier_can_be_changed():
    model = create_model("resnet8_cifar", num_classes=5)
    assert model.get_classifier().out_features == model.num_classes == 5
    model.reset_classifier(3)
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 3)
    assert model.num_classes == model.description.num_classes == 3
    assert not model.get_classifier().bias.any()


def test_the_classifier_can_be_left_out():
    model = create_model("resnet8_cifar")
    model.reset_classifier(0)
    for headless in (model, create_model("resnet8_cifar", num_classes=0)):
        assert headless(torch.zeros(2, 3, 8, 8)).shape == (2, 64)
        assert headless.num_classes == 0


@pytest.mark.parametrize("name", ["preact_resnet8_cifar", "resnext29_4x16d_cifar", "resnet18"])
def test_feature_info_tells_the_shapes(name):
    model = create_model(name, features_only=True).eval()
    for output, info in zip(model(torch.zeros(1, 3, 64, 64)), model.feature_info, strict=True):
        assert output.shape[1:] == (info["num_chs"], 64 // info["reduction"], 64 // info["reduction"])
        assert isinstance(model.network.get_submodule(info["module"]), torch.nn.Sequential)


def test_features_are_the_stage_outputs_and_the_last_is_activated():
    model = create_model("preact_resnet8_cifar", features_only=True, out_indices=(0, 2)).eval()
    assert isinstance(model, FeatureNetwork)
    x = torch.randn(1, 3, 16, 16)
    first, last = model(x)
    assert torch.equal(first, model.network.stage1(model.network.stem(x)))
    assert torch.equal(last, model.network.forward_features(x))
    assert [info["module"] for info in model.feature_info] == ["stage1", "stage3"]
    assert last.min() == 0


def test_only_existing_stages_have_features():
    with pytest.raises(InputError, match="out_indices holds 3; allowed: 0 to 2"):
        create_model("resnet8_cifar", features_only=True, out_indices=(3,))


def test_there_are_no_silent_random_weights():
    with pytest.raises(InputError, match="no pretrained weights of resnet50 are published"):
        create_model("resnet50", pretrained=True)


@settings(deadline=None, max_examples=20)
@given(side=st.integers(4, 20), units=st.integers(1, 2), classes=st.integers(1, 5))
def test_any_size_of_anything_runs(side, units, classes):
    unit = Unit(Aggregated(2, 16), downsample=AGGREGATED.downsample)
    model = build(tiny(unit, units, num_classes=classes)).eval()
    assert model(torch.zeros(1, 3, side, side)).shape == (1, classes)
