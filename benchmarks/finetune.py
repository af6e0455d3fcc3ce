"""Few pictures of one's own: training from nothing beside fine-tuning, at three numbers of pictures.

    python benchmarks/finetune.py PARQUET FOLDER RESULT.json

PARQUET: the folder of CIFAR-10 (JPEG re-encode), as `train-….parquet` and `test-….parquet`. FOLDER takes the
pictures and the runs; what is in it already is not made again. The pictures of one's own are five classes,
160 a class to train on and 400 to test, enlarged to 96 pixels; the source is trained on 2,000 a class of the
other five.
"""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from kilolayer.runs import Run

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MINE = ("bird", "cat", "dog", "ship", "truck")
OTHERS = tuple(name for name in CLASSES if name not in MINE)
SOURCE = (
    "--data others --epochs 12 --validation 0 --threads 1 --no-tensorboard --out source --evaluate-every 3"
)
ALIKE = "--data mine --validation 0 --threads 1 --no-tensorboard --evaluate-every 500 --iterations 500"
KINDS = {
    "from nothing": "--recipe short --batch-size 32 --image-size 32",
    "fine-tuned": "--init source --recipe finetune",
    "fine-tuned, trunk frozen": "--init source --recipe finetune --freeze-trunk",
}
RUNS = (
    *((kind, count) for count in (100, 400, 800) for kind in ("from nothing", "fine-tuned")),
    *(("fine-tuned, trunk frozen", count) for count in (100, 800)),
)
SHORT = {"from nothing": "no", "fine-tuned": "ft", "fine-tuned, trunk frozen": "fr"}


def rows(parquet: Path, split: str) -> Iterator[tuple[bytes, str]]:
    """The bytes and the class of every picture, in the file's order."""
    for path in sorted(parquet.glob(f"{split}-*.parquet")):
        table = pq.read_table(path)
        for image, label in zip(table["img"].to_pylist(), table["label"].to_pylist(), strict=True):
            yield image["bytes"], CLASSES[label]


def write(parquet: Path, split: str, folder: Path, classes: tuple[str, ...], count: int, side: int) -> None:
    """The first `count` pictures of each class, as JPEG files of `side` pixels."""
    seen = Counter[str]()
    for content, name in rows(parquet, split):
        number, seen[name] = seen[name], seen[name] + 1
        if name in classes and number < count:
            (folder / name).mkdir(parents=True, exist_ok=True)
            path = folder / name / f"{number:05d}.jpg"
            if side == 32:
                path.write_bytes(content)
            else:
                image = Image.open(io.BytesIO(content)).convert("RGB")
                image.resize((side, side), Image.Resampling.BICUBIC).save(path, quality=92)


def pictures(parquet: Path, folder: Path) -> None:
    for name, classes, side, counts in (("others", OTHERS, 32, (2000, 200)), ("mine", MINE, 96, (160, 400))):
        for split, count in zip(("train", "test"), counts, strict=True):
            if not (folder / name / split).exists():
                write(parquet, split, folder / name / split, classes, count, side)


def trained(folder: Path, words: str, out: str) -> dict[str, Any]:
    """What became of a run, which is trained where it is not there yet."""
    if not (folder / out / "result.json").exists():
        command = [sys.executable, "-m", "kilolayer", "train", *shlex.split(words)]
        subprocess.run(command, cwd=folder, check=True)  # noqa: S603 - our own words
    run = Run.open(folder / out)
    result, start = run.result() or {}, run.environments()[0]
    return {
        "test_error": round(result["test_error"], 4),
        "train_seconds": round(result["train_seconds"], 1),
        "command": start["command"],
        "date": start["date"],
    }


def main(parquet: Path, folder: Path, result: Path) -> None:
    """Makes, trains, and writes the figures."""
    pictures(parquet, folder)
    source = trained(folder, SOURCE, "source")
    found = []
    for kind, count in RUNS:
        out = f"m/{SHORT[kind]}{count}"
        subset = "" if count == 800 else f" --subset {count}"
        words = f"{ALIKE} --out {out} {KINDS[kind]}{subset}"
        found.append({"kind": kind, "pictures": count, **trained(folder, words, out)})
    start = Run.open(folder / "source").environments()[0]
    keys = ("kilolayer", "torch", "python", "system", "processor", "cores", "threads", "device", "precision")
    record = {
        "what": "five classes of CIFAR-10 (JPEG re-encode) at 96 pixels; the source has the other five",
        "command": "python benchmarks/finetune.py PARQUET FOLDER results/finetune.json",
        **{key: start[key] for key in keys},
        "network": "preact_resnet20_cifar at 32 pixels",
        "seed": 0,
        "test_images": 2000,
        "source": source,
        "runs": found,
    }
    result.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
