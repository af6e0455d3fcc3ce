"""kilolayer check-data: reads a whole data set before hours of training depend on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from kilolayer.cli.option_types import OptionalColumn, OptionalFolder, OptionalSplit, Switch
from kilolayer.system.printer import print_json_text


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
    from kilolayer.report.data_check_text import data_check_json, print_data_check

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
        print_json_text(data_check_json(options.data, report))
    else:
        print_data_check(options.data, report)
    return 1 if report.findings else 0
