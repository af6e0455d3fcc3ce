"""The bench: contestants by name, turns in processes of their own, and honest figures."""

import json
import re

import pytest
import torch

from kilolayer.__main__ import main
from kilolayer.bench import Conditions, contestant, race
from kilolayer.bench.checks import differences
from kilolayer.bench.clock import Sample, timed
from kilolayer.bench.contestant import at_depth
from kilolayer.bench.roofline import intensity
from kilolayer.errors import InputError
from kilolayer.networks import describe

PEER = """
import torch
from torch import nn
def net():
    pool = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *pool, nn.Linear(4, 10))
def cifar_number():
    return 3
"""


@pytest.fixture
def peer(tmp_path):
    path = tmp_path / "peer.py"
    path.write_text(PEER)
    return path


@pytest.mark.parametrize(
    ("name", "source", "model", "variant", "memory"),
    [
        ("resnet20_cifar", "kilolayer", "resnet20_cifar", "fast", "fastest"),
        ("resnet20_cifar@plain", "kilolayer", "resnet20_cifar", "plain", "fastest"),
        ("resnet20_cifar@2GB", "kilolayer", "resnet20_cifar", "fast", "2GB"),
        ("resnet20_cifar@fast+balanced", "kilolayer", "resnet20_cifar", "fast", "balanced"),
        ("timm:resnetv2_50", "timm", "resnetv2_50", "plain", "fastest"),
        ("torchvision:resnet50@eager", "torchvision", "resnet50", "eager", "fastest"),
    ],
)
def test_a_name_says_who_and_how(name, source, model, variant, memory):
    one = contestant(name)
    assert (one.source, one.model, one.variant, one.memory) == (source, model, variant, memory)


@pytest.mark.parametrize(
    "name",
    [
        "resnet21_cifar",
        "resnet20_cifar@quick",
        "other:resnet50",
        "no.py:f",
        "timm:resnet50@fast",
        "timm:x@2GB",
        ":x",
    ],
)
def test_a_name_that_says_nothing_is_refused(name):
    with pytest.raises(InputError):
        contestant(name)


def test_depth_is_the_name_s_number():
    assert at_depth("preact_resnet20_cifar@2GB", 1001) == "preact_resnet1001_cifar@2GB"
    assert at_depth("resnext29_8x64d_cifar", 56) == "resnext56_8x64d_cifar"


def test_a_sample_knows_its_own_time():
    sample = timed(lambda: sum(range(200_000)))
    assert sample.cpu_seconds > 0
    assert sample.seconds > 0
    assert Sample(1.0, 1.0, 0.3, None).disturbed
    assert not Sample(1.0, 1.0, 0.01, None).disturbed
    assert not Sample(1.0, 1.0, None, None).disturbed


def row(name, parameters=10, multiply_adds=20, loss=None):
    return {
        "name": name,
        "parameters": parameters,
        "multiply_adds": multiply_adds,
        "loss_with_equal_weights": loss,
    }


def test_other_work_is_named():
    assert differences([row("a", loss=1.0), row("b", loss=1.0001), row("c")]) == []
    found = differences([row("a", loss=1.0), row("b", multiply_adds=30), row("c", loss=1.1)])
    assert found == [
        "b: 30 multiply-adds, a 20 (+50.00 %)",
        "c: with equal weights the loss is 1.10000, of a 1.00000",
    ]


def test_intensity_counts_the_least_traffic():
    """ResNet-164 moves 3 maps of 4·16, 4·32, 4·64 channels a unit at least: about 120 FLOP a byte in bf16."""
    assert intensity(describe("preact_resnet164_cifar"), "training", 2) == pytest.approx(121, rel=0.1)


@pytest.mark.slow
def test_a_race_is_run_in_turns_and_told(peer, tmp_path, capsys):
    out, plot = tmp_path / "bench.json", tmp_path / "roofline.svg"
    words = [
        "bench",
        "resnet20_cifar",
        "resnet20_cifar@plain",
        "--against",
        f"{peer}:net@plain",
        "--batch-size",
        "4",
    ]
    assert main([*words, "--repeats", "2", "--json", "--out", str(out), "--plot", str(plot)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in rows] == ["resnet20_cifar", "resnet20_cifar@plain", f"{peer}:net@plain"]
    for one in rows:
        assert one["images_per_second"] > 0
        assert one["peak_memory_bytes"] > 10**8
        assert 0 < one["roofline_share"] < 1.2
        assert one["repeats"] == 2
    written = json.loads(out.read_text())
    assert re.fullmatch(r".*peer.py:net@plain: [\d,]+ multiply-adds, .*", written["differences"][0])
    assert rows[0]["loss_with_equal_weights"] == pytest.approx(rows[1]["loss_with_equal_weights"], rel=1e-4)
    assert written["environment"]["torch"] == torch.__version__
    assert plot.read_text().lstrip().startswith("<svg")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "why"), [("cifar_number", "gives int"), ("missing", "has no function missing")]
)
def test_a_peer_that_is_none_is_refused(peer, function, why):
    with pytest.raises(InputError, match=why):
        race([contestant(f"{peer}:{function}")], Conditions(batch_size=2, repeats=1, warm_up=0))


def test_conditions_are_checked():
    with pytest.raises(InputError, match="--batch-size is 0; allowed: a whole number from 1"):
        Conditions(batch_size=0)
