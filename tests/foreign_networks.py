"""Networks in the style of others: in-place additions and activations, counters in BN, `downsample`.

They share no code with the package, so that what is measured of them is measured from outside.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class BasicBlock(nn.Module):
    """As torchvision's: out += identity, then one ReLU module that works in place."""

    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = None
        if stride != 1 or inplanes != planes:
            convolution = nn.Conv2d(inplanes, planes, 1, stride, bias=False)
            self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(planes))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class PreActBlock(nn.Module):
    """As kuangliu's, with a functional ReLU; option B from the pre-activated tensor."""

    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inplanes)
        self.act = nn.ReLU()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.shortcut = None
        if stride != 1 or inplanes != planes:
            self.shortcut = nn.Conv2d(inplanes, planes, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        out = self.conv2(functional.relu(self.bn2(self.conv1(out))))
        return out.add_(shortcut)


class ForeignResNet(nn.Module):
    """Stages of two blocks; with `between`, a pooling layer stands between them and no block strides."""

    def __init__(self, block: type[nn.Module] = BasicBlock, *, between: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(block(8, 8), block(8, 8))
        self.between = nn.AvgPool2d(2) if between else nn.Identity()
        self.layer2 = nn.Sequential(block(8, 16, 1 if between else 2), block(16, 16))
        self.last = nn.BatchNorm2d(16) if block is PreActBlock else None
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(functional.relu(self.bn1(self.conv1(x))))
        x = self.layer2(self.between(x) if isinstance(self.between, nn.AvgPool2d) else x)
        if self.last is not None:
            x = functional.relu(self.last(x))
        return self.fc(torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1))


UNITS = ("layer?.*",)


def original() -> ForeignResNet:
    return ForeignResNet(BasicBlock)


def preactivation() -> ForeignResNet:
    return ForeignResNet(PreActBlock)


def pooled() -> ForeignResNet:
    return ForeignResNet(BasicBlock, between=True)


def names_of(ours: str, preact: bool) -> str:
    """What the state dict of `kilolayer` calls a tensor, as these networks call it."""
    parts = ours.split(".")
    if parts[0] == "stem":
        return f"{parts[1]}.{parts[2]}"
    if parts[0] == "final":
        return f"last.{parts[2]}"
    if parts[0] == "classifier":
        return f"fc.{parts[1]}"
    stage, unit, letter, layer, tensor = parts
    if letter == "h":
        layer = {"conv1": "shortcut" if preact else "downsample.0", "bn1": "downsample.1"}[layer]
    elif letter == "F" and layer == "bn1" and preact and unit == "0":
        layer = "bn2"  # the first stands before the split, or in the stem
    return f"layer{stage.removeprefix('stage')}.{unit}.{layer}.{tensor}"
