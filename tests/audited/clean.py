"""Networks as they should be, in other people's layouts."""

import torch
from torch import nn
from torch.nn import functional


def conv(channels, out, kernel, stride=1, groups=1):
    return nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)


class VisionUnit(nn.Module):
    """torchvision's layout: basic, or a bottleneck with the stride on the 3×3."""

    def __init__(self, channels, width, stride, *, bottleneck=True, groups=1, base=64):
        super().__init__()
        out = width * (4 if bottleneck else 1)
        inner = width * base // 64 * groups
        shapes = [(channels, out, 3, stride, 1), (out, out, 3, 1, 1)]
        if bottleneck:
            shapes = [(channels, inner, 1, 1, 1), (inner, inner, 3, stride, groups), (inner, out, 1, 1, 1)]
        for number, shape in enumerate(shapes, 1):
            self.add_module(f"conv{number}", conv(*shape))
            self.add_module(f"bn{number}", nn.BatchNorm2d(shape[1]))
        self.layers = len(shapes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(conv(channels, out, 1, stride), nn.BatchNorm2d(out))

    def forward(self, x):
        y = x
        for number in range(1, self.layers + 1):
            y = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(y))
            y = self.relu(y) if number < self.layers else y
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class Vision(nn.Module):
    """A torchvision-like ResNet: conv1, bn1, relu, maxpool, layer1 … layer4, avgpool, fc."""

    def __init__(self, units, **unit):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = 64
        for number, count in enumerate(units):
            width, made = 64 << number, []
            for index in range(count):
                made.append(VisionUnit(channels, width, 2 if number and not index else 1, **unit))
                channels = width * (4 if unit.get("bottleneck", True) else 1)
            self.add_module(f"layer{number + 1}", nn.Sequential(*made))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, 1000)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def resnet18():
    return Vision((2, 2, 2, 2), bottleneck=False)


def resnet34():
    return Vision((3, 4, 6, 3), bottleneck=False)


def resnet50():
    return Vision((3, 4, 6, 3))


def resnext50_32x4d():
    return Vision((3, 4, 6, 3), groups=32, base=4)


def wide_resnet50_2():
    return Vision((3, 4, 6, 3), base=128)


class ReleasedUnit(nn.Module):
    """The released code's pre-activation bottleneck; `both`: BN-ReLU before the split, as where it widens."""

    def __init__(self, channels, inner, stride, kind):
        super().__init__()
        self.kind = kind
        self.norm = nn.BatchNorm2d(channels) if kind != "first" else None
        self.body = nn.Sequential(
            conv(channels, inner, 1, stride), nn.BatchNorm2d(inner), nn.ReLU(True),
            conv(inner, inner, 3), nn.BatchNorm2d(inner), nn.ReLU(True),
            conv(inner, 4 * inner, 1),
        )  # fmt: skip
        changes = stride != 1 or channels != 4 * inner
        self.project = conv(channels, 4 * inner, 1, stride) if changes else None

    def forward(self, x):
        y = x if self.norm is None else functional.relu_(self.norm(x))
        return torch.add(self.body(y), self.project(y) if self.project is not None else x)


class Released(nn.Module):
    """fb.resnet.torch's pre-activation layout, CIFAR: conv, BN, ReLU; units; BN, ReLU, pooling."""

    def __init__(self, n):
        super().__init__()
        self.stem = nn.Sequential(conv(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(True))
        channels, units = 16, []
        for number, inner in enumerate((16, 32, 64)):
            for index in range(n):
                kind = "first" if not units else ""
                units.append(ReleasedUnit(channels, inner, 2 if number and not index else 1, kind))
                channels = 4 * inner
        self.units = nn.Sequential(*units)
        self.end = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(True), nn.AvgPool2d(8))
        self.linear = nn.Linear(channels, 10)

    def forward(self, x):
        return self.linear(self.end(self.units(self.stem(x))).flatten(1))


def preact_resnet164():
    return Released(18)
