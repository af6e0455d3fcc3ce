"""PX, "Aggregated Residual Transformations for Deep Neural Networks": its tables."""

from __future__ import annotations

from dataclasses import replace

from kilolayer.papers.plan import Plan
from kilolayer.papers.schema import Column, Paper, Table
from kilolayer.statistics.published import Statistic
from kilolayer.units import AGGREGATED, FULL_PREACT, Aggregated, Identity, Projection, Unit, Zero

PX = Paper("PX", "Aggregated Residual Transformations for Deep Neural Networks", "1611.05431", 2016)

IMAGENET = Plan(
    "imagenet", 50, AGGREGATED, "imagenet", variation="scale and aspect ratio", protocol="224 crop"
)
TOP_1_AND_5 = {"top-1": Column("top-1 error"), "top-5": Column("top-5 error")}


def _unit(cardinality: int, d: int) -> Unit:
    """C paths of width d. One path of width 64 is ResNet's bottleneck, with the stride on the 3×3."""
    return Unit(Aggregated(cardinality, d), downsample=Projection())


TABLE_1 = Table(
    "px-table-1",
    PX,
    "Table 1",
    "ResNet-50 and ResNeXt-50 of equal complexity",
    IMAGENET,
    vary="unit",
    columns={"parameters": Column("parameters"), "multiply-adds": Column("multiply-adds")},
    rows={"ResNet-50": (_unit(1, 64), 25.5, 4.1), "ResNeXt-50 (32×4d)": (_unit(32, 4), 25.0, 4.2)},
    baseline="ResNet-50",
)

TABLE_2 = Table(
    "px-table-2",
    PX,
    "Table 2",
    "bottleneck width d for each cardinality C at equal complexity",
    IMAGENET,
    vary="unit",
    columns={"d": Column("bottleneck width")},
    rows={
        "C = 1": (_unit(1, 64), 64),
        "C = 2": (_unit(2, 40), 40),
        "C = 4": (_unit(4, 24), 24),
        "C = 8": (_unit(8, 14), 14),
        "C = 32": (_unit(32, 4), 4),
    },
)

TABLE_3 = Table(
    "px-table-3",
    PX,
    "Table 3",
    "cardinality at equal complexity on ImageNet",
    IMAGENET,
    vary="unit",
    columns={"50 layers": Column(changes={"depth": 50}), "101 layers": Column(changes={"depth": 101})},
    rows={
        "1×64d (ResNet)": (_unit(1, 64), 23.9, 22.0),
        "2×40d": (_unit(2, 40), 23.0, 21.7),
        "4×24d": (_unit(4, 24), 22.6, 21.4),
        "8×14d": (_unit(8, 14), 22.3, 21.3),
        "32×4d": (_unit(32, 4), 22.2, 21.2),
    },
    baseline="1×64d (ResNet)",
)

# PX takes its ResNet-200 from P2, so it is the pre-activation network.
_RESNET_200 = {"depth": 200, "unit": replace(_unit(1, 64), arrangement=FULL_PREACT)}

TABLE_4 = Table(
    "px-table-4",
    PX,
    "Table 4",
    "deeper, wider, or of more paths, at twice the complexity of ResNet-101, on ImageNet",
    IMAGENET.with_changes(depth=101),
    vary="unit",
    columns=TOP_1_AND_5,
    rows={
        "ResNet-101 (1×64d)": (_unit(1, 64), 22.0, None),
        "ResNeXt-101 (32×4d)": (_unit(32, 4), 21.2, None),
        "ResNet-200 (1×64d)": (_RESNET_200, 21.7, 5.8),
        "ResNet-101, wider (1×100d)": (_unit(1, 100), 21.3, 5.7),
        "ResNeXt-101 (2×64d)": (_unit(2, 64), 20.7, 5.5),
        "ResNeXt-101 (64×4d)": (_unit(64, 4), 20.4, 5.3),
    },
    baseline="ResNet-101 (1×64d)",
)

TABLE_5 = Table(
    "px-table-5",
    PX,
    "Table 5",
    "single-crop errors on ImageNet at two test sizes",
    IMAGENET.with_changes(depth=101),
    vary="unit",
    columns={
        "@224 top-1": Column("top-1 error"),
        "@224 top-5": Column("top-5 error"),
        "@320 top-1": Column("top-1 error", {"protocol": "320 crop"}),
        "@320 top-5": Column("top-5 error", {"protocol": "320 crop"}),
    },
    rows={
        "ResNet-101": (_unit(1, 64), 22.0, None, None, None),
        "ResNet-200": (_RESNET_200, 21.7, 5.8, None, None),
        "ResNeXt-101 (64×4d)": (_unit(64, 4), 20.4, 5.3, 19.1, 4.4),
    },
)

TEXT_ON_SHORTCUTS = Table(
    "px-text-shortcuts",
    PX,
    "Sec. 5.1, text",
    "with and without shortcuts on ImageNet",
    IMAGENET,
    vary="branch",
    columns={
        "with shortcuts": Column(changes={"h": Identity()}),
        "without shortcuts": Column(changes={"h": Zero()}),
    },
    rows={"ResNet-50": (Aggregated(1, 64), 23.9, 31.2), "ResNeXt-50": (Aggregated(32, 4), 22.2, 26.1)},
)

TABLE_7 = Table(
    "px-table-7",
    PX,
    "Table 7",
    "ResNeXt-29 on CIFAR-10 and CIFAR-100",
    Plan("cifar10", 29, AGGREGATED, "resnext"),
    vary="unit",
    columns={
        "CIFAR-10": Column(changes={"data": "cifar10"}),
        "CIFAR-100": Column(changes={"data": "cifar100"}),
    },
    rows={
        "ResNeXt-29 (8×64d)": (_unit(8, 64), 3.65, 17.77),
        "ResNeXt-29 (16×64d)": (_unit(16, 64), 3.58, 17.31),
    },
    statistic=Statistic("mean", 10),
    note="batch 128 is the paper's; its released code used 256 and pre-activates",
)

TABLES = (TABLE_1, TABLE_2, TABLE_3, TABLE_4, TABLE_5, TEXT_ON_SHORTCUTS, TABLE_7)
