"""One table in three formats; each can be read back to the cells it was made of."""

import csv
import html
import io
import re

import pytest

from kilolayer.report import Table
from kilolayer.report.clean_text import one_line
from kilolayer.report.table_formats import comma_separated, latex, markdown
from test_report_page import HOSTILE

TABLE = Table(
    "Errors (%)",
    ("unit", "ResNet-110"),
    (("original", "6.61 ± 0.16"), ("a | b", "-0.5"), ("BN & ReLU_1", "—")),
    note="5 runs",
)
READ_LATEX = {r"\textbackslash{}": "\\", r"\textasciicircum{}": "^", r"\textasciitilde{}": "~"} | {
    r"\textless{}": "<", r"\textgreater{}": ">", r"\textbar{}": "|", "{[}": "[", "{]}": "]",
    r"$\pm$": "±", r"$\times$": "×", "$-$": "−", r"$\lambda$": "λ", r"$\sigma$": "σ",
} | {"\\" + letter: letter for letter in "{}$&#%_"}  # fmt: skip


def of(text: str) -> Table:
    return Table(text, ("h", text), (("1", text), (text, "2")), note=text)


def from_markdown(line: str) -> list[str]:
    cells = re.split(r"(?<!\\)(?:\\\\)*\|", line)[1:-1]
    return [html.unescape(re.sub(r"\\([\\`*_\[\]#~|$])", r"\1", cell.strip())) for cell in cells]


def from_latex(row: str) -> list[str]:
    pattern = re.compile("|".join(re.escape(key) for key in sorted(READ_LATEX, key=len, reverse=True)))
    cells = re.split(r"(?<!\\) & ", row.removesuffix(r" \\"))
    return [pattern.sub(lambda hit: READ_LATEX[hit[0]], cell) for cell in cells]


@pytest.mark.parametrize("text", HOSTILE, ids=[ascii(text)[:30] for text in HOSTILE])
def test_every_format_reads_back(text: str) -> None:
    shown, table = one_line(text), of(text)
    lines = [line for line in markdown(table).splitlines() if line.startswith("| ")]
    assert from_markdown(lines[2]) == ["1", shown]
    assert from_markdown(lines[3]) == [shown, "2"]
    body = latex(table).splitlines()
    rows = [from_latex(line) for line in body if line.endswith(r" \\")]
    assert rows == [["h", shown], ["1", shown], [shown, "2"]]
    disarmed = f"'{shown}" if shown.startswith("-->") else shown
    cells = list(csv.reader(io.StringIO(comma_separated(table))))
    assert cells == [["h", disarmed], ["1", disarmed], [disarmed, "2"]]


def test_markdown() -> None:
    assert markdown(TABLE) == (
        "Errors (%)\n\n"
        "| unit | ResNet-110 |\n| :--- | ---: |\n"
        "| original | 6.61 ± 0.16 |\n| a \\| b | -0.5 |\n| BN &amp; ReLU\\_1 | — |\n\n5 runs\n"
    )


def test_latex() -> None:
    text = latex(TABLE)
    assert r"\begin{tabular}{lr}" in text
    assert r"original & 6.61 $\pm$ 0.16 \\" in text
    assert r"BN \& ReLU\_1 & — \\" in text
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
    assert r"\caption{Errors (\%)}" in text


def test_csv_keeps_numbers_and_disarms_formulas() -> None:
    table = Table("c", ("a",), (("-0.5",), ("=1+1",), ("@SUM(A1)",), ("-",), ('say "hi", all',)))
    assert comma_separated(table).splitlines() == [
        "a",
        "-0.5",
        "'=1+1",
        "'@SUM(A1)",
        "-",
        '"say ""hi"", all"',
    ]
