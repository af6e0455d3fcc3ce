"""Where a kernel does not fit, PyTorch's layers run as they are, and say what is wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from kernel_cases import PREACT, drawn_norms, errors, fresh, needs_kernels
from kilolayer import kernels
from kilolayer.kernels import fusion, im2col, native_conv
from kilolayer.kernels.bn_relu import FusedSequence
from kilolayer.kernels.folded_layers import FoldedConv
from kilolayer.kernels.folding import fold
from kilolayer.kernels.fused_unit import FusedUnit
from kilolayer.kernels.im2col import FoldedStemConv, Im2colConv
from kilolayer.kernels.native_conv import NativeConv
from kilolayer.kernels.native_run import NativeUnitRun
from kilolayer.networks import ResidualNetwork, Stem
from kilolayer.units import (
    BASIC,
    BN_AFTER_ADDITION,
    BOTTLENECK,
    BatchNorm,
    Projection,
    ResidualUnit,
    build_unit,
    layout,
)

pytestmark = needs_kernels


def preactivated() -> ResidualUnit:
    torch.manual_seed(0)
    return drawn_norms(build_unit(layout(PREACT, 32, 32)))


def original() -> ResidualUnit:
    """With a projection, so BNs stand behind F and behind the shortcut too."""
    torch.manual_seed(0)
    return drawn_norms(build_unit(layout(replace(BOTTLENECK, downsample=Projection()), 32, 16, 2)))


def activation() -> nn.Sequential:
    return nn.Sequential(BatchNorm(32), nn.ReLU())


def convolved() -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(32, 32, 3, padding=1, bias=False)


def stem() -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(3, 16, 5, stride=2, bias=False)


def whole(module: nn.Module) -> None:
    assert fusion.fuse_part(module, "native", None)[0] == fusion.WHOLE_UNIT


def as_one(kind: type[nn.Module]) -> Callable[[nn.Module], None]:
    return lambda module: setattr(module, "__class__", kind)


KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], None], int]] = {
    "pre-activated unit": (preactivated, whole, 32),
    "original unit": (original, whole, 32),
    "activation": (activation, as_one(FusedSequence), 32),
    "convolution": (convolved, as_one(NativeConv), 32),
    "stem": (stem, as_one(Im2colConv), 3),
}
"""What is made, how kernels come in, and the channels it reads."""


def images(*shape: int) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    return x.to(memory_format=torch.channels_last) if x.dim() == 4 else x


def step(module: nn.Module, x: Tensor) -> list[Tensor] | str:
    """Output, gradients and running averages of a step in bf16, or what was raised."""
    module.zero_grad()
    try:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            y = module(x)
        y.float().square().sum().backward()
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return [y.detach(), *(p.grad for p in module.parameters() if p.grad is not None), *module.buffers()]


def same(one: list[Tensor] | str, other: list[Tensor] | str) -> bool:
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    return len(one) == len(other) and all(map(torch.equal, one, other))


def goes_plain(kind: str, change: Callable[[Any], object], *shape: int) -> bool:
    """Whether a module with kernels does to the bit what the plain one does, once both have been changed."""
    make, come_in, channels = KINDS[kind]
    plain, other = make(), make()
    come_in(other)
    x = images(2, channels, 9, 9)
    assert not same(step(copy.deepcopy(plain), x), step(copy.deepcopy(other), x)), "no kernel computed it"
    for module in (plain, other):
        change(module)
    x = images(*shape) if shape else x
    return same(step(plain, x), step(other, x))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("pre-activated unit", name) for name in ("F.bn1", "F.bn2")),
        *(("original unit", name) for name in ("F.bn1", "F.bn2", "F.bn3", "h.bn1")),
        ("activation", "0"),
    ],
)
def test_a_frozen_bn_is_frozen(kind, name):
    """In evaluation, while what it is part of is in training."""
    assert goes_plain(kind, lambda module: module.get_submodule(name).eval())


def test_so_it_is_by_the_kernels_of_a_gpu():
    def freeze(module: nn.Module) -> None:
        module.backend = "triton"
        module.F.bn2.eval()

    pytest.importorskip("triton", minversion="3.7")
    assert goes_plain("pre-activated unit", freeze)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        *((kind, (2, 48, 9, 9)) for kind in KINDS if kind != "stem"),
        *((kind, (2, 16, 9, 9)) for kind in KINDS if kind != "stem"),
        *(("stem", shape) for shape in ((2, 1, 9, 9), (2, 4, 9, 9), (2, 3, 4, 9))),
    ],
    ids=str,
)
def test_maps_of_another_shape_are_pytorchs(kind, shape):
    assert goes_plain(kind, lambda module: None, *shape)


def every(kind: type[nn.Module], change: Callable[[Any], None]) -> Callable[[nn.Module], None]:
    def changed(module: nn.Module) -> None:
        for layer in list(module.modules()):
            if isinstance(layer, kind):
                change(layer)

    return changed


def with_gaps(layer: nn.Module) -> None:
    kept = layer.weight.detach()
    layer.weight = nn.Parameter(torch.stack([kept, kept], 1).flatten(0, 1)[::2])


def with_averages_with_gaps(norm: nn.Module) -> None:
    norm.running_var = torch.ones(2 * norm.num_features)[::2]


def without_weight(norm: nn.Module) -> None:
    norm.weight = None


def with_one_weight_for_all(norm: nn.Module) -> None:
    norm.weight = nn.Parameter(torch.full((1,), 1.5).expand(norm.num_features))


def with_fewer(norm: nn.Module) -> None:
    norm.running_mean = torch.zeros(norm.num_features - 16)


def with_fewer_outputs(conv: nn.Conv2d) -> None:
    conv.weight = nn.Parameter(conv.weight.detach()[:-16])


def pruned(conv: nn.Conv2d) -> None:
    prune.l1_unstructured(conv, "weight", 0.3)


def with_weight_norm(conv: nn.Conv2d) -> None:
    weight_norm(conv)


def of_a_cumulative_mean(norm: nn.BatchNorm2d) -> None:
    norm.reset_running_stats()
    norm.momentum = None


def untracked(norm: nn.BatchNorm2d) -> None:
    norm.track_running_stats = False


def with_a_forward_of_its_own(module: nn.Module) -> None:
    forward = module.forward
    module.forward = lambda x: 2 * forward(x)  # type: ignore[method-assign]


OF_NORMS = (
    with_gaps, with_averages_with_gaps, without_weight, with_one_weight_for_all, with_fewer,
    of_a_cumulative_mean, untracked, with_a_forward_of_its_own,
)  # fmt: skip
OF_CONVS = with_gaps, with_fewer_outputs, with_weight_norm, pruned, with_a_forward_of_its_own


@pytest.mark.parametrize("change", OF_NORMS, ids=lambda change: change.__name__)
@pytest.mark.parametrize("kind", ["pre-activated unit", "original unit", "activation"])
def test_a_bn_whose_tensors_no_kernel_knows_is_pytorchs(kind, change):
    assert goes_plain(kind, every(BatchNorm, change))


@pytest.mark.parametrize("change", OF_CONVS, ids=lambda change: change.__name__)
@pytest.mark.parametrize("kind", ["pre-activated unit", "original unit"])
def test_a_convolution_of_a_unit_whose_weights_no_kernel_knows_is_pytorchs(kind, change):
    assert goes_plain(kind, every(nn.Conv2d, change))


@pytest.mark.parametrize("change", [with_gaps, with_fewer_outputs])
@pytest.mark.parametrize("kind", ["convolution", "stem"])
def test_a_convolution_alone_whose_weights_no_kernel_knows_is_pytorchs(kind, change):
    assert goes_plain(kind, every(nn.Conv2d, change))


def evaluated(change: Callable[[nn.Module], None]) -> Callable[[nn.Module], None]:
    def changed(module: nn.Module) -> None:
        change(module)
        module.eval()

    return changed


@pytest.mark.parametrize("change", [with_weight_norm, pruned])
def test_so_it_is_in_evaluation(change):
    assert goes_plain("original unit", evaluated(every(nn.Conv2d, change)))


def test_a_layer_that_has_been_replaced_is_seen_and_fused_by_the_next_call():
    model = fresh(PREACT)
    kernels.fuse(model)
    other = nn.Conv2d(16, 16, 3, padding=1, bias=False)
    model.stage1[0].F.conv1 = other
    step(model, images(4, 3, 8, 8))
    assert other.weight.grad.any()
    assert kernels.fuse(model).fused_units == 4
    assert model.stage1[0].chain.links[0].conv is other
    assert goes_plain("pre-activated unit", replaced)


def replaced(module: nn.Module) -> None:
    torch.manual_seed(1)
    module.F.conv2 = nn.Conv2d(32, 32, 3, padding=1, bias=False)


@pytest.fixture(params=["whole units", "layers alone"])
def networks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[ResidualNetwork]:
    """The same network plain and with kernels wherever they can be, whatever pays here."""
    for part in (native_conv, im2col):
        monkeypatch.setattr(part, "mul_dtype", lambda: "fp32")
    unit = PREACT if request.param == "whole units" else replace(BASIC, arrangement=BN_AFTER_ADDITION)
    plain, other = (fresh(unit, Stem(16, 5)) for _ in range(2))
    kernels.fuse(other)
    kind = FusedUnit if request.param == "whole units" else NativeConv
    assert {Im2colConv, FusedSequence, kind} <= set(map(type, other.modules()))
    return [plain, other]


def test_hooks_for_all_modules_hear_every_layer(networks):
    heard = []
    for model in networks:
        names = {module: name for name, module in model.named_modules()}
        with register_module_forward_hook(lambda module, *_, names=names: heard.append(names[module])):
            step(model, images(4, 3, 8, 8))
    assert heard[: len(heard) // 2] == heard[len(heard) // 2 :]


def test_a_parametrized_convolution_outlives_fusing_again_and_unfusing(networks):
    _, model = networks
    weight_norm(model.stem[0])
    kernels.fuse(model)
    kernels.unfuse(model)
    assert not isinstance(step(model, images(4, 3, 8, 8)), str)


@pytest.mark.parametrize("kind", ["pre-activated unit", "original unit", "activation"])
def test_a_bn_of_another_class_is_left_to_it(kind):
    class Doubled(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    make, come_in, channels = KINDS[kind]
    plain, other = make(), make()
    for module in (plain, other):
        every(nn.BatchNorm2d, as_one(Doubled))(module)
    if kind == "activation":
        come_in(other)
    else:
        assert fusion.fuse_part(other, "native", None)[0] == fusion.PLAIN_LAYERS
    x = images(2, channels, 9, 9)
    assert same(step(plain, x), step(other, x))


def test_transforms_of_torch_func_go_through_the_layers(networks):
    found = []
    for model in networks:

        def loss(
            parameters: dict[str, Tensor], buffers: dict[str, Tensor], model: nn.Module = model
        ) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
                y: Tensor = torch.func.functional_call(model, (parameters, buffers), images(4, 3, 8, 8))
            return y.float().square().sum()

        tensors = dict(model.named_parameters()), dict(model.named_buffers())
        found.append(list(torch.func.grad(loss)(*tensors).values()))
    assert same(*found)


@pytest.mark.parametrize("shape", [(3, 9, 9), (5, 2, 3, 9, 9)], ids=["one image", "vmap"])
def test_images_in_other_dimensions_go_through_the_plain_stem(shape):
    plain, other = stem(), stem()
    other.__class__ = Im2colConv
    x = images(*shape).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = [(torch.vmap(one) if len(shape) == 5 else one)(x) for one in (plain, other)]
    assert torch.equal(*found)


def test_training_forward_in_inference_mode_is_that_without_gradients(networks):
    _, model = networks
    found = []
    for mode in (torch.no_grad, torch.inference_mode):
        own = copy.deepcopy(model)
        with mode(), torch.autocast("cpu", torch.bfloat16):
            found.append([own(images(4, 3, 8, 8)), *map(Tensor.float, own.buffers())])
    assert max(errors(found[1], found[0])) < 2e-2


def folded(kernel: int, monkeypatch: pytest.MonkeyPatch) -> ResidualNetwork:
    """In bf16, with a stem by PyTorch of 3×3 or by the kernels of 5×5."""
    monkeypatch.setattr(im2col, "mul_dtype", lambda: "fp32")
    found = fold(fresh(PREACT, Stem(16, kernel)), torch.bfloat16)
    assert isinstance(found.stem[0], FoldedConv if kernel == 3 else FoldedStemConv)
    assert isinstance(found.stage1[0], NativeUnitRun)
    return found


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_a_folded_stem_refuses_other_channels_as_pytorch_does(channels, monkeypatch):
    model = folded(5, monkeypatch)
    with pytest.raises(RuntimeError, match=f"to have 3 channels, but got {channels} channels"):
        model(images(2, channels, 8, 8))


@pytest.mark.parametrize("kernel", [3, 5])
def test_images_in_fp32_are_refused_or_converted_as_pytorch_does(kernel, monkeypatch):
    model, x = folded(kernel, monkeypatch), images(4, 3, 8, 8)
    wanted = model(x)
    with pytest.raises(RuntimeError, match=r"Input type .* should be the same"):
        model(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        found = model(x.float())
    assert max(errors([found], [wanted])) < 2e-2


NOT_A_RUNS = {
    "more channels": images(2, 32, 8, 8),
    "fewer channels": images(2, 8, 8, 8),
    "fp32": images(2, 16, 8, 8).float(),
    "no batch": images(16, 8, 8),
    "another device": images(2, 16, 8, 8).to("meta"),
}


@pytest.mark.parametrize("x", NOT_A_RUNS.values(), ids=NOT_A_RUNS)
def test_a_folded_run_says_what_it_takes(x, monkeypatch):
    run = folded(3, monkeypatch).stage1[0]
    with pytest.raises(
        RuntimeError, match=r"expected \(N, 16, H, W\) in torch.bfloat16 on the CPU, but got "
    ):
        run(x)


def test_a_unit_between_others_that_does_not_take_what_they_give_is_refused():
    model = fresh(PREACT)
    model.stage1[1] = build_unit(layout(PREACT, 32, 32))
    with pytest.raises(RuntimeError, match=r"expected \(N, 32, H, W\) .* but got \(2, 16, 8, 8\)"):
        fold(model, torch.bfloat16)(images(2, 3, 8, 8))
