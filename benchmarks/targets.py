"""The table of targets, measured on this machine: target, figure, met or not.

    python benchmarks/targets.py [--threads N] [--out FILE]

It takes less than 20 minutes on a quiet machine. Everything is a race of `kilolayer.bench`: same batch,
in turns, each in its own process. Peers are taken where their packages can be imported; without them the
reference is our own network run plainly (fp32, channels first, PyTorch's layers), which computes what the
peers do. The last contestant of every row is its reference. Writes results/targets.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from kilolayer import durable
from kilolayer.bench import Conditions, contestant, race
from kilolayer.errors import InputError
from kilolayer.runs.environment import command

PEERS = {110: "pytorchcv:preresnet110_cifar10", 164: "pytorchcv:preresnet164bn_cifar10",
         1001: "pytorchcv:preresnet1001_cifar10"}  # fmt: skip


def measured(names: list[str], peer: str | None, conditions: Conditions) -> dict[str, Any]:
    """A race of ours and, where it can be had, the peer; the last row is the reference."""
    ours = [contestant(name) for name in names]
    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    if peer is not None:
        try:
            return race([*ours, contestant(peer)], conditions, say)
        except InputError as error:
            say(f"without the peer: {error}")
    return race([*ours, contestant(f"{names[0].partition('@')[0]}@plain")], conditions, say)


def row(
    target: str, at_least: float | None, at_most: float | None, value: float, found: dict[str, Any]
) -> dict[str, Any]:
    """One line of the table, with all that stands behind it."""
    met = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
    wanted = f"≥ {at_least:g}" if at_least is not None else f"≤ {at_most:g}"
    rows = {each["name"]: each for each in found["contestants"]}
    print(f"{'met    ' if met else 'NOT MET'}  {target}: {value:.3g} (wanted {wanted})", flush=True)
    figures = ("images_per_second", "peak_memory_bytes", "roofline_share", "disturbed", "repeats", "trusted")
    return {
        "target": target, "wanted": wanted, "measured": round(value, 4), "met": met,
        "ceilings": found["ceilings"], "conditions": found["conditions"],
        "contestants": {name: {key: each[key] for key in figures} for name, each in rows.items()},
        "not_the_same_work": found["differences"],
    }  # fmt: skip


def ratio(found: dict[str, Any], key: str, above: int = 0, below: int = -1) -> float:
    rows = found["contestants"]
    return float(rows[above][key] / rows[below][key])


def training(threads: int) -> list[dict[str, Any]]:
    rows = []
    for depth, least in ((110, 2.8), (164, 4.5)):
        name = f"preact_resnet{depth}_cifar"
        found = measured([name], PEERS[depth], Conditions(64, threads))
        rows.append(
            row(f"training {depth}, times the peer", least, None, ratio(found, "images_per_second"), found)
        )
        if depth == 110:
            share = found["contestants"][0]["roofline_share"]
            rows.append(row("training 110, share of the ceiling", 0.85, None, share, found))
    deep = "preact_resnet1001_cifar"
    found = measured([deep, f"{deep}@balanced"], PEERS[1001], Conditions(64, threads, repeats=2, warm_up=1))
    rows.append(row("training 1001, times the peer", 5.5, None, ratio(found, "images_per_second"), found))
    memory = ratio(found, "peak_memory_bytes", -1, 1)
    rows.append(row("training 1001 balanced, the peer's memory over ours", 14, None, memory, found))
    slower = ratio(found, "images_per_second", 0, 1)
    rows.append(row("training 1001 balanced, time over our fastest", None, 1.4, slower, found))
    return rows


def deepest(threads: int) -> list[dict[str, Any]]:
    name = "preact_resnet10001_cifar@balanced"
    found = race([contestant(name)], Conditions(64, threads, repeats=1, warm_up=1))
    size = found["contestants"][0]["peak_memory_bytes"] / 1e9
    return [row("training 10,001 layers at batch 64, GB", None, 3.0, size, found)]


def inference(threads: int) -> list[dict[str, Any]]:
    name = "preact_resnet164_cifar"
    found = measured([name, f"{name}@openvino"], None, Conditions(32, threads, infer=True))
    speed = "images_per_second"
    return [
        row("inference 164, times eager fp32", 3.5, None, ratio(found, speed), found),
        row("inference 164, times OpenVINO bf16", 1.0, None, ratio(found, speed, 0, 1), found),
    ]


def imagenet(threads: int) -> list[dict[str, Any]]:
    found = measured(["resnet50"], "torchvision:resnet50", Conditions(16, threads, repeats=3, warm_up=1))
    return [row("training ResNet-50, times the peer", 2.3, None, ratio(found, "images_per_second"), found)]


PARTS = {"training": training, "inference": inference, "imagenet": imagenet, "deepest": deepest}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--only", choices=PARTS, nargs="*", default=list(PARTS))
    options.add_argument("--out", type=Path, default=Path("results/targets.json"))
    asked = options.parse_args()
    rows = [each for part in asked.only for each in PARTS[part](asked.threads)]
    environment = race([contestant("preact_resnet20_cifar")], Conditions(2, asked.threads, repeats=1))[
        "environment"
    ]
    record = {"environment": environment | {"command": command()}, "targets": rows}
    durable.write(asked.out, json.dumps(record, indent=1, ensure_ascii=False).encode())
    print(f"{sum(each['met'] for each in rows)} of {len(rows)} met: {asked.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
