"""kilolayer check-data: a data set read whole, before hours of training depend on it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from kilolayer.cli.option_types import OptionalColumn, OptionalFolder, OptionalSplit, Switch

if TYPE_CHECKING:
    from kilolayer.data.defects import DataReport

MAX_SHOWN = 10


@dataclass(frozen=True)
class CheckDataOptions:
    """Read a whole data set and name what is wrong with it.

    Images that are damaged, empty or too large, labels and classes that do not
    fit, the same pixels twice or in train and test, odd names. What is done to
    show pictures as their viewer does (rotated, transparent, 16 bits …) is
    counted, and is no fault. What was read once is remembered in
    ~/.cache/kilolayer, by path, size and time of change.

    Exit status: 0 nothing is wrong, 1 something is, 2 there are no such data.
    """

    data: Annotated[Positional[str], arg(metavar="PATH")]
    """digits, cifar10, cifar100, a CIFAR folder or archive, a folder with one folder of images per class,
    or parquet."""
    train: OptionalSplit = None
    """The split to train on, by its name in the data; A+B is both. Otherwise the one whose name says so."""
    test: OptionalSplit = None
    """The split to test on; otherwise as above, or the validation split where there is no other."""
    validation: OptionalSplit = None
    """The split that is the validation set; otherwise the data's own beside a test split."""
    image_column: OptionalColumn = None
    """Parquet's column of images, where its name is unusual."""
    label_column: OptionalColumn = None
    """Parquet's column of labels, where its name is unusual."""
    data_folder: OptionalFolder = None
    """Where cifar10 and cifar100 lie; otherwise $KILOLAYER_DATA or ~/.cache/kilolayer."""
    json: Switch = False
    """Print JSON, with all the places and not only the first ten of each kind."""


def execute(options: CheckDataOptions) -> int:
    """Reads, prints, and returns 0 where nothing was found, otherwise 1."""
    from kilolayer.data import Data
    from kilolayer.data.defects import find_defects

    data = Data(
        options.data,
        options.data_folder,
        train=options.train,
        test=options.test,
        validation_split=options.validation,
        image_column=options.image_column,
        label_column=options.label_column,
    )
    report = find_defects(data)
    if options.json:
        print(_json(options.data, report))
    else:
        _print(options.data, report)
    return 1 if report.findings else 0


def _json(source: str, report: DataReport) -> str:
    findings = [{**asdict(one), "count": len(one.places), "refused": one.refused} for one in report.findings]
    looks = [{**asdict(one), "count": len(one.places), "words": one.words} for one in report.looks]
    # As ASCII: names that are no text can be among them.
    return json.dumps({"data": source, **asdict(report), "findings": findings, "looks": looks}, indent=2)


def _print(source: str, report: DataReport) -> None:
    from kilolayer.data.defects import DEFECTS
    from kilolayer.system.terminal import print_text

    counts = ", ".join(f"{count:,} {name} images" for name, count in report.images.items())
    classes = "1 class" if report.classes == 1 else f"{report.classes:,} classes"
    print_text(f"{source}: {counts or 'no images'}, {classes}")
    for line in (*report.origin, *(look.words for look in report.looks)):
        print_text(f"  {line}", hanging=2)
    for one in report.findings:
        print_text(
            f"\n{len(one.places):,}: {DEFECTS[one.kind]}{'; training refuses them' if one.refused else ''}"
        )
        print_text("\n".join(f"  {place}" for place in one.places[:MAX_SHOWN]), hanging=2)
        if len(one.places) > MAX_SHOWN:
            print_text(f"  and {len(one.places) - MAX_SHOWN:,} more (all with --json)")
    if not report.findings:
        print_text("nothing wrong was found")
