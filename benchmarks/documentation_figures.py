"""Draws the documentation's figures from the files under results/, into docs/_static/.

    python benchmarks/documentation_figures.py

Nothing is measured here: each figure shows what its file under results/ holds.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kilolayer.report import canvas
from kilolayer.report.plots import DepthLine, error_against_depth

ROOT = Path(__file__).resolve().parent.parent
RESULTS, STATIC = ROOT / "results", ROOT / "docs" / "_static"

COPIES = {
    "gradient-110": "analyses/depth-110/gradient-terms",
    "shares-110": "analyses/depth-110/decomposition-shares",
    "initialisation-gradient-110": "analyses/depth-110/initialisation-gradient",
    "paths-110": "analyses/depth-110/paths-lengths",
    "short-recipes": "short-recipes",
    "time-over-depth": "scaling-depth",
    "roofline-164": "bench-training-164",
}
"""Figures that a command has drawn already: name in docs/_static/, name under results/."""


def results(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def bars(
    title: str, rows: Mapping[str, Sequence[float]], axis: str, series: Sequence[str] = (), log: bool = False
) -> str:
    """Horizontal bars, a group for each row and a bar for each series."""
    count = max(len(values) for values in rows.values())

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        canvas.set_up_axes(axes, axis, "", grid=False)
        axes.grid(True, axis="x")
        for number in range(count):
            places = [row + (number - (count - 1) / 2) * 0.8 / count for row in range(len(rows))]
            widths = [values[number] for values in rows.values()]
            axes.barh(places, widths, height=0.72 / count, color=canvas.colour(number))
        axes.set_yticks(range(len(rows)), list(rows))
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        if log:
            axes.set_xscale("log")
            largest = max(map(max, rows.values()))
            axes.set_xticks([tick for tick in (0.01, 0.1, 1, 10, 100, 1000) if tick <= largest])
        canvas.plain_ticks(axes.xaxis)
        if series:
            canvas.add_legend(figure, series)

    height = 0.8 + len(rows) * (0.16 + 0.14 * count) + canvas.legend_height(series)
    return canvas.draw_svg(title, paint, height)


def curves(
    title: str,
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x: str,
    y: str,
    log: bool = False,
) -> str:
    """A line with markers for each pair of coordinates."""

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        canvas.set_up_axes(axes, x, y)
        for number, (xs, ys) in enumerate(lines.values()):
            axes.plot(xs, ys, color=canvas.colour(number), marker=canvas.marker(number), ms=4)
        if log:
            axes.set_yscale("log")
        canvas.plain_ticks(axes.xaxis)
        canvas.plain_ticks(axes.yaxis)
        canvas.add_legend(figure, list(lines))

    return canvas.draw_svg(title, paint, canvas.HEIGHT + canvas.legend_height(list(lines)))


def tables_1_2() -> str:
    """The paper's errors against the proxy's; rows that fail in the paper stand at the right."""
    groups: dict[str, list[tuple[float, float]]] = {}
    for table in ("p2-table-1", "p2-table-2"):
        with (RESULTS / "p2-tables-1-2-registered" / f"{table}.csv").open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                column = "Table 1" if table.endswith("1") else f"Table 2, {row['column']}"
                paper = 14.5 if row["paper"] == "fail" else float(row["paper"])
                groups.setdefault(column, []).append((paper, float(row["median"])))

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        canvas.set_up_axes(axes, "the paper's error in %", "the proxy's median error in %")
        for number, points in enumerate(groups.values()):
            axes.plot(*zip(*points, strict=True), canvas.marker(number), color=canvas.colour(number), ms=5)
        axes.set_xticks([6, 8, 10, 12, 14.5], ["6", "8", "10", "12", "fails"])
        canvas.plain_ticks(axes.yaxis)
        canvas.add_legend(figure, list(groups))

    title = "Errors of P2's Tables 1 and 2: the paper's against the proxy's"
    return canvas.draw_svg(title, paint, canvas.HEIGHT + canvas.legend_height(list(groups)))


def cifar10() -> str:
    metrics = results("preact-resnet20-cifar10-jpeg")["preact20-cifar10-jpeg"]["metrics"]
    epochs = [row["epoch"] for row in metrics]
    lines = {name: (epochs, [row[f"{name}_error"] for row in metrics]) for name in ("train", "validation")}
    return curves("Pre-activation ResNet-20 on CIFAR-10 (JPEG re-encode)", lines, "epoch", "error in %")


def fine_tuning() -> str:
    names = {
        "from nothing": "from random weights",
        "fine-tuned": "fine-tuned",
        "fine-tuned, trunk frozen": "only the classifier",
    }
    runs = results("finetune")["runs"]
    lines = {
        name: tuple(
            zip(*[(run["pictures"], run["test_error"]) for run in runs if run["kind"] == kind], strict=True)
        )
        for kind, name in names.items()
    }
    return curves(
        "Test error against the number of pictures, with and without weights to begin from",
        lines,
        "pictures in five classes",
        "test error in %",
    )


def demo() -> str:
    runs = results("demo")
    depths = (20, 56, 110, 218)
    lines = [
        DepthLine(
            label, depths, tuple((runs[f"{kind}-{depth}"]["result"]["test_error"],) for depth in depths)
        )
        for kind, label in (("original", "original"), ("full_preactivation", "full pre-activation"))
    ]
    return error_against_depth(lines, "Test error on digits against depth")


def sweeps() -> str:
    killed, ray = results("sweep-kills"), results("sweep-ray")
    rows = {
        "workers killed 20 times": (killed["runs"], killed["starts"]),
        "one of two nodes killed": (ray["runs"], ray["starts"]),
    }
    return bars(
        "Runs of a sweep and their starts", rows, "number", ("runs, all finished and identical", "starts")
    )


def targets() -> str:
    rows = {}
    for part in results("targets").values():
        for target in part["targets"]:
            sign, _, wanted = target["wanted"].partition(" ")
            share = target["measured"] / float(wanted)
            rows[target["target"]] = (share if sign == "≥" else 1 / share,)
    return bars("Speed targets: measured over wanted (1 and more is met)", rows, "measured / wanted")


def inference_speed() -> str:
    names = {
        "preact_resnet164_cifar": "folded",
        "preact_resnet164_cifar@openvino": "OpenVINO",
        "preact_resnet164_cifar@onnxruntime": "ONNX Runtime",
        "preact_resnet164_cifar@openvino-int8": "OpenVINO, int8",
        "preact_resnet164_cifar@onnxruntime-int8": "ONNX Runtime, int8",
        "preact_resnet164_cifar@eager": "layer by layer",
        "preact_resnet164_cifar@plain": "plain fp32",
    }
    rows = {
        names[row["name"]]: (row["images_per_second"],)
        for row in results("bench-inference-164")["contestants"]
    }
    return bars("Inference of pre-activation ResNet-164 on one thread of a Xeon", rows, "images per second")


def int8() -> str:
    networks = results("inference-int8")
    paths = ("bf16, folded", "OpenVINO, its own choice", "int8, ONNX Runtime", "int8, OpenVINO")
    rows = {
        path: [100 - network["paths"][path]["same_class_as_fp32"] for network in networks.values()]
        for path in paths
    }
    return bars("Images that get another class than in fp32", rows, "images in %", list(networks))


def memory_over_depth() -> str:
    rows = [row for row in results("scaling")["over_depth"] if row["batch_size"] == 64]
    lines = {}
    for variant in ("plain", "fast", "balanced"):
        chosen = [row for row in rows if row["variant"].endswith(variant)]
        lines[variant] = (
            [row["depth"] for row in chosen],
            [row["peak_memory_bytes"] / 1e9 for row in chosen],
        )

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        canvas.set_up_axes(axes, "layers", "peak memory in GB")
        for number, (depths, memory) in enumerate(lines.values()):
            axes.loglog(depths, memory, color=canvas.colour(number), marker=canvas.marker(number), ms=4)
        canvas.plain_ticks(axes.xaxis)
        canvas.plain_ticks(axes.yaxis)
        axes.set_xticks([20, 110, 1001, 10001], ["20", "110", "1,001", "10,001"])
        axes.set_yticks([0.5, 1, 2, 5], ["0.5", "1", "2", "5"])
        canvas.add_legend(figure, list(lines))

    return canvas.draw_svg(
        "Peak memory of a training step against depth, batch 64",
        paint,
        canvas.HEIGHT + canvas.legend_height(list(lines)),
    )


def start_up() -> str:
    measured = results("startup")
    rows = {
        "--help": (measured["help_seconds"],),
        "train --help": (measured["train_help_seconds"],),
        "train, one step of 20 layers": (measured["one_step_of_20_layers_and_out_seconds"],),
        "build 1001 layers": (measured["build_1001_layers_seconds"],),
        "describe and count 1001 layers": (measured["describe_1001_layers_seconds"],),
        "fold 1001 layers": (measured["evaluation_110_layers"]["fold_1001_layers_seconds"],),
    }
    return bars("Processor seconds on one thread of a Xeon", rows, "seconds", log=True)


def loss_curves() -> str:
    measured = results("loss-curves")
    steps = [
        (number + 1) * measured["steps"] / len(measured["curves"][0]["plain"])
        for number in range(len(measured["curves"][0]["plain"]))
    ]
    lines = {
        name: (
            steps,
            [
                sum(column) / len(column)
                for column in zip(*(curve[kind] for curve in measured["curves"]), strict=True)
            ],
        )
        for kind, name in (("plain", "plain fp32"), ("fast", "fused kernels"))
    }
    return curves("Training loss, the mean of ten seeds", lines, "step", "loss", log=True)


def unit_kernels() -> str:
    measured = results("unit-kernels")
    rows = {
        row["name"]: [row["gflops"][kind] for kind in ("fp32", "bf16", "fused")]
        for row in measured["units"]
        if row["name"].startswith("pre-act")
    }
    return bars(
        "Forward and backward pass of single units on one thread",
        rows,
        "GFLOP/s",
        ("PyTorch fp32", "PyTorch bf16", "fused"),
    )


def audit() -> str:
    libraries = results("audit")["libraries"]
    rows = {
        name: (len(networks), sum(network["identical"] for network in networks))
        for name, networks in libraries.items()
    }
    return bars(
        "Networks that the auditor was given",
        rows,
        "networks",
        ("audited, all as expected", "identical in function to one of ours"),
    )


def fault_cases(name: str, title: str) -> str:
    return bars(
        title,
        {row: (counts["tried"],) for row, counts in results(name)["rows"].items()},
        "cases tried, all of which held",
        log=True,
    )


def mutations() -> str:
    rooms: dict[str, list[int]] = {}
    for row in results("mutations")["mutants"]:
        counts = rooms.setdefault(row["file"].split("/")[0], [0, 0])
        counts[not row["killed_by"]] += 1
    return bars(
        "Mutants of each room",
        {room: tuple(counts) for room, counts in rooms.items()},
        "mutants",
        ("killed by a test", "survived"),
    )


def lens() -> str:
    rows = {
        name: (row["predict_first_s"], row["measure_s"]) for name, row in results("pages")["lens"].items()
    }
    return bars("The lens: seconds from a choice", rows, "seconds", ("prediction", "measurement"))


FIGURES: dict[str, Callable[[], str]] = {
    "tables-1-2": tables_1_2,
    "cifar10-on-a-cpu": cifar10,
    "fine-tuning": fine_tuning,
    "demo": demo,
    "sweeps": sweeps,
    "speed-targets": targets,
    "inference-speed": inference_speed,
    "int8": int8,
    "memory-over-depth": memory_over_depth,
    "start-up": start_up,
    "loss-curves": loss_curves,
    "unit-kernels": unit_kernels,
    "audit": audit,
    "faults": lambda: fault_cases("faults", "Faults of machines: cases tried"),
    "hostile-files": lambda: fault_cases("faults-security", "Hostile files: cases tried"),
    "mutations": mutations,
    "lens": lens,
}


def main() -> None:
    STATIC.mkdir(parents=True, exist_ok=True)
    for name, source in COPIES.items():
        shutil.copyfile(RESULTS / f"{source}.svg", STATIC / f"{name}.svg")
    for name, draw in FIGURES.items():
        (STATIC / f"{name}.svg").write_text(draw(), encoding="utf-8")
    print(f"{len(COPIES) + len(FIGURES)} figures in {STATIC.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
