"""Time and memory of a training step over depth 20 … 10,001 and over the batch size.

    python benchmarks/scaling.py [--most DEPTH] [--threads N] [--out FILE]

Each bottleneck network runs in a process of its own (`kilolayer.bench`): plainly, the fastest way, and with
the least memory at one recomputation. `--most 1001` leaves out the deepest, which take ten minutes on a quiet
core. Writes results/scaling.json and scaling.svg.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from kilolayer.bench import BenchConfiguration, compare_candidates, parse_candidate
from kilolayer.report import canvas
from kilolayer.runs.start_environment import current_command
from kilolayer.system import durable

DEPTHS = (20, 56, 110, 164, 326, 506, 1001, 2000, 4997, 10_001)
BATCHES = (8, 16, 32, 64, 128)
VARIANTS = {"plain": 326, "fast": 1001, "balanced": 10_001}
"""And up to which depth each is taken, for its memory."""


def name(depth: int, variant: str) -> str:
    block = "" if depth >= 164 else "_bottleneck"
    # A bottleneck network has 9n + 2 weight layers; these are the nearest depths.
    nearest = 9 * round((depth - 2) / 9) + 2
    return f"preact_resnet{nearest}{block}_cifar@{variant}"


def step(depth: int, variant: str, batch: int, threads: int) -> dict[str, Any]:
    """One measured point."""
    conditions = BenchConfiguration(batch, threads, repeats=1 if depth > 1001 else 3, warm_up=1)
    figures = compare_candidates([parse_candidate(name(depth, variant))], conditions)
    mine = figures["contestants"][0]
    keys = (
        "seconds",
        "images_per_second",
        "peak_memory_bytes",
        "predicted_memory_bytes",
        "roofline_share",
        "disturbed",
    )
    print(
        f"{mine['name']} at {batch}: {mine['seconds']:.2f} s, {mine['peak_memory_bytes'] / 1e6:,.0f} MB",
        flush=True,
    )
    return (
        {"depth": depth, "variant": variant, "batch_size": batch}
        | {key: mine[key] for key in keys}
        | {"environment": figures["environment"]}
    )


def draw(rows: list[dict[str, Any]], along: str) -> str:
    """Seconds (left) and memory (right) against depth or batch size, on logarithmic axes."""
    variants = list(dict.fromkeys(row["variant"] for row in rows))

    def paint(figure: Any) -> None:
        for axes, key, scale, label in zip(
            figure.subplots(1, 2),
            ("seconds", "peak_memory_bytes"),
            (1, 1e9),
            ("seconds a step", "peak GB"),
            strict=True,
        ):
            canvas.set_up_axes(axes, along.replace("_", " "), label)
            axes.set_xscale("log")
            axes.set_yscale("log")
            for number, variant in enumerate(variants):
                points = [(row[along], row[key] / scale) for row in rows if row["variant"] == variant]
                axes.plot(
                    *zip(*points, strict=True),
                    color=canvas.colour(number),
                    marker=canvas.marker(number),
                    ms=3,
                )
            canvas.plain_ticks(axes.xaxis)
            canvas.plain_ticks(axes.yaxis)
        canvas.add_legend(figure, variants)

    return canvas.draw_svg(f"A training step over {along}", paint, canvas.HEIGHT)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--most", type=int, default=10_001)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--out", type=Path, default=Path("results/scaling.json"))
    asked = options.parse_args()
    plan = [
        (depth, variant)
        for variant, most in VARIANTS.items()
        for depth in DEPTHS
        if depth <= min(most, asked.most)
    ]
    over_depth = [step(depth, variant, 64, asked.threads) for depth, variant in plan]
    over_batch = [step(164, variant, batch, asked.threads) for variant in VARIANTS for batch in BATCHES]
    environment = over_depth[0]["environment"] | {"command": current_command()}
    for row in (*over_depth, *over_batch):
        del row["environment"]
    record = {"environment": environment, "over_depth": over_depth, "over_batch": over_batch}
    durable.write_file(asked.out, json.dumps(record, indent=1).encode())
    for rows, along in ((over_depth, "depth"), (over_batch, "batch_size")):
        durable.write_file(
            asked.out.with_name(f"{asked.out.stem}-{along.partition('_')[0]}.svg"), draw(rows, along).encode()
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
