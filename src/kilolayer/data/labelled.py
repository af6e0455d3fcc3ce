"""From labelled pictures to a data set: what must hold of classes and sizes, wherever they come from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kilolayer.data.cifar import CLASSES
from kilolayer.data.images import Images, Source
from kilolayer.data.memory import require_memory
from kilolayer.data.pictures import Form, Header, Pictures, decode, headers
from kilolayer.data.randomness import shuffled
from kilolayer.data.wording import listed, quoted
from kilolayer.errors import InputError

DEFAULT_SIDE = 224


def source(
    name: str,
    classes: tuple[str, ...],
    train: Pictures,
    test: Pictures,
    image_size: int | None,
    kept: int = 0,
) -> Source:
    """Checks everything but the pixels. kept: bytes already in memory. Raises InputError."""
    _check_classes(name, classes, train.labels, test.labels)
    seen = headers(train, "checking the training images")
    seen_test = headers(test, "checking the test images")
    form = _form(seen | seen_test, image_size)
    each = form.side**2 * form.channels
    title = _title(name, classes, seen | seen_test, (len(train), len(test)))

    def read_train(index: NDArray[np.int64]) -> Images:
        images = len(index) + len(test)
        require_memory(kept + each * images, f"{images:,} images of {form.side}×{form.side}")
        return decode(train.take(index), form, "reading the training images")

    def read_test() -> Images:
        return decode(test, form, "reading the test images")

    return Source(title, classes, len(train), read_train, read_test)


def fifth(labels: NDArray[np.int64], classes: tuple[str, ...], seed: int) -> NDArray[np.bool_]:
    """Which images become the test set where there is none: a fifth of each class, one or more, by `seed`."""
    test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            raise InputError(
                f"data: class {quoted(classes[label])} has 1 image; without a test set it needs 2 or more"
            )
        test[members[shuffled(len(members), "test", seed, int(label))[: max(1, len(members) // 5)]]] = True
    return test


def _form(seen: set[Header], image_size: int | None) -> Form:
    sizes = {header.size for header in seen}
    width, height = next(iter(sizes))
    native = width if len(sizes) == 1 and width == height else DEFAULT_SIDE
    return Form(image_size or native, all(header.grey for header in seen))


def _title(name: str, classes: tuple[str, ...], seen: set[Header], counts: tuple[int, int]) -> str:
    # figures made with re-encoded pixels must say so, wherever the files lie
    lossy = {(header.format, header.size) for header in seen} == {("JPEG", (32, 32))}
    same = lossy and classes == CLASSES and counts == (50_000, 10_000)
    return "CIFAR-10 (JPEG re-encode)" if same else name


def _check_classes(
    name: str, classes: tuple[str, ...], train: NDArray[np.int64], test: NDArray[np.int64]
) -> None:
    if len(classes) < 2:
        raise InputError(f"{quoted(name)}: {len(classes)} class, but at least 2 are needed")
    in_train, in_test = set(train.tolist()), set(test.tolist())
    _refuse_missing(name, "training", [classes[label] for label in sorted(in_test - in_train)])
    _refuse_missing(name, "test", [classes[label] for label in sorted(in_train - in_test)])


def _refuse_missing(name: str, where: str, missing: Sequence[str]) -> None:
    if missing:
        raise InputError(
            f"{quoted(name)}: the {where} set has no image of {listed([quoted(each) for each in missing])}; "
            "training and test sets need the same classes"
        )
