"""S7: whatever a string says that a page shows, it stays text: no live markup, and nothing to be fetched."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import status

from kilolayer.chart import Chart, Series
from kilolayer.data import Images
from kilolayer.data.evaluation_sample import EvaluationSample
from kilolayer.report import evaluation_page, lab, plots, svg_markup, table_formats
from kilolayer.report import page as pages
from kilolayer.report.confusion_svg import confusion_map
from kilolayer.report.curves import Curve
from kilolayer.report.document import Figure, Gallery, Listing, Matrix, Page, Picture, Section, Table
from kilolayer.runs.evaluation_result import EvaluationResult
from kilolayer.training import Evaluation
from tiny_runs import tiny, train

STRINGS = (*json.loads(Path(__file__).with_name("hostile_strings.json").read_text()), "é" * 300, "x" * 3000)
TAKES_AN_ADDRESS = {
    "href",
    "src",
    "xlink:href",
    "action",
    "formaction",
    "data",
    "ping",
    "srcset",
    "poster",
    "background",
}


@dataclass
class Markup:
    """What is alive in a page."""

    tags: set[tuple[str, str]]
    addresses: set[str]
    policy: str
    scripts: list[str]
    styles: list[str]


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found = Markup(set(), set(), "", [], [])
        self.within = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.within = tag
        self.found.tags |= {(tag, "")} | {(tag, name) for name, _ in attributes}
        named = dict(attributes)
        self.found.addresses |= {value or "" for name, value in attributes if name in TAKES_AN_ADDRESS}
        self.found.styles += [value or "" for name, value in attributes if name == "style"]
        if named.get("http-equiv") == "Content-Security-Policy":
            self.found.policy = named["content"] or ""

    def handle_comment(self, data: str) -> None:
        self.found.tags.add(("comment", data))

    def handle_endtag(self, tag: str) -> None:
        self.within = ""

    def handle_data(self, data: str) -> None:
        if self.within == "script":
            self.found.scripts.append(data)
        if self.within == "style":
            self.found.styles.append(data)


def read(html: str) -> Markup:
    reader = Reader()
    reader.feed(html)
    reader.close()
    return reader.found


def harmless(html: str, plain: str) -> bool:
    """Whether a page has no more in it that is alive than the same page of plain words."""
    html.encode()
    found, usual = read(html), read(plain)
    policy = "default-src 'none'" in found.policy and "unsafe-eval" not in found.policy
    inline = "script-src" not in found.policy or "'unsafe-inline'" not in found.policy.split("style-src")[0]
    local = all(address.startswith(("#", "data:,", "data:image/png;base64,")) for address in found.addresses)
    silent = not any(
        re.search(r"url\(|@import|expression\(", style) for style in set(found.styles) - set(usual.styles)
    )
    known = found.tags <= usual.tags and not any(name.startswith("on") for _, name in found.tags)
    data = all("<" not in script for script in set(found.scripts) - set(usual.scripts))
    return policy and inline and local and silent and known and data and "\x00" not in html


def drawing(label: str) -> str:
    curve = Curve.from_metrics(
        label, [{"iteration": i, "train_loss": 1.0 / i, "test_error": 9.0 / i} for i in (1, 2, 3)]
    )
    return plots.training_curves([curve], label)


FIELDS: dict[str, Callable[[str], Page]] = {
    "title": lambda text: Page(text),
    "subtitle": lambda text: Page("page", text),
    "provenance, what": lambda text: Page("page", provenance=((text, "x"),)),
    "provenance, value": lambda text: Page("page", provenance=(("x", text),)),
    "a section's title": lambda text: Page("page", sections=(Section(text),) * 4),
    "a paragraph": lambda text: Page("page", sections=(Section("a", (text,)),)),
    "a table's caption": lambda text: of(Table(text, ("x",), (("y",),))),
    "a table's head": lambda text: of(Table("x", (text,), (("y",),))),
    "a cell": lambda text: of(Table("x", ("y",), ((text,),))),
    "a note": lambda text: of(Table("x", ("y",), (("z",),), text)),
    "a listing's caption": lambda text: of(Listing(text, "x")),
    "a listing": lambda text: of(Listing("x", text)),
    "a figure's caption": lambda text: of(Figure(text, drawing("x"), "x")),
    "a figure in words": lambda text: of(Figure("x", drawing("x"), text)),
    "a curve's name": lambda text: of(Figure("x", drawing(text), "x")),
    "a matrix's caption": lambda text: of(Matrix(text, ("a",), ("a", "b"), ((1, 2),))),
    "a matrix's row": lambda text: of(Matrix("x", (text,), ("a", "b"), ((1, 2),))),
    "a matrix's column": lambda text: of(Matrix("x", ("a",), ("a", text), ((1, 2),))),
    "a picture": lambda text: of(Gallery("x", (Picture(b"png", ("x", text)),))),
    "a gallery's caption": lambda text: of(Gallery(text, (Picture(b"png", ("x",)),))),
    "a confusion map": lambda text: of(Figure("x", confusion_map([[1, 2]], [1], [1, 2], text), "x")),
    "a class, a path, a network and the data": lambda text: evaluated(text),
}


def evaluated(text: str) -> Page:
    """The page of an evaluation with the text in every place that a stranger fills."""
    labels, answers = torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0])
    sample = EvaluationSample(
        text, "all", Images(torch.zeros(3, 1, 2, 2).byte(), labels), lambda i: text, (text,)
    )
    evaluation = Evaluation(3, 0.5, 100 / 3, 0.0, (1, 2), ((1, 0), (1, 1)))
    probability = torch.full((3,), 0.9).double()
    return evaluation_page.build_evaluation_page(
        EvaluationResult(sample, (text, "b"), evaluation, answers, probability, probability), text
    )


def of(item: Any) -> Page:
    return Page("page", sections=(Section("a", (), (item,)),))


@dataclass(frozen=True)
class Shown:
    """An analysis of which every word is the same."""

    network: str
    chart: Chart

    def charts(self) -> tuple[Chart, ...]:
        return (self.chart,)

    def summary(self) -> tuple[tuple[str, str], ...]:
        return ((self.chart.title, self.chart.note),)


CHART = Chart("name", "title", "x_l", "x", "y", (Series("a", (1.0, 2.0), (1.0, 2.0)),), note="note")


def charted(**changes: str) -> str:
    return lab.render_lab([(None, Shown("n", replace(CHART, **changes)))])


LAB: dict[str, Callable[[str], str]] = {
    "a network": lambda text: lab.render_lab([(None, Shown(text, CHART))]),
    "a page's title": lambda text: lab.render_lab([(None, Shown("n", CHART))], text),
    "where it comes from": lambda text: lab.render_lab([(None, Shown("n", CHART))], "t", ((text, text),)),
    "a series": lambda text: lab.render_lab(
        [(None, Shown("n", replace(CHART, series=(replace(CHART.series[0], name=text),))))]
    ),
    **{
        f"a chart's {field}": partial(lambda field, text: charted(**{field: text}), field)
        for field in ("name", "title", "equation", "x_label", "y_label", "note")
    },
}


def cases() -> Iterator[tuple[str, Callable[[str], str], str]]:
    for text in STRINGS:
        for field, made in FIELDS.items():
            yield field, lambda text, made=made: pages.render_page(made(text)), text
        for field, written in LAB.items():
            yield field, written, text


def holds(field: str, written: Callable[[str], str], text: str) -> bool:
    return harmless(written(text), usual(field))


@cache
def usual(field: str) -> str:
    """The page with plain words in that field."""
    return LAB[field]("plain_words") if field in LAB else pages.render_page(FIELDS[field]("plain_words"))


def test_every_field_of_every_page(
    chosen: Callable[[Sequence[Any]], list[Any]], count: Callable[..., None]
) -> None:
    due = chosen(list(cases()))
    failed = [f"{field}: {text[:20]!r}" for field, written, text in due if not holds(field, written, text)]
    count("S7", tried=len(due), held=len(due) - len(failed), note="; ".join(failed))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("s7") / "runs"
    train(path / "plain_words", tiny())
    return path


def report(folder: Path) -> str:
    code, _, err = status(["report", str(folder)])
    assert (code, err) == (0, "")
    return (folder / "report.html").read_text(encoding="utf-8")


def tainted(run: Path, text: str) -> None:
    """The run's folder with the text wherever a stranger could have put it."""
    name = re.sub(r"[/\x00]", "", text).encode("utf-8", "replace").decode()[:60].strip(". \n") or "x"
    there = (run / "plain_words").rename(run / name)
    for file in ("environment.json", "result.json", "config.json"):
        path = there / file
        value = json.loads(path.read_text())
        if file == "config.json":
            value["data"]["source"], value["recipe"]["name"] = text.replace("\0", "") or "x", text
        elif file == "result.json":
            value |= {"status": "done", "data": text, text: text}
        else:
            value = [
                {**start, **{key: text for key, old in start.items() if isinstance(old, str)}}
                for start in value
            ]
        path.write_text(json.dumps(value))


def test_the_report_of_a_stranger_s_run(
    run: Path, tmp_path: Path, chosen: Callable[[Sequence[str]], list[str]], count: Callable[..., None]
) -> None:
    due, failed = chosen(STRINGS[::2]), []
    plain = report(run)
    for i, text in enumerate(due):
        copy = Path(shutil.copytree(run, tmp_path / str(i)))
        tainted(copy, text)
        if not harmless(report(copy), plain):
            failed.append(repr(text[:20]))
    count("S7", tried=len(due), held=len(due) - len(failed), note="; ".join(["the command line", *failed]))


def test_tables_for_other_programs(
    chosen: Callable[[Sequence[str]], list[str]], count: Callable[..., None]
) -> None:
    """A spreadsheet runs no formula, LaTeX no command, and a row stays a row."""
    due, held = chosen(STRINGS), 0
    for text in due:
        table = Table("caption", ("a", "b"), ((text, "1"), ("2", text)))
        formula = re.search(r'(^|,)"?[=@]', table_formats.comma_separated(table), re.MULTILINE)
        command = re.search(r"\\(input|frac)", table_formats.latex(table))
        live = re.search(
            r"<(script|img|svg|iframe|base|link|meta|style|form|a |use)", table_formats.markdown(table)
        )
        held += not (formula or command or live)
    count("S7", tried=len(due), held=held, note="CSV, LaTeX, Markdown")


def test_no_script_of_ours_makes_markup_of_text() -> None:
    """The lens is left out: what it is given was made, and escaped, by its own server."""
    ours = list(Path(pages.__file__).parent.glob("*.js"))
    assert ours
    for path in ours:
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|Function\(", path.read_text()
        )


@pytest.mark.parametrize("fault", ["not escaped", "json without care", "any drawing"])
def test_the_harness_sees_seeded_faults(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = pages.template_environment

    def careless() -> Any:
        made = real()
        made.autoescape = False
        return made

    if fault == "any drawing":
        monkeypatch.setattr(svg_markup, "validate_svg", lambda drawn: drawn)
        made = of(Figure("x", "<svg><script>alert(1)</script></svg>", "x"))
        assert not harmless(pages.render_page(made), pages.render_page(of(Figure("x", drawing("x"), "x"))))
        return
    if fault == "not escaped":
        monkeypatch.setattr(pages, "template_environment", careless)
    else:

        def plain_json() -> Any:
            made = real()
            made.filters["tojson"] = json.dumps
            made.autoescape = False
            return made

        monkeypatch.setattr(lab, "template_environment", plain_json)
    assert not all(holds(*case) for case in list(cases())[:60])
