"""S6: flags and configuration files that are wrong in any way end in one line, and nothing is written."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import string
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hostile import status, tree

from kilolayer.cli.command_line import COMMANDS, command_flags
from tiny_runs import Poll, tiny, train

FLAGS, FILES = 500, 500
NOWHERE = "no-such-data-anywhere"
Words = list[str]

WHOLE = (
    "seed",
    "evaluate-every",
    "image-size",
    "validation",
    "subset",
    "epochs",
    "iterations",
    "batch-size",
    "threads",
)
NUMBER = ("lr", "weight-decay", "dropout", "label-smoothing", "ema")
CHOICE = {
    "arrangement": "full_preactivation",
    "downsample": "zero_pad",
    "recipe": "paper",
    "precision": "bf16",
}
NO_NUMBERS = (
    "",
    " ",
    "many",
    "1.5.5",
    "0x10",
    "1e",
    "--",
    "½",
    "१२x",
    "1,000",
    "1 2",
    "\x00",
    "None",
    "true",
    "[]",
    "nan%",
)
BAD_WHOLE = (*NO_NUMBERS, "1.5", "1e3", "inf", "nan", "-1", "9" * 5000, "-" + "9" * 30)
BAD_NUMBER = (*NO_NUMBERS, "nan", "inf", "-inf", "-1", "1e999")
TEXTS = (
    *("", " ", "\n", "\x00", "\x1b[31m", "../../etc/passwd", "/dev/null", "%s%n", "{0}", "$(id)", "`id`"),
    *(
        "é" * 300,
        "x" * 5000,
        "\udcff",
        "<script>",
        "-",
        "--",
        "'\"",
        "😀",
        "résumé\u202e",
        "NUL",
        "~",
        "//",
        "*",
    ),
)


def typo(word: str, rng: random.Random) -> str:
    """The word with one letter changed, left out, doubled or exchanged."""
    at = rng.randrange(len(word))
    match rng.randrange(4):
        case 0:
            return word[:at] + rng.choice(string.ascii_lowercase) + word[at + 1 :]
        case 1:
            return word[:at] + word[at + 1 :]
        case 2:
            return word[:at] + word[at] + word[at:]
        case _:
            return word[:at] + word[at : at + 2][::-1] + word[at + 2 :]


def wrong_words(rng: random.Random) -> tuple[Words, str]:
    """A command line that cannot be right, and what must be said of it."""
    train_words = ["train", "--data", NOWHERE]
    kind = rng.randrange(8)
    if kind == 0:
        command = rng.choice([name for name in COMMANDS if name not in ("demo", "lens")])
        known = [flag for flag in command_flags(command) if len(flag) > 5]
        flag = rng.choice(known or ["--help"])
        while (wrong := "--" + typo(flag[2:], rng)) in (*command_flags(command), "--help"):
            pass
        rest = ["--data", NOWHERE] if command == "train" else []
        return [command, wrong, "1", *rest], wrong.partition("=")[0].replace("_", "-")
    if kind == 1:
        command = rng.choice([name for name in COMMANDS if len(name) > 4])
        while (wrong := typo(command, rng)) in COMMANDS:
            pass
        return [wrong], wrong
    if kind == 2:
        name = rng.choice(WHOLE)
        return [*train_words, f"--{name}={rng.choice(BAD_WHOLE)}"], ""
    if kind == 3:
        name = rng.choice(NUMBER)
        return [*train_words, f"--{name}={rng.choice(BAD_NUMBER)}"], ""
    if kind == 4:
        name, value = rng.choice(list(CHOICE.items()))
        return [*train_words, f"--{name}", f"{typo(value, rng)}x"], name
    if kind == 5:
        name = rng.choice(
            ("preact_resnet110_cifar", "resnet50", "resnext29_8x64d_cifar", "wide_resnet28_10_cifar")
        )
        wrong = rng.choice(
            (typo(name, rng) + "x", *TEXTS, "resnet" + "9" * 400, "resnet-1", "wide_resnet28_99999999")
        )
        return [*train_words, "--model", wrong], ""
    if kind == 6:
        wrong = rng.choice(
            ("scaled", "scaled:", "scaled:x", "scaled:1,2,3", "dropout:2", "dropout:nan", "gate", *TEXTS)
        )
        return [*train_words, f"--shortcut={wrong}"], ""
    name = rng.choice(("data", "data-folder", "device", "resume", "init", "out", "memory"))
    words = ["train", f"--{name}={rng.choice(TEXTS)}"]
    return words if name == "data" else [*words, *(() if name == "resume" else ("--data", NOWHERE))], ""


def safe(words: Words) -> bool:
    """Whether it cannot train: its data are not there, or the line is wrong before them."""
    return words[0] != "train" or NOWHERE in words or words[1].startswith(("--data", "--resume"))


def flag_holds(number: int, folder: Path) -> bool:
    rng = random.Random(number)
    words, said = wrong_words(rng)
    assert safe(words)
    before = tree(folder)
    with contextlib.chdir(folder):
        code, out, err = tried([*words, *(["--no-tensorboard"] if words[0] == "train" else [])])
    told = err.startswith("kilolayer: ") and err.count("\n") == 1 and not out
    return code == 2 and told and shown(said) in err and tree(folder) == before


def tried(words: Words) -> tuple[int, str, str]:
    """An exception is a fault of ours: it has its own status here."""
    try:
        return status(words)
    except Exception as error:
        return 1, "", repr(error)


def shown(text: str) -> str:
    return " ".join(text.split())


def test_flags(
    tmp_path: Path, chosen: Callable[[Sequence[int]], list[int]], count: Callable[..., None]
) -> None:
    cases = chosen(range(FLAGS))
    failed = [str(number) for number in cases if not flag_holds(number, tmp_path)]
    count("S6", tried=len(cases), held=len(cases) - len(failed), note=", ".join(["flags", *failed]))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("s6") / "run"
    train(path, tiny(), stop=Poll(4))
    return path


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value in JSON, the whole among them."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield from leaves(each, (*path, key))


OTHERS = (
    *(None, True, -1, 0, 3.5, 10**30, float("nan"), float("inf"), "x", "", "\x00", "9" * 500, "\ud800"),
    *([], {}, [1], [[]], {"type": "Zero"}, {"a": {"b": 1}}),
)
RAW = (
    *(
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"{}" * 3,
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"1" * 5000,
        b"NaN",
    ),
    *(b"\x00" * 500, b'"\\ud800"', b"\xef\xbb\xbf{}", b"{'a': 1}", b'{"seed": 1, "seed": 2}'),
)


def spoil(text: str, rng: random.Random) -> tuple[bytes, str]:
    """A configuration otherwise than it was, and the key that must be said, "" where any line will do."""
    value = json.loads(text)
    kind = rng.randrange(5)
    if kind == 0:
        return rng.choice(RAW), ""
    if kind == 1:
        raw = bytearray(text.encode())
        for _ in range(rng.choice((1, 3))):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        return bytes(raw), ""
    places = [place for place in leaves(value) if place and isinstance(place[-1], str)]
    place = rng.choice(places)
    owner = value
    for key in place[:-1]:
        owner = owner[key]
    if kind == 2:
        wrong = typo(place[-1], rng) or "x"
        owner[wrong] = owner.pop(place[-1])
        same = wrong == place[-1]
        return json.dumps(value).encode(), "" if same or place[-1] == "type" else wrong
    if kind == 3:
        owner[rng.choice(("unknown", "__class__", "", "type ", "😀"))] = rng.choice(OTHERS)
    else:
        owner[place[-1]] = rng.choice(OTHERS)
    return json.dumps(value).encode(), ""


def file_holds(number: int, run: Path, folder: Path) -> bool:
    """Refused in one line, or, where it happens to be right all the same, run to its end."""
    rng = random.Random(number)
    copy = Path(shutil.copytree(run, folder / "run"))
    name = rng.choice(("config.json", "config.json", "config.json", "environment.json"))
    path = copy / name
    raw, said = spoil(path.read_text(), rng)
    path.write_bytes(raw)
    rewritten = raw != (run / name).read_bytes()
    try:
        before = tree(copy)
        with contextlib.chdir(folder):
            code, _, err = tried(["train", "--resume", "run", "--threads", "1", "--no-tensorboard"])
        if code == 0 or "not finite" in err:  # a rate of 1e30 is a number
            return not (said and rewritten) or name != "config.json"
        one_line = err.count("kilolayer: ") == 1 and "Traceback" not in err and err.count("\n") == 1
        # A lock that stays is no content.
        same = {k: v for k, v in tree(copy).items() if k != ".lock"} == {
            k: v for k, v in before.items() if k != ".lock"
        }
        return code == 2 and one_line and same and (name != "config.json" or said in err)
    finally:
        shutil.rmtree(copy)


def test_configuration_files(
    run: Path, tmp_path: Path, chosen: Callable[[Sequence[int]], list[int]], count: Callable[..., None]
) -> None:
    cases = chosen(range(FILES))
    failed = [str(number) for number in cases if not file_holds(number, run, tmp_path)]
    count("S6", tried=len(cases), held=len(cases) - len(failed), note=", ".join(["files", *failed]))


@pytest.mark.parametrize("number", [0, 3])
def test_a_process_of_its_own_says_the_same(number: int, tmp_path: Path) -> None:
    words, said = wrong_words(random.Random(number))
    if any("\0" in word for word in words):
        pytest.skip("no process can be given this")
    done = subprocess.run(
        [sys.executable, "-m", "kilolayer", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert shown(said) in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_harness_sees_seeded_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kilolayer.cli import command_line

    monkeypatch.setattr(command_line, "check_words", lambda argv: None)
    assert not all(flag_holds(number, tmp_path) for number in range(60))
