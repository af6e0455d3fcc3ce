"""PX, "Aggregated Residual Transformations for Deep Neural Networks": its tables."""

from __future__ import annotations

from dataclasses import replace

from kilolayer.papers.plan import Plan
from kilolayer.papers.schema import (
    CURVE,
    Column,
    Literature,
    NotHere,
    NotInPaper,
    Omission,
    Paper,
    Table,
)
from kilolayer.statistics.published import PublishedResult, Statistic
from kilolayer.units import AGGREGATED, FULL_PREACT, Aggregated, Identity, Projection, Unit, Zero

PX = Paper("PX", "Aggregated Residual Transformations for Deep Neural Networks", "1611.05431", 2016)

IMAGENET = Plan(
    "imagenet",
    50,
    AGGREGATED,
    "resnext-imagenet",
    variation="scale and aspect ratio",
    protocol="224 crop",
    departure=(
        "PX states three drops of the rate and refers to code for their places; "
        "Nesterov momentum and 100 epochs are the released code's"
    ),
)
_INCEPTION = Literature("an Inception network; PX cites the figure from its authors")
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
    columns={"d": Column("bottleneck width"), "group convolution": Column("group convolution width")},
    rows={
        "C = 1": (_unit(1, 64), 64, 64),
        "C = 2": (_unit(2, 40), 40, 80),
        "C = 4": (_unit(4, 24), 24, 96),
        "C = 8": (_unit(8, 14), 14, 112),
        "C = 32": (_unit(32, 4), 4, 128),
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
        "ResNet-101 (1×64d)": (_unit(1, 64), 22.0, 6.0),
        "ResNeXt-101 (32×4d)": (_unit(32, 4), 21.2, 5.6),
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
        "ResNet-101": (_unit(1, 64), 22.0, 6.0, None, None),
        "ResNet-200": (_RESNET_200, 21.7, 5.8, 20.1, 4.8),
        "Inception-v3": (_INCEPTION, None, None, 21.2, 5.6),
        "Inception-v4": (_INCEPTION, None, None, 20.0, 5.0),
        "Inception-ResNet-v2": (_INCEPTION, None, None, 19.9, 4.9),
        "ResNeXt-101 (64×4d)": (_unit(64, 4), 20.4, 5.3, 19.1, 4.4),
    },
    note="the Inception networks are tested at 299 pixels, in the columns of 320",
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

_5K = NotHere("ImageNet-5K: 6.8 million images of 5,000 classes, which PX does not list")

TABLE_6 = Table(
    "px-table-6",
    PX,
    "Table 6",
    "networks trained on ImageNet-5K, tested on ImageNet-1K's validation images",
    IMAGENET,
    vary="unit",
    columns={
        "5K-way top-1": Column("top-1 error"),
        "5K-way top-5": Column("top-5 error"),
        "1K-way top-1": Column("top-1 error"),
        "1K-way top-5": Column("top-5 error"),
    },
    rows={
        "ResNet-50 (1×64d)": (_5K, 45.5, 19.4, 27.1, 8.2),
        "ResNeXt-50 (32×4d)": (_5K, 42.3, 16.8, 24.4, 6.6),
        "ResNet-101 (1×64d)": (_5K, 42.4, 16.9, 24.2, 6.8),
        "ResNeXt-101 (32×4d)": (_5K, 40.1, 15.1, 22.2, 5.7),
    },
)

_UNPRINTED = PublishedResult()


def _as_printed(cardinality: int) -> Unit:
    return replace(_unit(cardinality, 64), arrangement=FULL_PREACT)


def _as_released(cardinality: int) -> NotInPaper:
    return NotInPaper(
        {"unit": _unit(cardinality, 64), "recipe": "resnext-released", "origin": "released code"}
    )


# The appendix says batch 128 and nothing of pre-activation. The authors' README says that the printed figures
# are of pre-activation units in batches of 256, and that their released code and command do better.
TABLE_7 = Table(
    "px-table-7",
    PX,
    "Table 7",
    "ResNeXt-29 on CIFAR-10 and CIFAR-100",
    Plan("cifar10", 29, AGGREGATED, "resnext-256", origin="authors' README"),
    vary="unit",
    columns={
        "CIFAR-10": Column(changes={"data": "cifar10"}),
        "CIFAR-100": Column(changes={"data": "cifar100"}),
        "parameters": Column("parameters"),
    },
    rows={
        "Wide ResNet": (
            Literature("another architecture; PX cites the figure from its authors"),
            4.17,
            20.50,
            36.5,
        ),
        "ResNeXt-29 (8×64d)": (_as_printed(8), 3.65, 17.77, 34.4),
        "ResNeXt-29 (16×64d)": (_as_printed(16), 3.58, 17.31, 68.1),
        "ResNeXt-29 (8×64d), released code": (_as_released(8), _UNPRINTED, _UNPRINTED, None),
        "ResNeXt-29 (16×64d), released code": (_as_released(16), _UNPRINTED, _UNPRINTED, None),
    },
    statistic=Statistic("mean", 10),
    note=(
        "the appendix states batches of 128 and no pre-activation; by the authors' README the printed "
        "figures are of pre-activation units in batches of 256, and the released code (original units, "
        "batches of 128, drops after 147 and 222 epochs) does better"
    ),
)

FIGURE_5 = Table(
    "px-figure-5",
    PX,
    "Fig. 5",
    "curves on ImageNet: ResNet and ResNeXt of 50 and 101 layers",
    IMAGENET,
    vary="unit",
    columns={"training and validation error": Column("training curve")},
    rows={
        "ResNet-50 (1×64d)": (_unit(1, 64), CURVE),
        "ResNeXt-50 (32×4d)": (_unit(32, 4), CURVE),
        "ResNet-101 (1×64d)": ({"depth": 101, "unit": _unit(1, 64)}, CURVE),
        "ResNeXt-101 (32×4d)": ({"depth": 101, "unit": _unit(32, 4)}, CURVE),
    },
)

TABLES = (
    TABLE_1,
    TABLE_2,
    TABLE_3,
    TABLE_4,
    TABLE_5,
    TABLE_6,
    TABLE_7,
    TEXT_ON_SHORTCUTS,
    FIGURE_5,
)

OMISSIONS = (
    Omission("Table 2, caption", "parameters and FLOPs of one unit, “about”", 2, "approximations"),
    Omission(
        "Sec. 5.1, text", "multi-scale tests and ensembles", 7, "dense tests at several sizes, ensembles"
    ),
    Omission("Fig. 6", "curves on ImageNet-5K", 0, _5K.reason),
    Omission("Fig. 7", "errors against model size on CIFAR-10", 0, "not checked: the points are not printed"),
    Omission("Table 8", "detection on COCO", 8, "detection: Faster R-CNN, which is not trained here"),
)
"""Figures that PX prints and no table here has. Figs. 1 to 4 are drawings."""
