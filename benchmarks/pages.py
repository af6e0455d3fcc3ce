"""How heavy and how quick the interactive pages are: bytes, load, slider, and the lens' answers.

    python benchmarks/pages.py [--times N] [--out FILE]

The page of analyses holds signal and gradient of ResNet-110 with both units, theory and measurement, ten
times over (other initialisations stand for snapshots), and is opened in headless Chromium. The lens is asked
over HTTP as the page does. Each time is the median of N (5); `load_before` says
what else the machine had to do. Writes results/pages.json.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from playwright.sync_api import sync_playwright

from kilolayer.report import lab, page_assets
from kilolayer.report.lens.measurement import measure_lens_network
from kilolayer.report.lens.settings import LensSettings
from kilolayer.report.lens.view import LensAnalysis
from kilolayer.runs import environment_record
from kilolayer.theory.mean_field import predict_propagation
from kilolayer.training import DistributedContext

SNAPSHOTS = 10
CHOICES = {
    "110 layers, λ = 0.9": "",
    "1001 layers, bottleneck": "branch=bottleneck&depth=1001",
    "1001 layers, bottleneck, exclusive gate": "branch=bottleneck&depth=1001&shortcut=exclusive_gate",
    "998 layers, basic": "depth=998",
    "1001 layers, one-layer units": "branch=one_layer&depth=1001",
}


def analyses() -> Iterator[tuple[int, LensAnalysis]]:
    for arrangement in ("original", "full_preactivation"):
        choice = LensSettings(arrangement, "identity")
        theory = predict_propagation(choice.network())
        for seed in range(SNAPSHOTS):
            yield (
                100 * seed,
                LensAnalysis(
                    choice, theory, measure_lens_network(choice.network(), "noise", lambda: False, seed)
                ),
            )


def page(folder: Path, times: int) -> dict[str, Any]:
    path = lab.write_lab(list(analyses()), folder / "page.html")
    html = path.read_bytes()
    with sync_playwright() as driver:
        program = shutil.which("chromium") or "chromium"
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        loads, moves = zip(*(opened(browser, path) for _ in range(times)), strict=True)
        browser.close()
    return {
        "bytes": len(html),
        "bytes_gzipped": len(gzip.compress(html)),
        "plotly": page_assets.plotly_version(),
        "plotly_bytes": len(page_assets.plotly_js().encode()),
        "charts": html.count(b'class="chart"'),
        "snapshots": SNAPSHOTS,
        "load_and_draw_ms": round(statistics.median(loads), 1),
        "slider_step_ms": round(statistics.median(moves), 1),
    }


def opened(browser: Any, path: Path) -> tuple[float, float]:
    """Milliseconds until the page is loaded and drawn, and those of one step of the slider."""
    shown = browser.new_page(viewport={"width": 1280, "height": 900})
    shown.goto(path.as_uri())
    load = shown.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    step = shown.evaluate("""() => {
        const began = performance.now();
        for (let at = 0; at <= slider.max; at++) { slider.value = at; show(); }
        return (performance.now() - began) / (Number(slider.max) + 1);
    }""")
    shown.close()
    return float(load), float(step)


@contextmanager
def lens() -> Iterator[str]:
    words = (sys.executable, "-m", "kilolayer", "lens", "--no-browser")
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - our own
        try:
            yield next(iter(process.stdout or ())).split()[1]
        finally:
            process.terminate()


def answers(address: str, times: int) -> dict[str, dict[str, float]]:
    """Seconds of the first prediction, of one asked for again, and of the measurement."""
    found = {}
    fetch(address)
    for name, words in CHOICES.items():
        first = seconds(lambda words=words: fetch(f"{address}predict?{words}"))
        again = median(lambda words=words: fetch(f"{address}predict?{words}"), times)
        measured = median(lambda words=words: fetch(f"{address}measure?{words}"), times)
        found[name] = {"predict_first_s": first, "predict_again_s": again, "measure_s": measured}
        print(name, found[name], flush=True)
    return found


def fetch(address: str) -> bytes:
    with urllib.request.urlopen(address) as answer:  # noqa: S310 - our own, on loopback
        content: bytes = answer.read()
    return content


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return round(time.perf_counter() - began, 3)


def median(work: Callable[[], Any], times: int) -> float:
    return statistics.median(seconds(work) for _ in range(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "results" / "pages.json")
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        found = {"page": page(Path(folder), options.times)}
    print(found, flush=True)
    with lens() as address:
        found |= {"lens_page_bytes": len(fetch(address)), "lens": answers(address, options.times)}
    record = {
        "environment": environment_record(DistributedContext(torch.device("cpu")), "fp32"),
        "times": options.times,
        "load_before": round(load, 1),
        **found,
    }
    options.out.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
