"""A `Table` as Markdown, LaTeX or CSV."""

import csv
import io
import re
from collections.abc import Iterable

from kilolayer.report.clean_text import one_line
from kilolayer.report.document import Table, is_number

_MARKDOWN = re.compile(r"([\\`*_\[\]#~|$])")
_MARKDOWN_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # a row that begins with [ would be read as an argument of the \\ before it
    "]": "{]}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": "$-$",
    "λ": r"$\lambda$",
    "σ": r"$\sigma$",
}
_FORMULA = ("=", "+", "-", "@")


def markdown(table: Table) -> str:
    """A GitHub pipe table, with its caption above and its note below.

    >>> print(markdown(Table("Errors.", ("unit", "error"), (("original", "6.61"),))), end="")
    Errors.
    <BLANKLINE>
    | unit | error |
    | :--- | ---: |
    | original | 6.61 |
    """
    rule = ("---:" if numeric else ":---" for numeric in table.numeric)
    lines = [_pipes(map(_markdown, table.header)), _pipes(rule)]
    lines += [_pipes(map(_markdown, row)) for row in table.rows]
    parts = (_markdown(table.caption), "\n".join(lines), _markdown(table.note))
    return "\n\n".join(part for part in parts if part) + "\n"


def latex(table: Table) -> str:
    """A LaTeX `table` with the three rules of booktabs; it needs \\usepackage{booktabs}."""
    columns = "".join("r" if numeric else "l" for numeric in table.numeric)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_latex(table.caption)}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _ampersands(table.header),
        r"\midrule",
        *map(_ampersands, table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        *([rf"\par\smallskip\footnotesize {_latex(table.note)}"] if table.note else []),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def comma_separated(table: Table) -> str:
    """Header and rows as CSV (RFC 4180). An apostrophe protects text that a spreadsheet would run as a
    formula.

    >>> comma_separated(Table("", ("unit", "error"), (("=1+1", "6.61"),)))
    "unit,error\\r\\n'=1+1,6.61\\r\\n"
    """
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerows([_csv(cell) for cell in row] for row in (table.header, *table.rows))
    return out.getvalue()


def _markdown(text: str) -> str:
    entities = "".join(_MARKDOWN_ENTITIES.get(letter, letter) for letter in one_line(text))
    return _MARKDOWN.sub(r"\\\1", entities)


def _pipes(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in one_line(text))


def _ampersands(cells: Iterable[str]) -> str:
    return " & ".join(map(_latex, cells)) + r" \\"


def _csv(text: str) -> str:
    cell = one_line(text)
    return "'" + cell if cell.startswith(_FORMULA) and not is_number(cell) and len(cell) > 1 else cell
