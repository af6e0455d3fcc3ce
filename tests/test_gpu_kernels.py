"""The Triton kernels compute what their formulas say, in Triton's interpreter where there is no GPU.

That they compile for a GPU is tested without one; how fast they are can only be measured there.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d
from torch.nn.grad import conv2d_input, conv2d_weight

from kernel_cases import CASES
from kilolayer import kernels
from kilolayer.errors import InputError
from kilolayer.kernels import reference
from kilolayer.kernels.conv_chain import ConvChain, same_shape_chain
from kilolayer.networks import Network, Stage, Stem, build
from kilolayer.training import choose_kernels
from kilolayer.units import (
    BASIC,
    BOTTLENECK,
    FULL_PREACT,
    ONE_LAYER,
    ORIGINAL,
    BatchNorm,
    ResidualUnit,
    Unit,
    build_unit,
    layout,
)
from kilolayer.units.batch_norm_module import preserve_running_statistics

# Triton 3.6 cannot be interpreted with NumPy 2.4; on a GPU it need not be.
pytest.importorskip("triton", minversion=None if torch.cuda.is_available() else "3.7")
from kilolayer.kernels.gpu import launch, self_check
from kilolayer.kernels.gpu import triton_unit as gpu_unit
from kilolayer.kernels.gpu.triton_bn_relu import triton_bn_relu

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ARRANGEMENTS = {"pre-activated": FULL_PREACT, "original": ORIGINAL}
BRANCHES = {"one layer": ONE_LAYER, "basic": BASIC, "bottleneck": BOTTLENECK}
ODD = [(3, 16, 5, 7), (2, 48, 3, 9), (5, 80, 1, 1)]
_ALL = (0, 2, 3)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) + 0.5
    return x.bfloat16().to(DEVICE, memory_format=torch.channels_last)


def made(unit: Unit, channels: int, *, activated: bool = False) -> ResidualUnit:
    """A unit that keeps its shape, its BNs' parameters drawn at random."""
    torch.manual_seed(0)
    module = build_unit(layout(unit, channels, channels // unit.branch.out_channels(1), activated=activated))
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight, 1.0, 0.3)
            nn.init.normal_(norm.bias, 0.0, 0.3)
    return module.to(DEVICE)


def close(found: Tensor, wanted: Tensor, *, within: float) -> None:
    """In the norm, which no single rounded number decides; NaN never passes."""
    assert found.shape == wanted.shape
    assert ((found.double() - wanted.double()).norm() / wanted.double().norm()).item() < within


def totals(partials: Tensor) -> Tensor:
    return partials.double().sum(0)


def settled(t: Tensor, norm: BatchNorm) -> Tensor:
    return launch.bn_finalize(norm, norm.weight, norm.bias, launch.channel_sums(t), t.numel() // t.shape[1])


def norm_of(channels: int) -> BatchNorm:
    torch.manual_seed(channels)
    norm = BatchNorm(channels).to(DEVICE)
    nn.init.normal_(norm.weight, 1.0, 0.3)
    nn.init.normal_(norm.bias, 0.0, 0.3)
    return norm


EXACT, ROUNDED = 1e-5, 4e-3  # fp32 sums; numbers that were written in bf16


@pytest.mark.parametrize("shape", ODD, ids=str)
def test_statistics_and_running_averages(shape: tuple[int, ...]) -> None:
    t, norm = drawn(*shape), norm_of(shape[1])
    wide = t.double()
    close(
        totals(launch.channel_sums(t)), torch.stack([wide.sum(_ALL), wide.square().sum(_ALL)]), within=EXACT
    )
    plain = copy.deepcopy(norm).double()
    with preserve_running_statistics(norm):
        before = [buffer.clone() for buffer in norm.buffers()]
        settled(t, norm)
        assert all(torch.equal(one, other) for one, other in zip(before, norm.buffers(), strict=True))
    mean, inverse, scale, shift = settled(t, norm)
    plain(wide)
    var = wide.var(_ALL, correction=0)
    close(mean, wide.mean(_ALL), within=EXACT)
    close(inverse, (var + norm.eps).rsqrt(), within=EXACT)
    close(scale, norm.weight * inverse, within=EXACT)
    close(shift, norm.bias - mean * scale, within=EXACT)
    close(norm.running_mean, plain.running_mean, within=EXACT)
    close(norm.running_var, plain.running_var, within=EXACT)


@pytest.mark.parametrize("shape", ODD, ids=str)
def test_passes_over_memory(shape: tuple[int, ...]) -> None:
    """BN-ReLU, its mask with the two sums, BN's gradient, the addition: each against its formula."""
    t, other, norm = drawn(*shape), drawn(*shape, seed=1), norm_of(shape[1])
    measured = settled(t, norm)
    mean, _, scale, shift = (row[:, None, None].double() for row in measured)
    z, x = scale * t.double() + shift, other.double()
    close(launch.bn_relu_forward(t, measured), z.relu(), within=ROUNDED)
    close(launch.bn_relu_forward(t, measured, other), (x + z).relu(), within=ROUNDED)
    for gate, opened in ((None, z > 0), (t, t.double() > 0)):
        g, partials = launch.relu_backward(other, t, measured, gate)
        exact = x * opened
        assert torch.equal(g.double(), exact)
        sums = torch.stack([exact.sum(_ALL), (exact * (t.double() - mean)).sum(_ALL)])
        close(totals(partials), sums, within=1e-4)
        _, unstored = launch.relu_backward(other, t, measured, gate, stored=False)
        assert torch.equal(partials, unstored)
    numbers = torch.randn(3, shape[1], generator=torch.Generator().manual_seed(2)).to(DEVICE)
    alpha, beta, gamma = (row[:, None, None].double() for row in numbers)
    spread = alpha * x + beta * t.double() + gamma
    close(launch.bn_backward(other, t, numbers), spread, within=ROUNDED)
    close(launch.bn_backward(other, t, numbers, residual=t), spread + t.double(), within=ROUNDED)
    masked = alpha * x * (z > 0) + beta * t.double() + gamma
    close(launch.bn_backward(other, t, numbers, statistics=measured), masked, within=ROUNDED)
    total, partials = launch.add_with_sums(t, other)
    assert torch.equal(total, t + other)
    stored = total.double()
    close(totals(partials), torch.stack([stored.sum(_ALL), stored.square().sum(_ALL)]), within=EXACT)


@pytest.mark.parametrize(("outputs", "side"), [(16, 1), (80, 1), (16, 3), (48, 3)])
@pytest.mark.parametrize("shape", ODD[:2], ids=str)
def test_convolutions(shape: tuple[int, ...], outputs: int, side: int) -> None:
    """With every load and every store: forward, the input's gradient, the weights' gradient."""
    t, norm = drawn(*shape), norm_of(shape[1])
    measured = settled(t, norm)
    weight = torch.randn(outputs, shape[1], side, side, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    weight = weight.to(memory_format=torch.channels_last)
    near = weight.bfloat16().double()
    a = launch.bn_relu_forward(t, measured).double()
    out = conv2d(a, near, padding=side // 2)
    residual = drawn(shape[0], outputs, *shape[2:], seed=4)
    for read, wanted in ((launch.bn_relu_load(t, measured), out), (launch.identity_load(a.bfloat16()), out)):
        found, partials = launch.conv_forward(read, weight)
        close(found, wanted, within=ROUNDED)
        stored = found.double()
        close(totals(partials), torch.stack([stored.sum(_ALL), stored.square().sum(_ALL)]), within=1e-4)
        close(launch.conv_forward(read, weight, residual)[0], wanted + residual.double(), within=ROUNDED)

    g, u = drawn(*out.shape, seed=5), drawn(*out.shape, seed=6)
    numbers = torch.randn(3, outputs, generator=torch.Generator().manual_seed(7)).to(DEVICE)
    written = launch.bn_backward(g, u, numbers)
    for read, dt in ((launch.identity_load(g), g), (launch.bn_gradient_load(g, u, numbers), written)):
        exact = conv2d_input(t.shape, near, dt.double(), padding=side // 2)
        close(launch.conv_dgrad(read, weight)[0], exact, within=ROUNDED)
        both = launch.conv_dgrad(read, weight, residual=t)[0]
        close(both, exact + t.double(), within=ROUNDED)
        opened = measured[2][:, None, None] * t.float() + measured[3][:, None, None] > 0
        found, partials = launch.conv_dgrad(read, weight, t, measured)
        close(found, exact * opened, within=ROUNDED)
        stored = found.double()
        mean = measured[0][:, None, None].double()
        sums = torch.stack([stored.sum(_ALL), (stored * (t.double() - mean)).sum(_ALL)])
        close(totals(partials), sums, within=1e-4)
        dweight = launch.conv_wgrad(read, launch.bn_relu_load(t, measured), weight)
        assert dweight.stride() == weight.stride()
        close(dweight, conv2d_weight(a, weight.shape, dt.double(), padding=side // 2), within=EXACT)


@pytest.fixture(params=["triton", "cudnn"])
def three_by_three(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(gpu_unit, "CONV3X3_BACKEND", request.param)
    return str(request.param)


def as_exact_as_autocast(module: ResidualUnit, *shape: int) -> None:
    found = self_check.relative_errors(module, shape)
    assert not self_check.exceeds_tolerance(*found), found


@pytest.mark.usefixtures("three_by_three")
@pytest.mark.parametrize("activated", [False, True])
@pytest.mark.parametrize("arrangement", ARRANGEMENTS.values(), ids=ARRANGEMENTS)
@pytest.mark.parametrize("branch", BRANCHES.values(), ids=BRANCHES)
def test_a_unit_is_as_exact_as_autocast(branch: Unit, arrangement: object, activated: bool) -> None:
    """Against double precision it errs as PyTorch's layers in bf16 do: on average at most a quarter more."""
    module = made(
        replace(branch, arrangement=arrangement), 16 * branch.branch.out_channels(1), activated=activated
    )
    as_exact_as_autocast(module, 3, 5, 4)


@pytest.mark.slow
@pytest.mark.usefixtures("three_by_three")
@pytest.mark.parametrize("arrangement", ARRANGEMENTS.values(), ids=ARRANGEMENTS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_units_of_every_shape_are_as_exact_as_autocast(case: tuple, arrangement: object) -> None:
    unit, channels, shape = case
    as_exact_as_autocast(made(replace(unit, arrangement=arrangement), channels), *shape)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS.values(), ids=ARRANGEMENTS)
def test_the_unit_takes_the_steps_of_the_reference(arrangement: object) -> None:
    """It errs from `reference` in double precision as PyTorch's layers in bf16 do."""
    module = made(replace(BOTTLENECK, arrangement=arrangement), 64)
    x, dy = drawn(3, 64, 5, 4).requires_grad_(), drawn(3, 64, 5, 4, seed=1)
    exact = copy.deepcopy(module).double()
    with torch.no_grad():
        kept = reference.reference_forward(chain(exact), x.double())
        dx, gradients = reference.reference_backward(chain(exact), kept, dy.double())
    wanted = [kept.y, dx, *(gradients[parameter] for parameter in exact.parameters())]
    found = []
    for forward in (lambda: plain(module, x), lambda: fused(module, x)):
        y = forward()
        each = [y, *torch.autograd.grad(y, [x, *module.parameters()], dy)]
        found.append([self_check.relative_error(*pair) for pair in zip(each, wanted, strict=True)])
    assert not self_check.exceeds_tolerance(*found), found


def plain(module: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast(DEVICE.type, torch.bfloat16, cache_enabled=False):
        return module(x)


def chain(module: nn.Module) -> ConvChain:
    found = same_shape_chain(module)
    assert isinstance(found, ConvChain), found
    return found


def fused(module: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast(DEVICE.type, torch.bfloat16, cache_enabled=False):
        return gpu_unit.run_triton_unit(chain(module), x, chain(module).parameters())


def test_the_same_bits_from_call_to_call() -> None:
    module = made(replace(BASIC, arrangement=FULL_PREACT), 16)
    x, dy = drawn(3, 16, 8, 8).requires_grad_(), drawn(3, 16, 8, 8, seed=1)

    def once() -> list[Tensor]:
        y = fused(module, x)
        return [y, *torch.autograd.grad(y, [x, *module.parameters()], dy)]

    assert all(torch.equal(one, other) for one, other in zip(once(), once(), strict=True))


def test_the_next_unit_takes_the_sums_that_come_with_its_input() -> None:
    module = made(replace(BASIC, arrangement=FULL_PREACT), 16)
    with torch.no_grad():
        y = fused(module, drawn(2, 16, 6, 6))
        assert torch.equal(fused(module, y), fused(module, y.clone()))
        y.channel_sums[0].zero_()
        assert not torch.equal(fused(module, y), fused(module, y.clone()))
        changed = y.add_(1)
        assert torch.equal(fused(module, changed), fused(module, changed.clone()))


@pytest.mark.parametrize("shape", [(2, 16, 8, 8), (3, 48, 5, 9)], ids=str)
def test_an_activation_alone(shape: tuple[int, ...]) -> None:
    norm, x, dy = norm_of(shape[1]), drawn(*shape).requires_grad_(), drawn(*shape, seed=1)
    exact, wide = copy.deepcopy(norm).double(), x.detach().double().requires_grad_()
    y = triton_bn_relu(norm, x)
    wanted = exact(wide).relu()
    close(y, wanted, within=ROUNDED)
    found = torch.autograd.grad(y, [x, norm.weight, norm.bias], dy)
    other = torch.autograd.grad(wanted, [wide, exact.weight, exact.bias], dy.double())
    for one, two in zip(found, other, strict=True):
        close(one, two, within=5e-3)
    for one, two in zip(norm.buffers(), exact.buffers(), strict=True):
        close(one, two, within=1e-4)


PREACT = replace(BASIC, arrangement=FULL_PREACT)
NETWORK = Network(Stem(16), (Stage(2, 16), Stage(2, 32, 2)), PREACT, image_size=4)


def fresh() -> nn.Module:
    torch.manual_seed(0)
    return build(NETWORK).to(DEVICE, memory_format=torch.channels_last)


def trained(model: nn.Module) -> list[Tensor]:
    x = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    with torch.autocast(DEVICE.type, torch.bfloat16, cache_enabled=False):
        y = model(x.to(memory_format=torch.channels_last))
    y.float().square().sum().backward()
    return [y.detach(), *(p.grad for p in model.parameters()), *model.buffers()]


def test_a_network_on_the_fast_path_of_a_gpu() -> None:
    """Same modules, another forward; recomputation changes no bit; the logits are near the layers'."""
    whole, saving, plain = fresh(), fresh(), fresh()
    for model in (whole, saving):
        found = kernels.fuse(model, "triton")
        assert found.fused_units == 3
    assert str(found) == (
        "stem: BN and ReLU in Triton kernels; stage1.0 … stage1.1: whole unit in Triton kernels; "
        "stage2.0: BN and ReLU in Triton kernels, its shortcut is not the identity; "
        "stage2.1: whole unit in Triton kernels; final: BN and ReLU in Triton kernels"
    )
    saving.set_grad_checkpointing()
    figures = trained(whole)
    assert all(torch.equal(a, b) for a, b in zip(figures, trained(saving), strict=True))
    logits, *_ = trained(plain)
    assert not torch.equal(figures[0], logits)
    close(figures[0], logits, within=0.05)
    kernels.unfuse(whole)
    assert type(whole.stage1[0]) is ResidualUnit


def test_the_check_at_the_start_finds_a_kernel_that_errs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh()
    kernels.fuse(model, "triton")
    before = copy.deepcopy(model.state_dict())
    assert self_check.check_units(model) == ["stage1.0", "stage1.1", "stage2.1"]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    whole = launch.bn_backward
    monkeypatch.setattr(launch, "bn_backward", lambda *args, **options: 1.2 * whole(*args, **options))
    with pytest.raises(InputError, match=r"Triton kernels err in stage1\.\d more than .*use --kernels plain"):
        self_check.check_units(model)


def test_where_there_is_no_gpu_the_choice_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    cpu = torch.device("cpu")
    assert kernels.unavailable_reason(cpu, "triton") == "Triton's kernels are for a GPU"
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    why = "the GPU does not multiply bf16: compute capability 7.5, needed 8.0"
    assert kernels.unavailable_reason(gpu) == why
    with pytest.raises(InputError, match=f"no fused kernels here: {why}; use --kernels plain"):
        choose_kernels("fused", gpu, "bf16", channels_last=True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert kernels.unavailable_reason(gpu) is None
    assert choose_kernels("fused", gpu, "bf16", channels_last=True) == "fused"
    # Until it has been measured there.
    assert choose_kernels("auto", gpu, "bf16", channels_last=True) == "plain"


@pytest.mark.slow
def test_every_kernel_compiles_for_a_gpu_without_one() -> None:
    """Into machine code of compute capability 8.0 and 9.0, with matrix instructions."""
    env = {**os.environ, "TRITON_INTERPRET": "0"}
    for capability in ("80", "90"):
        command = [sys.executable, str(Path(__file__).parent / "compile_for_gpu.py"), capability]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        compiled = done.stdout.split()
        assert {
            "conv_kernel",
            "wgrad_kernel",
            "channel_sums_kernel",
            "bn_finalize_kernel",
            "bn_backward_finalize_kernel",
            "split_reduction_kernel",
        } <= set(compiled)
        assert {"bn_relu_kernel", "relu_backward_kernel", "bn_backward_kernel", "add_kernel"} <= set(compiled)
