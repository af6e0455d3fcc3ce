"""Predictions as text, JSON and CSV. Each prediction is written as it arrives."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TextIO

from kilolayer.errors import InputError
from kilolayer.runs.file_predictions import FilePrediction
from kilolayer.system import durable
from kilolayer.system.message_text import listing, quote
from kilolayer.system.printer import UNENCODABLE, data_output, escape, print_data, print_line

BAR_WIDTH = 20
STANDARD_OUTPUT = "-"


def check_csv(name: str) -> None:
    """Raises `InputError` for a name without .csv: it may be an image, which would be overwritten."""
    if name != STANDARD_OUTPUT and not name.lower().endswith(".csv"):
        raise InputError(f"--csv {name!r}: the name must end in .csv; - is standard output")
    if name != STANDARD_OUTPUT:
        durable.check_writable(Path(name))


def write_csv(predictions: Iterable[FilePrediction], name: str, columns: int) -> None:
    """Writes a row for every file: its path, `columns` classes with their probabilities, and the error."""
    with _csv_file(name) as file:
        writer = csv.writer(file)
        numbers = ["", *(f"_{rank}" for rank in range(2, columns + 1))]
        writer.writerow(
            ["path", *(f"{column}{n}" for n in numbers for column in ("class", "probability")), "error"]
        )
        for prediction in predictions:
            cells = [cell for name, value in prediction.classes for cell in (name, f"{value:.6f}")]
            writer.writerow([prediction.file.path, *(cells or [""] * 2 * columns), prediction.error])


@contextmanager
def _csv_file(name: str) -> Iterator[TextIO]:
    if name == STANDARD_OUTPUT:
        yield data_output()
        return
    with durable.file_writer(Path(name)) as file:
        text = io.TextIOWrapper(file, "utf-8", UNENCODABLE, newline="")
        yield text
        text.flush()
        text.detach()


def write_json(predictions: Iterable[FilePrediction]) -> None:
    """Writes a JSON list with `image` and `classes` for every file, and `error` where it cannot be read."""
    before = "["
    for prediction in predictions:
        classes = [{"class": name, "probability": round(value, 6)} for name, value in prediction.classes]
        entry = {"image": prediction.file.path, "classes": classes} | (
            {"error": prediction.error} if prediction.error else {}
        )
        print_data(f"{before}\n{escape(json.dumps(entry, ensure_ascii=False))}")
        before = ","
    print_data("\n]\n")


def write_text(predictions: Iterable[FilePrediction]) -> None:
    """Writes each path, and below it a line for each class. Unreadable files go to standard error."""
    watched = sys.stdout.isatty()
    for prediction in predictions:
        if prediction.error:
            continue
        print_line(prediction.file.path)
        for name, value in prediction.classes:
            bar = f"{'█' * round(BAR_WIDTH * value):<{BAR_WIDTH}}  " if watched else ""
            print_line(f"  {100 * value:5.1f} %  {bar}{name}")


class UnpredictedFiles:
    """The names of the files without a prediction."""

    def __init__(self) -> None:
        self.unreadable: list[str] = []
        self.skipped: list[str] = []

    def record(self, predictions: Iterable[FilePrediction]) -> Iterator[FilePrediction]:
        """The predictions, without files that are no images. Raises `InputError` where none is left."""
        pictures = self._without_skipped(predictions)
        first: list[FilePrediction] = []
        for prediction in pictures:
            first.append(prediction)
            if prediction.classes:
                return chain(first, pictures)
        raise InputError(self._reason())

    def _without_skipped(self, predictions: Iterable[FilePrediction]) -> Iterator[FilePrediction]:
        for prediction in predictions:
            name, error = quote(prediction.file.path), prediction.error
            if error and not prediction.file.is_picture:
                self.skipped.append(name)
                continue
            if error:
                self.unreadable.append(f"{name} ({error})")
            yield prediction

    def _reason(self) -> str:
        if self.unreadable:
            return f"none of {len(self.unreadable):,} images can be read: {listing(self.unreadable)}"
        return f"no image among {len(self.skipped):,} files: {listing(self.skipped)}"

    def print_summary(self, files: int) -> None:
        """Prints the names of the skipped and of the unreadable files on standard error."""
        if self.skipped:
            count, names = len(self.skipped), listing(self.skipped, 3)
            print_line(f"skipped {count:,} of {files:,} files, which are no images: {names}", stderr=True)
        if self.unreadable:
            count, names = len(self.unreadable), listing(self.unreadable)
            print_line(f"{count:,} of {files:,} images cannot be read: {names}", stderr=True)
