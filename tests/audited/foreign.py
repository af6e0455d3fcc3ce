"""Small networks that are none of the papers': the auditor names them by their structure."""

import sys

import torch
from torch import nn
from torch.nn import functional

# Each network, and how the auditor's words for it begin.
STRUCTURES = {
    "vgg": "plain chain of 2 convolutions and 2 fully-connected layers",
    "perceptron": "chain of 2 fully-connected layers",
    "dense": "DenseNet: each of 6 concatenations",
    "dense_list": "DenseNet: each of 5 concatenations",
    "u_net": "U-Net: encoder and decoder with 2 skip connections",
    "link_net": "encoder and decoder with 2 skip connections, added",
    "auto_encoder": "plain encoder and decoder",
    "vision_transformer": "vision Transformer with 2 attention layers (as ViT)",
    "transformer": "Transformer with 2 attention layers",
    "inception": "network of parallel branches, concatenated in 2 places (as Inception)",
    "inverted": "network of inverted residuals (as MobileNetV2): 3 residual units",
    "separable": "chain of depthwise separable convolutions (as MobileNetV1)",
    "shuffled": "network that shuffles channels between groups (as ShuffleNet)",
    "mixer": "residual network of fully-connected layers",
    "recurrent": "recurrent network",
    "recurrent_tokens": "recurrent network",
    "by_hand": "recurrent network",
    "halves": "not known: ",
}


def conv(channels, out, kernel=3, stride=1, groups=1):
    return nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)


def layers(channels, out, kernel=3, stride=1, groups=1):
    return nn.Sequential(conv(channels, out, kernel, stride, groups), nn.BatchNorm2d(out), nn.ReLU())


def head(channels, classes=10):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class Chain(nn.Module):
    """A chain of convolutions, and a head."""

    def __init__(self, channels=3, widths=(8, 8), classes=10):
        super().__init__()
        pairs = zip((channels, *widths), widths, strict=False)
        self.body = nn.Sequential(*(layers(*pair) for pair in pairs), head(widths[-1], classes))

    def forward(self, x):
        return self.body(x)


def vgg():
    hidden = nn.Flatten(), nn.Linear(8, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 10)
    return nn.Sequential(layers(3, 8), nn.MaxPool2d(2), layers(8, 8), nn.AdaptiveAvgPool2d(1), *hidden)


def perceptron():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10))


class Dense(nn.Module):
    """Each layer reads all maps before it: a growing tensor, or a list of tensors."""

    def __init__(self, count, *, as_list):
        super().__init__()
        self.as_list = as_list
        self.stem = conv(3, 8)
        self.convs = nn.ModuleList(layers(8 + 4 * i, 4) for i in range(count))
        self.head = head(8 + 4 * count if not as_list else 4)

    def forward(self, x):
        x = self.stem(x)
        maps = [x]
        for each in self.convs:
            if self.as_list:
                maps.append(each(torch.cat(maps, 1)) if len(maps) > 1 else each(x))
            else:
                x = torch.cat([x, each(x)], 1)
        return self.head(maps[-1] if self.as_list else x)


def dense():
    return Dense(6, as_list=False)


def dense_list():
    return Dense(6, as_list=True)


class Decoder(nn.Module):
    """Two levels down and up again; the skip connections are concatenated or added."""

    def __init__(self, *, concatenated):
        super().__init__()
        self.concatenated = concatenated
        self.down = nn.ModuleList([layers(1, 8), layers(8, 16), layers(16, 32)])
        self.enlarge = nn.ModuleList([nn.ConvTranspose2d(32, 16, 2, 2), nn.Upsample(scale_factor=2)])
        self.reduce = conv(16, 8)
        factor = 2 if concatenated else 1
        self.up = nn.ModuleList([layers(16 * factor, 16), layers(8 * factor, 2)])

    def forward(self, x):
        first = self.down[0](x)
        second = self.down[1](functional.max_pool2d(first, 2))
        x = self.enlarge[0](self.down[2](functional.max_pool2d(second, 2)))
        x = self.up[0](self.join(second, x))
        return self.up[1](self.join(first, self.reduce(self.enlarge[1](x))))

    def join(self, a, b):
        return torch.cat([a, b], 1) if self.concatenated else a + b


def u_net():
    return Decoder(concatenated=True)


def link_net():
    return Decoder(concatenated=False)


def auto_encoder():
    return nn.Sequential(conv(1, 8, stride=2), nn.ReLU(), nn.ConvTranspose2d(8, 1, 4, 2, 1))


class VisionTransformer(nn.Module):
    """Patches of 8 pixels, and two layers."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.linear = nn.Linear(16, 10)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.linear(self.layers(tokens).mean(1))


def vision_transformer():
    return VisionTransformer()


def transformer():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


class Branches(nn.Module):
    def __init__(self, channels, *branches):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.branches], 1)


def inception():
    def branches(channels):
        pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), layers(channels, 4, 1))
        return Branches(channels, layers(channels, 4, 1), layers(channels, 4, 3), pooled)

    return nn.Sequential(layers(3, 8), branches(8), branches(12), head(12))


class Residual(nn.Module):
    def __init__(self, *branch):
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x):
        return x + self.branch(x)


def inverted():
    def unit():
        return Residual(layers(8, 32, 1), layers(32, 32, 3, groups=32), conv(32, 8, 1))

    return nn.Sequential(layers(3, 8), unit(), unit(), unit(), head(8))


def separable():
    pairs = [layers(8, 8, kernel, groups=8 if kernel > 1 else 1) for kernel in (3, 1, 3, 1, 3, 1)]
    return nn.Sequential(layers(3, 8), *pairs, head(8))


class Shuffle(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(layers(8, 8, 1), layers(8, 8, 3, groups=8), layers(8, 8, 1))

    def forward(self, x):
        kept, changed = x.chunk(2, 1)
        x = torch.cat([kept, self.body(changed)], 1)
        n, channels, height, width = x.shape
        return x.view(n, 2, channels // 2, height, width).transpose(1, 2).reshape(x.shape)


def shuffled():
    return nn.Sequential(layers(3, 16), Shuffle(), Shuffle(), head(16))


class Mix(nn.Module):
    def __init__(self, tokens, channels):
        super().__init__()
        self.tokens, self.channels = nn.Linear(tokens, tokens), nn.Linear(channels, channels)

    def forward(self, x):
        x = x + self.tokens(x.transpose(1, 2)).transpose(1, 2)
        return x + self.channels(x)


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches, self.linear = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 10)
        self.mix = nn.Sequential(Mix(16, 8), Mix(16, 8))

    def forward(self, x):
        return self.linear(self.mix(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def mixer():
    return Mixer()


class Recurrent(nn.Module):
    """An LSTM or a GRU over a sequence of vectors, or of tokens."""

    def __init__(self, kind, tokens=0):
        super().__init__()
        self.embedding = nn.Embedding(tokens, 8) if tokens else nn.Identity()
        self.recurrence, self.linear = kind(8, 16, batch_first=True), nn.Linear(16, 10)

    def forward(self, x):
        y, _ = self.recurrence(self.embedding(x))
        return self.linear(y[:, -1])


def recurrent():
    return Recurrent(nn.LSTM)


def recurrent_tokens():
    return Recurrent(nn.GRU, tokens=50)


class ByHand(nn.Module):
    """The same cell for every row of an image."""

    def __init__(self):
        super().__init__()
        self.inside, self.state, self.linear = nn.Linear(28, 8), nn.Linear(8, 8), nn.Linear(8, 10)

    def forward(self, x):
        rows = x.reshape(-1, 28, 28)
        state = torch.zeros(1, 8)
        for i in range(28):
            state = torch.tanh(self.inside(rows[:1, i]) + self.state(state))
        return self.linear(state)


def by_hand():
    return ByHand()


class Halves(nn.Module):
    """A reversible unit: two halves, each added to what the other gives."""

    def __init__(self):
        super().__init__()
        self.stem, self.first, self.second, self.linear = (
            conv(3, 16),
            layers(8, 8),
            layers(8, 8),
            nn.Linear(16, 10),
        )

    def forward(self, x):
        a, b = self.stem(x).chunk(2, 1)
        a = a + self.first(b)
        b = b + self.second(a)
        return self.linear(torch.cat([a, b], 1).mean((2, 3)))


def halves():
    return Halves()


class FrozenNorm(nn.Module):
    """BN of fixed statistics, in buffers."""

    def __init__(self, channels):
        super().__init__()
        for name, value in {"weight": 1.0, "bias": 0.0, "mean": 0.0, "variance": 1.0}.items():
            self.register_buffer(name, torch.full((1, channels, 1, 1), value))

    def forward(self, x):
        scale = self.weight * (self.variance + 1e-5).rsqrt()
        return x * scale + (self.bias - self.mean * scale)


class ChannelScale(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x):
        return x * self.scale


def reflected(module):
    shape = module.in_channels, module.out_channels, module.kernel_size[0], module.stride[0]
    padding = module.kernel_size[0] // 2
    return nn.Conv2d(*shape, padding, bias=False, padding_mode="reflect" if padding else "zeros")


class OfSide(nn.Module):
    def __init__(self, side, **attributes):
        super().__init__()
        self.conv, self.side = nn.Conv2d(3, 4, 7, 7), side // 7
        self.linear = nn.Linear(4 * self.side**2, 10)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.linear(self.conv(x).flatten(1))


def of_side(side, **attributes):
    return OfSide(side, **attributes)


class Uncopied(Chain):
    """A module that deepcopy refuses."""

    def __init__(self):
        super().__init__()
        self.generator = (number for number in [1])


def uncopied():
    return Uncopied()


class TakesList(Chain):
    """A detector's way: a list of images."""

    def forward(self, images):
        if not isinstance(images, list):
            raise TypeError("a list of images is needed")
        return self.body(torch.stack(images))


def takes_list():
    return TakesList()


def exits():
    sys.exit(0)
