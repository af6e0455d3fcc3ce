"""A training in the environments that people have: each works and leaves its run, or is refused in a line."""

from __future__ import annotations

import json
import os
import pty
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = (sys.executable, "-m", "kilolayer", "train")
TINY = (
    *("--model", "resnet8_cifar", "--iterations", "2", "--batch-size", "8", "--subset", "64"),
    *("--threads", "1", "--no-tensorboard"),
)
SOURCE = str(Path(__file__).parent.parent / "src")
PLAIN = {"PATH": os.environ["PATH"], "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1", "KILOLAYER_NATIVE": "0"}

WORKS: dict[str, dict[str, str]] = {
    "no home": {"HOME": ""},
    "a home that is not there": {"HOME": "/proc/nonexistent"},
    "no folder for temporary files": {"TMPDIR": "/proc/nonexistent"},
    "the C locale": {"LC_ALL": "C"},
    "ASCII and nothing else": {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "output in ASCII": {"PYTHONIOENCODING": "ascii"},
    "threads that are no number": {"OMP_NUM_THREADS": "abc"},
    "a width that is no number": {"COLUMNS": "abc"},
    "an open quote in $CXX": {"CXX": 'g++ "-O2', "KILOLAYER_NATIVE": "1"},
    "no bytecode": {"PYTHONDONTWRITEBYTECODE": "1"},
    "no docstrings": {"PYTHONOPTIMIZE": "2"},
    "a safe path": {"PYTHONSAFEPATH": "1"},
    "one of srun's processes": {"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NTASKS": "2"},
}


def started(*words: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    given = {name: value for name, value in (PLAIN | environment).items() if value}
    return subprocess.run(words, cwd=folder, env=given, capture_output=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("environment", WORKS.values(), ids=list(WORKS))
def test_it_trains(environment: dict[str, str], tmp_path: Path) -> None:
    """A × in the text, a run whose folder is no ASCII, and nothing else left in the working folder."""
    done = started(*COMMAND, *TINY, "--out", "läufe/ein lauf", folder=tmp_path, environment=environment)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["läufe"]
    run = tmp_path / "läufe/ein lauf"
    assert json.loads((run / "result.json").read_text(encoding="utf-8"))["status"] == "done"
    for path in run.glob("*.json*"):
        path.read_text(encoding="utf-8")


BARE = (
    *("setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"),
    # It may read the Python of whoever tests, and write nothing but what is its own.
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="only root can take another user's id"
)
HOMES = {
    "unset": {},
    "not there": {"HOME": "/proc/nonexistent"},
    "the root folder": {"HOME": "/"},
    "read-only": {"HOME": "{}/read-only"},
    "a cache of somebody else's": {"XDG_CACHE_HOME": "{}/foreign"},
    "a relative cache": {"XDG_CACHE_HOME": "cache"},
    "nothing can be written": {"HOME": "/", "TMPDIR": "/proc/nonexistent"},
}


@pytest.mark.slow
@needs_root
@pytest.mark.parametrize("environment", HOMES.values(), ids=list(HOMES))
def test_a_user_id_without_a_line_in_passwd(environment: dict[str, str], tmp_path: Path) -> None:
    """As a container has it: everything works, and nothing appears in the working folder but the run."""
    (tmp_path / "read-only").mkdir(mode=0o555)
    (tmp_path / "foreign/kilolayer").mkdir(parents=True)
    work = tmp_path / "work"
    work.mkdir()
    work.chmod(0o777)
    given = {name: value.format(tmp_path) for name, value in environment.items()}
    for words in (("train", *TINY, "--out", "run"), ("check-data", "digits"), ("report", "run")):
        command = (*BARE, sys.executable, "-m", "kilolayer", *words)
        done = started(*command, folder=work, environment=given)
        assert done.returncode == 0, done.stderr
        assert b"Traceback" not in done.stderr
    assert [path.name for path in work.iterdir()] == ["run"]


STREAMS = {
    "output closed": (">&-", 0),
    "errors closed": ("2>&-", 0),
    "all closed": ("<&- >&- 2>&-", 0),
    "output for reading only": ("1</dev/null", 0),
    "output full": (">/dev/full", 2),
    "errors full": ("2>/dev/full", 0),
}


@pytest.mark.slow
@pytest.mark.parametrize(("streams", "status"), STREAMS.values(), ids=list(STREAMS))
def test_streams_that_take_nothing(streams: str, status: int, tmp_path: Path) -> None:
    shell = f'exec "$@" {streams}'
    done = started("sh", "-c", shell, "sh", *COMMAND, *TINY, "--out", "run", folder=tmp_path, environment={})
    assert done.returncode == status, done.stderr
    assert b"Traceback" not in done.stderr
    if status == 0:
        # Nothing that was printed has landed in a file which got the number of a closed stream.
        assert json.loads((tmp_path / "run/result.json").read_bytes())["status"] == "done"
        assert b"layers" not in (tmp_path / "run/metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_a_working_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    shell = 'mkdir gone && cd gone && rmdir ../gone && exec "$@"'
    done = started("sh", "-c", shell, "sh", *COMMAND, *TINY, folder=tmp_path, environment={})
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(b"kilolayer: ")
    assert done.stderr.count(b"\n") == 1


LONG = (
    "--model",
    "resnet8_cifar",
    "--iterations",
    "100000",
    "--threads",
    "1",
    "--no-tensorboard",
    "--out",
    "run",
)


def begun(run: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def on_a_terminal(folder: Path, *before: str) -> tuple[subprocess.Popen[bytes], int]:
    """A long training on a terminal of its own, which it controls; and the terminal's other end."""
    end, terminal = pty.openpty()
    words = (sys.executable, "-c", CONTROLLING, *before, *COMMAND, *LONG)
    process = subprocess.Popen(
        words, cwd=folder, env=PLAIN, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True
    )
    os.close(terminal)
    return process, end


CONTROLLING = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.slow
def test_when_its_terminal_is_closed_the_state_is_saved(tmp_path: Path) -> None:
    process, end = on_a_terminal(tmp_path)
    begun(tmp_path / "run", process)
    os.close(end)
    assert process.wait(60) == 143
    assert list((tmp_path / "run/checkpoints").glob("*.json"))


@pytest.mark.slow
def test_a_run_that_is_to_outlive_its_terminal_does_so(tmp_path: Path) -> None:
    """`trap '' HUP` is what nohup does, without its other streams: what is printed then goes nowhere."""
    process, end = on_a_terminal(tmp_path, "sh", "-c", "trap '' HUP; exec \"$@\"", "sh")
    begun(tmp_path / "run", process)
    os.close(end)
    rows = (tmp_path / "run/metrics.jsonl").stat().st_size
    deadline = time.monotonic() + 60
    while (tmp_path / "run/metrics.jsonl").stat().st_size < rows + 1000:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143


DEMO = """
from kilolayer.__main__ import main
print("status", main(["demo", "--depths", "8", "--iterations", "1", "--workers", "1", "--out", "demo"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["standard input", "a script without a guard", "-c"])
def test_workers_do_not_run_the_caller_s_script_again(how: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(DEMO, encoding="utf-8")
    words = {
        "standard input": ("sh", "-c", 'exec "$@" <script.py', "sh", sys.executable, "-"),
        "a script without a guard": (sys.executable, "script.py"),
        "-c": (sys.executable, "-c", DEMO),
    }[how]
    done = started(*words, folder=tmp_path, environment={})
    assert done.stdout.count(b"status 0") == 1, done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.slow
def test_a_training_in_a_thread(tmp_path: Path) -> None:
    """A notebook's cell may start one: signals are the main thread's."""
    code = (
        "import sys, threading\n"
        "from kilolayer.__main__ import main\n"
        "thread = threading.Thread(target=lambda: print('status', main(sys.argv[1:])))\n"
        "thread.start(); thread.join()"
    )
    words = (sys.executable, "-c", code, "train", *TINY, "--out", "run")
    done = started(*words, folder=tmp_path, environment={})
    assert b"status 0" in done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [b"a b/c", b"n\nl", b"x\xff\xfey"], ids=["spaces", "a line's end", "no text"]
)
def test_names_of_every_kind(name: bytes, tmp_path: Path) -> None:
    """What is proposed next can be copied, and does it."""
    run = os.fsdecode(name)
    done = started(*COMMAND, *TINY, "--out", run, folder=tmp_path, environment={})
    assert done.returncode == 0, done.stderr
    evaluate = (sys.executable, "-m", "kilolayer", "evaluate", run)
    assert started(*evaluate, folder=tmp_path, environment={}).returncode == 0
    if b"\xff" not in name:
        assert os.fsencode(f"kilolayer evaluate {shlex.quote(run)}\n") in done.stdout
