"""Makes .gpu/, an ignored folder with what a bare GPU machine lacks, and says how much would travel.

    python benchmarks/gpu_travel.py --pictures FOLDER        # with train-*.parquet and test-*.parquet

.gpu/wheels      pure Python packages: cattrs and attrs for runs, pytorchcv for the peer's networks
.gpu/pictures    every encoded picture one after the other, with labels and names of classes
.gpu/state       the training that `gpu_next.sh` goes on with, where an earlier session brought one back

Encoded JPEG stays encoded: 60,000 pictures are 18 MB, and 16 cores decode them in seconds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from kilolayer.data import Images, Splits

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".gpu"
WHEELS = ("cattrs", "attrs", "pytorchcv")
MOST_BYTES = 64 * 2**20
MOST_BYTES_BACK = 15 * 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pictures", type=Path, help="a folder of train-*.parquet and test-*.parquet")
    options = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    subprocess.run([*download, "--dest", str(FOLDER / "wheels"), *WHEELS], check=True)  # noqa: S603
    if options.pictures:
        write_pictures(options.pictures, FOLDER / "pictures")
    size = travelling()
    print(f"{size / 2**20:.1f} MiB would travel, of {MOST_BYTES // 2**20} allowed")
    return 0 if size <= MOST_BYTES else 1


def travelling() -> int:
    """Bytes of what travels: tracked files, files that git does not ignore, and .gpu/."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout  # noqa: S603
    paths = [ROOT / name for name in listed.decode().split("\0") if name]
    carried = [path for path in FOLDER.rglob("*") if path.is_file()] if FOLDER.is_dir() else []
    return sum(path.stat().st_size for path in (*paths, *carried) if path.is_file())


def write_pictures(source: Path, target: Path) -> None:
    """Every picture's bytes, as the parquet files have them."""
    import pyarrow.parquet as pq

    target.mkdir(parents=True, exist_ok=True)
    names: tuple[str, ...] = ()
    for part in ("train", "test"):
        tables = [pq.read_table(path) for path in sorted(source.glob(f"{part}-*.parquet"))]
        rows = [row for table in tables for row in table.to_pylist()]
        features = json.loads(tables[0].schema.metadata[b"huggingface"])["info"]["features"]
        names = tuple(features["label"]["names"])
        encoded = [row["img"]["bytes"] for row in rows]
        # JPEG's headers and tables are the same in every small picture: two thirds of the bytes.
        np.savez_compressed(
            target / f"{part}.npz",
            encoded=np.frombuffer(b"".join(encoded), np.uint8),
            ends=np.cumsum([len(each) for each in encoded]),
            labels=np.array([row["label"] for row in rows], np.int64),
        )
    (target / "classes.json").write_text(json.dumps(names), encoding="utf-8")


def read_pictures(folder: Path) -> Splits:
    """The data set that `write_pictures` wrote, decoded in threads."""
    classes = tuple(json.loads((folder / "classes.json").read_text(encoding="utf-8")))
    test = _part(folder, "test")
    return Splits("CIFAR-10 (JPEG re-encode)", classes, _part(folder, "train"), None, lambda: test)


def _part(folder: Path, part: str) -> Images:
    with np.load(folder / f"{part}.npz", allow_pickle=False) as arrays:
        content, ends, labels = (arrays[name] for name in ("encoded", "ends", "labels"))
    starts = np.concatenate([[0], ends[:-1]])

    def decode(i: int) -> np.ndarray[Any, Any]:
        with Image.open(BytesIO(content[starts[i] : ends[i]].tobytes())) as image:
            return np.asarray(image.convert("RGB"))

    with ThreadPoolExecutor() as pool:
        pixels = np.stack(list(pool.map(decode, range(len(ends)), chunksize=500)))
    return Images(
        torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
        torch.from_numpy(labels),
    )


def pack(content: bytes) -> bytes:
    """`content` made smaller without loss: of each float the first bytes stand together, then the second …"""
    whole = len(content) // 4 * 4
    planes = np.frombuffer(content[:whole], np.uint8).reshape(-1, 4).T
    return zlib.compress(planes.tobytes() + content[whole:], 1)


def unpack(packed: bytes) -> bytes:
    """What `pack` was given."""
    content = zlib.decompress(packed)
    whole = len(content) // 4 * 4
    return np.frombuffer(content[:whole], np.uint8).reshape(4, -1).T.tobytes() + content[whole:]


def write_pieces(content: bytes, folder: Path, name: str) -> None:
    """Files of at most 15 MiB, which is what comes back."""
    for number, start in enumerate(range(0, len(content), MOST_BYTES_BACK)):
        (folder / f"{name}.{number}").write_bytes(content[start : start + MOST_BYTES_BACK])


def read_pieces(folder: Path, name: str) -> bytes:
    """Those files' content, in their order."""
    return b"".join(path.read_bytes() for path in sorted(folder.glob(f"{name}.*")))


if __name__ == "__main__":
    raise SystemExit(main())
