"""S12: odd environments: the command works there, or one line with status 2 says what to do."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kilolayer.errors import InputError
from kilolayer.system import ranks

SOURCE = str(Path(__file__).parents[2] / "src")
TINY = (
    *("train", "--model", "preact_resnet8_cifar", "--iterations", "1", "--batch-size", "8"),
    *("--subset", "64", "--threads", "1", "--no-tensorboard", "--out", "run"),
)
COMMANDS = {
    "train": TINY,
    "help": ("--help",),
    "train help": ("train", "--help"),
    "report": ("report", "{done}"),
    "doctor": ("doctor",),
}
PLAIN = {
    "PATH": os.environ["PATH"],
    "PYTHONPATH": SOURCE,
    "OMP_NUM_THREADS": "1",
    "KILOLAYER_NATIVE": "0",
    "KILOLAYER_POOL": "0",
}
BARE = (
    *("setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"),
    # It may read the Python of whoever tests, and write nothing but what is its own.
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)
ON_A_TERMINAL = (
    *(sys.executable, "-c"),
    "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))",
)
PREPARE = {
    "unwritable": lambda path: path.mkdir(mode=0o555),
    "folder": lambda path: path.mkdir(),
    "file": lambda path: path.write_text("a file"),
}
"""What lies beside the working folder, under the name that environments refer to."""


@dataclass(frozen=True)
class Environment:
    """variables: None unsets one. script: prepares, and starts the command in "$@". refused: by which line.

    left: what it may leave in the working folder.
    """

    variables: dict[str, str | None] = field(default_factory=dict)
    script: str = 'exec "$@"'
    commands: tuple[str, ...] = ("train",)
    refused: str = ""
    bare: bool = False
    terminal: bool = False
    left: tuple[str, ...] = ("run",)


ALL = ("train", "help", "report", "doctor")
IN = 'mkdir -p "$D" && cd "$D" && exec "$@"'
NO_PROC = 'exec unshare -m sh -c \'umount -l /proc && exec "$@"\' sh "$@"'
E = Environment
ENVIRONMENTS: dict[str, Environment] = {
    # The home folder and the caches.
    "no home and no line in passwd": E({"HOME": None}, bare=True, commands=ALL),
    "no home, kernels": E(
        {"HOME": None, "KILOLAYER_NATIVE": "1", "KILOLAYER_POOL": "1", "TMPDIR": "{side}/tmp"}, bare=True
    ),
    "home is a file": E({"HOME": "{side}/file", "KILOLAYER_POOL": "1"}, commands=("train", "report")),
    "home is relative": E({"HOME": "home", "KILOLAYER_POOL": "1"}, commands=("train", "report")),
    "home cannot be read": E({"HOME": "/root/x", "KILOLAYER_POOL": "1", "TMPDIR": "{side}/tmp"}, bare=True),
    "home is /": E({"HOME": "/"}, bare=True, commands=("train", "report")),
    "home is read-only": E({"HOME": "{side}/unwritable"}, bare=True, commands=("train", "report")),
    "home is empty": E({"HOME": ""}),
    "the cache is a file": E({"XDG_CACHE_HOME": "{side}/file", "KILOLAYER_POOL": "1"}),
    "the cache is a device": E({"XDG_CACHE_HOME": "/dev/null", "KILOLAYER_POOL": "1"}),
    "the cache is relative": E({"XDG_CACHE_HOME": "cache", "KILOLAYER_POOL": "1"}),
    "the cache has odd bytes": E({"XDG_CACHE_HOME": "{side}/\udcff\n", "KILOLAYER_POOL": "1"}),
    "no folder for temporary files": E({"TMPDIR": "/proc/nonexistent"}, commands=("train", "doctor")),
    "temporary files in a file": E({"TMPDIR": "{side}/file"}),
    "temporary files in a read-only folder": E({"TMPDIR": "{side}/unwritable"}, bare=True),
    "relative folder for temporary files": E({"TMPDIR": "tmp"}),
    # Streams.
    "output closed": E(script='exec "$@" >&-', commands=ALL),
    "errors closed": E(script='exec "$@" 2>&-', commands=("train", "help")),
    "input closed": E(script='exec "$@" <&-', commands=("train", "help")),
    "all closed": E(script='exec "$@" <&- >&- 2>&-', commands=("train", "help", "report")),
    "output full": E(
        script='exec "$@" >/dev/full', commands=("train", "help", "report"), refused="cannot write the output"
    ),
    "errors full": E(script='exec "$@" 2>/dev/full', commands=("train", "help")),
    "output for reading only": E(script='exec "$@" 1</dev/null', commands=("train", "help")),
    "errors for reading only": E(script='exec "$@" 2</dev/null', commands=("train", "help")),
    # Languages and encodings.
    "the C locale": E({"LC_ALL": "C"}, commands=("train", "help")),
    "ASCII and nothing else": E(
        {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "D": "läufe"},
        script=IN,
        commands=("train", "help", "report"),
        left=("läufe",),
    ),
    "a locale that is not there": E(
        {"LC_ALL": "xx_YY.UTF-8", "LANG": "de_DE@euro"}, commands=("train", "help")
    ),
    "output in ASCII": E({"PYTHONIOENCODING": "ascii:strict"}, commands=("train", "help", "report")),
    "output in Latin-1": E({"PYTHONIOENCODING": "latin-1"}, commands=("train", "help")),
    "output in UTF-16": E({"PYTHONIOENCODING": "utf-16"}, commands=("train", "help")),
    # Python.
    "no docstrings, no assertions": E({"PYTHONOPTIMIZE": "2"}, commands=(*ALL, "train help")),
    "warnings are errors": E({"PYTHONWARNINGS": "error"}, commands=ALL),
    "no bytecode": E({"PYTHONDONTWRITEBYTECODE": "1"}),
    "development mode": E({"PYTHONDEVMODE": "1"}),
    "a safe path": E({"PYTHONSAFEPATH": "1"}),
    # The working folder.
    "the working folder is gone": E(
        script='mkdir gone && cd gone && rmdir ../gone && exec "$@"',
        commands=ALL,
        refused="the working folder is gone",
        left=(),
    ),
    "a read-only working folder": E(
        {"D": "only"},
        script='mkdir "$D" && chmod 555 "$D" && cd "$D" && exec "$@"',
        bare=True,
        refused="run: Permission denied|cannot write .*Permission denied",
        left=("only",),
    ),
    "a working folder with odd bytes": E({"D": "w\udcffx"}, script=IN, left=("w\udcffx",)),
    "a working folder with a line break": E({"D": "w\n\tx\033[31m"}, script=IN, left=("w\n\tx\033[31m",)),
    # The terminal.
    "a dumb terminal": E({"TERM": "dumb"}, terminal=True, commands=("train", "help")),
    "an unknown terminal": E(
        {"TERM": "nonsense", "COLUMNS": "0", "LINES": "0"}, terminal=True, commands=("train", "help")
    ),
    "no terminal's name": E(
        {"TERM": None, "NO_COLOR": "1", "FORCE_COLOR": "1"}, terminal=True, commands=("help", "report")
    ),
    "a column": E(
        {"TERM": "xterm", "COLUMNS": "1"}, terminal=True, commands=("train", "help", "report", "train help")
    ),
    "a width that is no number": E({"COLUMNS": "abc", "LINES": "-1"}, commands=("train", "help")),
    "a width without end": E({"TERM": "xterm", "COLUMNS": "9" * 30}, terminal=True, commands=("help",)),
    # Threads, devices and libraries.
    "no threads": E({"OMP_NUM_THREADS": "0"}),
    "threads that are no number": E(
        {"OMP_NUM_THREADS": "abc", "MKL_NUM_THREADS": "-1", "OMP_STACKSIZE": "z"}
    ),
    "odd devices": E({"CUDA_VISIBLE_DEVICES": "abc,-1", "ATEN_CPU_CAPABILITY": "nonsense"}),
    "an open quote in $CXX": E({"CXX": 'g++ "-O2', "KILOLAYER_NATIVE": "1", "KILOLAYER_POOL": "1"}),
    "an odd switch": E({"KILOLAYER_POOL": "2"}, refused="KILOLAYER_POOL is '2' .*allowed: 0, 1"),
    "odd logs of PyTorch": E(
        {"TORCH_LOGS": "nonsense"}, refused="TORCH_LOGS is 'nonsense' .*correct or unset it"
    ),
    "an odd date": E(
        {"SOURCE_DATE_EPOCH": "abc"},
        commands=("report",),
        refused="SOURCE_DATE_EPOCH is 'abc' .*correct or unset it",
    ),
    "an odd backend of Matplotlib": E(
        {"MPLBACKEND": "nonsense"},
        commands=("report",),
        refused="MPLBACKEND is 'nonsense' .*correct or unset it",
    ),
    "Matplotlib's folder is a file": E({"MPLCONFIGDIR": "{side}/file"}, commands=("report",)),
    "an odd time zone": E({"TZ": "Mars/Olympus"}, commands=("train", "report")),
    "no programs": E({"PATH": "", "KILOLAYER_POOL": "1"}),
    "no path": E({"PATH": None, "KILOLAYER_POOL": "1"}),
    "an odd completion": E({"_KILOLAYER_COMPLETE": "nonsense"}, commands=("help",)),
    # Limits.
    "rights that nobody has": E(script='umask 0777; exec "$@"'),
    "rights that nobody has, as a user": E(
        script='umask 0777; exec "$@"', bare=True, refused="run: Permission denied|cannot .*Permission denied"
    ),
    "rights that all have": E(script='umask 0; exec "$@"', variables={"KILOLAYER_POOL": "1"}),
    "32 open files": E(script='ulimit -n 32; exec "$@"', commands=("train", "report")),
    "1 GB of addresses": E(script='ulimit -v 1000000; exec "$@"'),
    "too few addresses": E(script='ulimit -v 300000; exec "$@"', refused="out of memory"),
    "no bytes in files": E(script='ulimit -f 0; exec "$@"', refused="TMPDIR|File too large", left=("run",)),
    "a small stack": E(script='ulimit -s 256; exec "$@"'),
    "no /proc": E(script=NO_PROC, commands=("train", "doctor"), refused="mount /proc and /sys"),
    # Launchers.
    "two processes, no rank": E({"WORLD_SIZE": "2"}, refused="WORLD_SIZE is 2, but RANK is not set"),
    "a rank too many": E({"WORLD_SIZE": "2", "RANK": "2"}, refused="RANK is 2 .*allowed: 0 to 1"),
    "a rank alone": E({"RANK": "1"}, refused="RANK is 1 .*WORLD_SIZE is not set"),
    "a world of words": E({"WORLD_SIZE": "two"}, refused="WORLD_SIZE is 'two' .*allowed: a whole number"),
    "a launcher, and help": E({"WORLD_SIZE": "2"}, commands=("help", "report")),
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is done, for `report`, which everybody can read."""
    folder = tmp_path_factory.mktemp("done")
    subprocess.run(
        [sys.executable, "-m", "kilolayer", *TINY], cwd=folder, env=PLAIN, check=True, capture_output=True
    )
    return folder / "run"


def missing(environment: Environment) -> bool:
    """Whether this machine cannot make the environment."""
    if environment.bare and (os.geteuid() != 0 or shutil.which("setpriv") is None):
        return True
    return environment.script == NO_PROC and bool(
        subprocess.run(["unshare", "-m", "umount", "-l", "/proc"], capture_output=True).returncode
    )


def fault(environment: Environment, command: str, folder: Path, done: Path) -> str:
    """What is wrong with how the command ends there; "" if nothing."""
    side, work = folder / "side", folder / "work"
    for path in (side, work, side / "tmp"):
        path.mkdir(parents=True)
        path.chmod(0o777)
    for path in (*folder.parents[:2], folder):
        path.chmod(0o755)
    for name, prepare in PREPARE.items():
        prepare(side / name)
    run = shutil.copytree(done, side / "done")
    for path in (run, *run.rglob("*")):
        path.chmod(0o777)
    chosen = {**PLAIN, "HOME": str(side / "folder"), **environment.variables}
    variables = {
        name: value.replace("{side}", str(side)) for name, value in chosen.items() if value is not None
    }
    words = [sys.executable, "-m", "kilolayer", *(word.format(done=run) for word in COMMANDS[command])]
    if environment.terminal:
        words = [*ON_A_TERMINAL, *words]
    ended = subprocess.run(
        [*(BARE if environment.bare else ()), "/bin/sh", "-c", environment.script, "sh", *words],
        cwd=work, env=variables, stdin=subprocess.DEVNULL, capture_output=True, timeout=600,
    )  # fmt: skip
    text = (ended.stderr + (ended.stdout if environment.terminal else b"")).decode("utf-8", "replace")
    lines = [line for line in text.splitlines() if line.startswith("kilolayer: ")]
    left = {path.name for path in work.iterdir()} - set(environment.left)
    if "Traceback" in text or left:
        return f"left {left}: {text[-600:]}"
    if not environment.refused:
        return "" if ended.returncode == 0 else f"status {ended.returncode}: {text[-600:]}"
    held = ended.returncode == 2 and len(lines) == 1 and re.search(environment.refused, lines[0])
    return "" if held else f"status {ended.returncode}: {text[-600:]}"


TRIALS = [(name, command) for name, one in ENVIRONMENTS.items() for command in one.commands]
CHUNKS = 8
"""Each test goes through some of the trials."""


@pytest.mark.parametrize("part", range(CHUNKS))
def test_odd_environments(
    part: int,
    done: Path,
    tmp_path: Path,
    chosen: Callable[[Sequence[Any]], list[Any]],
    count: Callable[..., None],
) -> None:
    trials = [trial for number, trial in enumerate(chosen(TRIALS)) if number % CHUNKS == part]
    possible = [trial for trial in trials if not missing(ENVIRONMENTS[trial[0]])]
    if not possible:
        pytest.skip("none of these can be made here")
    faults = {}
    for number, (name, command) in enumerate(possible):
        faults[name, command] = fault(ENVIRONMENTS[name], command, tmp_path / str(number), done)
    assert "\n".join(f"{trial}: {said}" for trial, said in faults.items() if said) == ""
    count("S12", tried=len(faults), held=len(faults), note="odd environments")


VALUES = (None, "", "0", "1", "2", "x", "-1", "1.5", "²", "9" * 40)
LAUNCH = (*ranks.TORCHRUN, *ranks.RENDEZVOUS_VARIABLES)


def test_every_part_of_a_launch(monkeypatch: pytest.MonkeyPatch, count: Callable[..., None]) -> None:
    """Every subset of torchrun's variables, with numbers and without: a rank, or a line that names one."""
    for names in ranks.LAUNCHERS:
        for name in names:
            if name:
                monkeypatch.delenv(name, raising=False)
    tried = held = 0
    for values in itertools.product(
        VALUES, VALUES, VALUES[:7], VALUES[:4], (None, "host"), (None, "29500", "x")
    ):
        for name, value in zip(LAUNCH, values, strict=True):
            monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
        tried += 1
        try:
            launch = ranks.read_launch()
            held += 0 <= launch.rank < launch.world_size
        except InputError as error:
            held += "\n" not in str(error) and any(name in str(error) for name in LAUNCH)
    count("S12", tried=tried, held=held, note="parts of a launch")
