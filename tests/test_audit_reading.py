"""What the auditor says of networks that are not the papers': it reads every one, and counts what it says."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from audited import foreign
from kilolayer.__main__ import main
from kilolayer.audit import audit_model
from kilolayer.audit.network_label import read_label
from kilolayer.errors import InputError
from kilolayer.networks import create_model


def codes(report, *severities):
    return {
        finding.code
        for finding in report.findings
        if finding.severity in (severities or ("fault", "deviation"))
    }


@pytest.mark.parametrize(("name", "words"), foreign.STRUCTURES.items())
def test_a_network_of_another_kind_is_named_by_its_structure(name, words):
    report = audit_model(getattr(foreign, name)(), name)
    assert report.content.structure.startswith(words)
    assert (report.outcome, report.clean, report.nearest, codes(report)) == (
        "nothing told",
        False,
        None,
        set(),
    )
    assert (report.content.family, report.content.stages, report.content.arrangement) == (None, (), None)


@pytest.mark.parametrize(
    ("name", "depth"), [("dense", 8), ("vgg", 4), ("u_net", 7), ("inverted", 11), ("recurrent", None)]
)
def test_depth_is_counted_on_the_longest_path(name, depth):
    assert audit_model(getattr(foreign, name)(), name).content.depth == depth


class Behind(nn.Module):
    """ResNet-20 and more behind it."""

    def __init__(self, more, outputs=None):
        super().__init__()
        self.body, self.more = create_model("resnet20_cifar"), more
        self.outputs = outputs or (lambda _, after: after)

    def forward(self, x):
        logits = self.body(x)
        return self.outputs(logits, self.more(logits))


HEADS = {
    "an extra head": (Behind(nn.Linear(10, 10)), 21, 10, ()),
    "an MLP head": (
        Behind(nn.Sequential(nn.ReLU(), nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 7))),
        22,
        7,
        (),
    ),
    "softmax": (Behind(nn.Softmax(1)), 20, 10, ()),
    "dropout": (Behind(nn.Dropout(0.5)), 20, 10, ()),
    "two outputs": (Behind(nn.Linear(10, 5), lambda a, b: (a, b)), 21, None, ("0: 1×10", "1: 1×5")),
    "a dict": (
        Behind(nn.Linear(10, 5), lambda a, b: {"out": a, "aux": b}),
        21,
        None,
        ("out: 1×10", "aux: 1×5"),
    ),
    "joined outputs": (Behind(nn.Linear(10, 5), lambda a, b: torch.cat([a, b], 1)), 21, None, ("1×15",)),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_counted_and_named(name):
    model, depth, classes, outputs = HEADS[name]
    report = audit_model(model, "resnet20")
    content = report.content
    assert (content.depth, content.classes, content.outputs) == (depth, classes, outputs)
    assert codes(report) == {"head"}
    assert not report.nearest.identical


def test_a_lone_output_in_a_dict_is_the_output():
    report = audit_model(Behind(nn.Identity(), lambda a, _: {"out": a}), "resnet20")
    assert (report.content.classes, report.findings) == (10, ())


def test_auxiliary_heads_of_training_are_off():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.aux = create_model("resnet20_cifar"), nn.Linear(10, 10)

        def forward(self, x):
            y = self.body(x)
            return (y, self.aux(y)) if self.training else y

    report = audit_model(Auxiliary(), "resnet20")
    assert (report.content.classes, report.content.depth, codes(report)) == (10, 20, set())
    assert "auxiliary heads" in report.unknown[0]


def test_layers_that_training_leaves_out_at_random_are_read():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.linear = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 10)
            self.units = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(8))

        def forward(self, x):
            x = self.stem(x)
            for unit in self.units:
                x = x + unit(x).relu() if not self.training or torch.rand(1) > 0.5 else x
            return self.linear(x.mean((2, 3)))

    report = audit_model(Dropping(), "net")
    assert report.content.depth == 10
    assert "at random" in report.unknown[0]


def exchanged(kind, make):
    """ResNet-20 with every layer of a kind exchanged."""
    model = create_model("resnet20_cifar")
    for name, module in list(model.named_modules()):
        if isinstance(module, kind):
            parent, _, key = name.rpartition(".")
            setattr(model.get_submodule(parent), key, make(module))
    return model


EXCHANGES = {
    "instance norm": (nn.BatchNorm2d, lambda m: nn.InstanceNorm2d(m.num_features, affine=True)),
    "instance norm without weights": (nn.BatchNorm2d, lambda m: nn.InstanceNorm2d(m.num_features)),
    "batch norm without running statistics": (
        nn.BatchNorm2d, lambda m: nn.BatchNorm2d(m.num_features, track_running_stats=False),
    ),
    "frozen batch norm": (nn.BatchNorm2d, lambda m: foreign.FrozenNorm(m.num_features)),
    "group norm": (nn.BatchNorm2d, lambda m: nn.GroupNorm(4, m.num_features)),
    "relu6": (nn.ReLU, lambda _: nn.ReLU6()),
    "hardtanh far out": (nn.ReLU, lambda _: nn.Hardtanh(0, 1e4)),
    "prelu": (nn.ReLU, lambda _: nn.PReLU(init=0.0)),
    "scale for each channel": (nn.BatchNorm2d, lambda m: foreign.ChannelScale(m.num_features)),
    "a kernel that is computed": (
        nn.Conv2d, lambda m: nn.utils.parametrizations.weight_norm(m),
    ),
    "reflected padding": (nn.Conv2d, foreign.reflected),
}  # fmt: skip


@pytest.mark.parametrize("name", EXCHANGES)
def test_a_layer_that_only_looks_like_the_papers_is_named(name):
    report = audit_model(exchanged(*EXCHANGES[name]), "resnet20")
    assert codes(report) or report.outcome == "nothing told"
    assert report.nearest is None or not report.nearest.identical


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ceil_mode": True, "padding": 0}, "max-pooling"), ({"dilation": 2}, "max-pooling"),
    ],
)  # fmt: skip
def test_a_pool_that_rounds_up_is_another_pool(change, words):
    from audited import clean

    model = clean.resnet18()
    model.maxpool = nn.MaxPool2d(3, 2, **({"padding": 1} | change))
    report = audit_model(model, "resnet18")
    assert any(words in finding.what for finding in report.findings)
    assert not report.nearest.identical


def test_a_bounded_shortcut_is_no_identity():
    class Bounded(nn.Module):
        def __init__(self, unit):
            super().__init__()
            self.unit = unit

        def forward(self, x):
            unit = self.unit
            x = unit.p(x)
            return unit.f(unit.h(x).clamp(-1e4, 1e4) + unit.F(x))

    model = create_model("resnet20_cifar")
    for stage in (model.stage1, model.stage2, model.stage3):
        for i in range(len(stage)):
            stage[i] = Bounded(stage[i])
    report = audit_model(model, "resnet20")
    assert codes(report)
    assert not report.nearest.identical


def lazy():
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(10)
    return nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.ReLU(), *head)


def quantised():
    return torch.ao.quantization.quantize_dynamic(foreign.vgg(), {nn.Linear}, dtype=torch.qint8)


class Odd(nn.Module):
    """A convolution and a linear layer, with something odd between them."""

    def __init__(self, odd, channels=3):
        super().__init__()
        self.conv, self.linear, self.odd = nn.Conv2d(channels, 8, 3), nn.Linear(8, 10), odd

    def forward(self, x):
        return self.linear(self.odd(self.conv(x)).mean((2, 3)))


def _loops(x):
    while x.abs().max() > 0.5:
        x = x / 2
    return x + 1 if x.mean().item() > 0 else x


def _writes(x):
    x[:, :2] = 0
    return x


READ = {
    "lazy": lazy,
    "scripted": lambda: torch.jit.script(foreign.vgg()),
    "frozen script": lambda: torch.jit.freeze(torch.jit.script(foreign.vgg().eval())),
    "traced by jit": lambda: torch.jit.trace(foreign.vgg().eval(), torch.zeros(1, 3, 32, 32)),
    "symbolically traced": lambda: torch.fx.symbolic_trace(foreign.vgg()),
    "on the meta device": lambda: foreign.vgg().to("meta"),
    "half": lambda: foreign.vgg().half(),
    "double": lambda: foreign.vgg().double(),
    "parallel": lambda: nn.DataParallel(foreign.vgg()),
    "inference mode": lambda: Odd(torch.inference_mode()(torch.relu)),
    "control flow": lambda: Odd(_loops),
    "in-place writes": lambda: Odd(_writes),
    "complex numbers": lambda: Odd(lambda x: torch.fft.fft2(x).abs()),
    "one channel": lambda: Odd(torch.relu, 1),
    "four channels": lambda: Odd(torch.relu, 4),
    "thirteen channels": lambda: Odd(torch.relu, 13),
    "no copy": foreign.uncopied,
    "299 pixels": lambda: foreign.of_side(299),
    "its own size": lambda: foreign.of_side(48, image_size=48),
    "a list of images": foreign.takes_list,
}


@pytest.mark.parametrize("name", READ)
def test_every_network_is_read(name):
    model = READ[name]()
    modes = [getattr(module, "training", None) for module in model.modules()]
    report = audit_model(model, "net")
    assert report.content.depth is not None
    assert report.content.depth >= 2
    assert report.content.classes == 10
    assert [getattr(module, "training", None) for module in model.modules()] == modes


def test_operators_that_are_not_pytorchs_own_are_not_counted():
    report = audit_model(quantised(), "net")
    assert report.content.structure.startswith("not known: operators that are not PyTorch's own")
    assert (report.content.depth, report.content.classes) == (None, None)


class Refused(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what, self.linear = what, nn.Linear(2, 2)

    def forward(self, *inputs):
        return self.what(*inputs)


def _fails(x):
    raise KeyError("first\nsecond")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (_fails, "KeyError"),
        (lambda x, y: x, "missing 1 required positional argument"),
        (lambda x: None, "holds no tensor"),
        (lambda x: "cat", "holds no tensor"),
        (lambda x: sys.exit(0), "SystemExit: 0"),
        (lambda x: torch.zeros(3), "does not depend"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(what, said):
    with pytest.raises(InputError, match=said) as raised:
        audit_model(Refused(what), "net")
    assert len(str(raised.value).splitlines()) == 1


def test_a_decision_on_the_images_values_is_named():
    class Deciding(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = create_model("resnet20_cifar")

        def forward(self, x):
            return self.body(x if x.mean().item() < 1e9 else -x)

    assert "decides" in codes(audit_model(Deciding(), "resnet20"))


def test_weights_that_several_layers_share_are_named():
    model = create_model("resnet20_cifar")
    model.stage1[1].F.conv1.weight = model.stage1[2].F.conv1.weight
    assert "shared-weights" in codes(audit_model(model, "resnet20"))


# What a name certainly claims: depth, block, pre-activation, C and d, a width. None: nothing.
LABELS = {
    "resnext50": (50, None), "resnext50_32x4d": (50, 32), "resnet50d": (50, None), "resnet50c": (50, None),
    "resnet50s": (50, None), "resnet50t": (50, None), "resnet33ts": (None, None), "resnet51q": (None, None),
    "wide_resnet50_2": (50, None), "seresnet50": (50, None), "resnetv2_50": (50, None),
    "resnext50d_32x4d": (50, 32), "resnetv2_50x1_bit": (None, None), "resnet164bn_cifar10": (164, None),
}  # fmt: skip
NO_LABELS = (
    "res2net50_26w_4s",
    "resnest50d",
    "resnetrs50",
    "resnetblur50",
    "inception_resnet_v2",
    "densenet121",
)


@pytest.mark.parametrize(("name", "claims"), LABELS.items())
def test_a_name_claims_what_it_certainly_says(name, claims):
    label = read_label(name)
    assert (label.depth if label.counts_depth else None, label.cardinality) == claims
    assert label.preact == name.startswith("resnetv2")


@pytest.mark.parametrize("name", NO_LABELS)
def test_another_familys_name_claims_nothing(name):
    assert read_label(name) is None


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("resnext29", "resnext29_32x4d_cifar"), ("resnext29_32x4d", "resnext29_32x4d_cifar"),
        ("seresnet20", "resnet20_cifar"), ("resnet20d", "resnet20_cifar"),
    ],
)  # fmt: skip
def test_these_names_make_no_false_fault(name, make):
    assert codes(audit_model(create_model(make), name), "fault") == set()


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("resnext20", "resnet20_cifar"), ("plain20", "resnet20_cifar"), ("wrn_20_4", "resnet20_cifar"),
        ("resnext29_8x64d", "resnext29_32x4d_cifar"), ("resnet50d", "resnet20_cifar"),
        ("resnetv2_20", "resnet20_cifar"),
    ],
)  # fmt: skip
def test_a_claim_that_does_not_hold_is_a_fault(name, make):
    assert "label" in codes(audit_model(create_model(make), name), "fault")


def test_a_residual_name_without_an_addition_is_a_fault():
    report = audit_model(foreign.vgg(), "resnet20")
    assert (codes(report, "fault"), report.outcome) == ({"label"}, "faults")


# The command.

FOREIGN = Path(__file__).parent / "audited" / "foreign.py"


@pytest.mark.parametrize(
    ("subject", "call", "status", "words"),
    [
        ("kilolayer.networks:create_model", "'resnet20_cifar'", 0, "classes     10"),
        ("kilolayer.networks:create_model", "'resnet20_cifar', num_classes=7", 0, "classes     7"),
        ("kilolayer.networks:create_model", "name='resnet20_cifar'", 0, "depth       20"),
        (f"{FOREIGN}:Chain", "3, widths=(8, 16)", 3, "plain chain of 2 convolutions"),
        (f"{FOREIGN}:vgg", None, 3, "so nothing was compared"),
    ],
)
def test_a_callable_takes_arguments(subject, call, status, words, capsys):
    assert main(["audit", subject, *(["--call", call] if call else [])]) == status
    assert words in capsys.readouterr().out


@pytest.mark.parametrize(
    ("subject", "call", "said"),
    [
        ("kilolayer.networks:create_model", None, "give them with --call"),
        ("kilolayer.networks:create_model", "open('x')", "is no literal"),
        ("kilolayer.networks:create_model", "resnet20_cifar", "write 'resnet20_cifar'"),
        ("kilolayer.networks:create_model", "1)(2", "is no list of arguments"),
        ("kilolayer.networks:create_model", "1) + f(2", "is no list of arguments"),
        ("kilolayer.networks:create_model", "**{}", "has **"),
        ("kilolayer.networks:create_model", "(", "is no list of arguments"),
        ("kilolayer.networks:create_model", "'no_such_network'", "no_such_network"),
        ("kilolayer.networks:create_model", "depth=20", "with these arguments"),
        ("kilolayer.networks:nothing", None, "has no 'nothing'"),
        ("kilolayer.no_such_module:make", None, "no module 'kilolayer.no_such_module'"),
        ("no_such_package.models:make", None, "no module 'no_such_package'"),
        (f"{FOREIGN}:exits", None, "SystemExit"),
        ("weights.pt", "1", "--call is for"),
    ],
)
def test_a_call_that_cannot_be_made_is_refused_in_one_line(subject, call, said, capsys):
    assert main(["audit", subject, *(["--call", call] if call else [])]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1


def test_a_module_of_this_folder_is_found_behind_the_installed_ones(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_nets").mkdir()
    (tmp_path / "my_nets" / "models.py").write_text(FOREIGN.read_text())
    (tmp_path / "yaml.py").write_text("raise SystemExit('a file that lies here by chance ran')")
    monkeypatch.chdir(tmp_path)
    assert main(["audit", "my_nets.models:vgg"]) == 3
    assert str(tmp_path) not in sys.path
    capsys.readouterr()


@pytest.mark.parametrize(("outcome", "status"), [("clean", 0), ("faults", 1), ("nothing told", 3)])
def test_the_exit_status_is_the_outcomes(outcome, status):
    from kilolayer.cli.audit import STATUSES

    assert STATUSES[outcome] == status


# Other people's libraries, where they are installed.

PEERS = {
    "torchvision.models.resnet:resnet18": 0, "torchvision.models:googlenet": 3,
    "torchvision.models.detection:ssdlite320_mobilenet_v3_large": 3, "timm.models.resnet:resnet50d": 0,
    "timm.models.resnet:seresnet50": 0,
    "timm.models.sknet:skresnet18": 3,
    "timm.models.vision_transformer:vit_tiny_patch16_224": 3,
    "timm.models.resnet:resnext50_32x4d": 0, "timm.models.resnetv2:resnetv2_50": 0,
    "pytorchcv.models.resnet_cifar:resnet20_cifar10": 0,
    "pytorchcv.models.preresnet_cifar:preresnet20_cifar10": 1,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("subject", PEERS)
def test_the_libraries_networks_are_told(subject, capsys):
    package = subject.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    weights = {"torchvision.models.detection": "weights=None, weights_backbone=None"}
    call = weights.get(subject.partition(":")[0], "init_weights=False" if "googlenet" in subject else "")
    assert main(["audit", subject, "--call", call]) == PEERS[subject]
    capsys.readouterr()
