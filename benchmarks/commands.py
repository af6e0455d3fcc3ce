"""The commands' processor time, of this version beside another one, in turns.

    git worktree add ../before COMMIT
    python benchmarks/commands.py --before ../before --turns 5 --out results/commands.json

Each turn starts every command once with each version's sources, in an order that changes from turn to turn. A
figure is the least processor time (user and system, children included) of all turns, since other work on the
machine can only add to it. A command that trains uses one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

ROOT = Path(__file__).parent.parent
ONE = ("--threads", "1")
COMMANDS: dict[str, tuple[str, ...]] = {
    "--help": ("--help",),
    "train --help": ("train", "--help"),
    "models": ("models",),
    "show": ("show", "preact_resnet110_cifar"),
    "train": (
        "train", "--model", "preact_resnet20_cifar", "--epochs", "2", *ONE, "--no-tensorboard",
        "--out", "OUT",
    ),
    "evaluate": ("evaluate", "RUN"),
    "predict": ("predict", "RUN", "PICTURE"),
    "report": ("report", "RUN"),
    "check-data": ("check-data", "PICTURES"),
    "analyse gradient": ("analyse", "gradient", "preact_resnet56_cifar"),
    "analyse decomposition": ("analyse", "decomposition", "resnet56_cifar"),
    "audit": ("audit", "RUN/weights.safetensors"),
}  # fmt: skip


def processor_seconds(version: Path, words: list[str], folder: Path) -> float:
    before = getrusage(RUSAGE_CHILDREN)
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-m", "kilolayer", *words],
        env={**os.environ, "PYTHONPATH": str(version / "src"), "OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{version}: {' '.join(words)}: status {done.returncode}\n{done.stderr}")
    after = getrusage(RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def write_pictures(folder: Path) -> None:
    from PIL import Image

    for split, count in (("train", 200), ("test", 50)):
        for label in ("cat", "dog"):
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                picture = Image.effect_noise((32, 32), 20.0 + number % 50).convert("RGB")
                picture.save(folder / split / label / f"{number}.png")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--before", type=Path, required=True, help="a checkout of the other version")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    versions = {"before": options.before.resolve(), "after": ROOT.resolve()}
    seconds: dict[str, dict[str, list[float]]] = {
        name: {version: [] for version in versions} for name in COMMANDS
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder / "pictures")
        for turn in range(options.turns):
            for version, path in list(versions.items())[:: 1 if turn % 2 else -1]:
                for command, words in COMMANDS.items():
                    substitutes = {
                        "OUT": f"{version}-{turn}",
                        "RUN": f"{version}-{turn}",
                        "RUN/weights.safetensors": f"{version}-{turn}/weights.safetensors",
                        "PICTURES": "pictures",
                        "PICTURE": "pictures/test/cat/0.png",
                    }
                    spent = processor_seconds(path, [substitutes.get(word, word) for word in words], folder)
                    seconds[command][version].append(round(spent, 3))
    head = ("rev-parse", "--short", "HEAD")
    commits = {
        version: subprocess.check_output(("git", "-C", str(path), *head), text=True).strip()  # noqa: S603, S607
        for version, path in versions.items()
    }
    rows = {
        command: {
            "before": min(of["before"]), "after": min(of["after"]),
            "ratio": round(min(of["after"]) / min(of["before"]), 3), "turns": of,
        }
        for command, of in seconds.items()
    }  # fmt: skip
    for command, row in rows.items():
        print(f"{command:24} {row['before']:8.2f} s {row['after']:8.2f} s  {row['ratio']:.3f}")
    if options.out:
        from kilolayer.bench.machine import describe_machine

        figures = {
            "command": " ".join(sys.argv), "date": time.strftime("%Y-%m-%d"), "commits": commits,
            "machine": describe_machine(), "unit": "processor seconds, least of the turns", "commands": rows,
        }  # fmt: skip
        options.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
