"""Where the kernels cannot be built, or are built by many at once."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import tempfile

import pytest
import torch

from kernel_cases import needs_kernels
from kilolayer import kernels
from kilolayer.errors import InputError
from kilolayer.kernels import compute_dtype, cpu_features, native_build, native_cache, native_library
from kilolayer.networks import build, describe
from kilolayer.system import folders
from kilolayer.training import choose_kernels
from kilolayer.training.decisions import explain_decisions
from tiny_library import TINY, compiler, has_ended, needs_compiler, use_tiny_source
from tiny_runs import tiny, training_of

CPU = torch.device("cpu")


@pytest.fixture
def forgetful():
    """Nothing known of the library from before, and nothing kept of what the test pretends."""

    def forget():
        compute_dtype._load_unit_library.cache_clear()
        compute_dtype._load_probe.cache_clear()
        compute_dtype.mul_dtype.cache_clear()
        cpu_features.cpu_flags.cache_clear()
        native_library.load_native_library.cache_clear()
        native_cache.warn.cache_clear()
        native_build._unusable.clear()

    forget()
    yield
    forget()


def says(caplog: pytest.LogCaptureFixture, reason: str) -> None:
    """The network stays plain, --kernels auto is plain, fused is refused, and one line is logged."""
    caplog.set_level(logging.INFO, logger="kilolayer")
    found = kernels.fuse(build(describe("preact_resnet20_cifar")))
    assert found.fused_units == 0
    assert re.search(reason, str(found))
    assert choose_kernels("auto", CPU, "bf16", channels_last=True) == "plain"
    with pytest.raises(InputError, match=f"(?s)no fused kernels here: .*{reason}.*--kernels plain"):
        choose_kernels("fused", CPU, "bf16", channels_last=True)
    lines = [record for record in caplog.records if record.name == compute_dtype.__name__]
    assert len([line for line in lines if "no native kernels" in line.getMessage()]) == 1


@pytest.mark.usefixtures("forgetful")
class TestMissing:
    def test_switched_off(self, monkeypatch, caplog):
        monkeypatch.setenv("KILOLAYER_NATIVE", "0")
        says(caplog, "KILOLAYER_NATIVE is 0")
        why = explain_decisions(training_of(tiny()))["kernels"]
        assert why == "plain layers, without kernels: KILOLAYER_NATIVE is 0"

    def test_what_switches_nothing_is_refused(self, monkeypatch):
        monkeypatch.setenv("KILOLAYER_NATIVE", "no")
        with pytest.raises(InputError, match="KILOLAYER_NATIVE is 'no' in the environment; allowed: 0, 1"):
            kernels.unavailable_reason()

    def test_instructions(self, monkeypatch, caplog):
        monkeypatch.setattr(compute_dtype, "cpu_flags", lambda: frozenset({"avx512f"}))
        monkeypatch.setattr(compute_dtype.sys, "platform", "linux")
        monkeypatch.setattr(compute_dtype.platform, "machine", lambda: "x86_64")
        says(caplog, "the processor has no .*avx512bw")

    def test_other_systems(self, monkeypatch, caplog):
        monkeypatch.setattr(compute_dtype.platform, "machine", lambda: "arm64")
        says(caplog, "on arm64")

    def test_compiler(self, monkeypatch, caplog):
        self.able(monkeypatch)
        monkeypatch.setattr(native_build.shutil, "which", lambda name: None)
        says(caplog, "no C.. compiler is installed")

    def test_the_compiler_that_was_asked_for(self, monkeypatch, caplog):
        """Another one would not be what was asked for."""
        self.able(monkeypatch)
        monkeypatch.setenv("CXX", "ccache no-such-g++")
        monkeypatch.setattr(native_build.shutil, "which", lambda name: None if name == "ccache" else name)
        says(caplog, "CXX is 'ccache no-such-g..', and 'ccache' is not installed")

    def test_broken_compiler(self, monkeypatch, caplog, tmp_path):
        self.able(monkeypatch)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        broken = tmp_path / "g++"
        broken.write_text(
            '#!/bin/sh\n[ "$1" = --version ] && exec echo 1\necho "error: no such flag" >&2\nexit 1\n'
        )
        broken.chmod(0o755)
        monkeypatch.setenv("CXX", f"env {broken}")
        says(caplog, "cannot compile .*cpp .*: error: no such flag; set .CXX")
        assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["g++", ".lock"]

    def test_cache_that_cannot_be_written(self, monkeypatch, caplog, tmp_path):
        self.able(monkeypatch)
        (tmp_path / "kilolayer").write_text("a file where the folder should be")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setenv("HOME", "/proc/nonexistent")
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
        says(caplog, "no folder for compiled kernels can be used")
        # Of the two libraries that are asked for.
        assert len([one for one in caplog.records if one.levelname == "WARNING"]) == 1

    @needs_compiler
    def test_a_full_cache_leads_to_the_next_folder(self, monkeypatch, tmp_path):
        self.able(monkeypatch)
        (tmp_path / "tmp").mkdir()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))

        full = f'case "$*" in *{tmp_path}/cache*) echo "error: No space left on device" >&2; exit 1; esac'
        monkeypatch.setenv("CXX", compiler(tmp_path / "c++", full))
        use_tiny_source(monkeypatch, tmp_path / "source")
        assert native_build.load_library(TINY).answer() == 42
        (library,) = tmp_path.rglob("*.so")
        assert library.is_relative_to(tmp_path / f"tmp/kilolayer-{os.getuid()}/native")

    def test_a_compiler_speaks_utf_8_whatever_the_locale(self, monkeypatch, tmp_path):
        compiler = tmp_path / "g++"
        compiler.write_bytes(b"#!/bin/sh\nprintf 'error: \\342\\200\\230x\\377' >&2\nexit 1\n")
        compiler.chmod(0o755)
        monkeypatch.setattr("locale.getencoding", lambda: "ascii", raising=False)
        with pytest.raises(native_build.CommandFailed, match="error: ‘x�"):
            native_build._run([[str(compiler)]], 60)

    def test_compiler_with_an_open_quote(self, monkeypatch, caplog):
        self.able(monkeypatch)
        monkeypatch.setenv("CXX", 'g++ "-O2')
        says(caplog, "CXX is .*, which is not a command .No closing quotation")

    @needs_compiler
    def test_without_a_cache_it_is_compiled_into_a_private_folder(self, monkeypatch, tmp_path):
        self.able(monkeypatch)
        use_tiny_source(monkeypatch, tmp_path / "source")
        monkeypatch.setenv("HOME", "/proc/nonexistent")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        assert native_build.load_library(TINY).answer() == 42
        (library,) = tmp_path.rglob("*.so")
        assert library.is_relative_to(tmp_path / f"kilolayer-{os.getuid()}" / "native")
        monkeypatch.setattr(native_build, "_compile", lambda *_: pytest.fail("it is there already"))
        assert native_build.load_library(TINY).answer() == 42

    @needs_compiler
    def test_a_cache_that_can_only_be_read_serves(self, monkeypatch, tmp_path):
        self.able(monkeypatch)
        use_tiny_source(monkeypatch, tmp_path / "source")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert native_build.load_library(TINY).answer() == 42
        monkeypatch.setattr(
            folders, "make_trusted_folder", lambda path: pytest.fail(f"{path} was to be written")
        )
        assert native_build.load_library(TINY).answer() == 42

    @staticmethod
    def able(monkeypatch):
        monkeypatch.setattr(compute_dtype, "_check_processor", lambda: None)
        monkeypatch.setattr(native_build, "_version", lambda compiler: "1")


@pytest.mark.usefixtures("forgetful")
class TestProducts:
    """In which arithmetic the kernels multiply."""

    def test_without_bf16_instructions_fp32(self, monkeypatch):
        monkeypatch.setattr(compute_dtype, "cpu_flags", lambda: frozenset(compute_dtype.REQUIRED_CPU_FLAGS))
        monkeypatch.setattr(compute_dtype, "load_cached", lambda *_: pytest.fail("there is nothing to time"))
        assert compute_dtype.mul_dtype() == "fp32"

    def test_asked_for(self, monkeypatch):
        monkeypatch.setattr(
            compute_dtype, "cpu_flags", lambda: frozenset({*compute_dtype.REQUIRED_CPU_FLAGS, "avx512_bf16"})
        )
        monkeypatch.setenv("KILOLAYER_PRODUCTS", "bf16")
        assert compute_dtype.mul_dtype() == "bf16"

    def test_asked_for_what_there_is_not(self, monkeypatch):
        monkeypatch.setattr(compute_dtype, "cpu_flags", lambda: frozenset(compute_dtype.REQUIRED_CPU_FLAGS))
        monkeypatch.setenv("KILOLAYER_PRODUCTS", "bf16")
        with pytest.raises(InputError, match="KILOLAYER_PRODUCTS is 'bf16'; allowed here: fp32"):
            compute_dtype.mul_dtype()

    @pytest.fixture
    def choice(self, monkeypatch, tmp_path):
        """The file that notes it, on a processor with each of them and a probe that need not be compiled."""
        monkeypatch.setattr(compute_dtype, "cpu_flags", lambda: frozenset({"avx512_bf16", "avx512_fp16"}))
        monkeypatch.setattr(compute_dtype, "_load_probe", lambda: None)
        monkeypatch.setattr(compute_dtype, "cache_key", lambda _: "probe-1")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        return tmp_path / "kilolayer/native/probe-1.products"

    def test_the_choice_is_noted_beside_the_libraries(self, monkeypatch, choice):
        """And holds for every process from then on, whatever a second timing would say."""
        for fastest in ("bf16", "fp16"):
            monkeypatch.setattr(compute_dtype, "peak_multiply_adds", lambda name, f=fastest: float(name == f))
            compute_dtype.mul_dtype.cache_clear()
            assert compute_dtype.mul_dtype() == "bf16"

    @pytest.mark.parametrize("fastest", ["fp32", "bf16", "fp16"])
    @pytest.mark.parametrize("before", [None, b"", b"bf16", b"fp1", b"\xff"], ids=repr)
    def test_what_is_multiplied_fastest_is_taken_and_noted(self, before, fastest, monkeypatch, choice):
        """In place of a note that is damaged too."""
        if before is not None:
            choice.parent.mkdir(parents=True)
            choice.write_bytes(before)
        monkeypatch.setattr(compute_dtype, "peak_multiply_adds", lambda name: 2.0 if name == fastest else 1.0)
        assert compute_dtype.mul_dtype() == fastest
        assert choice.read_text().startswith(f"{fastest}\nsha256 ")


def test_a_compiler_that_is_ended_takes_with_it_what_it_has_started(tmp_path):
    note = tmp_path / "child"
    driver = ["sh", "-c", f"sleep 100 & echo $! > {note}.new; mv {note}.new {note}; wait"]
    fails = ["sh", "-c", f"while [ ! -e {note} ]; do sleep 0.01; done; echo error: none >&2; exit 1"]
    with pytest.raises(native_build.CommandFailed, match="error: none"):
        native_build._run([fails, driver], 60)
    assert has_ended(int(note.read_text()))


@needs_kernels
def test_the_processor_multiplies_in_nothing_it_has_no_instruction_for():
    assert compute_dtype.peak_multiply_adds("fp32") > 0
    assert compute_dtype.peak_multiply_adds("fp32", threads=2) > 0
    for name in ("bf16", "fp16"):
        if f"avx512_{name}" not in compute_dtype.cpu_flags():
            assert compute_dtype.peak_multiply_adds(name) == 0


def test_kernels_are_chosen_only_where_they_apply():
    for name in ("auto", "plain"):
        assert choose_kernels(name, CPU, "fp32", channels_last=False) == "plain"
        assert choose_kernels(name, torch.device("cuda"), "bf16", channels_last=True) == "plain"
        assert choose_kernels(name, CPU, "bf16", channels_last=True, is_compiled=True) == "plain"
    with pytest.raises(InputError, match="bf16 with channels last"):
        choose_kernels("fused", CPU, "fp32", channels_last=True)
    with pytest.raises(InputError, match="kernels is 'fast'; allowed: auto, plain, fused"):
        choose_kernels("fast", CPU, "bf16", channels_last=True)


@pytest.mark.slow
@needs_kernels
def test_of_many_processes_one_compiles(tmp_path):
    """All of them get the library, and only one of them says that it compiles."""
    code = (
        "import logging; logging.basicConfig(level=logging.INFO, format='%(message)s');"
        "from kilolayer import kernels; print(kernels.unavailable_reason())"
    )
    # The folder of temporary files may hold a library that an earlier start compiled.
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(3)
    ]
    ended = [process.communicate(timeout=200) for process in started]
    assert [out for out, _ in ended] == ["None\n"] * 3
    assert sum(err.count("compiling native kernels") for _, err in ended) == 1
    assert len(list(tmp_path.rglob("unit-*.so"))) == 1
