"""Weights of others: read as plain tensors under plain names, and fitted in every tensor or not at all."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from kilolayer.__main__ import main
from kilolayer.errors import InputError
from kilolayer.networks import build
from kilolayer.weights import load_weights, match_weights, read_state_dict
from tiny_runs import network

State = dict[str, Tensor]
TINY = ("--epochs", "1", "--subset", "128", "--threads", "1", "--precision", "fp32", "--no-tensorboard")


def fresh(seed: int = 1) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build(network())


@pytest.fixture(scope="module")
def state() -> State:
    return fresh().state_dict()


WRITERS: dict[str, Callable[[State, Path], None]] = {
    "safetensors": save_file,
    "torch.save": torch.save,
    "torch.save before 1.6": lambda s, p: torch.save(s, p, _use_new_zipfile_serialization=False),
    "a checkpoint": lambda s, p: torch.save({"epoch": 3, "state_dict": s, "best": 91.5}, p),
    "a checkpoint's EMA": lambda s, p: torch.save({"model": {"net": s}}, p),
    "DataParallel": lambda s, p: torch.save({f"module.{k}": v for k, v in s.items()}, p),
    "compiled": lambda s, p: save_file({f"_orig_mod.{k}": v for k, v in s.items()}, p),
    "both": lambda s, p: torch.save({f"module._orig_mod.{k}": v for k, v in s.items()}, p),
    "a part compiled": lambda s, p: torch.save(
        {k.replace("stage1.", "stage1._orig_mod."): v for k, v in s.items()}, p
    ),
    "AveragedModel": lambda s, p: torch.save(
        {"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in s.items()}}, p
    ),
    "held by a module": lambda s, p: torch.save({"state_dict": {f"model.{k}": v for k, v in s.items()}}, p),
    "parameters": lambda s, p: torch.save(
        {k: torch.nn.Parameter(v, requires_grad=v.is_floating_point()) for k, v in s.items()}, p
    ),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("name", ["w.pt", "w.pth.tar", "w.safetensors"])
def test_every_form_gives_the_same_tensors(
    write: Callable[[State, Path], None], name: str, state: State, tmp_path: Path
) -> None:
    write(state, tmp_path / name)
    found = read_state_dict(tmp_path / name)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], value) for key, value in state.items())
    assert not any(value.requires_grad for value in found.values())


def test_a_count_of_models_without_models_is_no_prefix(tmp_path: Path) -> None:
    torch.save({"n_averaged": torch.tensor(3)}, tmp_path / "w.pt")
    assert read_state_dict(tmp_path / "w.pt").keys() == {"n_averaged"}


def test_the_file_may_go(state: State, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(state, path)
    found = read_state_dict(path)
    path.write_bytes(b"")
    assert torch.equal(found["classifier.weight"], state["classifier.weight"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"state_dict": {}, "args": Namespace(lr=0.1)}, "asks to run argparse.Namespace"),
        (torch.nn.Linear(2, 2), "asks to run torch.nn.modules.linear.Linear"),
        ({"w": torch.eye(3).to_sparse()}, "holds a sparse tensor"),
        ({"w": torch.zeros(3, device="meta")}, r"without data \(meta\)"),
        ({"w": torch.zeros(3, dtype=torch.complex64)}, "ComplexFloatStorage, not a plain tensor"),
        ({"w": torch.zeros(1).expand(10**9)}, "declares 4,000,000,000 bytes of tensors"),
        ({"w": bytearray(5)}, "bytearray"),
        ({"w": 3, "v": torch.zeros(2)}, "'w' is a int, but weights are tensors"),
        ({3: torch.zeros(2)}, "3 is a int, but tensors have names"),
        ({"epoch": 3, "arch": "resnet"}, "no weights under its keys 'epoch', 'arch'"),
        ({"module.w": torch.zeros(2), "module._orig_mod.w": torch.zeros(2)}, "names differ by"),
        ([torch.zeros(2)], "holds a list"),
        (torch.zeros(2), "holds a Tensor"),
        ({}, "an empty dictionary"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_plain_state_dict(content: Any, words: str, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=words) as refused:
        read_state_dict(path)
    assert str(refused.value).startswith(f"'{path}': ")
    assert "\n" not in str(refused.value)


def test_the_counts_and_names_of_what_does_not_fit(state: State) -> None:
    given = {key: value for key, value in state.items() if not key.startswith("final.")}
    given |= {"fc.weight": torch.zeros(1), "classifier.bias": torch.zeros(3)}
    found = match_weights(fresh(), given)
    assert str(found) == (
        "matched 22 of 27 tensors; "
        "4 missing: final.bn1.weight, final.bn1.bias, final.bn1.running_mean, final.bn1.running_var; "
        "1 unexpected: fc.weight; 1 wrong: classifier.bias (3, not 10)"
    )


def changed(state: State, **others: Tensor) -> State:
    return {**state, **{key.replace("__", "."): value for key, value in others.items()}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: {}, "another network: matched 0 of"),
        (lambda s: {f"x.{key}": value for key, value in s.items()}, "another network: matched 0 of"),
        (lambda s: {key: value for key, value in s.items() if key != "classifier.bias"}, "1 missing"),
        (lambda s: changed(s, classifier__bias=torch.zeros(3)), r"1 wrong: classifier.bias \(3, not 10\)"),
        (lambda s: changed(s, classifier__bias=torch.zeros(10, dtype=torch.int64)), "int64, not float32"),
        (lambda s: changed(s, classifier__bias=torch.full((10,), torch.nan)), "not finite: classifier.bias"),
        (lambda s: changed(s, extra=torch.zeros(1)), "1 unexpected: extra"),
        (
            lambda s: changed(s, stem__bn1__running_var=-s["stem.bn1.running_var"]),
            "variances below 0: stem.bn1.running_var",
        ),
        (
            lambda s: {key: torch.zeros_like(value) for key, value in s.items()},
            "every weight is 0",
        ),
    ],
)
def test_nothing_keeps_its_random_initialisation(
    change: Callable[[State], State], words: str, state: State
) -> None:
    model = fresh(seed=2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(InputError, match=words):
        load_weights(model, change(state))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_more_than_the_network_has_can_be_passed_over(state: State) -> None:
    model = fresh(seed=2)
    found = load_weights(model, changed(state, extra=torch.zeros(1)), strict=False)
    assert (found.matched, found.total, found.unexpected) == (len(state), len(state), ("extra",))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_a_network_of_others_with_counters_fits_a_file_without() -> None:
    norm = torch.nn.BatchNorm2d(2)
    given = {key: value + 1 for key, value in norm.state_dict().items() if "batches" not in key}
    assert load_weights(torch.nn.Sequential(norm), {f"0.{key}": value for key, value in given.items()}).exact
    assert norm.weight[0] == 2


def test_half_precision_and_counters_fit(state: State) -> None:
    model = fresh(seed=2)
    halves = {key: value.half() for key, value in state.items()}
    # BN's count of batches is no weight.
    assert load_weights(model, halves | {"stem.bn1.num_batches_tracked": torch.tensor(7)}).exact
    assert torch.equal(model.state_dict()["classifier.weight"], state["classifier.weight"].half().float())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", *TINY, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def plain(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's weights as others would have them: a state dict and no more."""
    path = tmp_path_factory.mktemp("weights") / "w.pt"
    torch.save({"state_dict": read_state_dict(run / "weights.safetensors")}, path)
    return path


def test_evaluate_what_says_nothing_of_itself(
    run: Path, plain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--model", "preact_resnet20_cifar", "--data", "digits", "--image-size", "8", "--json")
    assert main(["evaluate", str(plain), *words, "--normalization", "per_pixel_mean"]) == 0
    measured = json.loads(capsys.readouterr().out)
    # The statistics are of all training images here, and were of 128 there.
    assert abs(measured["error"] - json.loads((run / "result.json").read_text())["test_error"]) < 10
    assert measured["images"] == 360


def test_training_begins_from_the_weights(plain: Path, tmp_path: Path) -> None:
    from kilolayer.runs import Run

    folder = tmp_path / "run"
    assert main(["train", *TINY, "--lr", "1e-30", "--init", str(plain), "--out", str(folder)]) == 0
    given, kept = read_state_dict(plain), Run(folder).weights().model.state_dict()
    assert torch.equal(kept["classifier.weight"], given["classifier.weight"])
    init = Run(folder).experiment().init
    assert init is not None
    assert init.path == str(plain)


def test_a_resumed_run_without_a_state_begins_from_them_too(plain: Path, tmp_path: Path) -> None:
    from kilolayer.cli.preparation import prepare_new_run, prepare_resumed_run
    from kilolayer.cli.train import TrainOptions
    from kilolayer.runs import Run
    from tiny_runs import HERE

    copy = tmp_path / "w.pt"
    copy.write_bytes(plain.read_bytes())
    begun = prepare_new_run(TrainOptions(init=str(copy), out=str(tmp_path / "run"), tensorboard=False), HERE)
    run = Run.create(begun.folder, begun.trainer.experiment)
    resumed = prepare_resumed_run(run, TrainOptions(resume=str(begun.folder), tensorboard=False), HERE)
    assert resumed is not None
    given = read_state_dict(copy)
    assert all(torch.equal(value, given[key]) for key, value in resumed.trainer.model.state_dict().items())
    torch.save({name: value + 1 for name, value in given.items()}, copy)
    with pytest.raises(InputError, match="has changed since the run began"):
        prepare_resumed_run(run, TrainOptions(resume=str(begun.folder), tensorboard=False), HERE)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train", "--init", "none.pt"), "none.pt: no such file"),
        (("train", "--init", "w.pt", "--model", "preact_resnet56_cifar"), "missing: stage1.3.F"),
        (("train", "--init", "w.pt", "--resume", "run"), "leave out --init"),
        (("evaluate", "w.pt", "--model", "preact_resnet20_cifar"), "add --data"),
        (
            ("evaluate", "w.pt", "--data", "digits", "--model", "resnet56_cifar"),
            "184 missing: stage1.0.F.bn2",
        ),
        (("evaluate", "none.pt", "--data", "digits", "--model", "resnet56_cifar"), "none.pt: no such file"),
        (("evaluate", "w.pt", "--data", "digits"), "add --model"),
    ],
)
def test_is_refused(
    words: tuple[str, ...], said: str, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pt").write_bytes(plain.read_bytes())
    assert main(list(words)) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["w.pt"]
