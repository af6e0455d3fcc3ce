"""Residual designs as other people write them, and what autograd knows of them.

Each design is a network of `depth` modules in `blocks`, in float64, with its expectation: the terms that its
author would write, or None where it must not be read. A module that is read reports through `Truth` every
sum that it makes: (h, F, y) as its author means them, with gradients retained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH, TOKENS, SIDE = 8, 4, 4


@dataclass
class Truth:
    """What the modules say while `on`: in order, (x, h, F, y) of every addition."""

    on: bool = False
    sums: list[tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=list)

    def say(self, x: Tensor, h: Tensor, F: Tensor, y: Tensor) -> Tensor:
        if self.on:
            for one in (x, y):
                if one.requires_grad:
                    one.retain_grad()
            self.sums.append((x, h, F, y))
        return y


TRUTH = Truth()
DESIGNS: dict[str, Design] = {}


@dataclass(frozen=True)
class Design:
    """`block(i)` makes the i-th module; `read` says whether it must be read, must be refused, or either."""

    block: Callable[[int], nn.Module]
    read: bool | None
    around: Callable[[list[nn.Module], Tensor], Tensor] | None = None
    """How the network runs its blocks; by default one after the other."""
    images: bool = False
    width: int = WIDTH


def design(
    name: str, read: bool | None, **options: object
) -> Callable[[Callable[[int], nn.Module]], Callable[[int], nn.Module]]:
    def enter(block: Callable[[int], nn.Module]) -> Callable[[int], nn.Module]:
        DESIGNS[name] = Design(block, read, **options)  # type: ignore[arg-type]
        return block

    return enter


class Network(nn.Module):
    """The blocks of a design between an embedding and a head."""

    def __init__(self, of: Design, depth: int = 3) -> None:
        super().__init__()
        self.of = of
        width = of.width
        self.embed = nn.Conv2d(3, width, 1) if of.images else nn.Linear(3, width)
        self.blocks = nn.ModuleList(of.block(number) for number in range(depth))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x if self.of.images else x.flatten(2).transpose(1, 2))
        if self.of.around is not None:
            x = self.of.around(list(self.blocks), x)
        else:
            for block in self.blocks:
                x = block(x)
        return self.head(x.mean((2, 3)) if self.of.images else x.mean(1))


def build_design(name: str, depth: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return Network(DESIGNS[name], depth).double()


def batch(size: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(size, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)
    return images, torch.arange(size) % 5


def mlp(width: int = WIDTH) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


class Attention(nn.Module):
    def __init__(self, width: int = WIDTH, heads: int = 2) -> None:
        super().__init__()
        self.qkv, self.out, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(n, t, c))


class Block(nn.Module):
    """Norms and branches for the blocks below, whose `forward` is a function of their parts."""

    def __init__(self, forward: Callable[[Block, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn, self.mlp = Attention(), mlp()
        self.scale = nn.Parameter(torch.full((WIDTH,), 0.7))
        self.factor = nn.Parameter(torch.tensor(0.8))
        self.matrix = nn.Parameter(torch.eye(WIDTH))
        self.gate = nn.Linear(WIDTH, WIDTH)
        for name, part in parts.items():
            setattr(self, name, part)
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


Forward = Callable[[Block, Tensor], Tensor]


def tokens(name: str, read: bool | None, **options: object) -> Callable[[Forward], Forward]:
    """A design on tokens, as its blocks' forward."""

    def enter(forward: Forward) -> Forward:
        design(name, read, **options)(lambda number: Block(forward))
        return forward

    return enter


# Read: one addition, or several in turn.


@tokens("pre-LN Transformer, two additions", True)
def _(m: Block, x: Tensor) -> Tensor:
    a = m.attn(m.n1(x))
    x = TRUTH.say(x, x, a, x + a)
    b = m.mlp(m.n2(x))
    return TRUTH.say(x, x, b, x + b)


@tokens("post-LN Transformer, two additions", True)
def _(m: Block, x: Tensor) -> Tensor:
    a = m.attn(x)
    x = m.n1(TRUTH.say(x, x, a, x + a))
    b = m.mlp(x)
    return m.n2(TRUTH.say(x, x, b, x + b))


@tokens("additions in place", True)
def _(m: Block, x: Tensor) -> Tensor:
    a = m.attn(m.n1(x))
    before, y = x, x.clone()
    y += a
    x = TRUTH.say(before, before, a, y)
    b = m.mlp(m.n2(x))
    z = x.clone()
    z.add_(b)
    return TRUTH.say(x, x, b, z)


@tokens("parallel block, a sum of three", True)
def _(m: Block, x: Tensor) -> Tensor:
    n = m.n1(x)
    a, b = m.attn(n), m.mlp(n)
    return TRUTH.say(x, x, a + b, x + a + b)


@tokens("parallel block, sum() of a list", True)
def _(m: Block, x: Tensor) -> Tensor:
    a, b = m.attn(m.n1(x)), m.mlp(m.n2(x))
    return TRUTH.say(x, x, a + b, sum([x, a, b]))  # type: ignore[arg-type]


@tokens("torch.add with alpha", True)
def _(m: Block, x: Tensor) -> Tensor:
    F = m.mlp(m.n1(x))
    return TRUTH.say(x, x, 0.3 * F, torch.add(x, F, alpha=0.3))


@tokens("a difference, x − F", True)
def _(m: Block, x: Tensor) -> Tensor:
    F = m.mlp(m.n1(x))
    return TRUTH.say(x, x, -F, x - F)


@tokens("averaging shortcut", True)
def _(m: Block, x: Tensor) -> Tensor:
    F = m.mlp(m.n1(x))
    return TRUTH.say(x, x / 2, F / 2, (x + F) / 2)


@tokens("constant λ on the shortcut", True)
def _(m: Block, x: Tensor) -> Tensor:
    F = m.mlp(m.n1(x))
    return TRUTH.say(x, 0.9 * x, F, 0.9 * x + F)


@tokens("learned λ on both sides", True)
def _(m: Block, x: Tensor) -> Tensor:
    F = m.mlp(m.n1(x))
    return TRUTH.say(x, m.factor * x, m.scale * F, m.factor * x + m.scale * F)


@tokens("a learned vector behind the sum", True)
def _(m: Block, x: Tensor) -> Tensor:
    F = m.mlp(m.n1(x))
    return TRUTH.say(x, x * m.scale, F * m.scale, (x + F) * m.scale)


@tokens("ReZero and LayerScale", True)
def _(m: Block, x: Tensor) -> Tensor:
    a = m.factor * m.attn(m.n1(x))
    x = TRUTH.say(x, x, a, x + a)
    b = m.scale * m.mlp(m.n2(x))
    return TRUTH.say(x, x, b, b + x)


@tokens("Peri-LN", True)
def _(m: Block, x: Tensor) -> Tensor:
    F = m.n2(m.mlp(m.n1(x)))
    return TRUTH.say(x, x, F, x + F)


@tokens("orthogonal update", True)
def _(m: Block, x: Tensor) -> Tensor:
    F = m.mlp(m.n1(x))
    F = F - (F * x).sum(-1, keepdim=True) / (x * x).sum(-1, keepdim=True) * x
    return TRUTH.say(x, x, F, x + F)


@tokens("views, permutes and dropout off between", True)
def _(m: Block, x: Tensor) -> Tensor:
    a = m.attn(m.n1(x))
    x = TRUTH.say(x, x, a, x + a)
    n, _, c = x.shape
    z = functional.dropout(x.transpose(1, 2).contiguous().view(n, c, SIDE, SIDE), 0.5, training=False)
    b = m.mlp(m.n2(z.flatten(2).transpose(1, 2)))
    y = (z + b.transpose(1, 2).reshape(n, c, SIDE, SIDE)).flatten(2).transpose(1, 2)
    return TRUTH.say(x, x, b, y)


class Swin(Block):
    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        side = int(t**0.5)
        z = torch.roll(self.n1(x).view(n, side, side, c), (-1, -1), (1, 2)).reshape(n, t, c)
        a = torch.roll(self.attn(z).view(n, side, side, c), (1, 1), (1, 2)).reshape(n, t, c)
        x = TRUTH.say(x, x, a, x + a)
        b = self.mlp(self.n2(x))
        return TRUTH.say(x, x, b, x + b)


design("shifted windows", True)(lambda number: Swin(lambda m, x: x))


class Mixer(Block):
    def forward(self, x: Tensor) -> Tensor:
        a = self.over_tokens(self.n1(x).transpose(1, 2)).transpose(1, 2)
        x = TRUTH.say(x, x, a, x + a)
        b = self.mlp(self.n2(x))
        return TRUTH.say(x, x, b, x + b)


design("MLP-Mixer", True)(lambda number: Mixer(lambda m, x: x, over_tokens=mlp(SIDE * SIDE)))


@tokens("an addition of a constant", True)
def _(m: Block, x: Tensor) -> Tensor:
    F = m.mlp(m.n1(x)) + m.scale
    return TRUTH.say(x, x, F, x + F)


@tokens("an addition with a broadcast", True)
def _(m: Block, x: Tensor) -> Tensor:
    F = m.mlp(m.n1(x).mean(1, keepdim=True))
    return TRUTH.say(x, x, F.expand_as(x), x + F)


@tokens("highway gate", True)
def _(m: Block, x: Tensor) -> Tensor:
    g = torch.sigmoid(m.gate(x))
    F = g * m.mlp(x)
    return TRUTH.say(x, (1 - g) * x, F, (1 - g) * x + F)


@tokens("Keel: gate and LN behind the sum", True)
def _(m: Block, x: Tensor) -> Tensor:
    F = m.mlp(m.n1(x))
    return m.n2(TRUTH.say(x, 3 * x, F, 3 * x + F))


@tokens("squeeze and excitation in the branch", True)
def _(m: Block, x: Tensor) -> Tensor:
    F = m.mlp(m.n1(x))
    F = F * torch.sigmoid(m.gate(F.mean(1, keepdim=True)))
    return TRUTH.say(x, x, F, x + F)


class Dropped(Block):
    """Stochastic depth: a branch that some images skip, the same ones in every run."""

    def forward(self, x: Tensor) -> Tensor:
        kept = torch.rand(len(x), 1, 1, generator=torch.Generator().manual_seed(3)) > 0.5
        F = self.mlp(self.n1(x)) * kept / 0.5
        return TRUTH.say(x, x, F, x + F)


design("stochastic depth", True)(lambda number: Dropped(lambda m, x: x))


class Fixup(nn.Module):
    """No normalisation: scalar biases, and a scalar on the branch (Zhang et al. 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(WIDTH, WIDTH, 3, 1, 1), nn.Conv2d(WIDTH, WIDTH, 3, 1, 1)
        self.biases = nn.Parameter(torch.linspace(-0.1, 0.1, 4))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        F = functional.relu(self.c1(x + self.biases[0]) + self.biases[1])
        F = self.c2(F + self.biases[2]) * self.scale + self.biases[3]
        return functional.relu(TRUTH.say(x, x, F, x + F))


design("Fixup", True, images=True)(lambda number: Fixup())


class GroupNormUnit(nn.Module):
    """Full pre-activation with GroupNorm in BN's place."""

    def __init__(self) -> None:
        super().__init__()
        self.n1, self.n2 = nn.GroupNorm(2, WIDTH), nn.GroupNorm(2, WIDTH)
        self.c1, self.c2 = nn.Conv2d(WIDTH, WIDTH, 3, 1, 1), nn.Conv2d(WIDTH, WIDTH, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        F = self.c2(functional.relu(self.n2(self.c1(functional.relu(self.n1(x))))))
        return TRUTH.say(x, x, F, x + F)


design("GroupNorm, full pre-activation", True, images=True)(lambda number: GroupNormUnit())


@tokens("LN written by hand, two additions", True)
def _(m: Block, x: Tensor) -> Tensor:
    def norm(z: Tensor) -> Tensor:
        z = z - z.mean(-1, keepdim=True)
        return z / (z.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    a = m.attn(x)
    x = norm(TRUTH.say(x, x, a, x + a))
    b = m.mlp(x)
    return norm(TRUTH.say(x, x, b, x + b))


@tokens("pooling as the token mixer", True)
def _(m: Block, x: Tensor) -> Tensor:
    n = m.n1(x)
    a = functional.avg_pool1d(n.transpose(1, 2), 3, 1, 1, count_include_pad=False).transpose(1, 2) - n
    x = TRUTH.say(x, x, a, x + a)
    b = m.mlp(m.n2(x))
    return TRUTH.say(x, x, b, x + b)


design("nn.TransformerEncoderLayer, pre-LN", True)(
    lambda number: nn.TransformerEncoderLayer(
        WIDTH, 2, 2 * WIDTH, dropout=0.0, norm_first=True, batch_first=True
    )
)
design("nn.TransformerEncoderLayer, post-LN", True)(
    lambda number: nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, dropout=0.0, batch_first=True)
)


class TwoConvolutionUnits(nn.Module):
    """Two pre-activation units in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.b1, self.b2 = nn.BatchNorm2d(WIDTH), nn.BatchNorm2d(WIDTH)
        self.c1, self.c2 = (nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        a = self.c1(functional.relu(self.b1(x)))
        x = TRUTH.say(x, x, a, x + a)
        b = self.c2(functional.relu(self.b2(x)))
        return TRUTH.say(x, x, b, x + b)


design("two residual units in one module", True, images=True)(lambda number: TwoConvolutionUnits())


class ConvNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dw, self.norm, self.mlp = (
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH),
            nn.LayerNorm(WIDTH),
            mlp(),
        )
        self.gamma = nn.Parameter(torch.full((WIDTH,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        F = (self.gamma * self.mlp(self.norm(self.dw(x).permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
        return TRUTH.say(x, x, F, x + F)


design("ConvNeXt", True, images=True)(lambda number: ConvNeXt())


class Original(nn.Module):
    """conv-BN-ReLU-conv-BN, addition and ReLU in place; every second one has a projection."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.c1, self.c2 = (nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False) for _ in range(2))
        self.b1, self.b2 = nn.BatchNorm2d(WIDTH), nn.BatchNorm2d(WIDTH)
        self.project = nn.Conv2d(WIDTH, WIDTH, 1) if number % 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        F = self.b2(self.c2(functional.relu(self.b1(self.c1(x)), inplace=True)))
        h = self.project(x)
        y = F.clone()
        y += h
        TRUTH.say(x, h, F, y)
        return functional.relu(y)


design("original units and projections, in place", True, images=True)(Original)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.b = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.b(self.c(x)))
        return TRUTH.say(x, torch.zeros_like(x), y, y)


design("plain units", True, images=True)(lambda number: Plain())


class Tied(Block):
    shared = None

    def __init__(self, number: int) -> None:
        super().__init__(lambda m, x: x)
        if number == 0:  # a network of its own: an analysis may train one of them
            Tied.shared = self.mlp
        self.mlp = Tied.shared

    def forward(self, x: Tensor) -> Tensor:
        F = self.mlp(self.n1(x))
        return TRUTH.say(x, x, F, x + F)


design("weights tied between units", True)(Tied)


@tokens("streams with an identity mixing, by views alone", True)
def _(m: Block, x: Tensor) -> Tensor:
    X = x.unflatten(-1, (2, WIDTH // 2))
    f = m.mlp(m.n1(x))
    y = (X + f.unflatten(-1, (2, WIDTH // 2))).flatten(-2)
    return TRUTH.say(x, x, f, y)


@tokens("custom autograd.Function in the branch", True)
def _(m: Block, x: Tensor) -> Tensor:
    F = _Double.apply(m.mlp(m.n1(x)))
    return TRUTH.say(x, x, F, x + F)


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return 2 * gradient


# Refused: not one of these is the sum of the input and a branch, or it cannot be told.


@tokens("addition inside a custom autograd.Function", False)
def _(m: Block, x: Tensor) -> Tensor:
    return _HiddenSum.apply(x, m.mlp(m.n1(x)))


class _HiddenSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor, F: Tensor) -> Tensor:
        return x + F

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, 0.5 * gradient


@tokens("detached shortcut", False)
def _(m: Block, x: Tensor) -> Tensor:
    return x.detach() + m.mlp(m.n1(x))


@tokens("shortcut under no_grad", False)
def _(m: Block, x: Tensor) -> Tensor:
    with torch.no_grad():
        h = x * 1.0
    return h + m.mlp(m.n1(x))


@tokens("shortcut through numpy", False)
def _(m: Block, x: Tensor) -> Tensor:
    h = torch.from_numpy(x.detach().numpy().copy())
    return h + m.mlp(m.n1(x))


@tokens("streams with a learned mixing", False)
def _(m: Block, x: Tensor) -> Tensor:
    return torch.einsum("ntc,cd->ntd", x, m.matrix) + m.mlp(m.n1(x))


@tokens("matmul on the shortcut", False)
def _(m: Block, x: Tensor) -> Tensor:
    return x @ m.matrix + m.mlp(m.n1(x))


@tokens("RevNet halves, chunk and cat", False)
def _(m: Block, x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    a = a + m.mlp(functional.pad(b, (0, WIDTH // 2)))[..., : WIDTH // 2]
    b = b + m.mlp(functional.pad(a, (0, WIDTH // 2)))[..., : WIDTH // 2]
    return torch.cat([a, b], -1)


@tokens("hyper-connections, streams mixed by a doubly stochastic matrix", False)
def _(m: Block, x: Tensor) -> Tensor:
    streams = x.unflatten(-1, (4, WIDTH // 4))
    mixing = torch.full((4, 4), 0.1, dtype=x.dtype) + 0.6 * torch.eye(4, dtype=x.dtype)
    return torch.einsum("ntsc,sr->ntrc", streams, mixing).flatten(-2) + m.mlp(m.n1(x))


class TwoTensors(Block):
    """Two halves, or a position and a velocity, from block to block."""

    def forward(self, both: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        a, b = both
        a = a + self.mlp(self.n1(b))
        return a, b + self.mlp(self.n2(a))


class Momentum(Block):
    """v' = 0.9 v + 0.1 F(x), x' = x + v' (Sander et al. 2021)."""

    def forward(self, both: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x, v = both
        v = 0.9 * v + 0.1 * self.mlp(self.n1(x))
        return x + v, v


def _of_two(blocks: list[nn.Module], x: Tensor) -> Tensor:
    both = (x, torch.zeros_like(x))
    for block in blocks:
        both = block(both)
    return both[0]


design("RevNet, two tensors", False, around=_of_two)(lambda number: TwoTensors(lambda m, x: x))
design("momentum residual networks", False, around=_of_two)(lambda number: Momentum(lambda m, x: x))


@tokens("halves by slices", False)
def _(m: Block, x: Tensor) -> Tensor:
    a, b = x[..., : WIDTH // 2], x[..., WIDTH // 2 :]
    return torch.cat([a + m.mlp(x)[..., : WIDTH // 2], b], -1)


@tokens("streams stacked anew", False)
def _(m: Block, x: Tensor) -> Tensor:
    a, b = x.unflatten(-1, (2, WIDTH // 2)).unbind(-2)
    F = m.mlp(m.n1(x))
    return torch.stack([b + F[..., : WIDTH // 2], a], -2).flatten(-2)


@tokens("a mean over a stack", None)
def _(m: Block, x: Tensor) -> Tensor:
    F = m.mlp(m.n1(x))
    return TRUTH.say(x, x / 2, F / 2, torch.stack([x, F]).mean(0))


@tokens("addcmul", None)
def _(m: Block, x: Tensor) -> Tensor:
    F = m.mlp(m.n1(x))
    return TRUTH.say(x, x, m.scale * F, torch.addcmul(x, m.scale, F))


@tokens("lerp", None)
def _(m: Block, x: Tensor) -> Tensor:
    F = m.mlp(m.n1(x))
    return TRUTH.say(x, 0.75 * x, 0.25 * F, torch.lerp(x, F, 0.25))


@tokens("a residual inside a residual", None)
def _(m: Block, x: Tensor) -> Tensor:
    G = x + m.mlp(m.n1(x))
    return TRUTH.say(x, x, G, x + G)


@tokens("two equal branches, no shortcut", None)
def _(m: Block, x: Tensor) -> Tensor:
    return m.gate(x) + functional.relu(m.gate(x))


@tokens("multiplied by a gate, no addition", False)
def _(m: Block, x: Tensor) -> Tensor:
    return x * torch.sigmoid(m.gate(x))


@tokens("input written into through a view", False)
def _(m: Block, x: Tensor) -> Tensor:
    y = x.clone()
    y[..., :2] += m.mlp(m.n1(x))[..., :2]
    return y


@tokens("a weighted sum over earlier layers, in one module", False)
def _(m: Block, x: Tensor) -> Tensor:
    s = x + m.attn(m.n1(x))
    return 0.3 * x + 0.7 * s + m.mlp(m.n2(s))


@tokens("another path each time", None)
def _(m: Block, x: Tensor) -> Tensor:
    F = m.mlp(m.n1(x))
    if torch.is_grad_enabled():
        return TRUTH.say(x, x, F, x + F)
    return x + F + 0 * x.detach()


def _dense(blocks: list[nn.Module], x: Tensor) -> Tensor:
    outputs = [x]
    for block in blocks:
        outputs.append(block(sum(outputs) / len(outputs)))  # type: ignore[arg-type]
    return outputs[-1]


def _attention(blocks: list[nn.Module], x: Tensor) -> Tensor:
    """Every block reads all earlier outputs, weighed by a softmax (Attention Residuals)."""
    outputs = [x]
    for block in blocks:
        stacked = torch.stack(outputs)
        weights = (stacked * outputs[-1]).mean((1, 2, 3)).softmax(0)
        outputs.append(block((weights[:, None, None, None] * stacked).sum(0)))
    return outputs[-1]


def _skip(blocks: list[nn.Module], x: Tensor) -> Tensor:
    first = blocks[0](x)
    middle = blocks[1](first)
    return blocks[2](middle + first)


def _joined(blocks: list[nn.Module], x: Tensor) -> Tensor:
    first = blocks[0](x)
    return blocks[2](blocks[1](first)) + first


def _around(blocks: list[nn.Module], x: Tensor) -> Tensor:
    y = x
    for block in blocks:
        y = block(y)
    return x + y


def _twice(blocks: list[nn.Module], x: Tensor) -> Tensor:
    return blocks[2](blocks[1](blocks[0](blocks[0](x))))


def _pre_ln(m: Block, x: Tensor) -> Tensor:
    F = m.mlp(m.n1(x))
    return TRUTH.say(x, x, F, x + F)


tokens("weighted sums over earlier outputs", False, around=_dense)(_pre_ln)
tokens("attention over earlier outputs", False, around=_attention)(_pre_ln)
tokens("a skip around a unit, U-Net", False, around=_skip)(_pre_ln)
tokens("a skip into the head", False, around=_joined)(_pre_ln)
tokens("a skip around all units", False, around=_around)(_pre_ln)
tokens("a unit called twice", False, around=_twice)(_pre_ln)


class Reader(Block):
    """Its branch reads the output of an earlier block, left in a list."""

    kept: ClassVar[list[Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        del self.kept[:-1]
        F = self.mlp(self.n1(x + self.kept[0]) if self.kept else self.n1(x))
        y = x + F
        self.kept.append(y)
        return y


def _clean(blocks: list[nn.Module], x: Tensor) -> Tensor:
    Reader.kept.clear()
    for block in blocks:
        x = block(x)
    return x


design("a branch that reads earlier outputs", False, around=_clean)(lambda number: Reader(lambda m, x: x))


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(WIDTH), mlp()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


design("scripted", False)(lambda number: torch.jit.script(Scripted()))  # type: ignore[no-untyped-call]


class Dense(nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.c = nn.Conv2d(WIDTH, WIDTH // 2, 3, padding=1)
        self.t = nn.Conv2d(WIDTH // 2, WIDTH // 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.c(x))
        return torch.cat([x[:, : WIDTH // 2], self.t(y)], 1)


design("DenseNet, concatenation", False, images=True)(Dense)
