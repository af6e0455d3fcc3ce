"""Tab completion, in the shells themselves where they are here."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kilolayer.cli.command_line import COMMANDS
from kilolayer.cli.command_table import options_of
from kilolayer.cli.completion import SCRIPTS
from kilolayer.cli.completion_words import FILES, FOLDERS, completions_at

CASES = {
    "": COMMANDS,
    "tra": ("train",),
    "train --recip": ("--recipe",),
    "train --recipe pap": ("paper", "paper-v1"),
    "train --arrangement full": ("full_preactivation",),
    "train --model preact_resnet110_c": ("preact_resnet110_c_cifar", "preact_resnet110_cifar"),
    "train --shortcut scal": ("scaled:",),
    "train --data cifar": ("cifar10", "cifar100"),
    "show preact_resnet100": ("preact_resnet1001_cifar",),
    "analyse jac": ("jacobian",),
    "analyse gradient wide_resnet28": ("wide_resnet28_10_cifar",),
    "reproduce p2-figure-": ("p2-figure-1", "p2-figure-3", "p2-figure-6"),
    "recipes sho": ("short",),
    "completion fi": ("fish",),
    "check-data dig": ("digits",),
}


@pytest.mark.parametrize("line", CASES)
def test_words(line: str) -> None:
    found = list(completions_at(line.split(" ")))
    assert set(CASES[line]) <= set(found)
    prefix = line.rpartition(" ")[2]
    assert all(word.startswith(prefix) for word in found if word not in (FILES, FOLDERS))


def test_paths_are_the_shell_s() -> None:
    assert FILES in completions_at(["evaluate", "ru"])
    assert FILES in completions_at(["predict", "runs/tiny", "dig"])
    assert FILES in completions_at(["audit", "ne"])
    assert FOLDERS in completions_at(["report", ""])
    assert FOLDERS in completions_at(["train", "--resume", ""])
    assert list(completions_at(["train", "--seed", ""])) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_no_word_of_a_description_is_offered(command: str) -> None:
    """What stands behind a command is one of its options, or a name or path that it takes."""
    flags = {flag for option in options_of(command) for flag in option.flags}
    assert set(completions_at([command, "-"])) == {*flags, "--help"}


def in_shell(shell: str, line: str, folder: Path, typed: str = "") -> list[str]:
    """What the shell offers behind the line."""
    (folder / "bin").mkdir(exist_ok=True)
    program = folder / "bin" / "kilolayer"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m kilolayer "$@"\n')
    program.chmod(0o755)
    script = folder / f"completion.{shell}"
    script.write_text(SCRIPTS[shell])
    words = ["kilolayer", *line.split(" ")]
    ask = {
        "bash": f"source {script}; COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; "
        f'compopt() {{ :; }}; _kilolayer kilolayer; printf "%s\\n" "${{COMPREPLY[@]}}"',
        "fish": f"source {script}; complete -C {shlex.quote('kilolayer ' + line)}",
    }[shell]
    env = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "HOME": str(folder)}
    done = subprocess.run(
        [shell, "-c", ask], capture_output=True, text=True, env=env, cwd=folder, check=False
    )
    assert done.stderr == ""
    return [offered.partition("\t")[0] for offered in done.stdout.splitlines()]


LINES = ["", "train --recipe pap", "analyse jac", "reproduce p2-figure-", "evaluate runs/"]


@pytest.mark.parametrize("line", [LINES[1], *(pytest.param(line, marks=pytest.mark.slow) for line in LINES)])
@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_in_the_shell(shell: str, line: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not here")
    (tmp_path / "runs" / "a run").mkdir(parents=True)
    offered = in_shell(shell, line, tmp_path)
    if line == "evaluate runs/":
        assert "runs/a run" in {each.rstrip("/").replace("\\ ", " ") for each in offered}
    else:
        assert set(CASES[line]) <= set(offered)


@pytest.mark.slow
@pytest.mark.parametrize("line", LINES)
def test_in_zsh(line: str, tmp_path: Path) -> None:
    """zsh completes only at a prompt: it is given one, and a Tab."""
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not here")
    from terminal import at_prompt

    (tmp_path / "runs" / "a run").mkdir(parents=True)
    in_shell("bash", "", tmp_path)  # for bin/kilolayer
    (tmp_path / ".zshrc").write_text(
        "autoload -Uz compinit; compinit -u; PS1='ready> '; LISTMAX=1000\n" + SCRIPTS["zsh"]
    )
    env = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "ZDOTDIR": str(tmp_path),
    }
    shown = at_prompt(["zsh", "-i"], f"kilolayer {line}\t", "ready> ", folder=tmp_path, env=env)
    plain = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", shown)
    # Of two, one of which begins the other, zsh writes the shorter one.
    short = {"evaluate runs/": ("a\\ run",), "train --recipe pap": ("paper",)}
    expected = short.get(line) or CASES[line]
    assert all(word in plain for word in expected), plain
