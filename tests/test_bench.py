"""The bench: candidates by name, turns in processes of their own, and honest figures."""

import copy
import json
import re

import pytest
import torch
from torch import nn
from torch.nn import functional

from kilolayer.__main__ import main
from kilolayer.bench import BenchConfiguration, candidate_module, compare_candidates, parse_candidate
from kilolayer.bench.candidate import candidate_at_depth
from kilolayer.bench.candidate_module import build_candidate, count_work
from kilolayer.bench.equivalence import reference_loss, share_weights, work_differences
from kilolayer.bench.machine import describe_machine, fastest_dtype
from kilolayer.bench.parameter_pairing import pairing_order
from kilolayer.bench.timing import Timing, time_work
from kilolayer.errors import InputError
from kilolayer.networks import build, describe
from kilolayer.report.roofline import arithmetic_intensity

PEER = """
import torch
from torch import nn
def net():
    pool = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *pool, nn.Linear(4, 10))
def cifar_number():
    return 3
def ours():
    from kilolayer.networks import build, describe
    return build(describe("preact_resnet8_cifar"))
"""
CPU = torch.device("cpu")


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
    one = parse_candidate(name)
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
        "resnet20_cifar@",
        "resnet20_cifar@balanced+plain",
        "resnet20_cifar@plain+eager",
        "resnet20_cifar@balanced+2GB",
    ],
)
def test_a_name_that_says_nothing_is_refused(name):
    with pytest.raises(InputError):
        parse_candidate(name)


def test_a_file_without_a_function_is_no_unknown_network(peer):
    with pytest.raises(InputError, match=r"names no function in the file; allowed: FILE\.py:CALLABLE"):
        parse_candidate(str(peer))


def test_depth_is_the_name_s_number():
    assert candidate_at_depth("preact_resnet20_cifar@2GB", 1001) == "preact_resnet1001_cifar@2GB"
    assert candidate_at_depth("resnext29_8x64d_cifar", 56) == "resnext56_8x64d_cifar"


def test_a_sample_knows_its_own_time():
    sample = time_work(lambda: sum(range(200_000)))
    assert sample.cpu_seconds > 0
    assert sample.seconds > 0
    assert Timing(1.0, 1.0, 0.3, None).is_disturbed
    assert not Timing(1.0, 1.0, 0.01, None).is_disturbed
    assert not Timing(1.0, 1.0, None, None).is_disturbed


def row(name, parameters=10, multiply_adds=20, loss=1.0, as_run=None):
    return {
        "name": name,
        "parameters": parameters,
        "multiply_adds": multiply_adds,
        "loss_with_equal_weights": loss,
        "loss_as_run": loss if as_run is None else as_run,
    }


def test_other_work_is_named():
    assert work_differences([row("a"), row("b", loss=1.0001), row("c", as_run=1.05)]) == []
    found = work_differences(
        [row("a"), row("b", multiply_adds=30), row("c", loss=1.01), row("d", as_run=1.2)]
    )
    assert found == [
        "b: 30 multiply-adds, a 20 (+50.00 %)",
        "c: with equal weights the loss is 1.01000, that of a is 1.00000",
        "d: with equal weights, as it is run, the loss is 1.20000, that of a is 1.00000",
    ]


def test_a_loss_that_could_not_be_compared_is_named():
    unpaired = row("b") | {"loss_with_equal_weights": None, "loss_as_run": None}
    assert work_differences([row("a"), unpaired]) == [
        "b: its tensors do not pair with a's, so losses are not compared"
    ]


class Foreign(nn.Module):
    """ResNet-8 with option B as others write it: other names, the shortcut's layers first, a 1×1 head."""

    class Unit(nn.Module):
        def __init__(self, before, width, stride):
            super().__init__()
            shape = stride > 1
            self.down = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))
            self.down = self.down if shape else nn.Sequential()
            self.n2, self.n1 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
            self.c2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
            self.c1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)

        def forward(self, x):
            y = self.n2(self.c2(functional.relu(self.n1(self.c1(x)))))
            return functional.relu(y + self.down(x))

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(64, 10, 1)
        self.units = nn.Sequential(self.Unit(16, 16, 1), self.Unit(16, 32, 2), self.Unit(32, 64, 2))
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())

    def forward(self, x):
        pooled = functional.adaptive_avg_pool2d(self.units(self.stem(x)), 1)
        return self.head(pooled).flatten(1)


def same_loss(mine, other, folder, side, training=True):
    """Of both, with equal weights; None where they do not pair."""
    torch.manual_seed(1)
    x, labels = torch.randn(4, 3, side, side), torch.randint(10, (4,))
    paired = [share_weights(module, str(folder / "weights"), x) for module in (mine, other)]
    losses = [reference_loss(module, x, labels, training=training) for module in (mine, other)]
    return losses if all(paired) else None


@pytest.mark.parametrize("training", [True, False])
def test_tensors_pair_by_what_is_computed_not_by_how_it_is_written(tmp_path, training):
    mine, other = build(describe("resnet8_b_cifar")), Foreign()
    assert [p.shape for p in mine.parameters()] != [p.shape for p in other.parameters()]
    one, two = same_loss(mine, other, tmp_path, 32, training)
    assert one == pytest.approx(two, rel=1e-5)


def test_another_network_does_not_pair_or_gives_another_loss(tmp_path):
    (tmp_path / "a").mkdir()
    assert same_loss(build(describe("resnet8_cifar")), Foreign(), tmp_path / "a", 32) is None
    (tmp_path / "b").mkdir()
    bottlenecks = [build(describe("preact_resnet29_bottleneck_cifar", branch={"stride_on": where}))
                   for where in ("1x1", "3x3")]  # fmt: skip
    one, two = same_loss(*bottlenecks, tmp_path / "b", 32)
    assert abs(one - two) > 1e-3 * one


def test_weights_are_named_once_and_nothing_is_computed():
    model = build(describe("preact_resnet20_cifar"))
    names = pairing_order(model, (1, 3, 32, 32))
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert names[0] == "stem.conv1.weight"
    assert names[-2:] == ["classifier.weight", "classifier.bias"]
    assert model.training
    assert all(p.grad is None and p.device == CPU for p in model.parameters())


def test_in_evaluation_the_signal_is_that_of_training_not_of_untouched_norms():
    """With the running statistics of a fresh network the signal grows from unit to unit."""
    model, x, labels = build(describe("preact_resnet56_cifar")), torch.randn(8, 3, 32, 32), torch.arange(8)
    with torch.no_grad():
        untouched = functional.cross_entropy(model.eval()(x), labels).item()
    model.train()
    step = reference_loss(model, x, labels, training=True)
    assert untouched > 10 * step
    assert reference_loss(model, x, labels, training=False) == pytest.approx(step, rel=0.05)


@pytest.mark.parametrize("training", [True, False])
def test_the_check_adds_in_one_order_whatever_the_memory_format(training: bool):
    """Rounding otherwise grows with depth, and equal functions of 1001 layers differ by 0.1 %."""
    model, x, labels = build(describe("preact_resnet56_cifar")), torch.randn(8, 3, 32, 32), torch.arange(8)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    assert reference_loss(model, x, labels, training=training) == reference_loss(
        last, x, labels, training=training
    )
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in last.parameters() if p.ndim == 4)
    assert all(p.is_contiguous() for p in model.parameters())


@pytest.mark.parametrize(
    ("ours", "peer", "side"),
    [
        ("resnet20_b_cifar", "pytorchcv:resnet20_cifar10", 32),
        ("resnet18", "torchvision:resnet18", 64),
        ("resnet18", "timm:resnet18", 64),
    ],
)
def test_packages_networks_are_ours_with_equal_weights(tmp_path, ours, peer, side):
    try:
        other = build_candidate(parse_candidate(peer), CPU, 2, infer=False)
    except InputError as error:
        pytest.skip(str(error))
    assert other.precision == "fp32"
    mine = build(describe(ours))
    x = torch.zeros(1, 3, mine.description.image_size, mine.description.image_size)
    assert count_work(other.module, x) == count_work(mine, x)
    one, two = same_loss(mine, other.module, tmp_path, side)
    assert one == pytest.approx(two, rel=1e-3)


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (ImportError("none"), "timm:resnet50 needs timm: pip install timm"),
        (ModuleNotFoundError(name="timm"), "timm:resnet50 needs timm: pip install timm"),
        (ModuleNotFoundError(name="torchvision.ops"),
         "timm:resnet50 needs torchvision, which timm imports: pip install torchvision"),
        (RuntimeError("operator torchvision::nms does not exist\nmore"),
         "timm:resnet50: timm cannot be imported (operator torchvision::nms does not exist); "
         f"install the torchvision that was built for PyTorch {torch.__version__}"),
    ],
)  # fmt: skip
def test_a_package_that_is_missing_is_one_line_with_what_to_do(monkeypatch, error, advice):
    def refuse(name):
        raise error

    monkeypatch.setattr(candidate_module, "import_module", refuse)
    with pytest.raises(InputError) as caught:
        build_candidate(parse_candidate("timm:resnet50"), CPU, 2, infer=False)
    assert str(caught.value) == advice


def test_a_file_may_give_a_network_of_ours_and_have_it_run_fast(peer):
    found = build_candidate(parse_candidate(f"{peer}:ours@fast+balanced"), CPU, 2, infer=False)
    assert found.plan is not None
    assert found.channels_last
    with pytest.raises(
        InputError,
        match="net returns Sequential, which is not one of our networks; allowed for others: @plain",
    ):
        build_candidate(parse_candidate(f"{peer}:net@fast"), CPU, 2, infer=False)


def test_the_ceiling_is_the_fastest_product_whichever_that_is():
    found = {"bf16_flops": 86.0, "fp32_flops": 171.0, "int8_flops": 690.0, "copy_bytes": 1.0}
    assert fastest_dtype(found) == ("fp32", 171.0)
    assert fastest_dtype(found | {"bf16_flops": 235.0}) == ("bf16", 235.0)
    assert fastest_dtype(found | {"fp16_flops": 380.0}) == ("fp16", 380.0)
    assert fastest_dtype(found, int8=True) == ("int8", 690.0)
    del found["int8_flops"]
    assert fastest_dtype(found, int8=True) == ("fp32", 171.0)


def test_the_processor_is_named():
    found = describe_machine()
    assert set(found) == {"name", "family_and_model", "instructions"}
    assert found["name"]


def test_intensity_counts_the_least_traffic():
    """ResNet-164 moves 3 maps of 4·16, 4·32, 4·64 channels a unit at least: about 120 FLOP a byte in bf16."""
    assert arithmetic_intensity(describe("preact_resnet164_cifar"), "training", 2) == pytest.approx(
        121, rel=0.1
    )


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
    assert [one["image_side"] for one in rows] == [32, 32, 32]
    # What a candidate's process imports is in the prediction.
    assert rows[0]["predicted_memory_bytes"] == pytest.approx(rows[0]["peak_memory_bytes"], rel=0.2)
    for one in rows:
        assert one["images_per_second"] > 0
        assert one["peak_memory_bytes"] > 10**8
        assert 0 < one["roofline_share"] < 1.2
        assert one["repeats"] == 2
    written = json.loads(out.read_text())
    assert re.fullmatch(r".*peer.py:net@plain: [\d,]+ multiply-adds, .*", written["differences"][0])
    assert written["differences"][-1].endswith("so losses are not compared")
    assert written["fastest_arithmetic"] in ("bf16", "fp16", "fp32")
    assert written["machine"]["name"]
    assert rows[0]["loss_as_run"] == pytest.approx(rows[0]["loss_with_equal_weights"], rel=0.05)
    assert rows[0]["loss_with_equal_weights"] == pytest.approx(rows[1]["loss_with_equal_weights"], rel=1e-4)
    assert written["environment"]["torch"] == torch.__version__
    assert plot.read_text().lstrip().startswith("<svg")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "why"), [("cifar_number", "returns int"), ("missing", "has no function missing")]
)
def test_a_peer_that_is_none_is_refused(peer, function, why):
    with pytest.raises(InputError, match=why):
        compare_candidates(
            [parse_candidate(f"{peer}:{function}")], BenchConfiguration(batch_size=2, repeats=1, warm_up=0)
        )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"batch_size": 0}, "--batch-size is 0; allowed: a whole number from 1"),
        ({"threads": 1025}, "--threads is 1025; allowed: a whole number from 1 to 1024"),
        ({"image_size": 0}, "--image-size is 0; allowed: a whole number from 1"),
    ],
)
def test_conditions_are_checked(words, said):
    with pytest.raises(InputError, match=said):
        BenchConfiguration(**words)
