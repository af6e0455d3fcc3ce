"""Units of one's own: the documentation's examples work everywhere, and no stranger's code runs unasked."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kilolayer.cli.command_line import run_command_line
from kilolayer.errors import InputError
from kilolayer.kernels import fuse
from kilolayer.kernels.folding import fold
from kilolayer.networks import Network, build, cifar
from kilolayer.networks.saved_activations import network_activations
from kilolayer.theory.mean_field import no_prediction_reason
from kilolayer.units import BASIC, Arrangement, Branch, Shortcut, Unit, extensions, layout
from kilolayer.values import from_json, to_json

OWN = Path(__file__).parents[1] / "docs" / "how-to" / "own"
EXAMPLES = {path.stem: path for path in sorted(OWN.glob("*.py"))}
NAMES = {
    "learned_scale": "LearnedScale",
    "squeeze_excite": "SqueezeExcite",
    "group_norm": "PREACT",
    "stochastic_depth": "StochasticDepth",
}
TINY = ("--subset", "64", "--iterations", "6", "--batch-size", "16", "--threads", "1", "--no-tensorboard")


@pytest.fixture(autouse=True)
def nothing_loaded() -> Iterator[None]:
    """A test begins as a program does: without the files that others named."""
    before = dict(extensions._loaded_origins)
    yield
    for name in set(extensions._loaded_origins) - set(before):
        del extensions._loaded_origins[name], sys.modules[name]


def unit_of(example: str) -> Unit:
    value = extensions.load_named(
        f"{EXAMPLES[example]}:{NAMES[example]}", Unit, Branch, Shortcut, Arrangement
    )
    fields = {Branch: "branch", Shortcut: "h", Arrangement: "arrangement"}
    return replace(BASIC, **{field: value for kind, field in fields.items() if isinstance(value, kind)})


def network_of(example: str) -> Network:
    return replace(cifar(8, unit_of(example)), image_size=8)


def test_every_example_is_under_test() -> None:
    assert set(EXAMPLES) == set(NAMES)


@pytest.mark.parametrize("example", NAMES)
def test_an_example_has_at_most_thirty_lines(example: str) -> None:
    assert len(EXAMPLES[example].read_text(encoding="utf-8").splitlines()) <= 30


@pytest.mark.parametrize("example", NAMES)
def test_counts_are_those_of_the_module(example: str) -> None:
    network = network_of(example)
    assert network.parameters == sum(each.numel() for each in build(network).parameters())
    assert network.multiply_adds >= replace(network, unit=BASIC).multiply_adds
    assert all(kept.inside > 0 for kept in network_activations(network))


@pytest.mark.parametrize("example", NAMES)
def test_a_description_survives_json_and_names_its_file(example: str) -> None:
    unit = unit_of(example)
    text = to_json(unit)
    assert from_json(text, Unit) == unit
    assert f'"name": "{EXAMPLES[example].name}"' in text


@pytest.mark.parametrize("example", NAMES)
def test_theory_predicts_nothing_and_says_of_what(example: str) -> None:
    assert "theory has no rule for the layer" in str(no_prediction_reason(network_of(example)))


@pytest.mark.parametrize("example", NAMES)
def test_kernels_and_folding_leave_the_function_as_it_is(example: str) -> None:
    torch.manual_seed(0)
    model, x = build(network_of(example)), torch.randn(4, 3, 8, 8)
    model(x)  # BN has seen data
    wanted = model.eval()(x)
    assert torch.allclose(fold(model)(x), wanted, atol=1e-4)
    fuse(model)
    assert torch.allclose(model(x), wanted, atol=1e-5)


def test_an_activation_of_ones_own_stands_in_the_stem_too() -> None:
    assert "BatchNorm" not in str(build(network_of("group_norm")))


def test_the_shortcut_of_ones_own_is_drawn_as_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run_command_line(("show", "resnet20_cifar", "--unit", f"{EXAMPLES['learned_scale']}:LearnedScale"))
        == 0
    )
    assert "Gain 0.9" in capsys.readouterr().out


def command(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kilolayer", *words], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("example", NAMES)
def test_training_resumes_to_the_same_bits_and_every_command_reads_the_run(
    example: str, tmp_path: Path
) -> None:
    file = str(EXAMPLES[example])
    words = ("train", "--model", "preact_resnet8_cifar", "--unit", f"{file}:{NAMES[example]}", *TINY)
    assert run_command_line((*words, "--out", str(tmp_path / "whole"))) == 0
    stopped(words, tmp_path / "part")
    assert (
        run_command_line(("train", "--resume", str(tmp_path / "part"), "--unit", file, "--no-tensorboard"))
        == 0
    )
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("whole", "part")]
    assert weights[0] == weights[1]
    assert run_command_line(("evaluate", str(tmp_path / "whole"), "--unit", file)) == 0
    assert run_command_line(("analyse", "shortcut", str(tmp_path / "whole"), "--unit", file)) == 0
    assert run_command_line(("report", str(tmp_path / "whole"), "--unit", file)) == 0
    network = ("preact_resnet8_cifar", "--unit", f"{file}:{NAMES[example]}")
    assert run_command_line(("analyse", "initialisation", *network, "--seeds", "1")) == 0
    assert run_command_line((*words, "--activation-memory", "smallest", "--out", str(tmp_path / "less"))) == 0
    less = (tmp_path / "less" / "metrics.jsonl").read_text()
    assert less == (tmp_path / "whole" / "metrics.jsonl").read_text()


def stopped(words: tuple[str, ...], folder: Path) -> None:
    """The same run stopped after three steps."""
    from kilolayer.cli.assemble import assemble_experiment
    from kilolayer.cli.command_line import parse
    from kilolayer.runs import Run, train_run
    from kilolayer.training import DistributedContext, Trainer

    experiment, splits = assemble_experiment(parse((*words, "--out", str(folder))), torch.device("cpu"))
    with Run.open_or_create(folder, experiment) as begun:
        training = Trainer(experiment, splits, DistributedContext(torch.device("cpu")))
        for _ in train_run(begun, training, stop=lambda: training.state.iteration >= 3):
            pass


def test_a_strangers_run_runs_no_code_until_its_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "theirs.py"
    file.write_text(
        EXAMPLES["learned_scale"].read_text() + f"\nopen({str(tmp_path / 'RAN')!r}, 'w').close()\n"
    )
    unit = replace(BASIC, h=extensions.load_named(f"{file}:LearnedScale", Shortcut))
    text = to_json(unit)
    (tmp_path / "RAN").unlink()
    (tmp_path / "unit.json").write_text(text)
    code = (
        "from pathlib import Path; from kilolayer.units import Unit; from kilolayer.values import from_json; "
    )
    code += "from_json(Path('unit.json').read_text(), Unit)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (
        "this uses LearnedScale from theirs.py, whose code runs only when you name it: add --unit theirs.py"
        in done.stderr
    )
    assert not (tmp_path / "RAN").exists()


def test_a_file_that_has_changed_since_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    # A process loads the same bytes once, and another test may have loaded the example from its own place.
    file.write_text(EXAMPLES["learned_scale"].read_text() + "\n# mine\n")
    text = to_json(replace(BASIC, h=extensions.load_named(f"{file}:LearnedScale", Shortcut)))
    changed = json.loads(text)
    changed["h"]["file"]["sha256"] = "0" * 64
    with pytest.raises(
        InputError,
        match=r"this uses LearnedScale from mine\.py; mine\.py has changed since .*: bring the file back",
    ):
        from_json(json.dumps(changed), Unit)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--unit", "nothing.py:X"), r"nothing\.py: no such file or folder$"),
        (("--unit", "learned_scal.py:X"), r"no such file or folder; nearest: learned_scale\.py"),
        (("--unit", "learned_scale.txt:X"), "no Python file"),
        (("--unit", "learned_scale.py"), "allowed: FILE.py:NAME"),
        (("--unit", "learned_scale.py:LearnedSale"), "nearest: LearnedScale"),
        (("--unit", "broken.py:X"), "broken.py: ZeroDivisionError"),
        (("--unit", "empty.py:X"), "it defines none"),
    ],
)
def test_what_cannot_be_a_unit_is_refused(
    words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("learned_scale.py").write_text(EXAMPLES["learned_scale"].read_text())
    Path("broken.py").write_text("1 / 0\n")
    Path("empty.py").write_text("")
    with pytest.raises(InputError, match=said):
        run_command_line(("show", "resnet20_cifar", *words))


SHOW = ("show", "resnet20_cifar")


@pytest.mark.parametrize(
    ("example", "words"),
    [
        ("learned_scale", ("--shortcut", "zero")),
        ("group_norm", ("--arrangement", "original")),
        ("squeeze_excite", ("--dropout", "0.3")),
        ("squeeze_excite", ("--dropout", "0")),
    ],
)
def test_an_option_for_the_part_that_is_ones_own_is_refused(example: str, words: tuple[str, str]) -> None:
    with pytest.raises(InputError, match=f"--unit and {words[0]} set the same part of the unit"):
        run_command_line((*SHOW, "--unit", f"{EXAMPLES[example]}:{NAMES[example]}", *words))


@pytest.mark.parametrize("words", [("--downsample", "projection"), ("--shortcut", "zero")])
def test_beside_a_whole_unit_every_such_option_is_refused(words: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from kilolayer.units import BASIC as WHOLE\n")
    with pytest.raises(InputError, match=f"--unit and {words[0]} set the same part of the unit"):
        run_command_line((*SHOW, "--unit", f"{tmp_path / 'mine.py'}:WHOLE", *words))


def test_two_files_are_refused() -> None:
    scale = f"{EXAMPLES['learned_scale']}:LearnedScale"
    with pytest.raises(InputError, match="--unit is given more than once"):
        run_command_line((*SHOW, "--unit", scale, "--unit", f"{EXAMPLES['group_norm']}:PREACT"))


def test_a_name_that_the_file_has_not_is_refused_for_a_run_too(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="called 'LearnedScal'; nearest: LearnedScale"):
        run_command_line(("evaluate", str(tmp_path), "--unit", f"{EXAMPLES['learned_scale']}:LearnedScal"))


def test_only_units_and_their_parts_are_suggested(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"called 'Nope'; allowed: PREACT$"):
        run_command_line(("evaluate", str(tmp_path), "--unit", f"{EXAMPLES['group_norm']}:Nope"))


def test_a_renamed_file_is_the_same_file(tmp_path: Path) -> None:
    text = to_json(unit_of("learned_scale"))
    origin = json.loads(text)["h"]["file"]
    renamed = tmp_path / "renamed.py"
    renamed.write_bytes(EXAMPLES["learned_scale"].read_bytes())
    for name in list(extensions._loaded_origins):
        del extensions._loaded_origins[name], sys.modules[name]
    extensions.load_unit_file(renamed)
    assert json.loads(to_json(from_json(text, Unit)))["h"]["file"] == origin


HELPED = """
from dataclasses import dataclass
from kilolayer.units import CustomLayer, Shortcut, load_unit_file
{load}
@dataclass(frozen=True)
class U(Shortcut):
    def layers(self, channels): return (CustomLayer(H, channels),)
"""
HELPER = """
from torch import nn
class H(nn.Module):
    def __init__(self, channels): super().__init__()
    def forward(self, x): return {factor} * x
"""


def forget() -> None:
    for name in list(extensions._loaded_origins):
        del extensions._loaded_origins[name], sys.modules[name]


@pytest.mark.parametrize(
    "load",
    [
        "H = load_unit_file({path!r}).H",
        "from helper_beside import H",
        "import helper_beside; H = helper_beside.H",
    ],
)
def test_a_file_that_the_unit_loads_is_checked_too(
    load: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper, file = tmp_path / "helper_beside.py", tmp_path / "uses.py"
    file.write_text(HELPED.format(load=load.format(path=str(helper))))
    helper.write_text(HELPER.format(factor=2.0))
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("helper_beside", None)  # of another test's folder
    unit = replace(BASIC, h=extensions.load_named(f"{file}:U", Shortcut))
    text = to_json(unit)
    for _ in range(2):  # the second time the helper has been imported before
        forget()
        again = replace(BASIC, h=extensions.load_named(f"{file}:U", Shortcut))
        assert to_json(again) == text
        assert from_json(text, Unit) == again
        assert to_json(from_json(text, Unit)) == text
    helper.write_text(HELPER.format(factor=-30.0))
    with pytest.raises(InputError, match=r"has changed since .* loaded it: start Python anew"):
        extensions.load_unit_file(file)
    forget()
    sys.modules.pop("helper_beside", None)
    extensions.load_unit_file(file)
    said = r"^runs/mine uses U from uses\.py; helper_beside\.py, which uses\.py loads, has changed since"
    with pytest.raises(InputError, match=said):
        from_json(text, Unit, "runs/mine")
    older = json.loads(text)
    del older["h"]["file"]["loads"]
    assert isinstance(from_json(json.dumps(older), Unit), Unit)


def test_a_file_loaded_by_a_loaded_file_is_checked_too(tmp_path: Path) -> None:
    inner, middle, file = (tmp_path / name for name in ("inner.py", "middle.py", "uses.py"))
    inner.write_text(HELPER.format(factor=2.0))
    load = "from kilolayer.units import load_unit_file\nH = load_unit_file({!r}).H"
    middle.write_text(load.format(str(inner)))
    file.write_text(HELPED.format(load=load.format(str(middle))))
    text = to_json(extensions.load_named(f"{file}:U", Shortcut))
    assert [loaded["name"] for loaded in json.loads(text)["file"]["loads"]] == ["inner.py", "middle.py"]
    forget()
    inner.write_text(HELPER.format(factor=3.0))
    extensions.load_unit_file(file)
    with pytest.raises(InputError, match=r"which uses\.py loads, has changed since"):
        from_json(text, Shortcut)


def test_installed_and_standard_modules_are_no_files_of_the_unit(tmp_path: Path) -> None:
    installed = tmp_path / "venv" / "site-packages"
    installed.mkdir(parents=True)
    (installed / "theirs_installed.py").write_text("")
    file = tmp_path / "mine.py"
    head = f"import sys, wave\nsys.path.insert(0, {str(installed)!r})\nimport theirs_installed\n"
    file.write_text(f"{head}sys.path.pop(0)\n" + EXAMPLES["learned_scale"].read_text())
    assert "loads" not in json.loads(to_json(extensions.load_named(f"{file}:LearnedScale", Shortcut)))["file"]


def test_a_unit_file_runs_in_the_folder_where_you_work(tmp_path: Path) -> None:
    """`torch.classes` is a module whose file is "_classes.py", which is no file of yours."""
    (tmp_path / "mine.py").write_text(EXAMPLES["learned_scale"].read_text())
    done = command("show", "resnet20_cifar", "--unit", "mine.py:LearnedScale", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


THREE = """
from dataclasses import dataclass
from torch import nn
from kilolayer.units import BASIC, BN, RELU, Activation, Arrangement, Basic, CustomLayer, Shortcut, Unit
@dataclass(frozen=True)
class SE(Basic): pass
@dataclass(frozen=True)
class PerChannel(Shortcut): pass
@dataclass(frozen=True)
class LN(Activation):
    def layer(self, channels): return CustomLayer(nn.BatchNorm2d, channels)
ALL = Unit(SE(), PerChannel(), Arrangement(between=(LN(), RELU), after=(LN(),)))
"""


def test_one_sentence_names_all_kinds_that_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(THREE)
    words = ("train", "--model", "preact_resnet8_cifar", *TINY, "--iterations", "1", "--out", "runs/ALL")
    assert run_command_line((*words, "--unit", "mine.py:ALL")) == 0
    forget()
    kinds = "SE, PerChannel and LN from mine.py"
    needed = f"runs/ALL uses {kinds}, whose code runs only when you name it: add --unit mine.py"
    for words in (("evaluate", "runs/ALL"), ("analyse", "shortcut", "runs/ALL")):
        with pytest.raises(InputError) as refused:
            run_command_line(words)
        assert str(refused.value) == needed
    weights = "runs/ALL/weights.safetensors"
    with pytest.raises(InputError) as refused:
        run_command_line(("evaluate", weights, "--data", "digits"))
    assert str(refused.value) == needed.replace("runs/ALL", weights)
    Path("mine.py").write_text(THREE + "# changed\n")
    with pytest.raises(InputError) as refused:
        run_command_line(("evaluate", "runs/ALL", "--unit", "mine.py"))
    assert str(refused.value).startswith(
        f"runs/ALL uses {kinds}; mine.py has changed since (its SHA-256 was "
    )


def test_a_kind_of_the_package_is_not_a_kind_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(THREE)
    extensions.load_unit_file(tmp_path / "mine.py")
    text = to_json(extensions.load_named(f"{tmp_path / 'mine.py'}:SE", Branch))
    with pytest.raises(InputError, match=r"uses Basic from mine\.py"):
        from_json(text.replace('"SE"', '"Basic"'), Branch)
    assert "file" not in json.loads(to_json(BASIC.branch))


def test_a_wrong_field_is_one_of_the_class_that_you_wrote() -> None:
    with pytest.raises(InputError, match=r"^StochasticDepth\.widen is 0\.5; allowed: a whole number from 1"):
        type(unit_of("stochastic_depth").branch)(0.5)


MINE = """
from dataclasses import dataclass
from torch import nn
from kilolayer.units import Activation, Arrangement, BN, CustomLayer, Shortcut
class Wider(nn.Conv2d):
    def __init__(self, channels): super().__init__(channels, 2 * channels, 1)
class Thin(nn.Module):
    def __init__(self, channels): super().__init__()
    def forward(self, x): return x[:, :, ::2, ::2]
class Broken(nn.Module):
    def __init__(self, channels): super().__init__()
    def forward(self, x): return self.nothing
class SiLU(nn.SiLU):
    def __init__(self, channels): super().__init__()
def shortcut(kind):
    @dataclass(frozen=True)
    class Mine(Shortcut):
        def layers(self, channels): return (CustomLayer(kind, channels),)
    return Mine()
WIDER, THIN, BROKEN = map(shortcut, (Wider, Thin, Broken))
@dataclass(frozen=True)
class Swish(Activation):
    def layer(self, channels): return CustomLayer(SiLU, channels)
SWISH = Arrangement(before=(BN, Swish()), between=(BN, Swish()))
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("WIDER", r"stage1\.0: h\(x\) has 32×32×32, F\(x\) has 16×32×32"),
        ("THIN", r"stage1\.0: h\(x\) has 16×16×16, F\(x\) has 16×32×32"),
        ("BROKEN", r"the layer Broken cannot be applied to .*AttributeError: .*'nothing'"),
    ],
)
def test_layers_that_cannot_be_added_or_applied_are_refused(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    with pytest.raises(InputError, match=said):
        run_command_line((*SHOW, "--unit", f"{tmp_path / 'mine.py'}:{name}"))


def test_a_nonlinearity_of_ones_own_stands_in_the_stem_too(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    arrangement = extensions.load_named(f"{tmp_path / 'mine.py'}:SWISH", Arrangement)
    assert "ReLU" not in str(build(cifar(8, replace(BASIC, arrangement=arrangement))))


def test_a_branch_of_another_depth_is_refused() -> None:
    with pytest.raises(InputError, match="has 2 layers and those of resnet164_cifar have 3"):
        run_command_line(("show", "resnet164_cifar", "--unit", f"{EXAMPLES['squeeze_excite']}:SqueezeExcite"))


def test_a_class_that_no_file_defines_is_refused() -> None:
    class Local(Shortcut):
        pass

    with pytest.raises(InputError, match="which a description cannot name; put it into a file"):
        to_json(replace(BASIC, h=Local()))


def test_a_shortcut_of_ones_own_changes_only_h() -> None:
    unit = unit_of("learned_scale")
    plain, mine = layout(BASIC, 16, 16), layout(unit, 16, 16)
    assert replace(mine, h=plain.h, shortcut_factor=plain.shortcut_factor) == plain
    assert mine.h != plain.h


def test_weights_of_such_a_run_begin_another_one(tmp_path: Path) -> None:
    """The run knows its unit, so the file without a name is enough."""
    file = str(EXAMPLES["learned_scale"])
    words = ("train", *TINY, "--iterations", "2")
    unit = ("--model", "preact_resnet8_cifar", "--unit", f"{file}:LearnedScale")
    assert run_command_line((*words, *unit, "--out", str(tmp_path / "first"))) == 0
    init = ("--init", str(tmp_path / "first"), "--unit", file, "--out", str(tmp_path / "second"))
    assert run_command_line((*words, *init)) == 0
    first, second = ((tmp_path / name / "config.json").read_text() for name in ("first", "second"))
    assert json.loads(second)["network"] == json.loads(first)["network"]
