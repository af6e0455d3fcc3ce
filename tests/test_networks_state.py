"""What a network keeps: the names and shapes of its state dict."""

import hashlib

import pytest
import torch

from kilolayer.networks import build, describe
from kilolayer.units import (
    ARRANGEMENTS,
    ExclusiveGate,
)

BN = ("weight", "bias", "running_mean", "running_var")

# One small network of each kind: written out, since files of weights are read by these names.
RESNET_8 = """
stem: conv1 bn1
stage1.0.F: conv1 bn1 conv2 bn2
stage2.0.F: conv1 bn1 conv2 bn2
stage3.0.F: conv1 bn1 conv2 bn2
classifier
"""
PREACT_RESNET_11 = """
stem: conv1 bn1
stage1.0.h: conv1
stage1.0.F: conv1 bn1 conv2 bn2 conv3
stage2.0.p: bn1
stage2.0.h: conv1
stage2.0.F: conv1 bn1 conv2 bn2 conv3
stage3.0.p: bn1
stage3.0.h: conv1
stage3.0.F: conv1 bn1 conv2 bn2 conv3
final: bn1
classifier
"""
GATED_8 = """
stem: conv1 bn1
stage1.0.F: conv1 bn1 conv2
stage1.0.f: bn1
stage1.0.g: conv1+bias
stage2.0.F: conv1 bn1 conv2
stage2.0.f: bn1
stage2.0.g: conv1+bias
stage3.0.F: conv1 bn1 conv2
stage3.0.f: bn1
stage3.0.g: conv1+bias
classifier
"""
SPLIT_11 = """
stem: conv1 bn1
stage1.0.h: conv1 bn1
stage1.0.F.aggregated1.paths.0: conv1 bn1 conv2 bn2 conv3
stage1.0.F.aggregated1.paths.1: conv1 bn1 conv2 bn2 conv3
stage1.0.F: bn1
stage2.0.h: conv1 bn1
stage2.0.F.aggregated1.paths.0: conv1 bn1 conv2 bn2 conv3
stage2.0.F.aggregated1.paths.1: conv1 bn1 conv2 bn2 conv3
stage2.0.F: bn1
stage3.0.h: conv1 bn1
stage3.0.F.aggregated1.paths.0: conv1 bn1 conv2 bn2 conv3
stage3.0.F.aggregated1.paths.1: conv1 bn1 conv2 bn2 conv3
stage3.0.F: bn1
classifier
"""
GATED = {"h": ExclusiveGate(), "arrangement": ARRANGEMENTS["bn_after_addition"]}
GOLDEN = [
    (describe("resnet8_cifar"), RESNET_8),
    (describe("preact_resnet11_bottleneck_cifar"), PREACT_RESNET_11),
    (describe("resnet8_cifar", unit=GATED), GATED_8),
    (describe("resnext11_2x4d_cifar", branch={"form": "split"}), SPLIT_11),
]


def keys(text):
    for line in text.strip().splitlines():
        owner, _, layers = line.partition(": ")
        if not layers:
            yield from (f"{owner}.weight", f"{owner}.bias")
        for layer in layers.split():
            name, _, bias = layer.partition("+")
            tensors = BN if name.startswith("bn") else ("weight", bias) if bias else ("weight",)
            yield from (f"{owner}.{name}.{tensor}" for tensor in tensors)


@pytest.mark.parametrize(("description", "text"), GOLDEN, ids=["basic", "preact", "gated", "split"])
def test_the_state_dict_speaks_the_equations_letters(description, text):
    assert list(build(description).state_dict()) == list(keys(text))


# Hashes of all keys and shapes: a change here breaks every file of weights that exists.
HASHES = {
    "resnet20_cifar": "37ea3308157a7a93",
    "preact_resnet164_cifar": "beb1b2e4ec965b7b",
    "resnet110_onelayer_cifar": "26faa749adb11918",
    "resnet110_c_cifar": "b013a9174731649a",
    "wide_resnet28_10_cifar": "fb22e30fa4c9579f",
    "resnext29_8x64d_cifar": "a6a396504b5c5171",
    "resnet18_a": "3015a473edb81c30",
    "preact_resnet200": "2ebc030e99caef5c",
    "resnext50_32x4d": "c4e1f1e76fde3c12",
}


@pytest.mark.parametrize(("name", "expected"), HASHES.items())
def test_the_state_dict_is_stable(name, expected):
    with torch.device("meta"):
        state = build(describe(name)).state_dict()
    text = "\n".join(f"{key} {tuple(tensor.shape)}" for key, tensor in state.items())
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == expected


@pytest.mark.parametrize("versioned", [True, False])
def test_files_with_batch_counters_load_strictly(versioned):
    """Others' BNs count their batches; that the file says so must not make it unreadable."""
    source, target = (build(describe("preact_resnet8_cifar")) for _ in range(2))
    state = source.state_dict()
    if not versioned:
        state = dict(state)
    for key in [key for key in state if key.endswith("running_var")]:
        state[key.replace("running_var", "num_batches_tracked")] = torch.tensor(7)
    target.load_state_dict(state, strict=True)
    assert list(target.state_dict()) == list(source.state_dict())
    assert all(torch.equal(target.state_dict()[key], value) for key, value in source.state_dict().items())


@pytest.mark.parametrize("key", ["stage1.0.F.bn1.running_mean", "stage2.0.F.conv1.weight"])
def test_a_missing_tensor_is_an_error(key):
    model = build(describe("resnet8_cifar"))
    state = model.state_dict()
    del state[key]
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(state)


def test_an_unknown_tensor_is_an_error():
    model = build(describe("resnet8_cifar"))
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict(model.state_dict() | {"stage1.0.F.bn1.extra": torch.zeros(1)})


def test_a_model_can_be_built_on_the_meta_device_and_filled():
    with torch.device("meta"):
        model = build(describe("resnet8_cifar"))
    state = build(describe("resnet8_cifar")).state_dict()
    model.load_state_dict(state, assign=True)
    assert torch.isfinite(model.eval()(torch.randn(1, 3, 8, 8))).all()
