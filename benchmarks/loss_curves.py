"""Losses of the fast path beside plain fp32 over a few hundred steps: same weights, same batches.

    python benchmarks/loss_curves.py [--steps N] [--model NAME] [--out FILE]

On the embedded digits in 16×16 pixels, ten seeds: of one pair of curves the end differs by chance, whatever
is rounded. Writes results/loss-curves.json: every curve in means over ten steps, by how much the last fifth
differs on average, with the standard error of that.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from kilolayer.data import Data, load
from kilolayer.networks import describe
from kilolayer.runs.start_environment import environment_record
from kilolayer.system import durable
from kilolayer.training import (
    DistributedContext,
    Experiment,
    Trainer,
    choose_kernels,
    network_for_data,
    recipe_by_name,
    recipe_for_data,
)

HERE = DistributedContext(torch.device("cpu"))
SEEDS = range(10)


def experiment(model: str, steps: int, seed: int, *, fast: bool) -> Experiment:
    data = Data("digits", image_size=16)
    chosen = replace(
        recipe_for_data(recipe_by_name("short", 1437), data).with_iterations(steps), batch_size=32
    )
    network = network_for_data(describe(model), classes=10, in_chans=1, image_size=16)
    plain = Experiment(network, data, chosen, seed=seed, evaluate_every=10**6)
    if not fast:
        return plain
    kernels = choose_kernels("auto", HERE.device, "bf16", channels_last=True)
    return replace(
        plain, precision="bf16", memory_format="channels_last", activation_memory="balanced", kernels=kernels
    )


def losses(one: Experiment) -> list[float]:
    """The training loss of every step but the last, behind which an evaluation comes."""
    steps = Trainer(one, load(one.data), HERE).steps()
    return [step.loss.item() for step in islice(steps, one.recipe.iterations - 1)]


def curves(model: str, steps: int) -> dict[str, Any]:
    rows = []
    for seed in SEEDS:
        pair = {
            name: losses(experiment(model, steps, seed, fast=name == "fast")) for name in ("plain", "fast")
        }
        tails = {name: statistics.mean(each[-len(each) // 5 :]) for name, each in pair.items()}
        print(
            f"seed {seed}: the last fifth's loss is {tails['plain']:.4f} plain, {tails['fast']:.4f} fast",
            flush=True,
        )
        rows.append(
            {"seed": seed, "last_fifth": tails} | {name: thinned(each) for name, each in pair.items()}
        )
    plain = [row["last_fifth"]["plain"] for row in rows]
    gaps = [row["last_fifth"]["fast"] - row["last_fifth"]["plain"] for row in rows]
    return {
        "curves": rows,
        "mean_gap": statistics.mean(gaps),
        "standard_error": statistics.stdev(gaps) / len(gaps) ** 0.5,
        "plain": statistics.mean(plain),
        "seeds_differ_by": statistics.stdev(plain),
    }


def thinned(values: list[float]) -> list[float]:
    return [round(statistics.mean(values[at : at + 10]), 5) for at in range(0, len(values), 10)]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--steps", type=int, default=300)
    options.add_argument("--model", default="preact_resnet56_bottleneck_cifar")
    options.add_argument("--out", type=Path, default=Path("results/loss-curves.json"))
    asked = options.parse_args()
    torch.set_num_threads(1)
    found = curves(asked.model, asked.steps)
    fast = experiment(asked.model, asked.steps, 0, fast=True)
    where = environment_record(HERE, fast.precision, channels_last=fast.channels_last, kernels=fast.kernels)
    record = {"environment": where, "model": asked.model, "steps": asked.steps, **found}
    durable.write_file(asked.out, json.dumps(record, indent=1).encode())
    gap, error, plain = found["mean_gap"], found["standard_error"], found["plain"]
    print(f"the fast path ends {gap:+.4f} ± {error:.4f} from plain's {plain:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
