"""P1, "Deep Residual Learning for Image Recognition": its CIFAR and ImageNet tables, and its curves."""

from __future__ import annotations

from dataclasses import replace

from kilolayer.papers.plan import Plan
from kilolayer.papers.schema import CURVE, Column, Literature, NotHere, Omission, Paper, Table
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
    departure=(
        "P1 lowers the rate whenever the error plateaus, over up to 600,000 steps, and subtracts a mean for "
        "each pixel; here the rate drops at 30 and 60 of 90 epochs, and each channel is normalised"
    ),
)

PLAIN = replace(BASIC, h=Zero())
OPTION_A = BASIC
OPTION_B = replace(BASIC, downsample=Projection())
OPTION_C = replace(BASIC, h=Projection(), downsample=Projection())

TOP_1_AND_5 = {"top-1": Column("top-1 error"), "top-5": Column("top-5 error")}
CURVES = {"training and test error": Column("training curve")}


_WARM_UP = "P1 warms up until the training error is below 80 %, about 400 steps; here for exactly 400"
_WARM_UP_TOO = "P1 states the warm-up of 400 steps for ResNet-110 alone; here this network has it too"


def _with_warmup(depth: int, **changes: object) -> dict[str, object]:
    """From 110 layers, the learning rate is 0.01 for the first 400 iterations, as in P2's recipe."""
    stated = depth == 110 and not changes
    return {"depth": depth, "recipe": "paper", "departure": _WARM_UP if stated else _WARM_UP_TOO, **changes}


_CITED = Literature("another architecture; P1 cites the figure or tested that network itself")

TABLE_1 = Table(
    "p1-table-1",
    P1,
    "Table 1",
    "multiply-adds of the networks for ImageNet",
    IMAGENET,
    vary="depth",
    columns={"multiply-adds": Column("multiply-adds")},
    rows={
        "18 layers": (18, 1.8),
        "34 layers": (34, 3.6),
        "50 layers": ({"depth": 50, "unit": BOTTLENECK}, 3.8),
        "101 layers": ({"depth": 101, "unit": BOTTLENECK}, 7.6),
        "152 layers": ({"depth": 152, "unit": BOTTLENECK}, 11.3),
    },
    note="the paper calls multiply-adds FLOPs",
)


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
        "VGG-16": (_CITED, 28.07, 9.33),
        "GoogLeNet": (_CITED, None, 9.15),
        "PReLU-net": (_CITED, 24.27, 7.38),
        "plain-34": (PLAIN, 28.54, 10.02),
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
        "VGG (ILSVRC'14)": (_CITED, None, 8.43),
        "GoogLeNet (ILSVRC'14)": (_CITED, None, 7.89),
        "VGG (v5)": (_CITED, "24.4", "7.1"),
        "PReLU-net": (_CITED, 21.59, 5.71),
        "BN-inception": (_CITED, 21.99, 5.81),
        "ResNet-34 B": (OPTION_B, 21.84, 5.71),
        "ResNet-34 C": (OPTION_C, 21.53, 5.60),
        "ResNet-50": ({"depth": 50, "unit": BOTTLENECK}, 20.74, 5.25),
        "ResNet-101": ({"depth": 101, "unit": BOTTLENECK}, 19.87, 4.60),
        "ResNet-152": ({"depth": 152, "unit": BOTTLENECK}, 19.38, 4.49),
    },
    note="8.43 of VGG (ILSVRC'14) is of the test set",
)

TABLE_5 = Table(
    "p1-table-5",
    P1,
    "Table 5",
    "ensembles on the ImageNet test set",
    replace(IMAGENET, protocol="multi-scale"),
    vary="depth",
    columns={"top-5": Column("top-5 error")},
    rows={
        "VGG (ILSVRC'14)": (_CITED, 7.32),
        "GoogLeNet (ILSVRC'14)": (_CITED, 6.66),
        "VGG (v5)": (_CITED, "6.8"),
        "PReLU-net": (_CITED, 4.94),
        "BN-inception": (_CITED, 4.82),
        "six ResNets of different depths": (
            NotHere("the six depths are not all named, and the labels of the test set are not public"),
            3.57,
        ),
    },
)

_BEST_OF_5 = PublishedResult(6.43, Statistic("best", 5), mean=6.61, std=0.16)
_HIGHWAY_19 = PublishedResult(7.54, Statistic("best", 0), mean=7.72, std=0.16)

TABLE_6 = Table(
    "p1-table-6",
    P1,
    "Table 6",
    "plain and residual networks on CIFAR-10, option A",
    CIFAR10,
    vary="depth",
    columns={"error": Column("top-1 error"), "parameters": Column("parameters")},
    rows={
        "Maxout": (_CITED, 9.38, None),
        "NIN": (_CITED, 8.81, None),
        "DSN": (_CITED, 8.22, None),
        "FitNet, 19 layers": (_CITED, 8.39, "2.5"),
        "Highway, 19 layers": (_CITED, _HIGHWAY_19, "2.3"),
        "Highway, 32 layers": (_CITED, 8.80, "1.25"),
        "ResNet-20": (20, 8.75, "0.27"),
        "ResNet-32": (32, 7.51, "0.46"),
        "ResNet-44": (44, 7.17, "0.66"),
        "ResNet-56": (56, 6.97, "0.85"),
        "ResNet-110": (_with_warmup(110), _BEST_OF_5, "1.7"),
        "ResNet-1202": (_with_warmup(1202), 7.93, "19.4"),
        "plain-110": (_with_warmup(110, h=Zero()), PublishedResult(above=60.0), None),
    },
    note="plain-110 stands in the caption of Fig. 6, not in the table",
)

FIGURE_1 = Table(
    "p1-figure-1",
    P1,
    "Fig. 1",
    "curves of two plain networks on CIFAR-10",
    CIFAR10.with_changes(unit=PLAIN),
    vary="depth",
    columns=CURVES,
    rows={"plain-20": (20, CURVE), "plain-56": (56, CURVE)},
)

FIGURE_4 = Table(
    "p1-figure-4",
    P1,
    "Fig. 4",
    "curves on ImageNet: plain and residual networks of 18 and 34 layers, centre crop",
    replace(IMAGENET, protocol="224 crop"),
    vary="depth",
    columns=CURVES,
    rows={
        "plain-18": ({"depth": 18, "unit": PLAIN}, CURVE),
        "plain-34": ({"depth": 34, "unit": PLAIN}, CURVE),
        "ResNet-18": (18, CURVE),
        "ResNet-34": (34, CURVE),
    },
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

TABLES = (TABLE_1, TABLE_2, TABLE_3, TABLE_4, TABLE_5, TABLE_6, FIGURE_1, FIGURE_4, FIGURE_6, FIGURE_7)

_DETECTION = "detection: Faster R-CNN, which is not trained here"
_LOCALISATION = "localisation: boxes, which are not trained here"

OMISSIONS = (
    Omission("Fig. 3 and Sec. 4.1", "billions of FLOPs of VGG-16 and VGG-19", 2, "other architectures"),
    Omission("Table 7", "detection on PASCAL VOC 2007 and 2012", 4, _DETECTION),
    Omission("Table 8", "detection on COCO", 4, _DETECTION),
    Omission("Table 9", "improvements of detection on COCO", 16, _DETECTION),
    Omission("Table 10", "detection on PASCAL VOC 2007, class by class", 63, _DETECTION),
    Omission("Table 11", "detection on PASCAL VOC 2012, class by class", 63, _DETECTION),
    Omission("Table 12", "detection on ImageNet", 5, _DETECTION),
    Omission("Table 13", "localisation on ImageNet", 6, _LOCALISATION),
    Omission("Table 14", "localisation on ImageNet against other methods", 7, _LOCALISATION),
)
"""Figures that P1 prints and no table here has. Figs. 2, 3 and 5 are drawings."""
