"""The commands that faults are put into: each with the files that it finds, and what it must come to."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from injection.strace import KILL, Case, Ended

Outcome = Mapping[str, str]
PROGRAM = (sys.executable, "-P", "-m", "kilolayer")
RUN = (
    "--model", "preact_resnet8_cifar", "--iterations", "2", "--threads", "1", "--precision", "fp32",
    "--kernels", "plain", "--no-tensorboard", "--device", "cpu", "--save-every", "0",
)  # fmt: skip
TRAIN = ("train", "--data", "photos", "--batch-size", "8", *RUN, "--out", "run")
RESUME = ("train", "--resume", "run", "--no-tensorboard", "--save-every", "0", "--device", "cpu")
SWEEP = (
    "reproduce", "p2-table-1", "--scale", "smoke", "--data", "digits", "--rows", "original", "--seeds", "3",
    "--subset", "64", "--iterations", "2", "--workers", "1", "--cores", "1", "--kernels", "plain",
    "--precision", "fp32", "--device", "cpu",
)  # fmt: skip
EXPORT = """
import torch
from pathlib import Path
from kilolayer.networks import build, describe
from kilolayer.weights.onnx import export_onnx
from kilolayer.errors import KilolayerError
import sys
torch.manual_seed(0)
torch.set_num_threads(1)
try:
    export_onnx(build(describe("preact_resnet8_cifar")), torch.zeros(1, 3, 8, 8), Path("out/network.onnx"))
except KilolayerError as error:
    sys.exit(print("kilolayer:", error, file=sys.stderr) or 2)
"""


@dataclass(frozen=True)
class Scenario:
    """A command, what lies there before, and what it comes to.

    continued: the command of a person who goes on after a fault, by what the fault has left.
    again: the command may begin anew over its own output; False where that has to be resumed.
    """

    name: str
    command: tuple[str, ...]
    prepare: Callable[[Case], None]
    outcome: Callable[[Case, Ended], Outcome]
    continued: Callable[[Case], tuple[str, ...]]
    needs: tuple[str, ...] = ()

    @property
    def missing(self) -> str:
        """The packages that it needs and that are not installed here."""
        return ", ".join(name for name in self.needs if find_spec(name) is None)


def environment(case: Path) -> dict[str, str]:
    """The environment of every command: all that it may write lies in the case."""
    kept = {
        name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH") if name in os.environ
    }
    return {
        **kept,
        "HOME": str(case / "home"),
        "TMPDIR": str(case / "tmp"),
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
        "LANG": "C.UTF-8",
    }


def lay_out(case: Case) -> None:
    """The files of every case: pictures, a home folder, a folder for temporary files, and a bystander."""
    for folder in ("home", "tmp", "outside", "photos/a", "photos/b"):
        (case.path / folder).mkdir(parents=True)
    (case.path / "outside" / "keep.txt").write_text("not ours\n", encoding="utf-8")
    for number in range(12):
        name = case.path / "photos" / "ab"[number % 2] / f"{number}.png"
        pixels = hashlib.sha256(bytes([number])).digest() * 2
        name.write_bytes(_png(8, 8, pixels))


def _pictures(case: Case) -> None:
    """The same, once Python has compiled what the command imports: its calls then repeat."""
    lay_out(case)
    _require(case.plainly([*PROGRAM, "check-data", "photos"]))
    _forget_pictures(case)


def _forget_pictures(case: Case) -> None:
    for path in (case.path / "home").rglob("images.sqlite*"):
        path.unlink()


def _warm(case: Case) -> None:
    """The same, with a cache of compiled kernels, and none of pictures: compiling is a command of its own."""
    lay_out(case)
    _require(case.plainly([*PROGRAM, *TRAIN]))
    shutil.rmtree(case.path / "run")
    _forget_pictures(case)


def _png(width: int, height: int, pixels: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    rows = b"".join(b"\0" + pixels[y * width : (y + 1) * width] for y in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"


def run_outcome(folder: Path) -> dict[str, str]:
    """What "identical" compares, and what else of a run repeats."""
    result = folder / "result.json"
    figures = json.loads(result.read_text(encoding="utf-8")) if result.is_file() else {}
    return {
        "weights": file_digest(folder / "weights.safetensors"),
        "metrics": file_digest(folder / "metrics.jsonl"),
        "predictions": file_digest(folder / "predictions.safetensors"),
        "result": str({key: figures.get(key) for key in ("status", "test_error", "test_loss", "iterations")}),
    }


def _require(ended: Ended) -> None:
    assert ended.status == 0, f"a preparation failed: {ended.status} {ended.err}"


def _trained(case: Case) -> None:
    lay_out(case)
    _require(case.plainly([*PROGRAM, *TRAIN]))


def _half_trained(case: Case) -> None:
    """A run that was killed as soon as the state of its first epoch was safe."""
    _warm(case)
    points = case.run([*PROGRAM, *TRAIN]).points
    sealed = next(n for n, p in enumerate(points) if "rename" in p.call and p.path.endswith("-000001.json"))
    writes = ("write", "openat", "unlink", "mkdir")
    then = next(p for p in points[sealed + 3 :] if p.call in writes and p.path.startswith("run"))
    shutil.rmtree(case.path / "run")
    _forget_pictures(case)
    assert case.run([*PROGRAM, *TRAIN], KILL, then).status == -9
    assert saved_epochs(case.path / "run") == 1, "it is not in its second epoch"


def _reported(case: Case) -> None:
    _trained(case)
    _require(case.plainly([*PROGRAM, "report", "run"]))


def saved_epochs(run: Path) -> int:
    """The closed epochs of the newest state that has a seal; 0 without one."""
    seals = (SEAL.fullmatch(path.name) for path in run.glob("checkpoints/*.json"))
    return max((int(seal[1]) for seal in seals if seal), default=0)


def _train_on(case: Case) -> tuple[str, ...]:
    if (case.path / "run" / "config.json").exists():
        return (*PROGRAM, *RESUME)
    return (*PROGRAM, *TRAIN)


def _sweep_on(case: Case) -> tuple[str, ...]:
    if (case.path / "sweep" / "sweep.json").exists():
        return (*PROGRAM, "reproduce", "--resume", "sweep", "--workers", "1", "--cores", "1")
    return (*PROGRAM, *SWEEP, "--out", "sweep")


def _sweep_outcome(case: Case, ended: Ended) -> Outcome:
    runs = sorted(path.parent for path in case.path.glob("sweep/**/config.json"))
    each = {f"{run.name}.{key}": what for run in runs for key, what in run_outcome(run).items()}
    return {**each, "tables": str(len(list(case.path.glob("sweep/*.md"))))}


SEAL = re.compile(r"\d{9}-(\d{6})\.json")
CLOCK = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\.\d+)?(\+00:00| UTC)?")


def _page_outcome(case: Case, ended: Ended) -> Outcome:
    page = case.path / "run" / "report.html"
    text = CLOCK.sub("DATE", page.read_text(encoding="utf-8")) if page.is_file() else "missing"
    return {"page": hashlib.sha256(text.encode()).hexdigest(), "run": str(run_outcome(page.parent))}


def _same(*words: str) -> Callable[[Case], tuple[str, ...]]:
    return lambda case: words


def _one(
    name: str,
    words: tuple[str, ...],
    prepare: Callable[[Case], None],
    outcome: Callable[[Case, Ended], Outcome],
    needs: tuple[str, ...] = (),
) -> Scenario:
    return Scenario(name, words, prepare, outcome, _same(*words), needs)


SCENARIOS = {
    one.name: one
    for one in (
        Scenario(
            "train", (*PROGRAM, *TRAIN), _warm, lambda case, ended: run_outcome(case.path / "run"), _train_on
        ),
        Scenario(
            "resume",
            (*PROGRAM, *RESUME),
            _half_trained,
            lambda case, ended: run_outcome(case.path / "run"),
            _train_on,
        ),
        Scenario("sweep", (*PROGRAM, *SWEEP, "--out", "sweep"), _warm, _sweep_outcome, _sweep_on),
        _one(
            "check-data",
            (*PROGRAM, "check-data", "photos", "--json"),
            _pictures,
            lambda case, ended: {"says": ended.out},
        ),
        _one(
            "onnx",
            (sys.executable, "-c", EXPORT),
            _pictures,
            lambda case, ended: {"network": file_digest(case.path / "out" / "network.onnx")},
            ("onnx", "onnxruntime"),
        ),
        _one(
            "evaluate",
            (*PROGRAM, "evaluate", "run", "--predictions", "--json"),
            _trained,
            lambda case, ended: {"says": ended.out, **run_outcome(case.path / "run")},
        ),
        _one("report", (*PROGRAM, "report", "run"), _reported, _page_outcome, ("jinja2", "matplotlib")),
    )
}  # fmt: skip
