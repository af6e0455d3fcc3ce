"""Will it train? The verdict from initialisation and 20 steps, beside P2's Table 1 (ResNet-110, CIFAR-10).

    OMP_NUM_THREADS=1 python benchmarks/table_1_verdicts.py CIFAR_FOLDER [SEEDS [IMAGE_SIZE]]

Writes results/analyses/table-1-verdicts.json: for every row of the table and each of SEEDS seeds (1) the
verdict with its reasons, and how often verdict and paper agree. About a minute a row on one core at the
default size, 16 pixels a side.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from kilolayer.cli.analysis_inputs import load_analysis_inputs
from kilolayer.cli.options import AnalysisInputOptions, UnitOptions
from kilolayer.measure.initialisation import measure_initialisation
from kilolayer.networks import Network, build
from kilolayer.papers.p2 import TABLE_1
from kilolayer.papers.schema import FAIL, EachSetting
from kilolayer.runs import environment_record
from kilolayer.system import durable
from kilolayer.theory.mean_field import MeanFieldPrediction
from kilolayer.training import DistributedContext

BATCH, LAYERS = 32, "resnet110_cifar"


def rows() -> list[tuple[str, dict, object]]:
    """(name, changes to the unit, the paper's error) for every experiment that the table's rows stand for."""
    found = []
    for name, (what, error) in TABLE_1.rows.items():
        single = what.settings if isinstance(what, EachSetting) else {"": what}
        for detail, value in single.items():
            changes = value if isinstance(value, dict) else {TABLE_1.vary: value}
            changes = {key: each for key, each in changes.items() if key in ("h", "downsample")}
            found.append((f"{name} {detail}".strip(), changes, error))
    return found


def main(folder: str, seeds: int = 1, side: int = 16) -> None:
    torch.set_num_threads(1)
    options = AnalysisInputOptions(data=folder, image_size=side, batch_size=BATCH)
    (subject,) = load_analysis_inputs((LAYERS,), options, UnitOptions())
    results = []
    for name, changes, error in rows():
        network = replace(subject.description, unit=replace(subject.description.unit, **changes))
        for seed in range(seeds):
            one = replace(subject, name=name, description=network, build_fresh=fresh(network), seeds=(seed,))
            found = measure_initialisation(one)
            judged = found.verdict
            fails = error is FAIL
            results.append(
                {
                    "row": name,
                    "seed": seed,
                    "paper": "fail" if fails else error,
                    "verdict": judged.word,
                    "agrees": judged.trains != fails,
                    "reasons": judged.reasons,
                    "loss": [round(found.first_steps.losses[0], 4), round(found.first_steps.final_loss, 4)],
                    "gradient growth": float(f"{found.starts[0].gradient[0]:.4g}"),
                    **theory_of(found.prediction),
                }
            )
            print(
                f"{name}: paper {results[-1]['paper']}, {judged.word}: {'; '.join(judged.reasons)}",
                flush=True,
            )
    record = {
        "environment": environment_record(DistributedContext(torch.device("cpu")), "fp32"),
        "network": f"{LAYERS}, {side}×{side} pixels, batch {BATCH}",
        "counts": counts(results),
        "results": results,
    }
    path = Path("results/analyses/table-1-verdicts.json")
    durable.write_file(path, json.dumps(record, indent=1, ensure_ascii=False).encode())
    print(record["counts"])


def theory_of(prediction: MeanFieldPrediction | None) -> dict[str, float]:
    """The gradient's growth by theory; nothing where there is no prediction (dropout)."""
    if prediction is None:
        return {}
    return {
        "gradient growth by theory": float(f"{prediction.gradient[0]:.4g}"),
        "by shortcuts alone, by theory": float(f"{prediction.direct[0]:.4g}"),
    }


def fresh(network: Network):
    def made(seed: int):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return build(network)

    return made


def counts(results: list[dict]) -> dict[str, int]:
    """How often the paper's outcome met which verdict."""
    pairs = [("fail" if one["paper"] == "fail" else "trained", one["verdict"]) for one in results]
    return {
        f"paper {paper}, verdict {word}": pairs.count((paper, word)) for paper, word in sorted(set(pairs))
    }


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
