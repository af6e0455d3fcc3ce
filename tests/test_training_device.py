"""Where to compute, and the words for where one cannot."""

from __future__ import annotations

import builtins
import io
from typing import Any

import pytest
import torch

from kilolayer.errors import InputError
from kilolayer.kernels import compute_dtype, fusion
from kilolayer.kernels.cpu_features import cpu_flags
from kilolayer.kernels.native_cache import NativeUnavailable
from kilolayer.networks import describe
from kilolayer.training import (
    DistributedContext,
    choose_device,
    choose_precision,
    distributed_context,
)
from tiny_runs import HERE


@pytest.mark.parametrize("gpus", [0, 1, 2])
def test_a_device_is_there_or_refused(gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert choose_device("auto").type == ("cuda" if gpus else "cpu")
    assert choose_device("cpu") == torch.device("cpu")
    for index, name in enumerate(("cuda:0", "cuda:1", "cuda:2")):
        if index < gpus:
            assert choose_device(name).index == index
        else:
            with pytest.raises(InputError, match=f"'{name}' is missing: .*use --device cpu"):
                choose_device(name)


@pytest.mark.parametrize("name", ["", "gpu", "cuda:x", "cuda:-1", "mps", "meta", "cpu0"])
def test_a_device_that_is_none(name: str) -> None:
    with pytest.raises(InputError) as refused:
        choose_device(name)
    assert repr(name) in str(refused.value)
    assert "\n" not in str(refused.value)


def processor(monkeypatch: pytest.MonkeyPatch, flags: str | None) -> None:
    real = builtins.open

    def opened(path: Any, *args: Any, **options: Any) -> Any:
        if path != "/proc/cpuinfo":
            return real(path, *args, **options)
        if flags is None:
            raise FileNotFoundError(path)
        return io.StringIO(f"processor : 0\nflags : {flags}\n")

    monkeypatch.setattr(builtins, "open", opened)


@pytest.fixture
def timed_anew():
    """What is known of the processor comes from what the test says."""

    def forget() -> None:
        for cached in (cpu_flags, compute_dtype.mul_dtype):
            cached.cache_clear()

    forget()
    yield
    forget()


@pytest.mark.usefixtures("timed_anew")
@pytest.mark.parametrize(
    ("flags", "faster", "expected"),
    [
        ("sse avx2", None, "fp32"),
        ("avx2 avx512_bf16", "bf16", "bf16"),
        ("avx2 avx512_bf16", "fp32", "fp32"),
        ("avx2 avx512_bf16", None, "fp32"),
        ("amx_bf16", "fp32", "bf16"),
        ("", None, "fp32"),
        (None, None, "fp32"),
    ],
)
def test_auto_is_bf16_only_where_the_processor_multiplies_it_faster(
    flags: str | None, faster: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`faster` is what timing says; None: there is no compiler to time it with."""
    processor(monkeypatch, flags)

    def timed() -> str:
        if faster is None:
            raise NativeUnavailable("no C++ compiler is installed")
        return faster

    monkeypatch.setattr(compute_dtype, "mul_dtype", timed)
    assert choose_precision("auto", HERE.device) == expected


@pytest.mark.parametrize(
    ("network", "refused", "expected"),
    [
        ("preact_resnet110_cifar", None, "bf16"),
        ("resnext29_8x64d_cifar", None, "fp32"),
        ("preact_resnet110_cifar", "no C++ compiler is installed", "fp32"),
    ],
)
def test_for_what_the_kernels_compute_auto_is_bf16_whatever_the_processor_multiplies(
    network: str, refused: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fusion, "multiplies_bf16_faster", lambda: False)
    monkeypatch.setattr(fusion, "unavailable_reason", lambda place: refused)
    assert choose_precision("auto", HERE.device, describe(network)) == expected


def test_a_precision_that_is_asked_for_is_taken_or_refused() -> None:
    assert [choose_precision(name, HERE.device) for name in ("fp32", "bf16")] == ["fp32", "bf16"]
    with pytest.raises(InputError, match="precision is 'fp16'; allowed: auto, fp32, bf16"):
        choose_precision("fp16", HERE.device)


def test_alone_a_process_leads_and_agrees_with_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with distributed_context("cpu") as here:
        assert here == DistributedContext(torch.device("cpu"), rank=0, world_size=1)
        assert here.is_main
        assert (here.any(True), here.any(False)) == (True, False)
        assert here.all_reduce(torch.tensor([2.0])).tolist() == [2.0]
        assert all(here.is_sync_step(iteration) for iteration in range(10))
