"""What kernels compute outside of whole units: BN with ReLU, convolutions, stems."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from kernel_cases import drawn, errors, gradients, needs_kernels, running
from kilolayer.kernels import im2col, native_conv, upcast_conv
from kilolayer.kernels.bn_relu import FusedSequence
from kilolayer.kernels.im2col import Im2colConv
from kilolayer.kernels.native_conv import NativeConv
from kilolayer.kernels.upcast_conv import UpcastConv
from kilolayer.units import BatchNorm


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
        return [y, *gradients(module, y, own, dy.to(dtype)), *running(module)]

    wanted = passed(exact, torch.float64)
    autocast = errors(passed(plain, torch.bfloat16), wanted)
    found = passed(single, torch.bfloat16)
    assert "_BnRelu" in found[0].grad_fn.name()
    assert all(a <= 1.25 * b + 1e-3 for a, b in zip(errors(found, wanted), autocast, strict=True))


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


def compared(
    conv: nn.Conv2d, kind: type[nn.Conv2d], x: torch.Tensor, *, of_x: bool = True
) -> tuple[list[torch.Tensor], list[float], list[float]]:
    """What a layer of this kind computes, its errors, and those of PyTorch's layer in autocast."""
    exact = computed(conv, nn.Conv2d, x, torch.float64, of_x=of_x)
    plain = computed(conv, nn.Conv2d, x, torch.bfloat16, of_x=of_x)
    found = computed(conv, kind, x, torch.bfloat16, of_x=of_x)
    return found, errors(found, exact), errors(plain, exact)


@needs_kernels
@pytest.mark.parametrize("conv", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_a_upcast_convolution_errs_less_than_autocast(conv):
    """Its products are of fp32 weights, which autocast rounds."""
    x = torch.randn(3, conv.in_channels, 9, 9, generator=torch.Generator().manual_seed(5)).bfloat16()
    found, own, allowed = compared(conv, UpcastConv, x)
    assert "_UpcastConvFunction" in found[0].grad_fn.name()
    assert all(one <= other + 1e-6 for one, other in zip(own, allowed, strict=True))


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
    found, own, allowed = compared(conv, NativeConv, x)
    assert "_NativeConvFunction" in found[0].grad_fn.name()
    assert all(one <= 1.1 * other for one, other in zip(own, allowed, strict=True))


@needs_kernels
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (8, 8), (5, 18), (34, 33)], ids=str)
def test_a_stride_of_two_at_any_size(size):
    conv = nn.Conv2d(16, 48, 3, stride=2, padding=1, bias=False)
    x = torch.randn(3, 16, *size, generator=torch.Generator().manual_seed(5)).bfloat16()
    _, own, allowed = compared(conv, NativeConv, x)
    if size == (1, 1):
        # PyTorch's weight gradient of a 1×1 image is not even finite; bf16's rounding is.
        allowed = [2**-8] * 3
    assert all(one <= 1.2 * other + 1e-4 for one, other in zip(own, allowed, strict=True))


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
    found, own, allowed = compared(conv, Im2colConv, x, of_x=False)
    assert "_Im2colFunction" in found[0].grad_fn.name()
    assert all(one <= 1.1 * other for one, other in zip(own, allowed, strict=True))
    y = found[0].double()
    sums = torch.cat([y.sum((0, 2, 3)), y.square().sum((0, 2, 3))])
    torch.testing.assert_close(found[0].channel_sums[0], sums, rtol=1e-2, atol=1.0)


@needs_kernels
def test_images_that_need_a_gradient_go_through_the_plain_stem():
    """As saliency and Jacobians ask for one."""
    x = torch.randn(2, 3, 9, 9).bfloat16()
    found = computed(STEMS["7×7 of ImageNet"], Im2colConv, x, torch.bfloat16)
    plain = computed(STEMS["7×7 of ImageNet"], nn.Conv2d, x, torch.bfloat16)
    assert all(torch.equal(one, other) for one, other in zip(found, plain, strict=True))


def test_which_stems_are_faster_by_im2col(monkeypatch):
    monkeypatch.setattr(im2col, "mul_dtype", lambda: "fp16")
    assert all(map(Im2colConv.is_faster, STEMS.values()))
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
        assert not Im2colConv.is_faster(conv), conv
    monkeypatch.setattr(im2col, "mul_dtype", lambda: "bf16")
    assert not any(map(Im2colConv.is_faster, STEMS.values()))


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
    monkeypatch.setattr(native_conv, "mul_dtype", lambda: "fp16")
    assert not NativeConv.is_faster(conv)


@pytest.mark.parametrize(
    ("products", "flags", "wide", "narrow"),
    [
        ("bf16", {"avx512_bf16"}, False, False),
        ("fp32", {"avx512_bf16"}, True, False),
        ("fp32", set(), True, True),
    ],
)
def test_where_upcasting_is_faster(products, flags, wide, narrow, monkeypatch):
    monkeypatch.setattr(upcast_conv, "mul_dtype", lambda: products)
    monkeypatch.setattr(upcast_conv, "cpu_flags", lambda: flags)
    assert UpcastConv.is_faster(nn.Conv2d(16, 16, 3)) is wide
    assert UpcastConv.is_faster(nn.Conv2d(16, 16, 1)) is narrow
