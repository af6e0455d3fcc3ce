"""Networks with the faults that `docs/how-to/audit.md` lists, written from their descriptions."""

import torch
from torch import nn
from torch.nn import functional


class HystsUnit(nn.Module):
    """A pre-activation bottleneck whose inner width is a quarter of its *output*, so 4 where that is 16."""

    def __init__(self, channels, out, stride, *, shared):
        super().__init__()
        inner, self.shared = out // 4, shared
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out, 1, bias=False)
        self.shortcut = nn.Sequential()
        if channels != out:
            self.shortcut.add_module("conv", nn.Conv2d(channels, out, 1, stride, bias=False))

    def forward(self, x):
        y = functional.relu(self.bn1(x), inplace=True)
        x = y if self.shared else x
        y = functional.relu(self.bn2(self.conv1(y)), inplace=True)
        y = functional.relu(self.bn3(self.conv2(y)), inplace=True)
        y = self.conv3(y)
        y += self.shortcut(x)
        return y


class Hysts(nn.Module):
    """Stage outputs 16, 128, 256."""

    def __init__(self, n=18):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        widths = (16, 16, 128, 256)
        for number in (1, 2, 3):
            units = [HystsUnit(widths[number - 1], widths[number], 1 if number == 1 else 2, shared=True)]
            units += [HystsUnit(widths[number], widths[number], 1, shared=False) for _ in range(n - 1)]
            self.add_module(f"stage{number}", nn.Sequential(*units))
        self.bn = nn.BatchNorm2d(256)
        self.fc = nn.Linear(256, 10)

    def forward(self, x):
        x = self.stage3(self.stage2(self.stage1(self.conv(x))))
        x = functional.relu(self.bn(x), inplace=True)
        return self.fc(functional.adaptive_avg_pool2d(x, 1).view(x.size(0), -1))


def preact_resnet164():
    return Hysts()


class KuangliuNextUnit(nn.Module):
    """Output twice the inner width C·d, which doubles from stage to stage."""

    def __init__(self, channels, cardinality, d, stride):
        super().__init__()
        inner = cardinality * d
        self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=cardinality, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, 2 * inner, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(2 * inner)
        self.shortcut = nn.Sequential()
        if channels != 2 * inner:
            conv = nn.Conv2d(channels, 2 * inner, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(2 * inner))

    def forward(self, x):
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y)) + self.shortcut(x)
        return functional.relu(y)


class KuangliuNext(nn.Module):
    """A 1×1 stem of 64 channels, three stages of three units."""

    def __init__(self, cardinality=8, d=64):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels, stages = 64, []
        for number in range(3):
            units = []
            for index in range(3):
                stride = 2 if number and not index else 1
                units.append(KuangliuNextUnit(channels, cardinality, d << number, stride))
                channels = 2 * cardinality * (d << number)
            stages.append(nn.Sequential(*units))
        self.layers = nn.Sequential(*stages)
        self.linear = nn.Linear(channels, 10)

    def forward(self, x):
        x = self.layers(functional.relu(self.bn1(self.conv1(x))))
        return self.linear(functional.avg_pool2d(x, 8).flatten(1))


def ResNeXt29_8x64d():
    return KuangliuNext()


class PreactUnit(nn.Module):
    """A basic pre-activation unit; `projection`: "raw" or "activated"; `padded`: option A instead."""

    def __init__(self, channels, out, stride, *, projection="activated", bias=False, padded=False):
        super().__init__()
        self.projection, self.padded, self.out, self.stride = projection, padded, out, stride
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=bias)
        self.bn2 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=bias)
        if (stride != 1 or channels != out) and not padded:
            self.shortcut = nn.Conv2d(channels, out, 1, stride, bias=bias)

    def forward(self, x):
        y = torch.relu(self.bn1(x))
        h = x
        if hasattr(self, "shortcut"):
            h = self.shortcut(y if self.projection == "activated" else x)
        elif self.padded and x.shape[1] != self.out:
            extra = (self.out - x.shape[1]) // 2
            h = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, extra, extra))
        return self.conv2(torch.relu(self.bn2(self.conv1(y)))) + h


class Preact(nn.Module):
    """A pre-activation network of basic units, its edges as asked for."""

    def __init__(self, widths, n, *, activated_stem, final, bias=False, **unit):
        super().__init__()
        stem = [nn.Conv2d(3, widths[0], 3, 1, 1, bias=bias)]
        self.pre = nn.Sequential(*stem, *([nn.BatchNorm2d(widths[0]), nn.ReLU(True)] * activated_stem))
        channels, units = widths[0], []
        for number, width in enumerate(widths):
            for index in range(n):
                units.append(PreactUnit(channels, width, 2 if number and not index else 1, bias=bias, **unit))
                channels = width
        self.units = nn.Sequential(*units)
        self.final = nn.Sequential(*([nn.BatchNorm2d(channels), nn.ReLU(True)] * final))
        self.linear = nn.Linear(channels, 10)

    def forward(self, x):
        x = self.final(self.units(self.pre(x)))
        return self.linear(x.mean((2, 3)))


def PreActResNet18():
    """As kuangliu's: un-activated stem, projections on the activated tensor, nothing after the last."""
    return Preact((64, 128, 256, 512), 2, activated_stem=False, final=False)


def weiaicunzai_preactresnet18():
    """Biased convolutions, an activated stem activated again, raw projections, nothing after the last."""
    return Preact((64, 128, 256, 512), 2, activated_stem=True, final=False, bias=True, projection="raw")


def preresnet110_cifar10():
    """As pytorchcv's and junyuseu's: option B in the basic network, the first shortcut from a raw stem."""
    return Preact((16, 32, 64), 18, activated_stem=False, final=True)


class BearpawUnit(nn.Module):
    """A pre-activation bottleneck whose projection reads x itself."""

    def __init__(self, channels, inner, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, 4 * inner, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        changes = stride != 1 or channels != 4 * inner
        self.downsample = nn.Conv2d(channels, 4 * inner, 1, stride, bias=False) if changes else None

    def forward(self, x):
        residual = x if self.downsample is None else self.downsample(x)
        y = self.conv1(self.relu(self.bn1(x)))
        y = self.conv2(self.relu(self.bn2(y)))
        y = self.conv3(self.relu(self.bn3(y)))
        y += residual
        return y


class PreResNet(nn.Module):
    """n = (depth − 2)/6 units a stage, as for basic ones, of bottlenecks."""

    def __init__(self, depth=110):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        channels = 16
        for number, width in enumerate((16, 32, 64), 1):
            units = []
            for index in range((depth - 2) // 6):
                units.append(BearpawUnit(channels, width, 2 if number > 1 and not index else 1))
                channels = 4 * width
            self.add_module(f"layer{number}", nn.Sequential(*units))
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AvgPool2d(8)
        self.fc = nn.Linear(channels, 10)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        x = self.avgpool(self.relu(self.bn(x)))
        return self.fc(x.view(x.size(0), -1))


def preresnet110():
    return PreResNet()
