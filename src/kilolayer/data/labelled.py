"""From labelled pictures to a data set: what must hold of classes and sizes, wherever they come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from kilolayer.data.appearance import AS_STORED, Looks
from kilolayer.data.cifar import CLASSES
from kilolayer.data.describe import Appearance
from kilolayer.data.images import Images, Source
from kilolayer.data.inspecting import Found, Seen, glance, inspect
from kilolayer.data.memory import require_memory
from kilolayer.data.pictures import Form, Header, Pictures, Unreadable, decode, refuse, unusable
from kilolayer.data.randomness import shuffled
from kilolayer.data.wording import is_text, listed, quoted
from kilolayer.errors import InputError

DEFAULT_SIDE = 224
ADVICE = "; kilolayer check-data lists all that is wrong, --skip-damaged goes on without them"


def source(
    name: str,
    classes: tuple[str, ...],
    train: Pictures,
    test: Pictures,
    image_size: int | None,
    *,
    appearance: Appearance = "shown",
    skip_damaged: bool = False,
    skipped: tuple[str, ...] = (),
    kept: int = 0,
) -> Source:
    """Checks everything but the training pixels, which are decoded before the training begins anyway.

    skip_damaged: leave out the images that cannot be used. skipped: what was left out before.
    kept: bytes already in memory. Raises InputError.
    """
    train, test = replace(train, appearance=appearance), replace(test, appearance=appearance)
    _check_classes(name, classes, train.labels, test.labels)
    # What is to be left out must be known before the images are numbered.
    look = inspect if skip_damaged else glance
    found = [look(train, "checking the training images"), inspect(test, "checking the test images")]
    if skip_damaged:
        skipped += tuple(unusable(train, found[0]) + unusable(test, found[1]))
        train, test = _usable(train, found[0]), _usable(test, found[1])
        _check_classes(name, classes, train.labels, test.labels)
    elif any(isinstance(one, Unreadable) for part in found for one in part):
        # All that is wrong is said at once.
        refuse([train, test], [inspect(train, "checking the training images"), found[1]], ADVICE)
    seen = {one.header for part in found for one in part if isinstance(one, Seen)}
    form = _form(seen, image_size)
    each = form.side**2 * form.channels
    title = _title(name, classes, seen, (len(train), len(test)))
    looks = Looks()
    looks.add(one.looks for one in found[1] if isinstance(one, Seen))

    def read_train(index: NDArray[np.int64]) -> Images:
        images = len(index) + len(test)
        require_memory(kept + each * images, f"{images:,} images of {form.side}×{form.side}")
        return decode(train.take(index), form, "reading the training images", ADVICE, looks)

    def read_test() -> Images:
        return decode(test, form, "reading the test images")

    said = looks.sentences if appearance == "shown" else lambda: AS_STORED
    return Source(title, classes, len(train), read_train, read_test, skipped, said)


def _usable(pictures: Pictures, found: list[Found]) -> Pictures:
    return pictures.take(np.flatnonzero([isinstance(one, Seen) for one in found]))


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


def form_of(pictures: Pictures, image_size: int | None) -> Form:
    """What these pictures are decoded to. Raises `InputError` for those that cannot be used."""
    looked = glance(pictures, "checking the images")
    refuse([pictures], [looked], ADVICE)
    return _form({one.header for one in looked if isinstance(one, Seen)}, image_size)


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
    unfit = [quoted(one) for one, count in Counter(classes).items() if count > 1 or not is_text(one)]
    if unfit:
        raise InputError(
            f"{quoted(name)}: {len(unfit)} class names are no text, or twice there: {listed(unfit)}"
        )
    in_train, in_test = set(train.tolist()), set(test.tolist())
    _refuse_missing(name, "training", [classes[label] for label in sorted(in_test - in_train)])
    _refuse_missing(name, "test", [classes[label] for label in sorted(in_train - in_test)])


def _refuse_missing(name: str, where: str, missing: Sequence[str]) -> None:
    if missing:
        raise InputError(
            f"{quoted(name)}: the {where} set has no image of {listed([quoted(each) for each in missing])}; "
            "training and test sets need the same classes"
        )
