"""The native unit computes what its reference does, and the reference what PyTorch's own layers do."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

from kernel_cases import CASES
from kilolayer import kernels
from kilolayer.kernels import arithmetic, convolution, fused, library, patches, reference
from kilolayer.kernels import chain as chains
from kilolayer.kernels.activation import FusedSequence
from kilolayer.kernels.chain import Chain, chain_of, transition_of
from kilolayer.kernels.convolution import NativeConv
from kilolayer.kernels.fused import FusedUnit
from kilolayer.kernels.patches import PatchConv
from kilolayer.kernels.unit import unit as whole_unit
from kilolayer.kernels.widened import WidenedConv
from kilolayer.networks import Network, Stage, Stem, build, describe
from kilolayer.units import (
    BASIC,
    BN_AFTER_ADDITION,
    BOTTLENECK,
    FULL_PREACT,
    ONE_LAYER,
    ORIGINAL,
    RELU_BEFORE_ADDITION,
    RELU_ONLY_PREACT,
    Aggregated,
    Arrangement,
    Basic,
    BatchNorm,
    Bottleneck,
    Projection,
    ResidualUnit,
    Scaled,
    ShortcutGate,
    Unit,
    ZeroPad,
    build_unit,
    layout,
)
from kilolayer.units.modules import running_statistics_kept

needs_kernels = pytest.mark.skipif(kernels.refusal() is not None, reason=str(kernels.refusal()))

BRANCHES = {"basic": BASIC, "bottleneck": BOTTLENECK, "one layer": ONE_LAYER}
PREACT = replace(BASIC, arrangement=FULL_PREACT)
ARRANGEMENTS = {"pre-activated": FULL_PREACT, "original": ORIGINAL}


def made(unit: Unit, channels: int, *, activated: bool = False) -> ResidualUnit:
    """A unit that keeps its shape, its BNs' parameters drawn at random."""
    torch.manual_seed(0)
    width = channels // unit.branch.out_channels(1)
    return drawn_norms(build_unit(layout(unit, channels, width, activated=activated)))


def drawn_norms(module: ResidualUnit) -> ResidualUnit:
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight, 1.0, 0.3)
            nn.init.normal_(norm.bias, 0.0, 0.3)
    return module


def chain(module: nn.Module) -> Chain:
    found = transition_of(module) if len(module.h) else chain_of(module)
    assert isinstance(found, Chain), found
    return found


def native_unit(chain: Chain, x: torch.Tensor) -> torch.Tensor:
    return whole_unit(chain, x, chain.parameters())


def drawn(*shape: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """x and the gradient of x', each a number that bf16 holds."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator).bfloat16().float() for _ in range(2))


def gradients(module: nn.Module, y: torch.Tensor, x: torch.Tensor, dy: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(y, [x, *module.parameters()], dy))


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
        kept = reference.forward(chain(module), x)
        dx, found = reference.backward(chain(module), kept, dy)
    torch.testing.assert_close(kept.y, y, rtol=1e-10, atol=1e-10)
    for one, other in zip([dx, *(found[p] for p in module.parameters())], expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


TRANSITIONS = {
    "stride 2, to more channels": (BOTTLENECK, 64, 32, 2),
    "stride 3, to fewer": (BOTTLENECK, 96, 16, 3),
    "as behind the stem": (BOTTLENECK, 16, 16, 1),
    "stride on the 3×3": (replace(BOTTLENECK, branch=Bottleneck(stride_on="3x3")), 64, 16, 2),
    "basic": (replace(BASIC, resize=Projection()), 16, 32, 2),
    "basic, padded": (BASIC, 16, 48, 2),
    "padded, no stride": (BASIC, 32, 64, 1),
    "both read an activation, padded": (replace(BASIC, resize=ZeroPad("preactivated")), 16, 32, 2),
    "padded, stride 3 on the first 1×1": (replace(BOTTLENECK, resize=ZeroPad("preactivated")), 32, 16, 3),
    "padded, stride on the 3×3": (
        replace(BOTTLENECK, resize=ZeroPad(), branch=Bottleneck(stride_on="3x3")),
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
        kept = reference.forward(chain(module), x)
        dx, found = reference.backward(chain(module), kept, dy)
    torch.testing.assert_close(kept.y, y, rtol=1e-10, atol=1e-10)
    for one, other in zip([dx, *(found[p] for p in own)], expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def errors(found: list[torch.Tensor], exact: list[torch.Tensor]) -> list[float]:
    pairs = zip(found, exact, strict=True)
    return [((one.double() - other).norm() / other.norm()).item() for one, other in pairs]


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


@pytest.fixture(
    params=["fastest", *(pytest.param(name, marks=pytest.mark.slow) for name in arithmetic.PRODUCTS)]
)
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """The arithmetic that the kernels multiply in: this processor's fastest, and each of them."""

    def forget() -> None:
        for cached in (arithmetic.products, arithmetic._unit_library, library.native):
            cached.cache_clear()

    if request.param != "fastest":
        monkeypatch.setenv("KILOLAYER_PRODUCTS", request.param)
        forget()
        if why := kernels.refusal():
            pytest.skip(why)
    yield
    if request.param != "fastest":
        monkeypatch.undo()
        forget()


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
    fused.fuse_part(whole, "native", None)
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
            rows.append([y, *gradients(module, y, own, dy), *module.buffers()])
        assert "_Unit" in rows[2][0].grad_fn.name()
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
    for one, other in zip(module.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=5e-3, atol=5e-3)
    before = [buffer.clone() for buffer in module.buffers()]
    with running_statistics_kept(module):
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
@pytest.mark.parametrize("shape", [(2, 16, 8, 8), (3, 48, 5, 9), (1, 256, 7, 7)], ids=str)
def test_an_activation_alone_is_as_exact_as_autocast(shape):
    """BN and ReLU in one operation: output, gradients and running averages."""
    plain = nn.Sequential(BatchNorm(shape[1]), nn.ReLU())
    nn.init.normal_(plain[0].weight, generator=torch.Generator().manual_seed(3))
    nn.init.normal_(plain[0].bias, generator=torch.Generator().manual_seed(4))
    exact, single = copy.deepcopy(plain).double(), copy.deepcopy(plain)
    single.__class__ = FusedSequence
    x, dy = drawn(*shape)

    def passed(module: nn.Module, dtype: torch.dtype) -> list[torch.Tensor]:
        own = x.to(dtype, memory_format=torch.channels_last).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, dtype is torch.bfloat16):
            y = module(own)
        return [y, *gradients(module, y, own, dy.to(dtype)), *module.buffers()]

    wanted = passed(exact, torch.float64)
    autocast = errors(passed(plain, torch.bfloat16), wanted)
    found = passed(single, torch.bfloat16)
    assert "_Activation" in found[0].grad_fn.name()
    assert all(a <= 1.25 * b + 1e-3 for a, b in zip(errors(found, wanted), autocast, strict=True))


def network(unit: Unit, units: int = 2) -> Network:
    return Network(Stem(16), (Stage(units, 16), Stage(units, 32, 2)), unit, image_size=8)


def trained(model: nn.Module) -> list[torch.Tensor]:
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        y = model(x.to(memory_format=torch.channels_last))
    y.float().square().sum().backward()
    return [y.detach(), *(p.grad for p in model.parameters()), *model.buffers()]


def fresh(unit: Unit) -> nn.Module:
    torch.manual_seed(0)
    return build(network(unit)).to(memory_format=torch.channels_last)


@needs_kernels
@pytest.mark.parametrize("unit", [BASIC, BOTTLENECK], ids=["basic", "bottleneck"])
@pytest.mark.parametrize("arrangement", ARRANGEMENTS.values(), ids=ARRANGEMENTS)
def test_recomputation_changes_no_bit(arrangement, unit):
    plain, saving = (fresh(replace(unit, arrangement=arrangement)) for _ in range(2))
    for model in (plain, saving):
        assert kernels.fuse(model).fused == 4
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

    def counted(chain: Chain, x: torch.Tensor, parameters: list[torch.Tensor]) -> torch.Tensor:
        calls.append(chain)
        return whole_unit(chain, x, parameters)

    monkeypatch.setattr(fused, "unit", counted)
    with torch.autocast("cpu", torch.bfloat16, autocast, cache_enabled=False):
        model(x)
    return len(calls)


@needs_kernels
def test_where_a_kernel_does_not_apply_the_layers_do(monkeypatch):
    model = fresh(PREACT)
    assert kernels.fuse(model).fused == 4
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
def test_a_batch_of_one_pixel_is_refused_as_pytorch_refuses_it():
    module = transition(ORIGINAL, (BOTTLENECK, 64, 32, 2), activated=False)
    fused.fuse_part(module, "native", None)
    x = torch.randn(1, 64, 2, 2).bfloat16().to(memory_format=torch.channels_last)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ValueError, match="more than 1 value per channel"),
    ):
        module(x)


REFUSED = {
    "its paths are gated": Unit(h=ShortcutGate(-1.0)),
    "its shortcut is no identity": Unit(h=Scaled(0.5)),
    "F is not BN-ReLU-convolution in turn": Unit(arrangement=RELU_ONLY_PREACT),
    "its convolution is grouped": replace(Unit(Aggregated(2, 32)), arrangement=FULL_PREACT),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_unit_that_is_no_chain_says_why(why):
    unit = REFUSED[why]
    module = build_unit(layout(unit, unit.branch.out_channels(64), 64))
    assert chain_of(module) == why


NO_TRANSITIONS = {
    "its paths are gated": (Unit(h=ShortcutGate(-1.0)), 2),
    "its shortcut is no projection and not padded": (Unit(h=Scaled(0.5)), 2),
    "the stride of its 3×3 convolution is not 2": (replace(BASIC, resize=Projection()), 3),
    "its first BN counts pixels that no convolution reads": (
        replace(BOTTLENECK, arrangement=FULL_PREACT, resize=ZeroPad("raw")),
        2,
    ),
    "of its arrangement": (replace(BASIC, arrangement=BN_AFTER_ADDITION), 2),
    "F is not BN-ReLU-convolution in turn": (replace(BASIC, arrangement=RELU_ONLY_PREACT), 2),
    "its convolution is grouped": (Unit(Aggregated(2, 32), resize=Projection()), 1),
}


@pytest.mark.parametrize("why", NO_TRANSITIONS)
def test_a_change_of_shape_that_is_no_chain_says_why(why):
    unit, stride = NO_TRANSITIONS[why]
    assert transition_of(build_unit(layout(unit, 32, 64, stride))) == why


@pytest.mark.parametrize("arrangement", [BN_AFTER_ADDITION, RELU_BEFORE_ADDITION])
def test_other_arrangements_are_refused(arrangement):
    assert chain_of(made(Unit(arrangement=arrangement), 16)) == "of its arrangement"


def test_odd_channels_are_refused():
    assert chain_of(made(BASIC, 24)) == "its channels are no multiples of 16"


@pytest.mark.parametrize("bf16", [True, False])
def test_a_convolution_that_outgrows_the_cache_is_refused_where_pytorch_is_faster(bf16, monkeypatch):
    monkeypatch.setattr(chains, "multiplies_bf16_faster", lambda: bf16)
    assert isinstance(chain_of(made(BASIC, 256)), Chain)
    why = "PyTorch's 3×3 convolution is faster for more than 256 channels"
    assert chain_of(made(BASIC, 512)) == why if bf16 else isinstance(chain_of(made(BASIC, 512)), Chain)


def test_a_stride_is_refused():
    strided = build_unit(layout(replace(PREACT, h=Scaled(1.0)), 16, 16, 2))
    assert chain_of(strided) == "its shortcut is no identity"


def test_dropout_is_refused():
    module = made(replace(PREACT, branch=Basic(dropout=0.5)), 16)
    assert chain_of(module) == "F is not BN-ReLU-convolution in turn"


CONVOLUTIONS = {
    "3×3": nn.Conv2d(16, 32, 3, padding=1, bias=False),
    "3×3, stride 2, bias": nn.Conv2d(6, 10, 3, stride=2, padding=1),
    "grouped": nn.Conv2d(16, 16, 3, padding=1, groups=4, bias=False),
    "7×7 of the images": nn.Conv2d(3, 16, 7, stride=2, padding=3, bias=False),
}


def computed(
    conv: nn.Conv2d, kind: type[nn.Conv2d], x: torch.Tensor, dtype: torch.dtype, *, of_x: bool = True
) -> list[torch.Tensor]:
    """The output of a layer of this kind, and the gradients of x, if asked for, and of its parameters."""
    layer = copy.deepcopy(conv).to(dtype if dtype is torch.float64 else torch.float32)
    layer.__class__ = kind
    own = x.to(dtype, memory_format=torch.channels_last).requires_grad_(of_x)
    with torch.autocast("cpu", torch.bfloat16, dtype is torch.bfloat16):
        y = layer(own)
    assert y.dtype is dtype
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(6)).bfloat16().to(dtype)
    return [y, *torch.autograd.grad(y, [own, *layer.parameters()] if of_x else list(layer.parameters()), dy)]


@needs_kernels
@pytest.mark.parametrize("conv", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_a_widened_convolution_errs_less_than_autocast(conv):
    """Its products are of fp32 weights, which autocast rounds."""
    x = torch.randn(3, conv.in_channels, 9, 9, generator=torch.Generator().manual_seed(5)).bfloat16()
    exact = computed(conv, nn.Conv2d, x, torch.float64)
    found = computed(conv, WidenedConv, x, torch.bfloat16)
    assert "_Conv" in found[0].grad_fn.name()
    allowed = errors(computed(conv, nn.Conv2d, x, torch.bfloat16), exact)
    assert all(one <= other + 1e-6 for one, other in zip(errors(found, exact), allowed, strict=True))


ALONE = {
    "1×1": nn.Conv2d(32, 80, 1, bias=False),
    "1×1, stride 2": nn.Conv2d(64, 128, 1, stride=2, bias=False),
    "1×1, stride 3, to fewer": nn.Conv2d(128, 16, 1, stride=3, bias=False),
    "3×3": nn.Conv2d(48, 32, 3, padding=1, bias=False),
    "3×3, stride 2": nn.Conv2d(48, 32, 3, stride=2, padding=1, bias=False),
    "3×3, stride 2, 16 outputs": nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False),
    "3×3, stride 2, long sums": nn.Conv2d(256, 64, 3, stride=2, padding=1, bias=False),
    "3×3 with long sums": nn.Conv2d(256, 16, 3, padding=1, bias=False),
    "1×1 with long sums": nn.Conv2d(1024, 32, 1, bias=False),
}


@needs_kernels
@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("conv", ALONE.values(), ids=ALONE)
def test_a_convolution_alone_is_as_exact_as_autocast(conv):
    x = torch.randn(5, conv.in_channels, 11, 9, generator=torch.Generator().manual_seed(5)).bfloat16()
    exact = computed(conv, nn.Conv2d, x, torch.float64)
    found = computed(conv, NativeConv, x, torch.bfloat16)
    assert "_Convolution" in found[0].grad_fn.name()
    allowed = errors(computed(conv, nn.Conv2d, x, torch.bfloat16), exact)
    assert all(one <= 1.1 * other for one, other in zip(errors(found, exact), allowed, strict=True))


@needs_kernels
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (8, 8), (5, 18), (34, 33)], ids=str)
def test_a_stride_of_two_at_any_size(size):
    """Compared with bf16's rounding, for PyTorch's weight gradient of a 1×1 image is not even finite."""
    conv = nn.Conv2d(16, 48, 3, stride=2, padding=1, bias=False)
    x = torch.randn(3, 16, *size, generator=torch.Generator().manual_seed(5)).bfloat16()
    exact = computed(conv, nn.Conv2d, x, torch.float64)
    assert max(errors(computed(conv, NativeConv, x, torch.bfloat16), exact)) <= 2**-8


STEMS = {
    "7×7 of ImageNet": nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
    "5×5, grey": nn.Conv2d(1, 16, 5, padding=2, bias=False),
    "5×5 of six, stride 3, no padding": nn.Conv2d(6, 48, 5, stride=3, bias=False),
}


@needs_kernels
@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("conv", STEMS.values(), ids=STEMS)
def test_a_stem_is_as_exact_as_autocast(conv):
    x = torch.randn(5, conv.in_channels, 29, 18, generator=torch.Generator().manual_seed(5)).bfloat16()
    exact, allowed, found = (
        computed(conv, kind, x, dtype, of_x=False)
        for kind, dtype in (
            (nn.Conv2d, torch.float64),
            (nn.Conv2d, torch.bfloat16),
            (PatchConv, torch.bfloat16),
        )
    )
    assert "_Patches" in found[0].grad_fn.name()
    pairs = zip(errors(found, exact), errors(allowed, exact), strict=True)
    assert all(one <= 1.1 * other for one, other in pairs)
    y = found[0].double()
    sums = torch.cat([y.sum((0, 2, 3)), y.square().sum((0, 2, 3))])
    torch.testing.assert_close(found[0].channel_sums[0], sums, rtol=1e-2, atol=1.0)


@needs_kernels
def test_images_that_need_a_gradient_go_through_the_plain_stem():
    """As saliency and Jacobians ask for one."""
    x = torch.randn(2, 3, 9, 9).bfloat16()
    found = computed(STEMS["7×7 of ImageNet"], PatchConv, x, torch.bfloat16)
    plain = computed(STEMS["7×7 of ImageNet"], nn.Conv2d, x, torch.bfloat16)
    assert all(torch.equal(one, other) for one, other in zip(found, plain, strict=True))


def test_which_stems_pay(monkeypatch):
    monkeypatch.setattr(patches, "products", lambda: "fp16")
    assert all(map(patches.pays, STEMS.values()))
    for conv in (
        nn.Conv2d(3, 16, 3, bias=False),
        nn.Conv2d(8, 16, 5, bias=False),
        nn.Conv2d(3, 20, 5, bias=False),
        nn.Conv2d(3, 16, 5),
        nn.Conv2d(3, 16, (5, 7), bias=False),
        nn.Conv2d(3, 48, 5, groups=3, bias=False),
        nn.Conv2d(3, 16, 5, dilation=2, bias=False),
        nn.Conv2d(3, 16, 5, padding=2, padding_mode="circular", bias=False),
    ):
        assert not patches.pays(conv), conv
    monkeypatch.setattr(patches, "products", lambda: "bf16")
    assert not any(map(patches.pays, STEMS.values()))


@needs_kernels
@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(16, 16, 3, stride=3, padding=1, bias=False),
        nn.Conv2d(16, 16, 3, stride=2, bias=False),
        nn.Conv2d(16, 16, 3, bias=False),
        nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect", bias=False),
        nn.Conv2d(16, 16, 3, padding=2, dilation=2, bias=False),
        nn.Conv2d(16, 16, 1, padding=1, bias=False),
        nn.Conv2d(16, 16, 1, stride=(1, 2), bias=False),
        nn.Conv2d(16, 16, 1),
        nn.Conv2d(3, 16, 1, bias=False),
        nn.Conv2d(32, 32, 1, groups=2, bias=False),
    ],
    ids=str,
)
def test_other_convolutions_are_left_alone(conv, monkeypatch):
    monkeypatch.setattr(convolution, "products", lambda: "fp16")
    assert not convolution.pays(conv)


@needs_kernels
@pytest.mark.parametrize("products", ["bf16", "fp16"])
def test_what_stands_outside_of_units_is_computed_alone_or_widened(products, monkeypatch):
    monkeypatch.setattr(convolution, "products", lambda: products)
    monkeypatch.setattr(fused.widened, "pays", lambda conv: True)
    model = fresh(replace(PREACT, branch=Basic(dropout=0.5)))
    assert kernels.fuse(model).fused == 0
    alone, widened = (
        [name for name, module in model.named_modules() if type(module) is kind]
        for kind in (NativeConv, WidenedConv)
    )
    units = [name for name, module in model.named_modules() if "F.conv" in name]
    own = units if products == "fp16" else []
    assert len(units) == 8
    assert alone == own
    assert sorted(widened) == sorted({"stem.conv1", *units} - set(own))
    trained(model)
    kernels.unfuse(model)
    assert not any(type(module) in (NativeConv, WidenedConv) for module in model.modules())


@pytest.mark.parametrize(
    ("products", "flags", "wide", "narrow"),
    [
        ("bf16", {"avx512_bf16"}, False, False),
        ("fp32", {"avx512_bf16"}, True, False),
        ("fp32", set(), True, True),
    ],
)
def test_where_widening_pays(products, flags, wide, narrow, monkeypatch):
    monkeypatch.setattr(fused.widened, "products", lambda: products)
    monkeypatch.setattr(fused.widened, "cpu_flags", lambda: flags)
    assert fused.widened.pays(nn.Conv2d(16, 16, 3)) is wide
    assert fused.widened.pays(nn.Conv2d(16, 16, 1)) is narrow


def test_the_share_that_kernels_compute():
    assert kernels.fused_share(describe("preact_resnet1001_cifar")) > 0.9
    assert kernels.fused_share(describe("resnext29_8x64d_cifar")) == 0
