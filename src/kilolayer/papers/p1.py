"""P1, "Deep Residual Learning for Image Recognition": its CIFAR and ImageNet tables, and two figures."""

from __future__ import annotations

from dataclasses import replace

from kilolayer.papers.plan import Plan
from kilolayer.papers.schema import CURVE, Column, Literature, Paper, Table
from kilolayer.statistics.published import PublishedResult, Statistic
from kilolayer.units import BASIC, BOTTLENECK, Projection, Zero

P1 = Paper("P1", "Deep Residual Learning for Image Recognition", "1512.03385", 2015)

CIFAR10 = Plan("cifar10", recipe="paper-v1")
IMAGENET = Plan(
    "imagenet",
    34,
    recipe="imagenet",
    variation="scale",
    protocol="10-crop",
    departure="P1 lowers the rate whenever the error plateaus; P2's 90 epochs with two drops stand in",
)

PLAIN = replace(BASIC, h=Zero())
OPTION_A = BASIC
OPTION_B = replace(BASIC, downsample=Projection())
OPTION_C = replace(BASIC, h=Projection(), downsample=Projection())

TOP_1_AND_5 = {"top-1": Column("top-1 error"), "top-5": Column("top-5 error")}
CURVES = {"training and test error": Column("training curve")}


def _with_warmup(depth: int, **changes: object) -> dict[str, object]:
    """From 110 layers, the learning rate is 0.01 for the first 400 iterations, as in P2's recipe."""
    return {"depth": depth, "recipe": "paper", **changes}


TABLE_2 = Table(
    "p1-table-2",
    P1,
    "Table 2",
    "plain and residual networks on ImageNet, ten crops, option A",
    IMAGENET,
    vary="depth",
    columns={"plain": Column(changes={"unit": PLAIN}), "ResNet": Column(changes={"unit": OPTION_A})},
    rows={"18 layers": (18, 27.94, 27.88), "34 layers": (34, 28.54, 25.03)},
)

TABLE_3 = Table(
    "p1-table-3",
    P1,
    "Table 3",
    "ten-crop errors on ImageNet",
    IMAGENET,
    vary="unit",
    columns=TOP_1_AND_5,
    rows={
        "plain-34": (PLAIN, 28.54, None),
        "ResNet-34 A": (OPTION_A, 25.03, 7.76),
        "ResNet-34 B": (OPTION_B, 24.52, 7.46),
        "ResNet-34 C": (OPTION_C, 24.19, 7.40),
        "ResNet-50": ({"depth": 50, "unit": BOTTLENECK}, 22.85, 6.71),
        "ResNet-101": ({"depth": 101, "unit": BOTTLENECK}, 21.75, 6.05),
        "ResNet-152": ({"depth": 152, "unit": BOTTLENECK}, 21.43, 5.71),
    },
)

TABLE_4 = Table(
    "p1-table-4",
    P1,
    "Table 4",
    "single models on ImageNet, fully convolutional, averaged over sizes 224, 256, 384, 480 and 640",
    replace(IMAGENET, protocol="multi-scale"),
    vary="unit",
    columns=TOP_1_AND_5,
    rows={
        "ResNet-34 B": (OPTION_B, 21.84, 5.71),
        "ResNet-34 C": (OPTION_C, 21.53, 5.60),
        "ResNet-50": ({"depth": 50, "unit": BOTTLENECK}, 20.74, 5.25),
        "ResNet-101": ({"depth": 101, "unit": BOTTLENECK}, 19.87, 4.60),
        "ResNet-152": ({"depth": 152, "unit": BOTTLENECK}, 19.38, 4.49),
    },
)

TABLE_5 = Table(
    "p1-table-5",
    P1,
    "Table 5",
    "ensemble on the ImageNet test set",
    replace(IMAGENET, protocol="multi-scale"),
    vary="depth",
    columns={"top-5": Column("top-5 error")},
    rows={
        "six ResNets of different depths": (
            Literature("the six depths are not all named, and the labels of the test set are not public"),
            3.57,
        ),
    },
)

_BEST_OF_5 = PublishedResult(6.43, Statistic("best", 5), mean=6.61, std=0.16)

TABLE_6 = Table(
    "p1-table-6",
    P1,
    "Table 6",
    "plain and residual networks on CIFAR-10, option A",
    CIFAR10,
    vary="depth",
    columns={"error": Column("top-1 error")},
    rows={
        "ResNet-20": (20, 8.75),
        "ResNet-32": (32, 7.51),
        "ResNet-44": (44, 7.17),
        "ResNet-56": (56, 6.97),
        "ResNet-110": (_with_warmup(110), _BEST_OF_5),
        "ResNet-1202": (_with_warmup(1202), 7.93),
        "plain-110": (_with_warmup(110, h=Zero()), PublishedResult(above=60.0)),
    },
    note="plain-110 stands in the caption of Fig. 6, not in the table",
)

# The figure has no plain-110, since its error is above 60 %.
FIGURE_6 = Table(
    "p1-figure-6",
    P1,
    "Fig. 6",
    "curves on CIFAR-10: plain nets, ResNets, and ResNet-110 beside ResNet-1202",
    CIFAR10,
    vary="depth",
    columns=CURVES,
    rows={
        "plain-20": ({"depth": 20, "unit": PLAIN}, CURVE),
        "plain-32": ({"depth": 32, "unit": PLAIN}, CURVE),
        "plain-44": ({"depth": 44, "unit": PLAIN}, CURVE),
        "plain-56": ({"depth": 56, "unit": PLAIN}, CURVE),
        "ResNet-20": (20, CURVE),
        "ResNet-32": (32, CURVE),
        "ResNet-44": (44, CURVE),
        "ResNet-56": (56, CURVE),
        "ResNet-110": (_with_warmup(110), CURVE),
        "ResNet-1202": (_with_warmup(1202), CURVE),
    },
)

FIGURE_7 = Table(
    "p1-figure-7",
    P1,
    "Fig. 7",
    "standard deviations of the 3×3 layers' responses on CIFAR-10, after BN, before ReLU and addition",
    CIFAR10,
    vary="depth",
    columns={"std of layer responses": Column("layer responses")},
    rows={
        "plain-20": ({"depth": 20, "unit": PLAIN}, CURVE),
        "plain-56": ({"depth": 56, "unit": PLAIN}, CURVE),
        "ResNet-20": (20, CURVE),
        "ResNet-56": (56, CURVE),
        "ResNet-110": (_with_warmup(110), CURVE),
    },
)

TABLES = (TABLE_2, TABLE_3, TABLE_4, TABLE_5, TABLE_6, FIGURE_6, FIGURE_7)
