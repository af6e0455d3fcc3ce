"""A benchmark as text on the terminal."""

from __future__ import annotations

from typing import Any

from kilolayer.report.document import Table
from kilolayer.system.terminal import print_table, print_text


def print_bench(results: dict[str, Any], *, with_finding: bool = True) -> None:
    """Prints the finding, the machine, and a table of the networks."""
    if with_finding:
        print_text(f"{bench_finding(results)}\n")
    conditions, ceilings = results["conditions"], results["ceilings"]
    threads = f"{conditions['threads']} thread" + ("s" if conditions["threads"] > 1 else "")
    side = conditions["image_size"]
    images = f"{conditions['batch_size']} images of {conditions['channels']}×{side}×{side}"
    print_text(f"{results['work']}, batches of {images}, {threads}, {conditions['device']}")
    products = ", ".join(
        f"{name} {ceilings[f'{name}_flops'] / 1e9:,.0f} GFLOP/s"
        for name in ("bf16", "fp16", "fp32", "int8")
        if f"{name}_flops" in ceilings
    )
    print_text(f"{results['machine']['name']} ({' '.join(results['machine']['instructions'])})")
    print_text(f"this machine at its best: {products}, copy {ceilings['copy_bytes'] / 1e9:.1f} GB/s")
    print_text(f"the ceiling is {results['fastest_arithmetic']}'s\n")
    header = ("network", "images/s", "least–most", "peak MB", "of ceiling", "J/image", "disturbed")
    rows = ((row["name"], *_cells(row, conditions["batch_size"])) for row in results["contestants"])
    print_table(Table("", header, tuple(rows)), drop=("J/image", "of ceiling", "least–most"))
    for line in results["differences"]:
        print_text(f"the work differs: {line}")
    if not all(row["trusted"] for row in results["contestants"]):
        print_text("other programs disturbed every repeat, so do not trust these figures")


def bench_finding(results: dict[str, Any]) -> str:
    """Which network is the fastest, by how much, and whether the repeats confirm it."""
    rows = sorted(results["contestants"], key=lambda row: -row["images_per_second"])
    first, share = rows[0], f"{100 * rows[0]['roofline_share']:.0f} % of what this machine could do"
    fastest = f"{first['name']}: {first['images_per_second']:,.4g} images/s in {results['work']}, {share}"
    if len(rows) == 1:
        return f"{fastest}; no other network was measured."
    second = rows[1]
    factor = first["images_per_second"] / second["images_per_second"]
    apart = first["seconds_most"] < second["seconds_least"]
    sure = "" if apart else "; their repeats overlap, so this does not decide which is faster"
    return f"{fastest}, {factor:.3g} times {second['name']}, the next{sure}."


def _cells(row: dict[str, Any], batch_size: int) -> tuple[str, ...]:
    slowest, fastest = batch_size / row["seconds_most"], batch_size / row["seconds_least"]
    joules = "" if row["joules_per_image"] is None else f"{row['joules_per_image']:.3g}"
    return (
        f"{row['images_per_second']:,.4g}",
        f"{slowest:,.4g}–{fastest:,.4g}",
        f"{row['peak_memory_bytes'] / 1e6:,.0f}",
        f"{100 * row['roofline_share']:.0f} %",
        joules,
        f"{row['disturbed']} of {row['repeats']}",
    )
