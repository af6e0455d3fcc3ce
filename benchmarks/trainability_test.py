"""Will it train? The verdict of `kilolayer analyse initialisation`, tested on networks drawn at random.

    python benchmarks/trainability_test.py predict FOLDER SEED COUNT     writes FOLDER/predictions.json
    python benchmarks/trainability_test.py train FOLDER                  writes FOLDER/outcomes.json
    python benchmarks/trainability_test.py judge FOLDER                  writes FOLDER/test.json

`predict` draws COUNT networks from SEED and gives each its verdict; the file carries the SHA-256 of networks
and verdicts. `train` refuses predictions that do not have their hash, and trains every network for STEPS
steps on digits: SGD with momentum 0.9, weight decay 1e-4, batches of 32, rate 0.01 for WARM_UP steps and RATE
afterwards. A network *trains* if the mean loss of the last LAST batches is below THRESHOLD times the entropy
of the training labels. `judge` compares: the share that is right, and exact tests against the better of the
two constant answers.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from scipy.stats import binomtest
from torch.nn import functional

from kilolayer.cli.analysis_inputs import load_analysis_inputs
from kilolayer.cli.options import AnalysisInputOptions, UnitOptions
from kilolayer.data import Data, load, measure_statistics
from kilolayer.measure.initialisation import measure_initialisation
from kilolayer.measure.overfit_probe import label_entropy
from kilolayer.networks import Network, build, cifar
from kilolayer.runs import environment_record
from kilolayer.system import durable
from kilolayer.training import DistributedContext
from kilolayer.units import (
    ARRANGEMENTS,
    BASIC,
    Dropout,
    ExclusiveGate,
    Identity,
    Projection,
    Scaled,
    ShortcutGate,
    Zero,
)
from kilolayer.values import from_json, to_json

STEPS, WARM_UP, LAST, BATCH, RATE = 150, 40, 20, 32, 0.05
THRESHOLD = 0.75
DEPTHS = (32, 74, 110)


def draw_network(rng: random.Random) -> Network:
    """A network of the population about which the test speaks."""
    h = rng.choice(
        (
            Identity(),
            Zero(),
            Projection(),
            Scaled(round(rng.uniform(0.3, 1.3), 2), rng.choice((1.0, 0.5))),
            Scaled(round(rng.uniform(0.3, 1.3), 2)),
            ExclusiveGate(round(rng.uniform(-7, 1), 1)),
            ExclusiveGate(round(rng.uniform(-7, 1), 1)),
            ShortcutGate(round(rng.uniform(-7, 1), 1)),
            Dropout(round(rng.uniform(0.05, 0.6), 2)),
        )
    )
    arrangement = ARRANGEMENTS[rng.choice(sorted(ARRANGEMENTS))]
    network = cifar(rng.choice(DEPTHS), replace(BASIC, h=h, arrangement=arrangement))
    return replace(network, num_classes=10, in_chans=1, image_size=8)


def predict(folder: Path, seed: int, count: int) -> None:
    """Draws the networks, judges each, and writes both with their hash."""
    rng = random.Random(seed)
    options = AnalysisInputOptions(data="digits", batch_size=BATCH)
    (subject,) = load_analysis_inputs(("resnet20_cifar",), options, UnitOptions())
    units = []
    for number in range(count):
        network = draw_network(rng)
        one = replace(
            subject, name=str(number), description=network, build_fresh=fresh(network), seeds=(number,)
        )
        found = measure_initialisation(one)
        units.append(
            {
                "number": number,
                "initialisation": number,
                "network": to_json(network),
                "words": f"{depth(network)} layers, {arrangement_name(network)}, {network.unit.h.equation}",
                "verdict": found.verdict.word,
                "reasons": found.verdict.reasons,
                "measured": {
                    "signal": max(found.starts[0].signal),
                    "gradient": found.starts[0].gradient[0],
                    "largest gradient": max(found.starts[0].gradient),
                    "loss": [found.first_steps.losses[0], found.first_steps.final_loss],
                    "entropy": found.first_steps.entropy,
                    "direct": found.prediction.direct[0] if found.prediction else None,
                },
            }
        )
        print(number, units[-1]["words"], found.verdict.word, flush=True)
    body = {
        "seed": seed,
        "criterion": criterion(),
        "units": units,
    }
    record = {
        "sha256": digest(body),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment_record(DistributedContext(torch.device("cpu")), "fp32"),
        **body,
    }
    write(folder / "predictions.json", record)
    print("sha256", record["sha256"])


def criterion() -> dict[str, object]:
    """What decides whether a network trains, and what the test asks for."""
    return {
        "steps": STEPS,
        "warm_up": WARM_UP,
        "rate": RATE,
        "batch": BATCH,
        "trains": f"mean loss of the last {LAST} batches below {THRESHOLD} of the training labels' entropy",
        "passes": "at least 80 % right, and better than the better constant answer, exact McNemar p < 0.01",
    }


def train(folder: Path) -> None:
    """Trains every predicted network, and continues where it was interrupted."""
    record = read(folder / "predictions.json")
    body = {key: record[key] for key in ("seed", "criterion", "units")}
    if digest(body) != record["sha256"] or body["criterion"] != criterion():
        raise SystemExit("the predictions are not those that were registered")
    path = folder / "outcomes.json"
    outcomes = read(path)["outcomes"] if path.exists() else []
    images = load(Data("digits")).train
    statistics = measure_statistics(images, "channel")
    x, labels = statistics.normalize(images.pixels), images.labels
    entropy = label_entropy(labels.tolist())
    for unit in record["units"][len(outcomes) :]:
        began = time.process_time()
        losses = train_one(from_json(unit["network"], Network), unit["initialisation"], x, labels)
        last = losses[-LAST:]
        loss = sum(last) / len(last) if all(map(math.isfinite, losses)) else math.inf
        outcomes.append(
            {
                "number": unit["number"],
                "loss": round(loss, 4) if math.isfinite(loss) else None,
                "trains": loss < THRESHOLD * entropy,
                "processor_seconds": round(time.process_time() - began, 1),
            }
        )
        write(
            path,
            {
                "predictions_sha256": record["sha256"],
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "environment": environment_record(DistributedContext(torch.device("cpu")), "fp32"),
                "entropy": entropy,
                "outcomes": outcomes,
            },
        )
        print(unit["words"], unit["verdict"], outcomes[-1], flush=True)


def train_one(network: Network, seed: int, x: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """The loss of every step; a loss that is not finite ends the training."""
    model = fresh(network)(seed).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    torch.manual_seed(seed)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 0.01 if step < WARM_UP else RATE
        chosen = torch.randint(len(x), (BATCH,), generator=generator)
        loss = functional.cross_entropy(model(x[chosen]), labels[chosen])
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def judge(folder: Path) -> None:
    """How often the verdict is right, beside the better constant answer."""
    record, outcomes = read(folder / "predictions.json"), read(folder / "outcomes.json")["outcomes"]
    pairs = [
        (unit["verdict"] == "trains", outcome["trains"])
        for unit, outcome in zip(record["units"], outcomes, strict=True)
    ]
    right = sum(said == found for said, found in pairs)
    constant = sum(found for _, found in pairs) * 2 >= len(pairs)
    gained = sum(said == found != constant for said, found in pairs)
    lost = sum(said != found == constant for said, found in pairs)
    p = binomtest(gained, gained + lost, alternative="greater").pvalue if gained + lost else 1.0
    result = {
        "predictions_sha256": record["sha256"],
        "units": len(pairs),
        "counts": {
            f"said {words(said)}, {words(found)}": pairs.count((said, found))
            for said in (True, False)
            for found in (True, False)
        },
        "right": right,
        "right_share": right / len(pairs),
        "best_constant": words(constant),
        "constant_right": sum(found == constant for _, found in pairs),
        "mcnemar_one_sided": {"gained": gained, "lost": lost, "p": float(p)},
        "passes": bool(right >= 0.8 * len(pairs) and p < 0.01),
    }
    write(folder / "test.json", result)
    print(json.dumps(result, indent=1))


def words(trains: bool) -> str:
    return "trains" if trains else "fails"


def depth(network: Network) -> int:
    return 2 + 2 * sum(stage.units for stage in network.stages)


def arrangement_name(network: Network) -> str:
    return next(name for name, each in ARRANGEMENTS.items() if each == network.unit.arrangement)


def fresh(network: Network):
    def made(seed: int):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return build(network)

    return made


def digest(body: dict) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, record: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.write_file(path, json.dumps(record, indent=1, ensure_ascii=False).encode())


if __name__ == "__main__":
    torch.set_num_threads(1)
    command, place, *numbers = sys.argv[1:]
    {"predict": predict, "train": train, "judge": judge}[command](Path(place), *map(int, numbers))
