"""kilolayer check-data: a data set read whole, before hours of training depend on it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from kilolayer.commands.flags import OptionalColumn, OptionalFolder, OptionalSplit, Switch

if TYPE_CHECKING:
    from kilolayer.data.checking import Report

SHOWN = 10


@dataclass(frozen=True)
class CheckData:
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


def check_data(options: CheckData) -> int:
    """Reads, prints, and returns 0 where nothing was found, otherwise 1."""
    from kilolayer.data import Data
    from kilolayer.data.checking import check

    data = Data(
        options.data,
        options.data_folder,
        train=options.train,
        test=options.test,
        validation_split=options.validation,
        image_column=options.image_column,
        label_column=options.label_column,
    )
    report = check(data)
    if options.json:
        print(_json(options.data, report))
    else:
        _print(options.data, report)
    return 1 if report.findings else 0


def _json(source: str, report: Report) -> str:
    findings = [{**asdict(one), "count": len(one.places), "refused": one.refused} for one in report.findings]
    looks = [{**asdict(one), "count": len(one.places), "words": one.words} for one in report.looks]
    # As ASCII: names that are no text can be among them.
    return json.dumps({"data": source, **asdict(report), "findings": findings, "looks": looks}, indent=2)


def _print(source: str, report: Report) -> None:
    from kilolayer.data.checking import KINDS
    from kilolayer.terminal import say

    counts = ", ".join(f"{count:,} {name} images" for name, count in report.images.items())
    classes = "1 class" if report.classes == 1 else f"{report.classes:,} classes"
    say(f"{source}: {counts or 'no images'}, {classes}")
    for line in (*report.origin, *(look.words for look in report.looks)):
        say(f"  {line}", hanging=2)
    for one in report.findings:
        say(f"\n{len(one.places):,}: {KINDS[one.kind]}{'; training refuses them' if one.refused else ''}")
        say("\n".join(f"  {place}" for place in one.places[:SHOWN]), hanging=2)
        if len(one.places) > SHOWN:
            say(f"  and {len(one.places) - SHOWN:,} more (all with --json)")
    if not report.findings:
        say("nothing wrong was found")
