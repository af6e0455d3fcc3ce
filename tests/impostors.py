"""Networks that are nearly one of ours, generated: every kind of layer × every perturbation of that kind.

`impostors` differ in function or in what they learn from. `rewrites` are the same function written in other
ways, and `permuted` are equal but for the order of channels.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

from kilolayer.networks import create_model
from kilolayer.units.modules import ResidualUnit

BASES = ("resnet14_cifar", "preact_resnet29_cifar", "resnext29_2x4d_cifar", "resnet18")
Change = Callable[[nn.Module], nn.Module]


@cache
def _original(base: str) -> nn.Module:
    torch.manual_seed(0)
    return create_model(base)


def fresh(base: str) -> nn.Module:
    return copy.deepcopy(_original(base))


class Call(nn.Module):
    """`function(module, x)` in the place of a module."""

    def __init__(self, module: nn.Module, function: Callable[..., Tensor], **extra: nn.Module | nn.Parameter):
        super().__init__()
        self.module, self.function = module, function
        for name, part in extra.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def after(function: Callable[[Tensor], Tensor]) -> Change:
    return lambda module: Call(module, lambda self, x: function(self.module(x)))


def before(function: Callable[[Tensor], Tensor]) -> Change:
    return lambda module: Call(module, lambda self, x: self.module(function(x)))


def with_attribute(**values: object) -> Change:
    def change(module: nn.Module) -> nn.Module:
        for name, value in values.items():
            setattr(module, name, value)
        return module

    return change


def frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.relu()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def half_gradient(x: Tensor) -> Tensor:
    return 0.5 * x + 0.5 * x.detach()


def through_half(x: Tensor) -> Tensor:
    return x.half().to(x.dtype)


def dropped(p: float, *, whole: bool = False) -> Change:
    """Dropout behind a module, of single values or of whole samples (stochastic depth)."""

    def function(self, x):
        if not whole or not self.training:
            return functional.dropout(self.module(x), p, self.training)
        keep = (torch.rand(x.shape[0], 1, 1, 1) > p).to(x.dtype)
        return self.module(x) * keep / (1 - p)

    return lambda module: Call(module, function)


# ---------------------------------------------------------------------------------------------- batch norm


class EvaluatedBatchNorm(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(False)


class ScheduledBatchNorm(nn.BatchNorm2d):
    """BN whose momentum falls after a thousand batches."""

    def forward(self, x):
        self.momentum = 0.01 if self.num_batches_tracked.item() > 1000 else 0.1
        return super().forward(x)


def rebuilt(kind: type[nn.Module], **arguments: object) -> Change:
    return lambda module: kind(module.num_features, **arguments)


def buffer_norm(module: nn.Module) -> nn.Module:
    weight, bias = module.weight.detach().clone(), module.bias.detach().clone()
    del module.weight, module.bias
    module.register_buffer("weight", weight)
    module.register_buffer("bias", bias)
    return module


def _norm(self, x, *, statistics=True, offset=0.0, groups=1):
    m = self.module
    values = x.detach() if not statistics else x
    if groups > 1 and self.training:
        parts = [m(part) for part in x.chunk(groups)]
        return torch.cat(parts)
    if offset:
        return functional.batch_norm(
            x, m.running_mean, m.running_var, m.weight + offset, m.bias, self.training, 0.1, m.eps
        )
    if not self.training:
        return m(x)
    m(x.detach())
    mean = values.mean((0, 2, 3), keepdim=True)
    variance = values.var((0, 2, 3), unbiased=False, keepdim=True)
    return (x - mean) / (variance + m.eps).sqrt() * m.weight[:, None, None] + m.bias[:, None, None]


BATCH_NORM: dict[str, Change] = {
    "ε 1e-3": with_attribute(eps=1e-3),
    "ε 1.1e-5": with_attribute(eps=1.1e-5),
    "ε 0": with_attribute(eps=0.0),
    "momentum 0.01": with_attribute(momentum=0.01),
    "cumulative statistics": with_attribute(momentum=None),
    "no affine": rebuilt(nn.BatchNorm2d, affine=False),
    "no running statistics": rebuilt(nn.BatchNorm2d, track_running_stats=False),
    "instance norm": rebuilt(nn.InstanceNorm2d, affine=True),
    "instance norm with statistics": rebuilt(nn.InstanceNorm2d, affine=True, track_running_stats=True),
    "group norm": lambda module: nn.GroupNorm(4, module.num_features),
    "layer norm": lambda module: nn.GroupNorm(1, module.num_features),
    "missing": lambda module: nn.Identity(),
    "always in evaluation mode": rebuilt(EvaluatedBatchNorm),
    "set to evaluation mode": lambda module: module.eval(),
    "γ and β as buffers": buffer_norm,
    "requires no gradient": frozen,
    "twice": lambda module: nn.Sequential(module, nn.BatchNorm2d(module.num_features)),
    "γ + 1": lambda module: Call(module, partial(_norm, offset=1.0)),
    "statistics detached": lambda module: Call(module, partial(_norm, statistics=False)),
    "halves of the batch": lambda module: Call(module, partial(_norm, groups=2)),
    "momentum by a counter": lambda module: ScheduledBatchNorm(module.num_features),
    "output × 1.0001": after(lambda x: 1.0001 * x),
    "output shifted": after(lambda x: x + 1e-5),
    "input detached": before(Tensor.detach),
    "half precision": after(through_half),
    "half of the gradient": after(half_gradient),
}


# --------------------------------------------------------------------------------------------- convolution


def reconv(**changed: object) -> Change:
    def change(module: nn.Conv2d) -> nn.Module:
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
        arguments = {name: getattr(module, name) for name in names} | {"bias": False}
        return nn.Conv2d(**(arguments | changed))

    return change


def _standardised(self, x):
    w = self.module.weight
    w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
    m = self.module
    return functional.conv2d(x, w, None, m.stride, m.padding, m.dilation, m.groups)


def _shifted_padding(self, x):
    m, pad = self.module, self.module.padding[0]
    padded = functional.pad(x, (2 * pad, 0, 2 * pad, 0))
    return functional.conv2d(padded, m.weight, None, m.stride, 0, 1, m.groups)


class _Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def parametrised(part: nn.Module) -> Change:
    def change(module: nn.Module) -> nn.Module:
        parametrize.register_parametrization(module, "weight", part)
        return module

    return change


CONVOLUTION: dict[str, Change] = {
    "bias": reconv(bias=True),
    "dilation 2": lambda module: reconv(dilation=2, padding=2)(module),
    "reflected padding": reconv(padding_mode="reflect"),
    "circular padding": reconv(padding_mode="circular"),
    "replicated padding": reconv(padding_mode="replicate"),
    "padding on one side": lambda module: Call(module, _shifted_padding),
    "5×5": reconv(kernel_size=5, padding=2),
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "weight × 2 by a parametrisation": parametrised(_Doubled()),
    "weight standardisation": lambda module: Call(module, _standardised),
    "requires no gradient": frozen,
    "weight as a buffer": lambda module: _weight_as_buffer(module),
    "followed by dropout": dropped(0.1),
    "followed by dropout of 0.001": dropped(0.001),
    "input detached": before(Tensor.detach),
    "half of the gradient": after(half_gradient),
    "output × 1.0001": after(lambda x: 1.0001 * x),
    "output clipped at 1e4": after(lambda x: x.clamp(-1e4, 1e4)),
    "half precision": after(through_half),
    "noise": after(lambda x: x + 1e-4 * torch.randn_like(x)),
    "followed by another 1×1": lambda module: nn.Sequential(
        module, nn.Conv2d(module.out_channels, module.out_channels, 1, bias=False)
    ),
    "mirrored output": after(lambda x: x.flip(-1)),
    "transposed output": after(lambda x: x.transpose(2, 3)),
}


def _weight_as_buffer(module: nn.Module) -> nn.Module:
    weight = module.weight.detach().clone()
    del module.weight
    module.register_buffer("weight", weight)
    return module


# ---------------------------------------------------------------------------------------------- activation

ACTIVATION: dict[str, Change] = {
    "ReLU6": lambda module: nn.ReLU6(),
    "clipped at 1e3": lambda module: nn.Hardtanh(0, 1e3),
    "leaky": lambda module: nn.LeakyReLU(0.01),
    "hardly leaky": lambda module: nn.LeakyReLU(1e-6),
    "SiLU": lambda module: nn.SiLU(),
    "GELU": lambda module: nn.GELU(),
    "ELU": lambda module: nn.ELU(),
    "CELU": lambda module: nn.CELU(),
    "softplus": lambda module: nn.Softplus(50),
    "PReLU": lambda module: nn.PReLU(),
    "RReLU": lambda module: nn.RReLU(),
    "hardswish": lambda module: nn.Hardswish(),
    "threshold 1e-3": lambda module: nn.Threshold(1e-3, 0),
    "missing": lambda module: nn.Identity(),
    "absolute value": lambda module: Call(module, lambda self, x: x.abs()),
    "shifted": before(lambda x: x - 1e-4),
    "squared": after(lambda x: x**2),
    "by a mask of another threshold": lambda module: Call(module, lambda self, x: x * (x > 1e-3)),
    "by a mask that leaks": lambda module: Call(module, lambda self, x: torch.where(x > 0, x, 1e-3 * x)),
    "straight-through gradient": lambda module: Call(module, lambda self, x: _StraightThrough.apply(x)),
    "half of the gradient": after(half_gradient),
    "detached": after(Tensor.detach),
    "followed by dropout": dropped(0.2),
    "followed by dropout of channels": after(lambda x: functional.dropout2d(x, 0.1)),
    "half precision": after(through_half),
    "bounded in evaluation mode": lambda module: Call(
        module, lambda self, x: x.relu() if self.training else x.relu().clamp(max=6)
    ),
    "tensor ReLU at the mean": lambda module: Call(module, lambda self, x: (x - 0.1 * x.mean()).relu()),
}

# ------------------------------------------------------------------------------------------ head, pooling


def head(change: Change) -> Change:
    def apply(model: nn.Module) -> nn.Module:
        model.classifier = change(model.classifier)
        return model

    return apply


def pooled(function: Callable[[Tensor], Tensor]) -> Change:
    """The network with another pooling."""
    return lambda model: Call(
        model, lambda self, x: self.module.classifier(function(self.module.forward_features(x)))
    )


CLASSIFIER: dict[str, Change] = {
    "no bias": lambda module: nn.Linear(module.in_features, module.out_features, bias=False),
    "a second linear layer": lambda module: nn.Sequential(module, nn.Linear(*[module.out_features] * 2)),
    "a hidden layer": lambda module: nn.Sequential(nn.Linear(*[module.in_features] * 2), nn.ReLU(), module),
    "softmax": after(lambda x: x.softmax(1)),
    "log-softmax": after(lambda x: x.log_softmax(1)),
    "sigmoid": after(torch.sigmoid),
    "ReLU of the logits": after(torch.relu),
    "temperature": after(lambda x: x / 1.5),
    "logits reversed": after(lambda x: x.flip(1)),
    "dropout": before(lambda x: functional.dropout(x, 0.1)),
    "dropout of 0.001": before(lambda x: functional.dropout(x, 0.001)),
    "features detached": before(Tensor.detach),
    "features normalised": before(functional.normalize),
    "features with BN": lambda module: nn.Sequential(nn.BatchNorm1d(module.in_features), module),
    "weights normalised": parametrizations.weight_norm,
    "requires no gradient": frozen,
    "half precision": after(through_half),
    "softmax in evaluation mode": lambda module: Call(
        module, lambda self, x: self.module(x) if self.training else self.module(x).softmax(1)
    ),
    "logits centred": after(lambda x: x - x.mean(1, keepdim=True)),
}
POOLING: dict[str, Change] = {
    "maximum": pooled(lambda x: x.amax((2, 3))),
    "sum": pooled(lambda x: x.sum((2, 3))),
    "average and maximum": pooled(lambda x: 0.5 * (x.mean((2, 3)) + x.amax((2, 3)))),
    "root of the mean square": pooled(lambda x: (x**2).mean((2, 3)).add(1e-6).sqrt()),
    "nine pixels": pooled(lambda x: x[:, :, :3, :3].mean((2, 3))),
    "centre": pooled(lambda x: x[:, :, x.shape[2] // 2, x.shape[3] // 2]),
    "without the border": pooled(lambda x: x[:, :, :-1, :-1].mean((2, 3))),
    "two steps": pooled(lambda x: functional.adaptive_avg_pool2d(x, 2).amax((2, 3))),
    "average of 2×2 averages": pooled(lambda x: functional.avg_pool2d(x, 2, ceil_mode=True).mean((2, 3))),
    "detached": pooled(lambda x: x.mean((2, 3)).detach()),
    "first rows": pooled(lambda x: x.mean(3)[:, :, :2].mean(2)),
}

# ---------------------------------------------------------------------------------------------------- unit


def added(function: Callable[[nn.Module, Tensor, Tensor], Tensor], **extra: Callable[[], object]) -> Change:
    """A unit whose shortcut and branch meet in `function(self, h, F)`."""

    def forward(self, x):
        unit = self.module
        x = unit.p(x)
        return unit.f(function(self, unit.h(x), unit.F(x)))

    return lambda unit: Call(unit, forward, **{name: make() for name, make in extra.items()})


def _python_drop(self, h, F):
    return h if self.training and random.random() < 0.5 else h + F


def _torch_drop(self, h, F):
    if not self.training:
        return h + F
    return h + F * (torch.rand(F.shape[0], 1, 1, 1) > 0.2).to(F.dtype) / 0.8


def one() -> nn.Parameter:
    return nn.Parameter(torch.ones(1))


UNIT: dict[str, Change] = {
    "shortcut detached": added(lambda self, h, F: h.detach() + F),
    "branch detached": added(lambda self, h, F: h + F.detach()),
    "half of the branch's gradient": added(lambda self, h, F: h + half_gradient(F)),
    "half of the shortcut's gradient": added(lambda self, h, F: half_gradient(h) + F),
    "average": added(lambda self, h, F: (h + F) / 2),
    "shortcut × 0.9": added(lambda self, h, F: 0.9 * h + F),
    "shortcut × 0.9999": added(lambda self, h, F: 0.9999 * h + F),
    "branch × 0.5": added(lambda self, h, F: torch.add(h, F, alpha=0.5)),
    "branch × 1.0001": added(lambda self, h, F: h + 1.0001 * F),
    "difference": added(lambda self, h, F: h - F),
    "mean of a stack": added(lambda self, h, F: torch.stack([h, F]).mean(0)),
    "maximum of a stack": added(lambda self, h, F: torch.stack([h, F]).amax(0)),
    "branch twice in a stack": added(lambda self, h, F: torch.stack([h, F, F]).sum(0)),
    "counts its calls": lambda unit: Counted(unit),
    "no shortcut": added(lambda self, h, F: F),
    "shortcut twice": added(lambda self, h, F: h + h + F),
    "maximum": added(lambda self, h, F: torch.maximum(h, F)),
    "product": added(lambda self, h, F: h * F),
    "scale for each unit (SkipInit)": added(lambda self, h, F: h + self.scale * F, scale=one),
    "scale of the shortcut": added(lambda self, h, F: self.scale * h + F, scale=one),
    "stochastic depth": added(_torch_drop),
    "stochastic depth by Python": added(_python_drop),
    "shortcut with dropout": added(lambda self, h, F: functional.dropout(h, 0.1, self.training) + F),
    "shortcut clipped": added(lambda self, h, F: h.clamp(-1e3, 1e3) + F),
    "shortcut in half precision": added(lambda self, h, F: through_half(h) + F),
    "squeeze-and-excitation without weights": added(
        lambda self, h, F: h + F * F.mean((2, 3), keepdim=True).sigmoid()
    ),
    "branch without its mean": added(lambda self, h, F: h + F - F.mean((0, 2, 3), keepdim=True)),
    "shortcut of the batch's other image": added(lambda self, h, F: h.flip(0) + F),
    "shortcut mirrored": added(lambda self, h, F: h.flip(-1) + F),
    "shortcut with other channels": added(lambda self, h, F: h + h.flip(1) + F),
    "no branch in evaluation mode": added(lambda self, h, F: h + F if self.training else h),
    "twice": lambda unit: Call(unit, _twice),
}


class Counted(nn.Module):
    """A unit that is another one after many calls."""

    def __init__(self, unit: nn.Module):
        super().__init__()
        self.unit, self.calls = unit, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.unit(x if self.calls < 1000 else 2 * x)


def _twice(self, x):
    y = self.module(x)
    return self.module(y) if y.shape == x.shape else y.relu().neg()


# ------------------------------------------------------------------------------------------- whole network


def around(function: Callable[[nn.Module, Tensor], Tensor]) -> Change:
    return lambda model: Call(model, function)


def units_of(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """The units, as the module that holds each, and its name there."""
    return places(model, ResidualUnit)


def every_unit(change: Change) -> Change:
    def apply(model: nn.Module) -> nn.Module:
        for parent, name in units_of(model):
            setattr(parent, name, change(getattr(parent, name)))
        return model

    return apply


def every(kind: type[nn.Module], change: Change) -> Change:
    def apply(model: nn.Module) -> nn.Module:
        for parent, name in places(model, kind):
            setattr(parent, name, change(getattr(parent, name)))
        return model

    return apply


def tied(kind: type[nn.Module], key: Callable[[nn.Module], object]) -> Change:
    """Layers of one shape share one module."""

    def apply(model: nn.Module) -> nn.Module:
        first: dict[object, nn.Module] = {}
        for parent, name in places(model, kind):
            module = getattr(parent, name)
            setattr(parent, name, first.setdefault(key(module), module))
        return model

    return apply


def frozen_part(*names: str) -> Change:
    def apply(model: nn.Module) -> nn.Module:
        for name in names:
            model.get_submodule(name).requires_grad_(False)
        return model

    return apply


def hooked(register: str, hook: Callable[..., object], name: str = "stage2") -> Change:
    def apply(model: nn.Module) -> nn.Module:
        getattr(model.get_submodule(name), register)(hook)
        return model

    return apply


def parameter_hook(model: nn.Module) -> nn.Module:
    next(iter(model.stage1.parameters())).register_hook(lambda gradient: 0.5 * gradient)
    return model


def _no_gradient(self, x):
    with torch.no_grad():
        features = self.module.forward_features(x)
    return self.module.forward_head(features)


def _stage_detached(self, x):
    m = self.module
    x = m.stage1(m.stem(x)).detach()
    for name in m.stage_names[1:]:
        x = m.get_submodule(name)(x)
    return m.forward_head(m.final(x))


def _in_bfloat16(self, x):
    with torch.autocast("cpu", torch.bfloat16):
        return self.module(x).to(x.dtype)


def _with_flip(self, x):
    return self.module(x) if self.training else (self.module(x) + self.module(x.flip(-1))) / 2


NETWORK: dict[str, Change] = {
    "image normalised": around(lambda self, x: self.module((x - 0.5) / 0.25)),
    "image centred": around(lambda self, x: self.module(x - x.mean((2, 3), keepdim=True))),
    "image × 255": around(lambda self, x: self.module(255 * x)),
    "image clipped": around(lambda self, x: self.module(x.clamp(-10, 10))),
    "image mirrored": around(lambda self, x: self.module(x.flip(-1))),
    "image transposed": around(lambda self, x: self.module(x.transpose(2, 3))),
    "image without the batch's mean": around(lambda self, x: self.module(x - x.mean(0))),
    "image in half precision": around(lambda self, x: self.module(through_half(x))),
    "image detached": around(lambda self, x: self.module(x.detach())),
    "image with noise": around(lambda self, x: self.module(x + 0.01 * torch.randn_like(x))),
    "logits of the mirrored image in evaluation mode": around(_with_flip),
    "features without gradient": around(_no_gradient),
    "stage 1 detached": around(_stage_detached),
    "bfloat16 by autocast": around(_in_bfloat16),
    "two outputs": around(lambda self, x: (self.module(x), self.module.forward_features(x))),
    "everything frozen": lambda model: model.requires_grad_(False),
    "stem frozen": frozen_part("stem"),
    "stage 1 frozen": frozen_part("stem", "stage1"),
    "BN frozen everywhere": every(nn.BatchNorm2d, rebuilt(EvaluatedBatchNorm)),
    "BN set to evaluation mode": every(nn.BatchNorm2d, lambda module: module.eval()),
    "units tied": tied(nn.Conv2d, lambda module: tuple(module.weight.shape)),
    "BN tied": tied(nn.BatchNorm2d, lambda module: module.num_features),
    "hook that doubles": hooked("register_forward_hook", lambda module, args, output: 2 * output),
    "hook on the input": hooked("register_forward_pre_hook", lambda module, args: (args[0] + 1e-3,)),
    "hook on the gradient": hooked(
        "register_full_backward_hook", lambda module, before, _: tuple(0.5 * each for each in before)
    ),
    "hook on a parameter's gradient": parameter_hook,
    "shortcuts detached": every_unit(UNIT["shortcut detached"]),
    "branches detached": every_unit(UNIT["branch detached"]),
    "average everywhere": every_unit(UNIT["average"]),
    "ReLU6 everywhere": every(nn.ReLU, lambda module: nn.ReLU6()),
    "instance norm everywhere": every(nn.BatchNorm2d, rebuilt(nn.InstanceNorm2d, affine=True)),
    "ε 1e-3 everywhere": every(nn.BatchNorm2d, with_attribute(eps=1e-3)),
    "momentum 0.01 everywhere": every(nn.BatchNorm2d, with_attribute(momentum=0.01)),
    "reflected padding everywhere": every(nn.Conv2d, reconv(padding_mode="reflect")),
    "stochastic depth everywhere": every_unit(UNIT["stochastic depth"]),
}

KINDS: dict[str, tuple[type[nn.Module], dict[str, Change]]] = {
    "batch norm": (nn.BatchNorm2d, BATCH_NORM),
    "convolution": (nn.Conv2d, CONVOLUTION),
    "activation": (nn.ReLU, ACTIVATION),
    "unit": (ResidualUnit, UNIT),
}
WHOLE: dict[str, dict[str, Change]] = {
    "head": {name: head(change) for name, change in CLASSIFIER.items()},
    "pooling": POOLING,
    "network": NETWORK,
}


def places(model: nn.Module, kind: type[nn.Module]) -> list[tuple[nn.Module, str]]:
    """The modules of a kind, as the module that holds each, and its name there."""
    names = [name for name, module in model.named_modules() if isinstance(module, kind)]
    return [(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in names]


def has_padding(module: nn.Module) -> bool:
    return not isinstance(module, nn.Conv2d) or module.kernel_size[0] == 3


def impostors() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Every impostor, as its name and what makes it: each perturbation at the first and at a later place."""
    for base in BASES:
        for kind, (module_type, changes) in KINDS.items():
            for name, change in changes.items():
                for place in (0, -2):
                    yield (
                        f"{base}: {kind}: {name} [{place}]",
                        partial(_changed, base, module_type, change, place),
                    )
        for kind, changes in WHOLE.items():
            for name, change in changes.items():
                yield f"{base}: {kind}: {name}", lambda base=base, change=change: change(fresh(base))


def _changed(base: str, kind: type[nn.Module], change: Change, place: int) -> nn.Module:
    model = fresh(base)
    found = [(parent, name) for parent, name in places(model, kind) if has_padding(getattr(parent, name))]
    parent, name = found[place]
    setattr(parent, name, change(getattr(parent, name)))
    return model


# ------------------------------------------------------------------------------------------------ the same


def _functional_norm(self, x):
    m = self.module
    return functional.batch_norm(
        x, m.running_mean, m.running_var, m.weight, m.bias, self.training, m.momentum, m.eps
    )


def _functional_conv(self, x):
    m = self.module
    return functional.conv2d(x, m.weight, None, m.stride, m.padding, m.dilation, m.groups)


def closed_over(model: nn.Module) -> nn.Module:
    """A unit's `forward` is a function that holds the unit itself: a copy runs the original."""
    unit = model.stage1[0]
    forward = unit.forward
    unit.forward = lambda x: forward(x)
    return model


def _fixed_window(self, x):
    features = self.module.forward_features(x)
    side = 8 if len(self.module.stage_names) == 3 else 2  # an image of 32 pixels, and one of 64
    return self.module.classifier(functional.avg_pool2d(features, side).flatten(1))


def _added_into(self, h, F):
    F += h
    return F


class Relaid(nn.Module):
    """Another class layout: the parts under other names, in lists."""

    def __init__(self, model):
        super().__init__()
        self.entry = nn.ModuleList(model.stem)
        self.body = nn.ModuleDict({f"block_{i}": getattr(*place) for i, place in enumerate(units_of(model))})
        self.exit, self.fc = model.final, model.classifier

    def forward(self, image):
        for layer in self.entry:
            image = layer(image)
        for block in self.body.values():
            image = block(image)
        return self.fc(functional.adaptive_avg_pool2d(self.exit(image), 1).flatten(1))


def zero_last_gamma(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.zeros_(module.weight)
    return model


def with_spare(model: nn.Module) -> nn.Module:
    model.spare = nn.Linear(3, 3)
    return model


def linear_as_convolution(module: nn.Linear) -> nn.Module:
    conv = nn.Conv2d(module.in_features, module.out_features, 1)
    return nn.Sequential(nn.Unflatten(1, (module.in_features, 1, 1)), conv, nn.Flatten())


REWRITES: dict[str, Change] = {
    "itself": lambda model: model,
    "another layout": Relaid,
    "in evaluation mode": lambda model: model.eval(),
    "in half precision": lambda model: model.half(),
    "in double precision": lambda model: model.double(),
    "channels last": lambda model: model.to(memory_format=torch.channels_last),
    "parallel": nn.DataParallel,
    "in place": every(nn.ReLU, lambda module: nn.ReLU(inplace=True)),
    "functional ReLU": every(nn.ReLU, lambda module: Call(module, lambda self, x: functional.relu(x))),
    "ReLU by clamp": every(nn.ReLU, lambda module: Call(module, lambda self, x: x.clamp(min=0))),
    "ReLU by a mask": every(nn.ReLU, lambda module: Call(module, lambda self, x: x * (x > 0))),
    "ReLU by a choice": every(
        nn.ReLU, lambda module: Call(module, lambda self, x: torch.where(x > 0, x, 0.0))
    ),
    "ReLU by maximum": every(
        nn.ReLU, lambda module: Call(module, lambda self, x: torch.maximum(x, torch.zeros_like(x)))
    ),
    "ReLU by absolute values": every(nn.ReLU, lambda module: Call(module, lambda self, x: (x + x.abs()) / 2)),
    "functional BN": every(nn.BatchNorm2d, lambda module: Call(module, _functional_norm)),
    "functional convolution": every(nn.Conv2d, lambda module: Call(module, _functional_conv)),
    "branch first": every_unit(added(lambda self, h, F: F + h)),
    "added into the branch": every_unit(added(_added_into)),
    "torch.add": every_unit(added(lambda self, h, F: torch.add(h, F, alpha=1))),
    "sum of a stack": every_unit(added(lambda self, h, F: torch.stack([h, F]).sum(0))),
    "sum of a stack behind": every_unit(added(lambda self, h, F: torch.stack([F, h], -1).sum(-1))),
    "sum of a concatenation": every_unit(
        added(lambda self, h, F: torch.cat([h, F], 1).unflatten(1, (2, -1)).sum(1))
    ),
    "negative taken off": every_unit(added(lambda self, h, F: h - (-F))),
    "dropout of 0": dropped(0.0),
    "identities between": every(nn.Conv2d, lambda module: nn.Sequential(nn.Identity(), module)),
    "pooled by a fixed window": around(_fixed_window),
    "pooled in two steps": pooled(lambda x: x.mean(3).mean(2)),
    "pooled and flattened": pooled(lambda x: nn.AdaptiveAvgPool2d((1, 1))(x).reshape(x.shape[0], -1)),
    "linear by matrices": head(
        lambda module: Call(module, lambda self, x: x @ self.module.weight.t() + self.module.bias)
    ),
    "linear as a convolution": head(linear_as_convolution),
    "with an idle parameter": with_spare,
    "γ = 0": zero_last_gamma,
    "forward that holds its unit": closed_over,
    "hook that looks": hooked("register_forward_hook", lambda module, args, output: None),
}


# At an input of exactly 0 these hand on another gradient than ReLU, and the certificate says so.
AT_CORNER = ("ReLU by clamp", "ReLU by maximum", "ReLU by absolute values")
ON_SOME_SIDES = ("pooled by a fixed window",)


def unit_channels(function: Callable[[Tensor], Tensor]) -> Change:
    return every_unit(after(function))


def _shuffled(x: Tensor) -> Tensor:
    n, c, *sides = x.shape
    return x.reshape(n, 2, c // 2, *sides).transpose(1, 2).reshape(n, c, *sides)


def padded_otherwise(front: bool) -> Change:
    """Option A with its zero channels in front, or on both sides."""

    def h(self, x):
        extra = self.module.extra
        first = extra if front else extra // 2
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, first, extra - first))

    def apply(model: nn.Module) -> nn.Module:
        for parent, name in units_of(model):
            unit = getattr(parent, name)
            if hasattr(unit.h, "pad1"):
                unit.h = Call(unit.h.pad1, h)
        return model

    return apply


PERMUTED: dict[str, Change] = {
    "channels reversed behind every unit": unit_channels(lambda x: x.flip(1)),
    "channels rolled behind every unit": unit_channels(lambda x: x.roll(3, 1)),
    "channels shuffled behind every unit": unit_channels(_shuffled),
    "colours reversed": around(lambda self, x: self.module(x.flip(1))),
    "features reversed": head(before(lambda x: x.flip(1))),
}
PADDED: dict[str, Change] = {
    "zero channels in front": padded_otherwise(True),
    "zero channels on both sides": padded_otherwise(False),
}


def rewrites() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """The same functions, written in other ways."""
    for base in BASES:
        for name, change in REWRITES.items():
            yield f"{base}: {name}", lambda base=base, change=change: change(fresh(base))


def permuted() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """The same functions but for the order of channels."""
    for base in BASES:
        changes = PERMUTED | (PADDED if base == "resnet14_cifar" else {})
        for name, change in changes.items():
            yield f"{base}: {name}", lambda base=base, change=change: change(fresh(base))
