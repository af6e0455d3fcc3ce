"""A network whose units are fused is the network that it was, and says what was chosen."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

from kernel_cases import ARRANGEMENTS, PREACT, fresh, needs_kernels
from kilolayer import kernels
from kilolayer.kernels import fused_unit, fusion, native_conv
from kilolayer.kernels.bn_relu import FusedSequence
from kilolayer.kernels.conv_chain import ConvChain
from kilolayer.kernels.fused_unit import FusedUnit
from kilolayer.kernels.native_conv import NativeConv
from kilolayer.kernels.native_unit import run_native_unit as whole_unit
from kilolayer.kernels.upcast_conv import UpcastConv
from kilolayer.networks import describe
from kilolayer.units import BASIC, BOTTLENECK, Basic


def trained(model: nn.Module) -> list[torch.Tensor]:
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        y = model(x.to(memory_format=torch.channels_last))
    y.float().square().sum().backward()
    return [y.detach(), *(p.grad for p in model.parameters()), *model.buffers()]


@needs_kernels
@pytest.mark.parametrize("unit", [BASIC, BOTTLENECK], ids=["basic", "bottleneck"])
@pytest.mark.parametrize("arrangement", ARRANGEMENTS.values(), ids=ARRANGEMENTS)
def test_recomputation_changes_no_bit(arrangement, unit):
    plain, saving = (fresh(replace(unit, arrangement=arrangement)) for _ in range(2))
    for model in (plain, saving):
        assert kernels.fuse(model).fused_units == 4
    saving.set_grad_checkpointing()
    for one, other in zip(trained(plain), trained(saving), strict=True):
        assert torch.equal(one, other)


@needs_kernels
def test_a_fused_network_is_the_network_that_it_was():
    model = fresh(PREACT)
    before, names = model.state_dict(), [name for name, _ in model.named_modules()]
    assert str(kernels.fuse(model)) == (
        "stem: BN and ReLU in one kernel; stage1.0 … stage1.1: whole unit in one kernel; "
        "stage2.0 … stage2.1: whole unit in one kernel; final: BN and ReLU in one kernel"
    )
    assert model.state_dict().keys() == before.keys()
    assert [name for name, _ in model.named_modules()] == names
    figures = trained(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301 - our own bytes
        other.load_state_dict(fresh(PREACT).state_dict())
        other.zero_grad()
        assert isinstance(other.stage1[0], FusedUnit)
        assert all(torch.equal(a, b) for a, b in zip(trained(other), figures, strict=True))
    kernels.unfuse(model)
    assert not any(isinstance(module, FusedUnit | FusedSequence) for module in model.modules())


def used(monkeypatch: pytest.MonkeyPatch, model: nn.Module, x: torch.Tensor, *, autocast: bool = True) -> int:
    """How many units went through the kernel."""
    calls = []

    def counted(chain: ConvChain, x: torch.Tensor, parameters: list[torch.Tensor]) -> torch.Tensor:
        calls.append(chain)
        return whole_unit(chain, x, parameters)

    monkeypatch.setattr(fused_unit, "run_native_unit", counted)
    with torch.autocast("cpu", torch.bfloat16, autocast, cache_enabled=False):
        model(x)
    return len(calls)


@needs_kernels
def test_where_a_kernel_does_not_apply_the_layers_do(monkeypatch):
    model = fresh(PREACT)
    assert kernels.fuse(model).fused_units == 4
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    assert used(monkeypatch, model, x) == 4
    assert used(monkeypatch, model, x, autocast=False) == 0
    assert used(monkeypatch, model.eval(), x) == 0
    model.train()
    handle = model.stage1[0].F.conv1.register_forward_hook(lambda *_: None)
    assert used(monkeypatch, model, x) == 3
    handle.remove()
    assert used(monkeypatch, model.bfloat16(), x.bfloat16()) == 0


@needs_kernels
@pytest.mark.parametrize("products", ["bf16", "fp16"])
def test_what_stands_outside_of_units_is_computed_single_or_upcast(products, monkeypatch):
    monkeypatch.setattr(native_conv, "mul_dtype", lambda: products)
    monkeypatch.setattr(UpcastConv, "is_faster", lambda conv: True)
    model = fresh(replace(PREACT, branch=Basic(dropout=0.5)))
    assert kernels.fuse(model).fused_units == 0
    single, upcast = (
        [name for name, module in model.named_modules() if type(module) is kind]
        for kind in (NativeConv, UpcastConv)
    )
    units = [name for name, module in model.named_modules() if "F.conv" in name]
    own = units if products == "fp16" else []
    assert len(units) == 8
    assert single == own
    assert sorted(upcast) == sorted({"stem.conv1", *units} - set(own))
    trained(model)
    kernels.unfuse(model)
    assert not any(type(module) in (NativeConv, UpcastConv) for module in model.modules())


def test_the_share_that_kernels_compute():
    assert fusion.fused_share(describe("preact_resnet1001_cifar")) > 0.9
    assert fusion.fused_share(describe("resnext29_8x64d_cifar")) == 0
