"""The page of `kilolayer evaluate --html`: the finding, the classes and the mistakes in one file."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from kilolayer import __version__
from kilolayer.report.confusion_svg import confusion_map
from kilolayer.report.document import Figure, Gallery, Item, Matrix, Page, Picture, Section, Table
from kilolayer.report.evaluation_text import HEADER, class_row, percent_text
from kilolayer.report.page import write_page
from kilolayer.runs.evaluation_result import EvaluationResult
from kilolayer.runs.start_environment import current_command
from kilolayer.training.class_metrics import macro_mean

MAX_CELLS = 25
"""Up to this many classes the confusion matrix is a table of numbers; with more it is a map."""
MAX_CONFUSIONS = 20
MAX_PICTURES = 24
LAYOUT = "A row for each true class, a column for each predicted class"
SHADES = "Darker is a larger share of the row; green is right, orange is wrong."
MAX_SIDE = 160
"""Largest side of an image on the page, in pixels."""


def write_evaluation_page(result: EvaluationResult, trained: str, path: Path) -> Path:
    """Writes the page, completely or not at all, and returns its path. Raises `InputError`."""
    return write_page(build_evaluation_page(result, trained), path)


def build_evaluation_page(result: EvaluationResult, trained: str) -> Page:
    """The page as a value."""
    sample = result.sample
    part = "" if sample.part == "all" else f"{sample.part} "
    sections = (
        Section("Figures", sample.notes, (_figures(result),)),
        Section("Confusions", (), _confusion(result)),
        *_mistakes(result),
        Section("Classes", (), (_classes(result),)),
        _calibration(result),
    )
    return Page(
        f"{trained} on {result.evaluation.images:,} {part}images of {sample.name}",
        result.finding().replace(" %", "\u00a0%"),
        sections,
        (("command", current_command()), ("kilolayer", __version__), ("PyTorch", torch.__version__)),
    )


def _figures(measurement: EvaluationResult) -> Table:
    evaluation, metrics = measurement.evaluation, measurement.metrics
    low, high = measurement.interval
    top5 = [("top-5 error", f"{evaluation.top5_error:.2f} %")] if measurement.has_top5 else []
    return Table(
        "Over all images. Means over classes weigh each class that has images equally.",
        ("figure", "value"),
        (
            ("images", f"{evaluation.images:,}"),
            ("error", f"{evaluation.error:.2f} %"),
            ("95 % interval of the error (Wilson)", f"{low:.2f} to {high:.2f} %"),
            *top5,
            ("cross-entropy", f"{evaluation.loss:.4f}"),
            (
                "mean precision over classes",
                f"{percent_text(macro_mean([class_metrics.precision for class_metrics in metrics]))} %",
            ),
            (
                "mean recall over classes",
                f"{percent_text(macro_mean([class_metrics.recall for class_metrics in metrics]))} %",
            ),
            (
                "mean F1 over classes",
                f"{percent_text(macro_mean([class_metrics.f1 for class_metrics in metrics]))} %",
            ),
        ),
        "The interval assumes that the images are a random, independent sample. It does not cover other "
        "cameras, places or times.",
    )


def _confusion(measurement: EvaluationResult) -> tuple[Item, ...]:
    """The confusion matrix of the classes that occur, and the most frequent confusions."""
    metrics, confusion = measurement.metrics, measurement.evaluation.confusion
    rows = [i for i, class_metrics in enumerate(metrics) if class_metrics.support]
    columns = [
        i for i, class_metrics in enumerate(metrics) if class_metrics.support or class_metrics.predicted
    ]
    counts = tuple(tuple(confusion[i][j] for j in columns) for i in rows)
    pairs = measurement.confusions
    confused = (_pairs(measurement),) if pairs else ()
    if len(columns) <= MAX_CELLS:
        of, answers = (tuple(measurement.classes[i] for i in numbers) for numbers in (rows, columns))
        return (Matrix(f"{LAYOUT}: counts, and percent of the row.", of, answers, counts), *confused)
    caption = f"{LAYOUT}, numbered as in the table of classes. {SHADES}"
    title = f"Confusion matrix of {len(rows):,} classes"
    of_numbers, answer_numbers = ([i + 1 for i in numbers] for numbers in (rows, columns))
    return (Figure(caption, confusion_map(counts, of_numbers, answer_numbers, title), title), *confused)


def _pairs(measurement: EvaluationResult) -> Table:
    pairs = measurement.confusions
    support = dict(zip(measurement.classes, (pair.support for pair in measurement.metrics), strict=True))
    return Table(
        f"The most frequent of {len(pairs):,} confusions." if len(pairs) > MAX_CONFUSIONS else "Confusions.",
        ("class", "predicted as", "images", "% of the class"),
        tuple(
            (pair.label, pair.answer, f"{pair.count:,}", f"{100 * pair.count / support[pair.label]:.1f}")
            for pair in pairs[:MAX_CONFUSIONS]
        ),
    )


def _mistakes(measurement: EvaluationResult) -> tuple[Section, ...]:
    chosen = measurement.mistakes(MAX_PICTURES)
    if not chosen:
        return ()
    share = f"{len(chosen)} of " if len(chosen) < measurement.num_wrong else ""
    caption = f"{share}{measurement.num_wrong:,} mistakes, those with the greatest probabilities first"
    pictures = tuple(_picture(measurement, i) for i in chosen)
    text = "Images as the network receives them. A wrong label looks like a confident mistake too."
    return (Section("The most confident mistakes", (text,), (Gallery(f"{caption}.", pictures),)),)


def _picture(measurement: EvaluationResult, i: int) -> Picture:
    images, classes = measurement.sample.images, measurement.classes
    label, answer = classes[int(images.labels[i])], classes[int(measurement.answers[i])]
    chance = 100 * float(measurement.probability[i])
    lines = (f"{label}, predicted as {answer}", f"probability {chance:.1f} %", measurement.sample.location(i))
    return Picture(png_bytes(images.pixels[i]), lines)


def png_bytes(pixels: Tensor) -> bytes:
    """An image, uint8 (C, H, W), as the bytes of a PNG file of at most `MAX_SIDE` pixels a side."""
    array = pixels.permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _classes(measurement: EvaluationResult) -> Table:
    numbered_classes = enumerate(zip(measurement.classes, measurement.metrics, strict=True), 1)
    rows = [
        (str(number), *class_row(name, metrics))
        for number, (name, metrics) in numbered_classes
        if metrics.support or metrics.predicted
    ]
    first = 0 if len(rows) > MAX_CELLS else 1  # the numbers are those of the map
    return Table(
        "Precision: the share of the images predicted as this class that belong to it. Recall: the share of "
        "its images that are predicted as this class. F1: the harmonic mean of both. The interval is that of "
        "the error.",
        ("no.", *HEADER)[first:],
        tuple(row[first:] for row in rows),
        "–: undefined, because the class has no image, or no image is predicted as this class.",
    )


def _calibration(measurement: EvaluationResult) -> Section:
    calibration = measurement.calibration
    fits = calibration.error <= calibration.chance
    text = (
        f"The expected calibration error is {100 * calibration.error:.1f} %: the mean distance between the "
        "probability of a prediction and how often predictions of that probability are right, over 15 bins "
        "of equal width (Guo et al. 2017). A network with exact probabilities stays below "
        f"{100 * calibration.chance:.1f} % in 95 of 100 samples of this size: "
        + ("these probabilities may be exact." if fits else "these probabilities differ by more than chance.")
    )
    rows = tuple(
        (
            f"{100 * bin_.above:.1f} to {100 * (bin_.above + 1 / len(calibration.bins)):.1f} %",
            f"{bin_.images:,}",
            percent_text(bin_.confidence),
            percent_text(bin_.accuracy),
        )
        for bin_ in calibration.bins
        if bin_.images
    )
    header = ("probability of the prediction", "images", "mean probability %", "right %")
    return Section("Calibration", (text,), (Table("Bins that contain images.", header, rows),))
