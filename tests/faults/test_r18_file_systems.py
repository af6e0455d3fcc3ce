"""R18: file systems that cannot do all: it works, or one line says what to do, and it goes on identically."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from harness import OPTIONS, Ended, Lab, Started, outcome, saved_iteration, wait_until
from test_r5_signals import Whole

Cases = Callable[..., list[Any]]
MISSING = {
    "no locks: ENOLCK": f"flock:{errno.ENOLCK}",
    "a folder's fsync: EINVAL": f"folder:{errno.EINVAL}",
    "no locks: ENOSYS": f"flock:{errno.ENOSYS}",
    "no locks: EOPNOTSUPP": f"flock:{errno.EOPNOTSUPP}",
    "no locks: EINVAL": f"flock:{errno.EINVAL}",
    "a folder's fsync: EBADF": f"folder:{errno.EBADF}",
    "a folder's fsync: EOPNOTSUPP": f"folder:{errno.EOPNOTSUPP}",
    "a folder's fsync: ENOSYS": f"folder:{errno.ENOSYS}",
    "neither": f"flock:{errno.ENOLCK},folder:{errno.EINVAL}",
}
"""What a file system has not, and a run does without."""
REFUSING = ("EROFS", "ESTALE", "EIO", "EDQUOT", "EACCES", "ENOSPC", "ENODEV", "ENAMETOOLONG")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Commands with odd_files.c loaded."""
    folder = tmp_path_factory.mktemp("odd")
    library = folder / "odd_files.so"
    source = Path(__file__).with_name("odd_files.c")
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"odd file systems need Linux and a C compiler: {error}")
    return Lab(folder, library)


def words(run: Path) -> tuple[str, ...]:
    fixed = ("--no-tensorboard", "--device", "cpu", "--save-every", "0")
    if (run / "config.json").exists():
        return ("train", "--resume", str(run), *fixed)
    return ("train", *OPTIONS, *fixed, "--out", str(run))


def one_line(ended: Ended) -> str:
    """What is wrong with how a command was refused, or ""."""
    is_line = ended.err.startswith("kilolayer: ") and ended.err.count("\n") == 1
    return "" if ended.status == 2 and is_line else f"status {ended.status}: {ended.err[-500:]}"


def goes_on(lab: Lab, run: Path, whole: Whole) -> str:
    ended = lab.bring_back(run)
    return "" if ended.status == 0 and outcome(run) == whole else ended.said or "not identical"


def test_what_a_run_does_without(
    odd: Lab, lab: Lab, whole: Whole, tmp_path: Path, chosen: Cases, count: Any
) -> None:
    tried, bad = chosen([*MISSING]), {}
    for name in tried:
        run = tmp_path / name.replace(" ", "-")
        ended = odd.anew(*words(run), ODD=MISSING[name], ODD_UNDER=str(run))
        warned = "has no locks" in ended.err
        if ended.status != 0 or outcome(run) != whole or warned != ("flock" in MISSING[name]):
            bad[name] = f"status {ended.status}: {ended.err}"
        elif (run / ".lock.holder").exists():
            bad[name] = "its mark is left"
    print(bad)
    count("R18", tried=len(tried), held=len(tried) - len(bad), note="no locks, no fsync of folders")


def test_two_processes_without_locks(odd: Lab, lab: Lab, whole: Whole, tmp_path: Path, count: Any) -> None:
    """The second is refused by name; killed, the first one's mark is taken over; another machine's is not."""
    run, held = tmp_path / "run", []
    env = {"ODD": MISSING["no locks: ENOLCK"], "ODD_UNDER": str(run)}
    given = os.environ | {"LD_PRELOAD": str(odd.library)} | env
    with subprocess.Popen(
        [sys.executable, "-m", "kilolayer", *words(run)], env=given, stdout=subprocess.DEVNULL
    ) as first:
        wait_until(lambda: any(run.glob("checkpoints/*.json")) or first.poll() is not None)
        os.kill(first.pid, signal.SIGSTOP)
        second = odd.anew(*words(run), **env)
        held.append(one_line(second) == "" and f"in use by another process ({first.pid} on " in second.err)
        first.kill()
    held.append((run / ".lock.holder").exists())
    mark = json.loads((run / ".lock.holder").read_text())
    foreign = json.dumps(mark | {"machine": "another", "host": "node7"})
    (run / ".lock.holder").write_text(foreign)
    third = odd.anew(*words(run), **env)
    held.append(
        one_line(third) == "" and "on node7" in third.err and f"delete {run}/.lock.holder" in third.err
    )
    held.append(one_line(lab.bring_back(run)) == "")  # with locks, as from another machine
    (run / ".lock.holder").write_text(json.dumps(mark))
    held.append(odd.anew(*words(run), **env).status == 0 and outcome(run) == whole)
    print(held, second, third)
    count("R18", tried=len(held), held=sum(held), note="two processes without locks")


def test_it_refuses_from_a_call_on(
    odd: Lab, lab: Lab, whole: Whole, tmp_path: Path, chosen: Cases, count: Any
) -> None:
    """Read-only, gone, full or broken in the middle: one line, and nothing that was saved is lost."""
    cases = [
        (name, call, at) for at in (9, 2, 20) for name in REFUSING for call in ("create", "rename", "write")
    ]
    tried, bad = chosen(cases), {}
    for name, call, at in tried:
        run = tmp_path / f"{name}-{call}-{at}"
        fault = f"{call}:{getattr(errno, name)}"
        ended = odd.anew(*words(run), ODD=fault, ODD_UNDER=str(run), ODD_FROM=str(at))
        saved = saved_iteration(run)
        wrong = "" if ended.status == 0 else one_line(ended)
        if wrong := wrong or goes_on(lab, run, whole) or ("" if saved <= 8 else "lost"):
            bad[name, call, at] = wrong
    print(bad)
    count("R18", tried=len(tried), held=len(tried) - len(bad), note="refusing from a call on")


# Real file systems

SHARED_MEMORY = Path("/dev", "shm") / f"kilolayer-tests-{os.getpid()}"


@contextmanager
def mounted(place: Path, *command: str) -> Iterator[None]:
    place.mkdir(exist_ok=True)
    done = subprocess.run([*command, str(place)], capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        pytest.skip(f"cannot mount: {' '.join(command)}: {(done.stderr or done.stdout).strip()[-200:]}")
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True, timeout=60)


def image(folder: Path, megabytes: int, *make: str) -> str:
    """A file with a file system in it; skips where the tool is missing."""
    path = folder / "image"
    with path.open("wb") as file:
        file.truncate(megabytes * 2**20)
    if shutil.which(make[0]) is None:
        pytest.skip(f"{make[0]} is not installed")
    subprocess.run([*make, str(path)], check=True, capture_output=True)
    return str(path)


def ext4(folder: Path) -> tuple[str, ...]:
    return ("mount", "-o", "loop", image(folder, 16, "mkfs.ext4", "-q"))


def vfat(folder: Path) -> tuple[str, ...]:
    """Without case in names, hard links, owners and locks of its own; times in steps of two seconds."""
    needs("fusefat")
    return ("fusefat", "-o", "rw+", image(folder, 40, "mkfs.vfat"))


def exfat(folder: Path) -> tuple[str, ...]:
    needs("mount.exfat-fuse")
    return ("mount.exfat-fuse", image(folder, 40, "mkfs.exfat"))


def bound(folder: Path) -> tuple[str, ...]:
    """A folder through FUSE."""
    needs("bindfs")
    (folder / "below").mkdir()
    return ("bindfs", str(folder / "below"))


def overlay(folder: Path) -> tuple[str, ...]:
    """As a container's; the upper layer cannot be on an overlay itself."""
    layers = SHARED_MEMORY if os.access(SHARED_MEMORY.parent, os.W_OK) else folder
    for name in ("lower", "upper", "work"):
        (layers / name).mkdir(parents=True, exist_ok=True)
    options = f"lowerdir={layers}/lower,upperdir={layers}/upper,workdir={layers}/work"
    return ("mount", "-t", "overlay", "-o", options, "overlay")


def needs(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


def is_halted(started: Started) -> bool:
    """Whether a command is halted, or has ended."""
    try:
        return "State:\tT" in Path(f"/proc/{started.pid}/status").read_text()
    except OSError:
        return True


def after_halt(started: Started) -> Ended:
    with suppress(ProcessLookupError):
        os.kill(started.pid, signal.SIGCONT)
    return started.end()


KINDS = (ext4, vfat, exfat, bound, overlay)


@pytest.mark.usefixtures("takes_long")
@pytest.mark.parametrize("kind", KINDS)
def test_a_real_file_system(
    kind: Callable[[Path], tuple[str, ...]], lab: Lab, whole: Whole, tmp_path: Path, count: Any
) -> None:
    """A run is stopped, goes on and ends; a second process is refused meanwhile."""
    place, wrong = tmp_path / "place", []
    with mounted(place, *kind(tmp_path)):
        run = place / "run"
        stopped = lab.bring_back(run, SIGNAL_AT_STEP="5:15")
        started = lab.start_run(run, SIGNAL_AT_STEP="6:19")
        wait_until(lambda: is_halted(started))
        second = lab.bring_back(run)
        ended = after_halt(started)
        print(stopped, second, ended)
        if stopped.status != 143 or ended.status != 0 or outcome(run) != whole:
            wrong.append("not identical")
        if one_line(second) or "in use by another process" not in second.err:
            wrong.append(f"a second process: {second}")
    shutil.rmtree(SHARED_MEMORY, ignore_errors=True)
    print(wrong)
    count("R18", tried=1, held=int(not wrong), note=kind.__name__)


@pytest.mark.usefixtures("takes_long")
def test_read_only_in_the_middle(lab: Lab, whole: Whole, tmp_path: Path, count: Any) -> None:
    """As ext4 mounts itself after an error of the disk."""
    place = tmp_path / "place"
    with mounted(place, *ext4(tmp_path)):
        run = place / "run"
        started = lab.start_run(run, SIGNAL_AT_STEP="5:19")
        wait_until(lambda: is_halted(started))
        saved = saved_iteration(run)
        subprocess.run(["mount", "-o", "remount,abort", place], check=True, capture_output=True)
        ended = after_halt(started)
        print(ended)
        wrong = one_line(ended) or ("" if str(run) in ended.err else "names no path")
        kept = saved_iteration(run)
        copy = tmp_path / "copy"
        shutil.copytree(run, copy)
    held = not wrong and kept == saved and goes_on(lab, copy, whole) == ""
    print(wrong, kept, saved)
    count("R18", tried=1, held=int(held), note="read-only in the middle")


@pytest.mark.usefixtures("takes_long")
def test_a_folder_of_somebody_else(lab: Lab, whole: Whole, tmp_path: Path, count: Any) -> None:
    """Resumed by a user who may read it only: one line, nothing changed; its owner goes on."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can take another user's id")
    run = tmp_path / "run"
    assert lab.bring_back(run, SIGNAL_AT_STEP="5:15").status == 143
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    user = ("setpriv", "--reuid=12345", "--regid=12345", "--clear-groups")
    rights = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    done = subprocess.run(
        [*user, *rights, sys.executable, "-m", "kilolayer", *words(run)], capture_output=True, text=True
    )
    print(done)
    wrong = one_line(Ended(done.returncode, done.stdout, done.stderr))
    unchanged = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    held = not wrong and unchanged and str(run) in done.stderr and goes_on(lab, run, whole) == ""
    count("R18", tried=1, held=int(held), note="another user's")
