"""P2, "Identity Mappings in Deep Residual Networks": its tables, and the curves in its figures."""

from __future__ import annotations

from kilolayer.papers.plan import Plan
from kilolayer.papers.schema import (
    CURVE,
    FAIL,
    Column,
    EachSetting,
    Literature,
    Omission,
    Paper,
    Replication,
    Table,
)
from kilolayer.statistics.published import SINGLE_RUN, PublishedResult, Statistic
from kilolayer.units import (
    BASIC,
    BN_AFTER_ADDITION,
    BOTTLENECK,
    FULL_PREACT,
    ONE_LAYER,
    ORIGINAL,
    RELU_BEFORE_ADDITION,
    RELU_ONLY_PREACT,
    Dropout,
    ExclusiveGate,
    Identity,
    Projection,
    Scaled,
    ShortcutGate,
    Zero,
)

P2 = Paper("P2", "Identity Mappings in Deep Residual Networks", "1603.05027v3", 2016)

MEDIAN_OF_5 = Statistic("median", 5)
CIFAR10 = Plan("cifar10", recipe="paper")
CIFAR100 = Plan("cifar100", recipe="paper")
IMAGENET = Plan(
    "imagenet",
    152,
    BOTTLENECK,
    "imagenet",
    variation="scale",
    protocol="320 crop",
    departure=(
        "P2 does not say where training ends, and subtracts a mean for each pixel; "
        "here training ends after 90 epochs, and each channel is normalised"
    ),
)

_RESCIENCE = "ReScience (Muellerklein), article"
_REVIEWER_1 = "ReScience (Muellerklein), reviewer 1"
_REVIEWER_2 = "ReScience (Muellerklein), reviewer 2"


def _rescience(article: float, reviewer_1: float, reviewer_2: float) -> tuple[Replication, ...]:
    """Three single runs of one code in Lasagne: the author's, and the reviewers' to three digits.

    That code has batches of 64, 200 epochs with drops after 80 and 120, and Nesterov momentum. Source: the
    article "Reproducing CIFAR-10 results from deep and wide preactivation residual networks" and its review,
    ReScience/ReScience-submission, pull request 20.
    """
    runs = ((_RESCIENCE, article, 2), (_REVIEWER_1, reviewer_1, 3), (_REVIEWER_2, reviewer_2, 3))
    return tuple(
        Replication(name, PublishedResult(value, SINGLE_RUN, digits=digits)) for name, value, digits in runs
    )


REPLICATIONS_110 = _rescience(6.06, 6.150, 6.189)
REPLICATIONS_164 = _rescience(5.64, 5.180, 5.820)

ERROR = {"error": Column("top-1 error")}
CURVES = {"training loss and test error": Column("training curve")}
TOP_1_AND_5 = {"top-1": Column("top-1 error"), "top-5": Column("top-5 error")}
ORIGINAL_AND_PREACT = {
    "original": Column(changes={"arrangement": ORIGINAL}),
    "full pre-activation": Column(changes={"arrangement": FULL_PREACT}),
}

_0_TO_MINUS_5 = EachSetting(
    {
        f"b_g = {sign}": ExclusiveGate(bias)
        for sign, bias in (("0", 0.0), ("−1", -1.0), ("−2", -2.0), ("−3", -3.0), ("−4", -4.0), ("−5", -5.0))
    }
)

# The paper prints eleven rows: original 1, constant scaling 3, exclusive gating 3 ("0 to −5" is one row for
# six runs), shortcut-only gating 2, 1×1 convolution 1, dropout 1.
TABLE_1 = Table(
    "p2-table-1",
    P2,
    "Table 1",
    "shortcuts of ResNet-110 on CIFAR-10",
    CIFAR10,
    vary="h",
    columns=ERROR,
    rows={
        "original": (Identity(), 6.61),
        "constant scaling: 0 on the shortcut, 1 on F (a plain net)": (Zero(), FAIL),
        "constant scaling: 0.5 on the shortcut, 1 on F": (Scaled(0.5), FAIL),
        "constant scaling: 0.5 on the shortcut, 0.5 on F (frozen gating)": (Scaled(0.5, 0.5), 12.35),
        "exclusive gating: b_g = 0 … −5": (_0_TO_MINUS_5, FAIL),
        "exclusive gating: b_g = −6": ({"h": ExclusiveGate(-6.0), "select": True}, 8.70),
        "exclusive gating: b_g = −7": (ExclusiveGate(-7.0), 9.81),
        "shortcut-only gating: b_g = 0": (ShortcutGate(0.0), 12.86),
        "shortcut-only gating: b_g = −6": (ShortcutGate(-6.0), 6.91),
        "1×1 conv shortcut": ({"h": Projection(), "downsample": Projection()}, 12.22),
        "dropout shortcut": (Dropout(0.5), FAIL),
    },
    statistic=MEDIAN_OF_5,
    baseline="original",
    note="b_g was searched over 0, −1 … −10 by cross-validation inside the training set",
)

TABLE_2 = Table(
    "p2-table-2",
    P2,
    "Table 2",
    "where activations stand, on CIFAR-10",
    CIFAR10,
    vary="arrangement",
    columns={
        "ResNet-110": Column(changes={"depth": 110}),
        "ResNet-164": Column(
            changes={"depth": 164, "branch": BOTTLENECK.branch, "downsample": BOTTLENECK.downsample}
        ),
    },
    rows={
        "original": (ORIGINAL, 6.61, 5.93),
        "BN after addition": (BN_AFTER_ADDITION, 8.17, 6.50),
        "ReLU before addition": (RELU_BEFORE_ADDITION, 7.84, 6.14),
        "ReLU-only pre-activation": (RELU_ONLY_PREACT, 6.71, 5.91),
        "full pre-activation": (FULL_PREACT, 6.37, 5.46),
    },
    statistic=MEDIAN_OF_5,
    baseline="original",
    replications={
        ("full pre-activation", "ResNet-110"): REPLICATIONS_110,
        ("full pre-activation", "ResNet-164"): REPLICATIONS_164,
    },
)

TABLE_3 = Table(
    "p2-table-3",
    P2,
    "Table 3",
    "original and full pre-activation unit on CIFAR-10 and CIFAR-100",
    CIFAR10,
    vary="depth",
    columns=ORIGINAL_AND_PREACT,
    rows={
        "CIFAR-10, ResNet-110 with a 1-layer skip": ({"depth": 110, "unit": ONE_LAYER}, 9.90, 8.91),
        "CIFAR-10, ResNet-110": ({"depth": 110, "unit": BASIC}, 6.61, 6.37),
        "CIFAR-10, ResNet-164": ({"depth": 164, "unit": BOTTLENECK}, 5.93, 5.46),
        "CIFAR-10, ResNet-1001": ({"depth": 1001, "unit": BOTTLENECK}, 7.61, 4.92),
        "CIFAR-100, ResNet-164": ({"data": "cifar100", "depth": 164, "unit": BOTTLENECK}, 25.16, 24.33),
        "CIFAR-100, ResNet-1001": ({"data": "cifar100", "depth": 1001, "unit": BOTTLENECK}, 27.82, 22.71),
    },
    statistic=MEDIAN_OF_5,
    baseline="original",
    note="the paper trains ResNet-1001 in about 27 hours on 2 GPUs",
    replications={
        ("CIFAR-10, ResNet-110", "full pre-activation"): REPLICATIONS_110,
        ("CIFAR-10, ResNet-164", "full pre-activation"): REPLICATIONS_164,
    },
)

_CITED = Literature("another architecture; P2 cites the figure from its authors")
_PREACT = {"unit": BOTTLENECK, "arrangement": FULL_PREACT}
_OF_1001 = PublishedResult(4.92, MEDIAN_OF_5, mean=4.89, std=0.14)
_OF_1001_AT_64 = PublishedResult(4.62, MEDIAN_OF_5, mean=4.69, std=0.20)
_OF_1001_ON_100 = PublishedResult(22.71, MEDIAN_OF_5, mean=22.68, std=0.22)

TABLE_4 = Table(
    "p2-table-4",
    P2,
    "Table 4",
    "comparison with the state of the art on CIFAR-10 and CIFAR-100",
    CIFAR10,
    vary="depth",
    columns={
        "CIFAR-10": Column("top-1 error"),
        "CIFAR-100": Column("top-1 error", {"data": "cifar100"}),
        "parameters": Column("parameters"),
    },
    rows={
        "NIN": (_CITED, 8.81, 35.68, None),
        "DSN": (_CITED, 8.22, 34.57, None),
        "FitNet": (_CITED, 8.39, 35.04, None),
        "Highway": (_CITED, 7.72, 32.39, None),
        "All-CNN": (_CITED, 7.25, 33.71, None),
        "ELU": (_CITED, 6.55, 24.28, None),
        "FitResNet-LSUV": (_CITED, 5.84, 27.66, None),
        "ResNet-110": (110, 6.61, None, 1.7),
        "ResNet-164": ({"depth": 164, "unit": BOTTLENECK}, None, 25.16, 1.7),
        "ResNet-1001": ({"depth": 1001, "unit": BOTTLENECK}, None, 27.82, 10.2),
        "ResNet-1202": (1202, PublishedResult(7.93, SINGLE_RUN), None, 19.4),
        "pre-activation ResNet-164": ({"depth": 164, **_PREACT}, 5.46, 24.33, 1.7),
        "pre-activation ResNet-1001": ({"depth": 1001, **_PREACT}, _OF_1001, _OF_1001_ON_100, 10.2),
        # The table names the batch, and the code; the README of that code has the command.
        "pre-activation ResNet-1001, batch 64": (
            {"depth": 1001, "recipe": "released", "origin": "released code", **_PREACT},
            _OF_1001_AT_64,
            None,
            10.2,
        ),
    },
    statistic=MEDIAN_OF_5,
    note=(
        "10.2M counts no BN scales and shifts; with them the network has 10,327,706 parameters. 4.62 at "
        "batch 64 was made by the released code: 200 epochs, Nesterov momentum, drops at 81 and 122, no "
        "warm-up"
    ),
    replications={("pre-activation ResNet-164", "CIFAR-10"): REPLICATIONS_164},
)

_INCEPTION = Literature("an Inception network; P2 cites the figure from its authors")

TABLE_5 = Table(
    "p2-table-5",
    P2,
    "Table 5",
    "single-crop errors on ImageNet",
    IMAGENET,
    vary="depth",
    columns=TOP_1_AND_5,
    rows={
        "ResNet-152, original @224": ({"depth": 152, "protocol": "224 crop"}, 23.0, 6.7),
        "ResNet-152, original @320": (152, 21.3, 5.5),
        "ResNet-152, pre-activation @320": ({"depth": 152, **_PREACT}, 21.1, 5.5),
        "ResNet-200, original @320": (200, 21.8, 6.0),
        "ResNet-200, pre-activation @320": ({"depth": 200, **_PREACT}, 20.7, 5.3),
        "ResNet-200, pre-activation, scale and aspect ratio @320": (
            {
                "depth": 200,
                "variation": "scale and aspect ratio",
                "departure": "a model of fb.resnet.torch, which has Nesterov momentum; here without",
                **_PREACT,
            },
            20.1,
            4.8,
        ),
        "Inception-v3 @299": (_INCEPTION, 21.2, 5.6),
        "Inception-ResNet-v2": (_INCEPTION, 19.9, 4.9),
    },
    note=(
        "Inception-ResNet-v2 stands in the text of Sec. 5, not in the table; ResNet-200 with scale and "
        "aspect ratio is a model of fb.resnet.torch; the paper trains ResNet-200 in about 3 weeks on 8 GPUs"
    ),
)

TEXT_ON_101 = Table(
    "p2-text-resnet-101",
    P2,
    "Sec. 4.1, text",
    "BN after addition in ResNet-101 on ImageNet",
    IMAGENET.with_changes(depth=101, protocol="224 crop"),
    vary="arrangement",
    columns=TOP_1_AND_5,
    rows={"original": (ORIGINAL, 23.6, 7.1), "BN after addition": (BN_AFTER_ADDITION, 24.6, 7.5)},
    baseline="original",
)

FIGURE_1 = Table(
    "p2-figure-1",
    P2,
    "Fig. 1, right",
    "curves of ResNet-1001 on CIFAR-10 with the original and the proposed unit",
    CIFAR10.with_changes(depth=1001, unit=BOTTLENECK),
    vary="arrangement",
    columns=CURVES,
    rows={"original": (ORIGINAL, CURVE), "full pre-activation": (FULL_PREACT, CURVE)},
    statistic=SINGLE_RUN,
    baseline="original",
)

FIGURE_3 = Table(
    "p2-figure-3",
    P2,
    "Fig. 3",
    "curves of ResNet-110 on CIFAR-10 with four shortcuts, each beside the original",
    CIFAR10,
    vary="h",
    columns=CURVES,
    rows={
        "original": (Identity(), CURVE),
        "(a) constant scaling: 0.5 on the shortcut, 0.5 on F": (Scaled(0.5, 0.5), CURVE),
        "(b) exclusive gating: b_g = −6": ({"h": ExclusiveGate(-6.0), "select": True}, CURVE),
        "(c) shortcut-only gating: b_g = 0": (ShortcutGate(0.0), CURVE),
        "(d) 1×1 conv shortcut": ({"h": Projection(), "downsample": Projection()}, CURVE),
    },
    statistic=SINGLE_RUN,
    baseline="original",
)

FIGURE_6 = Table(
    "p2-figure-6",
    P2,
    "Fig. 6",
    "curves on CIFAR-10: BN after addition, and full pre-activation",
    CIFAR10,
    vary="arrangement",
    columns=CURVES,
    rows={
        "left: ResNet-110, original": ({"depth": 110, "unit": BASIC}, CURVE),
        "left: ResNet-110, BN after addition": (BN_AFTER_ADDITION, CURVE),
        "right: ResNet-164, original": ({"depth": 164, "unit": BOTTLENECK}, CURVE),
        "right: ResNet-164, full pre-activation": ({"depth": 164, **_PREACT}, CURVE),
    },
    statistic=SINGLE_RUN,
)

TABLES = (TABLE_1, TABLE_2, TABLE_3, TABLE_4, TABLE_5, TEXT_ON_101, FIGURE_1, FIGURE_3, FIGURE_6)

OMISSIONS = (
    Omission(
        "Table 5",
        "Inception-v4, 20.0 and 5.0",
        2,
        "not checked: no copy of P2's Table 5 at hand prints this row; PX's Table 5 does",
    ),
)
"""Figures that P2 may print and no table here has. Figs. 2, 4 and 5 and the left of Fig. 1 are drawings."""
