"""Where the kernels cannot be built, or are built by many at once."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys

import pytest
import torch

from kilolayer import kernels
from kilolayer.errors import InputError
from kilolayer.kernels import compiled, library
from kilolayer.networks import build, describe
from kilolayer.training import choose_kernels

CPU = torch.device("cpu")


@pytest.fixture
def forgetful():
    """Nothing known of the library from before, and nothing kept of what the test pretends."""

    def forget():
        compiled._unit_library.cache_clear()
        compiled.cpu_flags.cache_clear()
        library.native.cache_clear()

    forget()
    yield
    forget()


def says(caplog: pytest.LogCaptureFixture, reason: str) -> None:
    """The network stays plain, --kernels auto is plain, fused is refused, and one line is logged."""
    caplog.set_level(logging.INFO, logger="kilolayer")
    found = kernels.fuse(build(describe("preact_resnet20_cifar")))
    assert found.fused == 0
    assert re.search(reason, str(found))
    assert choose_kernels("auto", CPU, "bf16", channels_last=True) == "plain"
    with pytest.raises(InputError, match=f"(?s)no fused kernels here: .*{reason}.*--kernels plain"):
        choose_kernels("fused", CPU, "bf16", channels_last=True)
    lines = [record for record in caplog.records if record.name == compiled.__name__]
    assert len([line for line in lines if "no native kernels" in line.getMessage()]) == 1


@pytest.mark.usefixtures("forgetful")
class TestMissing:
    def test_switched_off(self, monkeypatch, caplog):
        monkeypatch.setenv("KILOLAYER_NATIVE", "0")
        says(caplog, "KILOLAYER_NATIVE is 0")

    def test_instructions(self, monkeypatch, caplog):
        monkeypatch.setattr(compiled, "cpu_flags", lambda: frozenset({"avx512f"}))
        monkeypatch.setattr(compiled.cpu_flags, "cache_clear", lambda: None, raising=False)
        monkeypatch.setattr(compiled.sys, "platform", "linux")
        monkeypatch.setattr(compiled.platform, "machine", lambda: "x86_64")
        says(caplog, "the processor has no .*avx512_bf16")

    def test_other_systems(self, monkeypatch, caplog):
        monkeypatch.setattr(compiled.platform, "machine", lambda: "arm64")
        says(caplog, "on arm64")

    def test_compiler(self, monkeypatch, caplog):
        self.able(monkeypatch)
        monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
        says(caplog, "no C.. compiler is here")

    def test_broken_compiler(self, monkeypatch, caplog, tmp_path):
        self.able(monkeypatch)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        broken = tmp_path / "g++"
        broken.write_text(
            '#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "error: no such flag" >&2\nexit 1\n'
        )
        broken.chmod(0o755)
        monkeypatch.setenv("CXX", str(broken))
        says(caplog, "cannot compile them: error: no such flag")
        assert not list(tmp_path.rglob("*.so"))

    def test_cache_that_cannot_be_written(self, monkeypatch, caplog, tmp_path):
        self.able(monkeypatch)
        (tmp_path / "kilolayer").write_text("a file where the folder should be")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        says(caplog, "cannot be written")

    @staticmethod
    def able(monkeypatch):
        monkeypatch.setattr(compiled, "_check_processor", lambda: None)
        monkeypatch.setattr(compiled, "_version", lambda compiler: b"1")


def test_kernels_are_chosen_only_where_they_apply():
    for name in ("auto", "plain"):
        assert choose_kernels(name, CPU, "fp32", channels_last=False) == "plain"
        assert choose_kernels(name, torch.device("cuda"), "bf16", channels_last=True) == "plain"
        assert choose_kernels(name, CPU, "bf16", channels_last=True, compiled=True) == "plain"
    with pytest.raises(InputError, match="bf16 with channels last"):
        choose_kernels("fused", CPU, "fp32", channels_last=True)
    with pytest.raises(InputError, match="kernels is 'fast'; allowed: auto, plain, fused"):
        choose_kernels("fast", CPU, "bf16", channels_last=True)


@pytest.mark.slow
@pytest.mark.skipif(kernels.refusal() is not None, reason=str(kernels.refusal()))
def test_of_many_processes_one_compiles(tmp_path):
    """All of them get the library, and only one of them says that it compiles."""
    code = (
        "import logging; logging.basicConfig(level=logging.INFO, format='%(message)s');"
        "from kilolayer import kernels; print(kernels.refusal())"
    )
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(3)
    ]
    ended = [process.communicate(timeout=200) for process in started]
    assert [out for out, _ in ended] == ["None\n"] * 3
    assert sum(err.count("compiling unit.cpp") for _, err in ended) == 1
    assert len(list(tmp_path.rglob("*.so"))) == 1
