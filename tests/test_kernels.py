"""The native unit computes what its reference does, and the reference what PyTorch's own layers do."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from kernel_cases import (
    ARRANGEMENTS,
    CASES,
    PREACT,
    drawn,
    drawn_norms,
    errors,
    gradients,
    made,
    needs_kernels,
    running,
)
from kilolayer.kernels import fusion, reference
from kilolayer.kernels.conv_chain import ConvChain, chain_of_unit
from kilolayer.kernels.native_unit import run_native_unit as whole_unit
from kilolayer.units import (
    BASIC,
    BOTTLENECK,
    FULL_PREACT,
    ONE_LAYER,
    ORIGINAL,
    Arrangement,
    Bottleneck,
    Projection,
    ResidualUnit,
    Unit,
    ZeroPad,
    build_unit,
    layout,
)
from kilolayer.units.batch_norm_module import preserve_running_statistics

BRANCHES = {"basic": BASIC, "bottleneck": BOTTLENECK, "one layer": ONE_LAYER}


def chain(module: nn.Module) -> ConvChain:
    found = chain_of_unit(module)
    assert isinstance(found, ConvChain), found
    return found


def native_unit(chain: ConvChain, x: torch.Tensor) -> torch.Tensor:
    return whole_unit(chain, x, chain.parameters())


@pytest.mark.parametrize("activated", [False, True])
@pytest.mark.parametrize("arrangement", ARRANGEMENTS.values(), ids=ARRANGEMENTS)
@pytest.mark.parametrize("branch", BRANCHES.values(), ids=BRANCHES)
def test_the_reference_is_the_plain_unit(branch, arrangement, activated):
    """In double precision the formulas of every pass are what autograd makes of the layers."""
    channels = 16 * branch.branch.out_channels(1)
    module = made(replace(branch, arrangement=arrangement), channels, activated=activated).double()
    x, dy = (tensor.double() for tensor in drawn(3, channels, 5, 4))
    x.requires_grad_()
    y = module(x)
    expected = gradients(module, y, x, dy)
    with torch.no_grad():
        kept = reference.reference_forward(chain(module), x)
        dx, found = reference.reference_backward(chain(module), kept, dy)
    torch.testing.assert_close(kept.y, y, rtol=1e-10, atol=1e-10)
    for one, other in zip([dx, *(found[p] for p in module.parameters())], expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


TRANSITIONS = {
    "stride 2, to more channels": (BOTTLENECK, 64, 32, 2),
    "stride 3, to fewer": (BOTTLENECK, 96, 16, 3),
    "as behind the stem": (BOTTLENECK, 16, 16, 1),
    "stride on the 3×3": (replace(BOTTLENECK, branch=Bottleneck(stride_on="3x3")), 64, 16, 2),
    "basic": (replace(BASIC, downsample=Projection()), 16, 32, 2),
    "basic, padded": (BASIC, 16, 48, 2),
    "padded, no stride": (BASIC, 32, 64, 1),
    "both read an activation, padded": (replace(BASIC, downsample=ZeroPad("preactivated")), 16, 32, 2),
    "padded, stride 3 on the first 1×1": (replace(BOTTLENECK, downsample=ZeroPad("preactivated")), 32, 16, 3),
    "padded, stride on the 3×3": (
        replace(BOTTLENECK, downsample=ZeroPad(), branch=Bottleneck(stride_on="3x3")),
        32,
        16,
        2,
    ),
}
"""A unit that changes shape, its input channels, width and stride."""


def transition(
    arrangement: Arrangement, place: tuple[Unit, int, int, int], *, activated: bool
) -> ResidualUnit:
    torch.manual_seed(0)
    unit, inputs, width, stride = place
    unit = replace(unit, arrangement=arrangement)
    return drawn_norms(build_unit(layout(unit, inputs, width, stride, activated=activated)))


@pytest.mark.parametrize("activated", [False, True])
@pytest.mark.parametrize("arrangement", ARRANGEMENTS.values(), ids=ARRANGEMENTS)
@pytest.mark.parametrize("place", TRANSITIONS.values(), ids=TRANSITIONS)
def test_the_reference_is_the_plain_transition(place, arrangement, activated):
    module = transition(arrangement, place, activated=activated).double()
    x, _ = (tensor.double() for tensor in drawn(3, place[1], 7, 5))
    x = module.p(x).detach().requires_grad_()
    y = module.f(module.h(x) + module.F(x))
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    own = [parameter for name, parameter in module.named_parameters() if not name.startswith("p.")]
    expected = torch.autograd.grad(y, [x, *own], dy)
    with torch.no_grad():
        kept = reference.reference_forward(chain(module), x)
        dx, found = reference.reference_backward(chain(module), kept, dy)
    torch.testing.assert_close(kept.y, y, rtol=1e-10, atol=1e-10)
    for one, other in zip([dx, *(found[p] for p in own)], expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def passes(
    module: nn.Module, x: torch.Tensor, dy: torch.Tensor, *, native: bool = False
) -> list[torch.Tensor]:
    """F's output, and the gradients of x (without the shortcut's) and of the parameters."""
    last = torch.channels_last
    x = x.to(memory_format=last).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, x.dtype is torch.bfloat16):
        y = native_unit(chain(module), x) if native else module(x)
    dx, *rest = gradients(module, y, x, dy.to(y.dtype).to(memory_format=last))
    if module.f:
        return [y, dx, *rest]
    return [y.double() - x.double(), dx.double() - dy, *rest]


def mean_errors(
    module: nn.Module, *shape: int, of_x: float = 1.0, of_dy: float = 1.0
) -> tuple[list[float], list[float]]:
    """Of autocast and of the kernel against double precision, for every tensor, over many draws.

    Of one draw a ReLU opens here and not there, which is most of the error: the fewer pixels, the more draws.
    """
    images, _, height, width = shape
    double = copy.deepcopy(module).double()
    autocast, kernel = [], []
    for seed in range(min(200, max(4, 2**14 // (images * height * width)))):
        x, dy = drawn(*shape, seed=seed)
        x, dy = (x * of_x).bfloat16(), (dy * of_dy).bfloat16().float()
        exact = passes(double, x.double(), dy.double())
        autocast.append(errors(passes(module, x, dy), exact))
        kernel.append(errors(passes(module, x, dy, native=True), exact))
    mean = [[sum(each) / len(each) for each in zip(*rows, strict=True)] for rows in (autocast, kernel)]
    return mean[0], mean[1]


@needs_kernels
@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("arrangement", ARRANGEMENTS.values(), ids=ARRANGEMENTS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_kernel_is_as_exact_as_autocast(case, arrangement):
    """Against double precision it errs as PyTorch's layers in bf16 do: on average at most a tenth more."""
    unit, channels, (images, height, width) = case
    module = made(replace(unit, arrangement=arrangement), channels)
    autocast, kernel = mean_errors(module, images, channels, height, width)
    assert sum(kernel) <= 1.1 * sum(autocast)
    assert all(found <= 2 * allowed + 2e-3 for found, allowed in zip(kernel, autocast, strict=True))


@needs_kernels
@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("activated", [False, True])
@pytest.mark.parametrize("arrangement", ARRANGEMENTS.values(), ids=ARRANGEMENTS)
@pytest.mark.parametrize("place", TRANSITIONS.values(), ids=TRANSITIONS)
def test_a_unit_that_changes_shape_is_as_exact_as_autocast(place, arrangement, activated):
    """Output, gradients and running averages."""
    plain = transition(arrangement, place, activated=activated)
    double = copy.deepcopy(plain).double()
    whole = copy.deepcopy(plain)
    fusion.fuse_part(whole, "native", None)
    autocast, kernel = [], []
    *_, stride = place
    draws = 2**14 // (4 * -(-20 // stride) * -(-18 // stride))
    for seed in range(draws):
        x, _ = drawn(4, place[1], 20, 18, seed=seed)
        rows = []
        for module, dtype in ((double, torch.float64), (plain, torch.bfloat16), (whole, torch.bfloat16)):
            own = x.to(dtype, memory_format=torch.channels_last).requires_grad_()
            with torch.autocast("cpu", torch.bfloat16, dtype is torch.bfloat16):
                y = module(own)
            dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).bfloat16().to(dtype)
            rows.append([y, *gradients(module, y, own, dy), *running(module)])
        assert "_NativeUnitFunction" in rows[2][0].grad_fn.name()
        autocast.append(errors(rows[1], rows[0]))
        kernel.append(errors(rows[2], rows[0]))
    layers, found = (
        [sum(each) / len(each) for each in zip(*rows, strict=True)] for rows in (autocast, kernel)
    )
    assert sum(found) <= 1.1 * sum(layers)
    assert all(one <= 2 * other + 2e-3 for one, other in zip(found, layers, strict=True))


@needs_kernels
@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("arrangement", ARRANGEMENTS.values(), ids=ARRANGEMENTS)
def test_the_first_unit_reads_its_input_as_it_is(arrangement):
    autocast, kernel = mean_errors(
        made(replace(BASIC, arrangement=arrangement), 32, activated=True), 2, 32, 6, 6
    )
    assert sum(kernel) <= 1.1 * sum(autocast)


MAGNITUDES = {
    "a large x, a small gradient": (1e6, 1e-9, 1.0),
    "a small x, a large gradient": (1e-6, 1e7, 1.0),
    "large weights": (1.0, 1.0, 1e5),
    "small weights": (1.0, 1.0, 1e-5),
    "a gradient at the end of what bf16 holds": (1.0, 1e-36, 1.0),
}


@needs_kernels
@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("activated", [False, True])
@pytest.mark.parametrize("magnitudes", MAGNITUDES.values(), ids=MAGNITUDES)
def test_magnitudes_cost_nothing(magnitudes, activated):
    """Where the kernels multiply in fp16, whose numbers end at 65504, they scale what they multiply."""
    of_x, of_dy, of_weights = magnitudes
    module = made(PREACT, 32, activated=activated)
    with torch.no_grad():
        for conv in module.modules():
            if isinstance(conv, nn.Conv2d):
                conv.weight *= of_weights
    autocast, kernel = mean_errors(module, 2, 32, 9, 9, of_x=of_x, of_dy=of_dy)
    assert all(found <= 2 * allowed + 2e-3 for found, allowed in zip(kernel, autocast, strict=True))


@needs_kernels
@pytest.mark.usefixtures("products")
def test_what_is_no_number_stays_none():
    """A training that diverges shows it."""
    module = made(PREACT, 16)
    x, dy = drawn(2, 16, 6, 6)
    x[1, 3, 2, 2] = float("inf")
    assert not any(found.isfinite().all() for found in passes(module, x.bfloat16(), dy, native=True)[:2])
    x, dy = drawn(2, 16, 6, 6)
    dy[0, 5, 1, 1] = float("nan")
    y, dx, *_ = passes(module, x.bfloat16(), dy, native=True)
    assert y.isfinite().all()
    assert not dx.isfinite().all()


@needs_kernels
def test_weights_in_either_memory_format_give_the_same_bits():
    module = made(replace(BASIC, arrangement=FULL_PREACT), 32)
    x, dy = drawn(2, 32, 6, 6)
    first = passes(module, x.bfloat16(), dy, native=True)
    second = passes(module.to(memory_format=torch.channels_last), x.bfloat16(), dy, native=True)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@needs_kernels
@pytest.mark.parametrize("arrangement", ARRANGEMENTS.values(), ids=ARRANGEMENTS)
def test_running_statistics_follow_as_the_plain_unit_has_them(arrangement):
    module = made(replace(BOTTLENECK, arrangement=arrangement), 64)
    x, _ = drawn(3, 64, 6, 6)
    plain = copy.deepcopy(module).double()
    plain(x.double())
    native_unit(chain(module), x.bfloat16().to(memory_format=torch.channels_last))
    for one, other in zip(running(module), running(plain), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=5e-3, atol=5e-3)
    before = [buffer.clone() for buffer in module.buffers()]
    with preserve_running_statistics(module):
        native_unit(chain(module), x.bfloat16().to(memory_format=torch.channels_last))
    assert all(torch.equal(one, other) for one, other in zip(before, module.buffers(), strict=True))


@needs_kernels
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_number_of_threads_gives_the_same_bits(threads):
    module = made(replace(BOTTLENECK, arrangement=FULL_PREACT), 64)
    x, dy = drawn(5, 64, 8, 8)
    one = passes(module, x.bfloat16(), dy, native=True)
    try:
        torch.set_num_threads(threads)
        runs = [passes(module, x.bfloat16(), dy, native=True) for _ in range(3)]
    finally:
        torch.set_num_threads(1)
    for again in runs:
        assert all(torch.equal(a, b) for a, b in zip(again, runs[0], strict=True))
        assert max(errors(again, one)) < 2e-2


@needs_kernels
def test_the_next_unit_takes_the_sums_that_come_with_its_input():
    module = made(replace(BASIC, arrangement=FULL_PREACT), 16)
    x = drawn(2, 16, 6, 6)[0].bfloat16().to(memory_format=torch.channels_last)
    with torch.no_grad():
        y = native_unit(chain(module), x)
        sums = torch.cat([y.double().sum((0, 2, 3)), y.double().square().sum((0, 2, 3))])
        torch.testing.assert_close(y.channel_sums[0], sums, rtol=1e-2, atol=0.2)
        with_sums, without = native_unit(chain(module), y), native_unit(chain(module), y.clone())
        torch.testing.assert_close(with_sums, without, rtol=2e-2, atol=2e-2)
        y.channel_sums[0].zero_()
        assert not torch.equal(native_unit(chain(module), y), with_sums)
        # Of a tensor that has changed since they say nothing.
        changed = y.add_(1)
        assert torch.equal(native_unit(chain(module), changed), native_unit(chain(module), changed.clone()))


@needs_kernels
def test_a_batch_of_one_pixel_is_refused_as_pytorch_refuses_it():
    module = transition(ORIGINAL, (BOTTLENECK, 64, 32, 2), activated=False)
    fusion.fuse_part(module, "native", None)
    x = torch.randn(1, 64, 2, 2).bfloat16().to(memory_format=torch.channels_last)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ValueError, match="more than 1 value per channel"),
    ):
        module(x)
