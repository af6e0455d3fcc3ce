"""What intervals cover, how often looks err, what planned runs find: simulated runs whose truth is known.

    OMP_NUM_THREADS=1 python benchmarks/decisions.py [TRIALS]

Writes results/decisions.json. With 20,000 trials a share of 5 % has a standard error of 0.15 points, with the
2,000 of an interval 0.5. About five minutes on one core.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy
import torch
from scipy import optimize, stats

from kilolayer.runs.start_environment import environment_record
from kilolayer.statistics import (
    DecisionRule,
    PublishedResult,
    Statistic,
    compare_images,
    judge_agreement,
    least_pairs,
    median_interval,
    pairs_for_equivalence,
    pairs_needed,
    sign_flip_interval,
    t_interval,
)
from kilolayer.statistics.sequential import SPENDINGS
from kilolayer.system import durable
from kilolayer.training import DistributedContext

ALPHA = 0.05
HERE = DistributedContext(torch.device("cpu"))
FORMS: dict[str, tuple[Callable[[np.random.Generator, tuple[int, ...]], np.ndarray], float, float]] = {
    # how to draw, mean, median
    "normal": (lambda random, size: random.normal(0, 1, size), 0.0, 0.0),
    "skewed (exponential)": (lambda random, size: random.exponential(1, size), 1.0, float(np.log(2))),
    "heavy tails (t, 3 degrees)": (lambda random, size: random.standard_t(3, size), 0.0, 0.0),
}


def old_bootstrap_interval(values: np.ndarray, random: np.random.Generator) -> tuple[float, float]:
    """What stood in the tables before: the percentile bootstrap of the median."""
    medians = np.median(values[random.integers(0, len(values), (500, len(values)))], axis=1)
    return tuple(np.quantile(medians, [0.025, 0.975]))


def coverages(trials: int) -> list[dict]:
    found = []
    for form, (draw, mean, median) in FORMS.items():
        for n in (3, 5, 6, 9, 15):
            random = np.random.default_rng(n)
            samples = draw(random, (min(trials, 2000), n))
            row = {"runs": form, "n": n, "trials": len(samples)}
            for name, make, truth in (
                ("t, of the mean", t_interval, mean),
                ("sign flips, of the mean", sign_flip_interval, mean),
                ("order statistics, of the median", median_interval, median),
            ):
                made = [make(values) for values in samples]
                row[name] = {
                    "said": made[0].coverage,
                    "measured": float(np.mean([i.low <= truth <= i.high for i in made])),
                }
            old = [old_bootstrap_interval(values, random) for values in samples]
            row["percentile bootstrap of the median (before)"] = {
                "said": 0.95,
                "measured": float(np.mean([low <= median <= high for low, high in old])),
            }
            found.append(row)
    return found


def z_levels(looks: tuple[int, ...], rule: DecisionRule) -> list[float]:
    """Lan and DeMets' levels for many pairs, which reckon with the looks' correlation: by integration."""
    shares, levels, spent = np.array(looks) / looks[-1], [], np.cumsum(rule.look_levels())
    for k, share in enumerate(shares):
        new = spent[k] - (spent[k - 1] if k else 0.0)
        if not k:
            c = stats.norm.isf(new / 2)
            x = np.linspace(-c, c, 801) * np.sqrt(share)
            density = stats.norm.pdf(x, scale=np.sqrt(share))
        else:
            width = np.sqrt(share - shares[k - 1])
            weight = density * np.gradient(x) * np.where((x == x[0]) | (x == x[-1]), 0.5, 1.0)

            def left(c: float, share: float = share, weight=weight, x=x, width=width, new=new) -> float:
                edge = c * np.sqrt(share)
                return float(weight @ (stats.norm.sf(edge, x, width) + stats.norm.cdf(-edge, x, width)) - new)

            c = optimize.brentq(left, 0, 12)
            y = np.linspace(-c, c, 801) * np.sqrt(share)
            density, x = weight @ stats.norm.pdf(y[None], x[:, None], width), y
        levels.append(float(2 * stats.norm.sf(c)))
    return levels


def error_over_looks(trials: int) -> list[dict]:
    found = []
    for looks in ((9,), (3, 6, 9), (3, 5, 9), tuple(range(3, 13))):
        for spending in SPENDINGS:
            rule = DecisionRule(looks, test="paired t", spending=spending)
            integrated = z_levels(looks, rule)
            for comparisons in (1, 10):
                count = 10 * trials // comparisons
                random = np.random.default_rng(0)
                baseline = random.normal(0, 1, (count, 1, looks[-1]))
                differences = random.normal(0, 1, (count, comparisons, looks[-1])) - baseline
                p = np.stack([stats.ttest_1samp(differences[..., :n], 0, axis=-1).pvalue for n in looks], -1)
                levels = rule.look_levels(comparisons)
                row = {
                    "looks": looks,
                    "spending": spending,
                    "comparisons against one baseline": comparisons,
                    "trials": count,
                    "levels": levels,
                    "error": float((p <= levels).any(axis=(1, 2)).mean()),
                }
                if comparisons == 1:
                    row["levels by integration, for many pairs"] = integrated
                    row["error with those"] = float((p <= integrated).any(axis=(1, 2)).mean())
                    row["error at 5 % a look"] = float((p <= ALPHA).any(axis=(1, 2)).mean())
                found.append(row)
    return found


def error_with_failures(trials: int) -> list[dict]:
    """Both rows fail alike; the t test at three looks."""
    rule, found = DecisionRule((3, 6, 9), test="paired t", spending="Pocock"), []
    for share in (0.0, 0.1, 0.3, 0.5):
        random = np.random.default_rng(1)
        runs = random.normal(7, 0.2, (trials, 2, 9))
        runs = np.where(random.random(runs.shape) < share, 90.0, runs)
        d = runs[:, 1] - runs[:, 0]
        with np.errstate(invalid="ignore", divide="ignore"):
            p = np.stack([stats.ttest_1samp(d[:, :n], 0, axis=-1).pvalue for n in rule.looks], -1)
        spread = np.stack([np.ptp(d[:, :n], axis=1) > 1e-9 for n in rule.looks], -1)
        error = float(((p <= rule.look_levels()) & spread).any(axis=1).mean())
        found.append({"share that fails": share, "trials": trials, "error": error})
    return found


def plans() -> list[dict]:
    found = []
    for comparisons in (1, 10):
        for ratio in (0.5, 1.0, 1.5, 2.0, 3.0):
            found.append(
                {
                    "comparisons": comparisons,
                    "difference or margin in spreads": ratio,
                    "pairs by sign flips": pairs_needed(ratio, 1.0, comparisons=comparisons).n,
                    "pairs by t": pairs_needed(ratio, 1.0, comparisons=comparisons, test="paired t").n,
                    "pairs for equivalence by t": pairs_for_equivalence(
                        ratio, 1.0, comparisons=comparisons, test="paired t"
                    ).n,
                }
            )
    return found


def agreement(trials: int) -> list[dict]:
    figure, found = PublishedResult(6.6, Statistic("median", 5)), []
    for offset in (0.0, 0.5, 1.0):
        for noise in (0.05, 0.1, 0.2, 0.5, 1.0):
            runs = np.random.default_rng(2).normal(6.6 + offset, noise, (min(trials, 1000), 5))
            words = [judge_agreement(figure, list(row)).word for row in runs]
            shares = {word: words.count(word) / len(words) for word in ("agrees", "differs", "undecided")}
            found.append({"true difference": offset, "spread": noise, "trials": len(words), **shares})
    return found


def images(trials: int) -> dict:
    random, inside, count = np.random.default_rng(3), 0, min(trials, 1500)
    for _ in range(count):
        hardness = random.normal(0, 1, 500)
        a, b = (
            random.normal(0, 0.15, (5, 1)) + hardness + random.normal(0, 1, (5, 500)) > 1.5 for _ in range(2)
        )
        found = compare_images(a, b)
        inside += found.low <= 0 <= found.high
    return {"trainings": 5, "images": 500, "trials": count, "coverage of the 95 % interval": inside / count}


def main() -> None:
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    record = {
        "command": f"python benchmarks/decisions.py {trials}",
        "environment": {**environment_record(HERE, "fp32"), "scipy": scipy.__version__},
        "coverage": coverages(trials),
        "error over looks": error_over_looks(trials),
        "error with failures in both rows": error_with_failures(trials),
        "pairs needed for a power of 80 %": plans(),
        "least pairs by sign flips": {m: least_pairs(m) for m in (1, 2, 5, 10, 20)},
        "agreement with a figure of five runs, margin 0.5": agreement(trials),
        "rows image by image": images(trials),
    }
    path = Path(__file__).parents[1] / "results" / "decisions.json"
    durable.write_file(path, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
    print(path)


if __name__ == "__main__":
    main()
