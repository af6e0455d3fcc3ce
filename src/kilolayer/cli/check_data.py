"""kilolayer check-data: reads a whole data set before hours of training depend on it."""

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

    It looks for damaged, empty and oversized images, wrong labels and classes,
    duplicate pixels within a split or in both train and test, and odd names.
    It counts images that are converted to look as in a viewer (rotated,
    transparent, 16 bits …); these are no faults. Results are cached in
    ~/.cache/kilolayer by path, size and time of change.

    Exit status: 0 no fault, 1 faults found, 2 the data cannot be found.
    """

    data: Annotated[Positional[str], arg(metavar="PATH")]
    """{DATASETS}, a CIFAR folder or archive, a folder with one folder of images per class,
    or parquet."""
    train: OptionalSplit = None
    """The split to train on, by its name in the data; A+B joins two. Otherwise the split named train."""
    test: OptionalSplit = None
    """The split to test on; otherwise the split named test, or the validation split without one."""
    validation: OptionalSplit = None
    """The validation split; otherwise the data's own, where they have a test split too."""
    image_column: OptionalColumn = None
    """Parquet's column of images, where its name is unusual."""
    label_column: OptionalColumn = None
    """Parquet's column of labels, where its name is unusual."""
    data_folder: OptionalFolder = None
    """Where {DOWNLOADS} lie; otherwise $KILOLAYER_DATA or ~/.cache/kilolayer."""
    json: Switch = False
    """Print JSON with all locations, not only the first ten of each kind."""


def execute(options: CheckDataOptions) -> int:
    """Reads the data and prints the faults. The status is 0 without faults, otherwise 1."""
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
    findings = [
        {**asdict(finding), "count": len(finding.places), "refused": finding.refused}
        for finding in report.findings
    ]
    looks = [
        {**asdict(finding), "count": len(finding.places), "words": finding.words} for finding in report.looks
    ]
    # ASCII, because file names need not be valid text.
    return json.dumps({"data": source, **asdict(report), "findings": findings, "looks": looks}, indent=2)


def _print(source: str, report: DataReport) -> None:
    from kilolayer.data.defects import DEFECTS
    from kilolayer.system.terminal import print_text

    counts = ", ".join(f"{count:,} {name} images" for name, count in report.images.items())
    classes = "1 class" if report.classes == 1 else f"{report.classes:,} classes"
    print_text(f"{source}: {counts or 'no images'}, {classes}")
    for line in (*report.origin, *(look.words for look in report.looks)):
        print_text(f"  {line}", hanging=2)
    for finding in report.findings:
        print_text(
            f"\n{len(finding.places):,}: {DEFECTS[finding.kind]}"
            f"{'; training rejects them' if finding.refused else ''}"
        )
        print_text("\n".join(f"  {location}" for location in finding.places[:MAX_SHOWN]), hanging=2)
        if len(finding.places) > MAX_SHOWN:
            print_text(f"  and {len(finding.places) - MAX_SHOWN:,} more (all with --json)")
    if not report.findings:
        print_text("no faults found")
