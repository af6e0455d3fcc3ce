"""The code's words stay the field's: limits on what `benchmarks/readability.py` counts."""

import ast
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import readability

FIGURES = readability.table()


@pytest.mark.parametrize(
    ("figure", "limit"),
    [
        ("filler identifiers per 1,000 lines", 5),
        ("public names with several meanings, %", 8),
        ("circles of modules", 0),
        ("function lines, 90th percentile", 20),
    ],
)
def test_the_code_stays_readable(figure: str, limit: float) -> None:
    assert FIGURES[figure] <= limit


def test_a_filler_a_homonym_and_a_circle_are_counted(tmp_path: Path) -> None:
    (tmp_path / "first.py").write_text(
        "from kilolayer.second import draw\nfound = draw()\n\ndef draw(): ...\n", encoding="utf-8"
    )
    (tmp_path / "second.py").write_text(
        "from kilolayer.first import found\n\ndef draw(): ...\n", encoding="utf-8"
    )
    trees = readability.sources(tmp_path)
    assert readability.fillers(trees) == {"found": 1}
    assert list(readability.homonyms(trees, tmp_path)) == ["draw"]
    assert readability.circles(readability.imports(trees, tmp_path)) == [
        ["kilolayer.first", "kilolayer.second"]
    ]


@pytest.mark.parametrize(
    ("name", "participle"),
    [("drawn_unit", True), ("_settled", True), ("draw_unit", False), ("read_header", False), ("seed", False)],
)
def test_participles(name: str, participle: bool) -> None:
    assert readability.is_participle(name) is participle
    assert list(readability.identifiers(ast.parse(f"{name} = 1"))) == [name]
