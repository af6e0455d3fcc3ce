"""A library that compiles in a moment, and compilers that do something first."""

from __future__ import annotations

import shlex
import shutil
import time
from pathlib import Path

import pytest

from kilolayer.kernels import native_build
from kilolayer.kernels.native_build import NativeLibrary

TINY = NativeLibrary("answer")
ANSWER = 42

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")


def use_tiny_source(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """`TINY` is the whole of the native code."""
    folder.mkdir(parents=True)
    (folder / "answer.cpp").write_text(f'extern "C" int answer() {{ return {ANSWER}; }}\n')
    monkeypatch.setattr(native_build, "SOURCE_FOLDER", folder)


def compiler(path: Path, step: str, version: str = "exec echo 1") -> str:
    """A compiler for $CXX: g++, after this step of a shell; with --version it does another."""
    path.write_text(f'#!/bin/sh\nif [ "$1" = --version ]; then {version}; fi\n{step}\nexec g++ "$@"\n')
    path.chmod(0o755)
    return shlex.quote(str(path))


def has_ended(process: int, seconds: float = 60) -> bool:
    """Whether the process ends within that time: it is gone, or dead and not yet buried."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False
