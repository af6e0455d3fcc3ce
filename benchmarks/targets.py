"""The table of speed targets, measured on this machine: target, figure, met or missed.

    python benchmarks/targets.py [--threads N] [--only PART …] [--rehearse] [--out FILE]

It takes about 15 minutes on one thread of a quiet machine, and 12.5 GB of its 16 GB: ResNet-1001 in PyTorch's
default. Every comparison is by `kilolayer.bench`: the same batch, in turns, each candidate in its own
process. A peer takes part if its package can be imported; torchvision and timm need the PyTorch build that
torchvision is for. Without peers the reference is our own network run plainly (fp32, channels first,
PyTorch's layers); with several, the fastest. Our networks have the projections (110: option B) and strides of
the peers (benchmarks/same_work.py). The share is relative to the fastest product of this processor, in bf16
or fp32; the targets were set on a processor whose bf16 product is twice as fast as its fp32 one. A PyTorch
build with CUDA's libraries occupies 0.3 GB more than the build for CPUs, so judge memory with the latter and
run `--only imagenet` with the former. `--rehearse` takes one step of two images, to see that every part runs:
ignore its figures. Writes results/targets.json after every part; parts that are not run keep their old
figures there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kilolayer.bench import BenchConfiguration, compare_candidates, parse_candidate
from kilolayer.errors import InputError
from kilolayer.runs.start_environment import current_command
from kilolayer.system import durable

OURS = os.path.relpath(Path(__file__).parent / "same_work.py")
PEERS = os.path.relpath(Path(__file__).parent / "pytorchcv_peers.py")
FIGURES = ("images_per_second", "peak_memory_bytes", "memory_bytes_before", "roofline_share", "precision",
           "multiply_adds", "loss_with_equal_weights", "loss_as_run", "joules_per_image", "disturbed",
           "repeats", "trusted")  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """The figures of a comparison, how many of its first candidates are ours, and why peers are missing."""

    figures: dict[str, Any]
    ours: int
    without: str | None = None

    def best_peer(self, key: str) -> float:
        values = [float(row[key]) for row in self.figures["contestants"][self.ours :]]
        return min(values) if key == "peak_memory_bytes" else max(values)

    def own(self, key: str, index: int = 0) -> float:
        return float(self.figures["contestants"][index][key])


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def measured(ours: list[str], peers: list[str], conditions: BenchConfiguration) -> Comparison:
    """Our candidates and the peers; without peers our own network run plainly."""
    mine, without = [parse_candidate(name) for name in ours], None
    if peers:
        try:
            return Comparison(
                compare_candidates([*mine, *map(parse_candidate, peers)], conditions, say), len(mine)
            )
        except InputError as error:
            without = str(error)
            say(f"without the peers: {error}")
    plain = parse_candidate(f"{ours[0].partition('@')[0]}@plain")
    return Comparison(compare_candidates([*mine, plain], conditions, say), len(mine), without)


def row(
    target: str,
    comparison: Comparison,
    value: float,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    **more: float,
) -> dict[str, Any]:
    """One line of the table, with everything it is derived from."""
    figures = comparison.figures
    met = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
    bound = f"≥ {at_least:g}" if at_least is not None else f"≤ {at_most:g}"
    percent, dtype = 100 * comparison.own("roofline_share"), figures["fastest_arithmetic"]
    share = f"{percent:.0f} % of this processor's {dtype} product"
    print(f"{'met    ' if met else 'NOT MET'}  {target}: {value:.3g} (wanted {bound}); {share}", flush=True)
    return {
        "target": target, "wanted": bound, "measured": round(value, 4), "met": met, **more,
        "share_of_fastest_product": comparison.own("roofline_share"),
        "fastest_arithmetic": figures["fastest_arithmetic"], "machine": figures["machine"]["name"],
        "ceilings": figures["ceilings"], "conditions": figures["conditions"],
        "contestants": {each["name"]: {key: each[key] for key in FIGURES} for each in figures["contestants"]},
        "not_the_same_work": figures["differences"], "peers_missing": comparison.without,
    }  # fmt: skip


def times(comparison: Comparison, index: int = 0) -> float:
    return comparison.own("images_per_second", index) / comparison.best_peer("images_per_second")


def memory(comparison: Comparison, index: int) -> tuple[float, float]:
    """The peer's peak memory over ours; and the same above what a process holds before building a network."""
    peer, ours = comparison.best_peer("peak_memory_bytes"), comparison.own("peak_memory_bytes", index)
    before = comparison.own("memory_bytes_before", index)
    return peer / ours, (peer - before) / (ours - before)


def training(of: BenchConfiguration) -> list[dict[str, Any]]:
    basic = measured(["preact_resnet110_b_cifar"], [f"{PEERS}:preresnet110_cifar10"], of)
    deeper = measured([f"{OURS}:preact_resnet164@fast"], [f"{PEERS}:preresnet164bn_cifar10"], of)
    return [
        row("training 110, times the peer", basic, times(basic), at_least=2.8),
        row("training 110, share of the ceiling", basic, basic.own("roofline_share"), at_least=0.85),
        row("training 164, times the peer", deeper, times(deeper), at_least=4.5),
    ]


def thousand(of: BenchConfiguration) -> list[dict[str, Any]]:
    deep = f"{OURS}:preact_resnet1001"
    # Two repeats gave a ratio of 4.70, two others 5.56 (docs/internals/log/).
    few = replace(of, warm_up=min(of.warm_up, 1))
    comparison = measured([f"{deep}@fast", f"{deep}@fast+balanced"], [f"{PEERS}:preresnet1001_cifar10"], few)
    peak_ratio, above = memory(comparison, 1)
    slower = comparison.own("images_per_second") / comparison.own("images_per_second", 1)
    target = "training 1001 balanced, the peer's memory over ours"
    return [
        row("training 1001, times the peer", comparison, times(comparison), at_least=5.5),
        row(target, comparison, peak_ratio, at_least=14, above_the_imports=above),
        row("training 1001 balanced, time over our fastest", comparison, slower, at_most=1.4),
    ]


def deepest(of: BenchConfiguration) -> list[dict[str, Any]]:
    once = replace(of, repeats=1, warm_up=min(of.warm_up, 1))
    comparison = Comparison(
        compare_candidates([parse_candidate("preact_resnet10001_cifar@balanced")], once, say), 1
    )
    size = comparison.own("peak_memory_bytes") / 1e9
    above = size - comparison.own("memory_bytes_before") / 1e9
    target = f"training 10,001 layers at batch {of.batch_size}, GB"
    return [row(target, comparison, size, at_most=3.0, above_the_imports=above)]


def inference(of: BenchConfiguration) -> list[dict[str, Any]]:
    name, engines = "preact_resnet164_cifar", ("openvino", "onnxruntime", "openvino-int8", "onnxruntime-int8")
    configuration = replace(of, infer=True, batch_size=min(of.batch_size, 32))
    comparison = measured([name, *(f"{name}@{engine}" for engine in engines)], [], configuration)
    beside = comparison.own("images_per_second") / comparison.own("images_per_second", 1)
    return [
        row("inference 164, times eager fp32", comparison, times(comparison), at_least=3.5),
        row("inference 164, times OpenVINO", comparison, beside, at_least=1.0),
    ]


def imagenet(of: BenchConfiguration) -> list[dict[str, Any]]:
    few = replace(
        of, batch_size=min(of.batch_size, 16), repeats=min(of.repeats, 3), warm_up=min(of.warm_up, 1)
    )
    v1 = measured([f"{OURS}:resnet50@fast"], ["torchvision:resnet50", "timm:resnet50"], few)
    v2 = measured([f"{OURS}:preact_resnet50@fast"], ["timm:resnetv2_50"], few)
    return [
        row("training ResNet-50, times the best peer", v1, times(v1), at_least=2.3),
        row("training pre-activation ResNet-50, times the peer", v2, times(v2), at_least=2.3),
    ]


PARTS = {"training": training, "thousand": thousand, "inference": inference, "imagenet": imagenet,
         "deepest": deepest}  # fmt: skip


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--only", choices=PARTS, nargs="*", default=list(PARTS))
    options.add_argument("--rehearse", action="store_true", help="one step of two images; no figures")
    options.add_argument("--out", type=Path, default=Path("results/targets.json"))
    asked = options.parse_args()
    of = BenchConfiguration(64, asked.threads)
    if asked.rehearse:
        of = BenchConfiguration(2, asked.threads, repeats=1, warm_up=0)
    parts = json.loads(asked.out.read_text(encoding="utf-8")) if asked.out.exists() else {}
    for part in asked.only:
        began = time.monotonic()
        rows = PARTS[part](of)
        first = compare_candidates(
            [parse_candidate("preact_resnet20_cifar")], BenchConfiguration(2, asked.threads, repeats=1)
        )
        parts[part] = {
            "environment": first["environment"] | {"command": current_command()},
            "machine": first["machine"],
            "rehearsal": asked.rehearse,
            "seconds": round(time.monotonic() - began),
            "targets": rows,
        }
        durable.write_file(asked.out, json.dumps(parts, indent=1, ensure_ascii=False).encode())
    rows = [each for part in asked.only for each in parts[part]["targets"]]
    print(f"{sum(each['met'] for each in rows)} of {len(rows)} met: {asked.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
