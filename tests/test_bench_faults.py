"""Faults in a comparison: other images, other work, faults of a peer, nowhere to write, being stopped."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from kilolayer import bench
from kilolayer.__main__ import main
from kilolayer.bench import BenchConfiguration, compare_candidates, parse_candidate
from kilolayer.bench.candidate import check_candidate
from kilolayer.bench.candidate_module import BatchShape, attribute_errors, build_candidate, count_work
from kilolayer.bench.candidate_worker import CandidateWorker
from kilolayer.bench.equivalence import share_weights
from kilolayer.bench.parameter_pairing import pairing_order
from kilolayer.errors import InputError
from kilolayer.system import durable

PEER = """
import torch
from torch import nn
def net():
    pool = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *pool, nn.Linear(4, 10))
def ours():
    from kilolayer.networks import build, describe
    return build(describe("preact_resnet8_cifar"))
def raises():
    raise ZeroDivisionError("boom\\nmore")
def exits():
    raise SystemExit(3)
def imports():
    import a_package_that_nobody_has
def five():
    return nn.Sequential(*list(net())[:-1], nn.Linear(4, 5))
def flat():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
def maps():
    return nn.Conv2d(3, 16, 3)
def nan():
    made = net()
    made[0].weight.data.fill_(float("nan"))
    return made
def frozen():
    return net().requires_grad_(False)
class Odd(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.net, self.answer = net(), answer
    def forward(self, x):
        return self.answer(self, x)
def pair():
    return Odd(lambda self, x: (self.net(x), x))
def crashes():
    return Odd(lambda self, x: self.net(x.reshape(5, 7)))
def crashes_in_training():
    return Odd(lambda self, x: self.net(x.reshape(5, 7) if torch.is_grad_enabled() else x))
def numbers():
    return Odd(lambda self, x: self.net(torch.from_numpy(x.numpy())))
"""
CPU = torch.device("cpu")
CIFAR = BatchShape("a", 32, 3, 10)


@pytest.fixture
def peer(tmp_path):
    path = tmp_path / "peer.py"
    path.write_text(PEER)
    return path


@pytest.mark.parametrize(
    "variant", ["folded", "onnxruntime", "openvino", "onnxruntime-int8", "openvino-int8"]
)
def test_a_variant_of_inference_does_not_train(variant):
    one = parse_candidate(f"resnet20_cifar@{variant}")
    check_candidate(one, infer=True)
    with pytest.raises(InputError, match=f"{variant} is for inference: add --infer"):
        compare_candidates([one], BenchConfiguration())


@pytest.mark.parametrize("memory", ["balanced", "0", "2GB"])
def test_a_choice_of_memory_is_none_for_inference(memory):
    one = parse_candidate(f"resnet20_cifar@{memory}")
    check_candidate(one, infer=False)
    with pytest.raises(InputError, match=f"{memory} is a choice of memory for training"):
        compare_candidates([one], BenchConfiguration(infer=True))


@pytest.mark.parametrize(
    ("name", "asked", "first", "side"),
    [
        ("{peer}:net", None, CIFAR, 32),
        ("{peer}:net", 40, CIFAR, 40),
        ("resnet18", None, None, 224),
        ("resnet18", 64, None, 64),
        ("resnet18", 64, BatchShape("a", 64, 3, 10), 64),
    ],
)
def test_all_have_the_images_of_the_first_or_those_asked_for(peer, name, asked, first, side):
    one = parse_candidate(name.format(peer=peer))
    assert build_candidate(one, CPU, 2, infer=False, image_size=asked, first=first).image_side == side


@pytest.mark.parametrize(
    ("name", "first", "why"),
    [
        ("{peer}:net", None, r"the size of its images is unknown; add --image-size N"),
        ("resnet18", CIFAR, r"is for images of 224 pixels a side, a for 32; .* add --image-size N"),
        ("{peer}:ours", BatchShape("a", 32, 1, 10), "is for images of 3 channels, a for 1"),
    ],
)
def test_nobody_has_other_images_unnoticed(peer, name, first, why):
    with pytest.raises(InputError, match=why):
        build_candidate(parse_candidate(name.format(peer=peer)), CPU, 2, infer=False, first=first)


def test_what_is_counted_is_for_the_images_that_are_given():
    small, large = (
        build_candidate(parse_candidate("resnet20_cifar"), CPU, 2, infer=False, image_size=side)
        for side in (32, 64)
    )
    ratio = count_work(large.module, torch.zeros(0))[1] / count_work(small.module, torch.zeros(0))[1]
    assert ratio == pytest.approx(4, rel=1e-3)


def build_and_step(name, *, infer=False, image_size=None):
    """A candidate in this process, second to a network for CIFAR, and one of its steps of 8 images."""
    worker = CandidateWorker()
    first = None if image_size else asdict(CIFAR)
    facts = worker.build(asdict(parse_candidate(name)), 8, 1, "cpu", infer, "", image_size, first)
    worker.step()
    return facts


@pytest.mark.parametrize(
    ("function", "why"),
    [
        ("raises", "building it raised ZeroDivisionError: boom"),
        ("exits", "building it raised SystemExit: 3"),
        ("imports", "building it raised ModuleNotFoundError: No module named 'a_package_that_nobody_has'"),
        ("pair", "for 1 of the images it returns tuple; allowed: a tensor of images × classes"),
        ("maps", "for 1 of the images it returns a tensor of shape (1, 16, 30, 30); "
                 "allowed: a tensor of images × classes"),
        ("five", "it has 5 classes, but the labels have 10; allowed: at least 10"),
        ("crashes", "its forward pass raised RuntimeError: shape '[5, 7]' is invalid for input of size 3072"),
        ("crashes_in_training",
         "a training step raised RuntimeError: shape '[5, 7]' is invalid for input of size 24576"),
        ("nan", "its loss is nan, not finite"),
        ("frozen", "no parameter of this model requires a gradient, so it has nothing to train; add --infer"),
    ],
)  # fmt: skip
def test_a_fault_in_a_file_of_others_is_one_line_that_names_it(peer, function, why):
    with pytest.raises(InputError) as caught:
        build_and_step(f"{peer}:{function}")
    assert str(caught.value) == f"{peer}:{function}: {why}"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import sys; sys.exit(4)", "importing it raised SystemExit: 4"),
        ("def x(:", r"importing it raised SyntaxError: invalid syntax .*"),
    ],
)
def test_a_fault_in_the_file_itself_is_one_line_too(tmp_path, text, why):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"broken\.py:x: {why}$"):
        build_and_step(f"{path}:x")


@pytest.mark.parametrize(
    ("function", "infer", "image_size", "classes"),
    [
        ("flat", False, None, 10),
        ("frozen", True, None, 10),
        ("five", False, 16, 5),
        ("numbers", True, None, 10),
    ],
)
def test_a_network_need_not_look_like_ours(peer, function, infer, image_size, classes):
    facts = build_and_step(f"{peer}:{function}", infer=infer, image_size=image_size)
    assert (facts["image_side"], facts["classes"]) == (image_size or 32, classes)


def test_a_network_whose_order_cannot_be_read_is_run_all_the_same(peer, tmp_path):
    """Its forward leaves PyTorch, where nothing can be run without computing."""
    module = build_candidate(parse_candidate(f"{peer}:numbers"), CPU, 2, infer=True, first=CIFAR).module
    with pytest.raises(RuntimeError, match="cannot be run without computing"):
        pairing_order(module, (1, 3, 32, 32))
    assert share_weights(module, str(tmp_path / "weights"), torch.zeros(1, 3, 32, 32))


def test_a_fault_of_ours_keeps_its_kind():
    with pytest.raises(KeyError), attribute_errors("a", "a step", ours=True):
        raise KeyError
    with pytest.raises(InputError, match=r"^a: a step raised KeyError$"), attribute_errors("a", "a step"):
        raise KeyError
    with pytest.raises(InputError, match=r"^a: no$"), attribute_errors("a", "a step", ours=True):
        raise InputError("no")


FOUND = {
    "work": "training",
    "conditions": {"batch_size": 2, "image_size": 32, "channels": 3, "threads": 1, "device": "cpu"},
    "ceilings": {"fp32_flops": 2e11, "copy_bytes": 1e10},
    "fastest_arithmetic": "fp32",
    "machine": {"name": "a processor", "instructions": []},
    "contestants": [
        {
            "name": "resnet20_cifar", "images_per_second": 100.0, "seconds_most": 0.03, "seconds_least": 0.01,
            "joules_per_image": None, "peak_memory_bytes": 4e8, "roofline_share": 0.5, "disturbed": 0,
            "repeats": 1, "trusted": True,
        }
    ],
    "differences": [],
    "environment": {},
}  # fmt: skip


@pytest.mark.parametrize("option", ["--out", "--plot"])
def test_where_nothing_can_be_written_nothing_is_measured(option, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "compare_candidates", lambda *words: pytest.fail("measured"))
    (tmp_path / "file").write_text("")
    for path, why in ((tmp_path, "Is a directory"), (tmp_path / "file" / "f", "Not a directory")):
        assert main(["bench", "resnet20_cifar", option, str(path)]) == 2
        assert capsys.readouterr().err == f"kilolayer: cannot write {path}: {why}\n"


@pytest.mark.parametrize("json_too", [[], ["--json"]])
def test_where_writing_fails_the_figures_are_told_first(json_too, tmp_path, monkeypatch, capsys):
    def refuse(path, content):
        raise InputError(f"cannot write {path}")

    monkeypatch.setattr(bench, "compare_candidates", lambda *words: FOUND)
    monkeypatch.setattr(durable, "write_file", refuse)
    assert main(["bench", "resnet20_cifar", "--out", str(tmp_path / "f"), *json_too]) == 2
    told = capsys.readouterr()
    assert "resnet20_cifar" in told.out
    assert json_too or "training, batches of 2 images of 3×32×32, 1 thread" in told.out
    assert told.err == f"kilolayer: cannot write {tmp_path / 'f'}\n"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for the workers in /proc")
def test_ctrl_c_is_one_line_and_leaves_nobody(tmp_path):
    """A terminal's, which reaches the whole group."""
    reached = tmp_path / "reached"
    (tmp_path / "peer.py").write_text(
        "import time\nfrom pathlib import Path\n"
        f"def waits():\n    Path({str(reached)!r}).touch()\n    time.sleep(600)\n"
    )
    words = [sys.executable, "-m", "kilolayer", "bench", "resnet20_cifar", "--batch-size", "2",
             "--against", f"{tmp_path / 'peer.py'}:waits"]  # fmt: skip
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as running:
        while not reached.exists():
            assert running.poll() is None
            time.sleep(0.1)
        workers = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        os.killpg(running.pid, signal.SIGINT)
        out, err = running.communicate(timeout=120)
    assert (running.returncode, out) == (143, "")
    assert err == "kilolayer: stopped before the measurement was complete; nothing was written\n"
    assert len(workers) == 2
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
