"""The data sets that Kilolayer knows by name.

To add a data set to the package, write a reader (a function from `Data` to `StoredDataset`, see
`kilolayer.data.sources.digits`) and add an entry to `DATASETS`. The command line, `check-data`, the default
augmentation and the download read everything else from the entry. The mean and scale of the pixels are not
registered: they are measured on the training images (`kilolayer.data.measure_statistics`).

>>> from kilolayer.data.registry import DATASETS
>>> DATASETS["cifar10"].title, DATASETS["cifar10"].num_classes
('CIFAR-10', 10)
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Archive:
    """A tar archive that `--download` fetches.

    name: the file's name on the site; folder: the folder to unpack into; md5: the checksum that the author
    publishes; site: the URL of the folder that holds the file; mirror: the environment variable that names
    another such URL.
    """

    name: str
    folder: str
    md5: str
    site: str
    mirror: str


@dataclass(frozen=True)
class NamedDataset:
    """What the package must know of a data set before it reads any of its files.

    title: the name in figures and tables.
    num_classes, num_train: the number of classes, and of training images where the data set is complete.
    reader: `module:function`. The function takes a `Data` whose source is the data set's name, or a path.
        It returns a `StoredDataset`, or None where the path holds something else.
    archive: the file to download; None: the data set comes with the package.
    pad, flip: the default augmentation (`Augmentation`).
    """

    title: str
    num_classes: int
    num_train: int
    reader: str
    archive: Archive | None = None
    pad: int = 4
    flip: bool = True


_CIFAR_SITE = "https://www.cs.toronto.edu/~kriz/"
_CIFAR_MIRROR = "KILOLAYER_CIFAR_URL"

DATASETS: dict[str, NamedDataset] = {
    "digits": NamedDataset(
        "digits", 10, 1_437, "kilolayer.data.sources.digits:read_digits",
        pad=1, flip=False,  # a mirrored digit is no digit
    ),
    "cifar10": NamedDataset(
        "CIFAR-10", 10, 50_000, "kilolayer.data.sources.cifar_files:read_cifar",
        Archive(
            "cifar-10-binary.tar.gz", "cifar-10-batches-bin", "c32a1d4ab5d03f1284b67883e8d87530",
            _CIFAR_SITE, _CIFAR_MIRROR,
        ),
    ),
    "cifar100": NamedDataset(
        "CIFAR-100", 100, 50_000, "kilolayer.data.sources.cifar_files:read_cifar",
        Archive(
            "cifar-100-binary.tar.gz", "cifar-100-binary", "03b5dce01913d631647c71ecec9e9cb8",
            _CIFAR_SITE, _CIFAR_MIRROR,
        ),
    ),
}  # fmt: skip


def names_text() -> str:
    """The names for help and messages: `digits, cifar10, cifar100`."""
    return ", ".join(DATASETS)


def downloads_text(conjunction: str = "and") -> str:
    """The names of the data sets that can be downloaded: `cifar10 and cifar100`."""
    *names, last = (name for name, entry in DATASETS.items() if entry.archive)
    return f"{', '.join(names)} {conjunction} {last}" if names else last
