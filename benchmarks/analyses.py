"""Time and memory of every analysis: `python benchmarks/analyses.py [WHAT…] [--data PATH]`.

Each analysis of each network is a process of its own on one core, as `kilolayer analyse WHAT NETWORK`;
what it cost is read from the system when it ends (processor seconds, largest resident size). Beside them:
a process that only starts, reads the images and measures a network of 8 layers ("ground"), and one step
of plain training on the same batch. `--figures` writes the figures of results/analyses/ instead.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from kilolayer.data import Data, load
from kilolayer.data import measure_statistics as measure_statistics
from kilolayer.data.loading import open_source
from kilolayer.measure.analyses import ANALYSES
from kilolayer.networks import build, describe
from kilolayer.runs import environment_record
from kilolayer.training import DistributedContext, network_for_data

NETWORKS = ("resnet110_cifar", "preact_resnet110_cifar", "resnet1001_cifar", "preact_resnet1001_cifar")
RESULTS = Path(__file__).parent.parent / "results"


def cost(*words: str) -> dict[str, Any]:
    """What a process took; `status` 0 when it was carried out."""
    started = time.perf_counter()
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(words, env=environ, stdout=subprocess.DEVNULL)  # noqa: S603 - our own command
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return {
        "seconds": round(time.perf_counter() - started, 2),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_memory_bytes": used.ru_maxrss * 1024,
        "status": child.returncode,
    }


def analyse(what: str, networks: tuple[str, ...], options: argparse.Namespace, *more: str) -> list[str]:
    words = [sys.executable, "-m", "kilolayer", "analyse", what, *networks, "--data", options.data]
    return [*words, "--batch-size", str(options.batch_size), "--device", "cpu", *more]


def training_step(network: str, options: argparse.Namespace) -> None:
    """Forward and backward on a batch, as training does it."""
    data = Data(options.data)
    splits = load(replace(data, subset=min(2000, open_source(data).count)))
    size = {"in_chans": splits.in_chans, "image_size": splits.image_size, "classes": splits.num_classes}
    model = build(network_for_data(describe(network), **size))
    some = splits.train[: options.batch_size]
    x = measure_statistics(splits.train, "channel").normalize(some.pixels)
    functional.cross_entropy(model(x), some.labels).backward()


def measure(options: argparse.Namespace) -> None:
    path = RESULTS / "analyses.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": []}
    rows = {(row["analysis"], row["network"]): row for row in record["rows"]}
    step = (sys.executable, __file__, "--batch-size", str(options.batch_size), "--data", options.data)
    jobs = {("ground", "preact_resnet8_cifar"): analyse("responses", ("preact_resnet8_cifar",), options)}
    jobs |= {("training step", network): [*step, "--step", network] for network in options.networks}
    jobs |= {
        (what, network): analyse(what, (network,), options)
        for network in options.networks
        for what in options.what or ANALYSES
    }
    for (what, network), words in jobs.items():
        told = {"analysis": what, "network": network, "batch_size": options.batch_size}
        rows[what, network] = told | cost(*words)
        print(json.dumps(rows[what, network]), flush=True)
        here = environment_record(DistributedContext(torch.device("cpu")), "fp32") | {"threads": 1}
        whole = {"environment": here, "rows": list(rows.values())}
        path.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def figures(options: argparse.Namespace) -> None:
    for depth in dict.fromkeys(network.split("resnet")[1] for network in options.networks):
        pair = f"resnet{depth}", f"preact_resnet{depth}"
        for what in options.what or ANALYSES:
            out = RESULTS / "analyses" / f"depth-{depth.removesuffix('_cifar')}"
            print(what, depth, cost(*analyse(what, pair, options, "--out", str(out))), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="*", help="analyses; otherwise all")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--figures", action="store_true")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        training_step(options.step, options)
    elif options.figures:
        figures(options)
    else:
        measure(options)


if __name__ == "__main__":
    main()
