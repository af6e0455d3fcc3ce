"""A page shows every string and runs none (S7 of our promises), asks for nothing and is written whole."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from kilolayer.errors import InputError, StorageError
from kilolayer.report import (
    Curve,
    DepthLine,
    Figure,
    Listing,
    Page,
    Profile,
    Section,
    Table,
    plots,
    render_page,
    write_page,
)
from kilolayer.report.clean_text import replace_unprintable

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "</svg><script>alert(1)</script>",
    "</text></g></svg><img src=x onerror=alert(1)>",
    "</pre><script>alert(1)</script>",
    "</textarea><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><img src=//evil.example/x onerror=alert(1)>",
    '" onload="alert(1)',
    "' onmouseover='alert(1)",
    '" style="background:url(//evil.example/x)',
    "<svg onload=alert(1)>",
    "<iframe src=https://evil.example></iframe>",
    "<link rel=stylesheet href=//evil.example/x.css>",
    '<meta http-equiv="refresh" content="0;url=https://evil.example">',
    "<base href=https://evil.example/>",
    "<object data=//evil.example/x></object>",
    "<a href=javascript:alert(1)>x</a>",
    "<form action=https://evil.example><input></form>",
    "<math><mtext><script>alert(1)</script>",
    "<use href=https://evil.example/x.svg#a />",
    "<style>@import '//evil.example/x.css'</style>",
    "url(https://evil.example/x)",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;script&#62;",
    "&",
    "<!-- -->",
    "--><script>alert(1)</script>",
    "<![CDATA[",
    "]]>",
    "<?xml version='1.0'?>",
    "<!DOCTYPE html [<!ENTITY a 'b'>]>",
    "{{ 7*7 }}",
    "{% for x in range(10**9) %}{% endfor %}",
    "{{ page.__class__.__mro__ }}",
    "{# comment",
    "${7*7}",
    "$\\frac",
    "$x_1$",
    "\\$",
    "_hidden",
    "__init__",
    "%s%n",
    "\x00",
    "a\x01\x08\x0b\x0c\x1f\x7f\x85b",
    "\ud800 lone surrogate",
    "\ufffe\uffff\ufeff",
    "\u202egnp.exe",
    "\u2066isolate\u2067",
    "two\nlines\r\nand\ttab",
    "Z̸̧̢a̸l̷g̶o̵",
    "深度残差网络 العربية 🧪",
    "",
    " ",
    "x" * 10_000,
    "<" * 3_000,
]


class Markup(HTMLParser):
    """What a browser would make of a page: its elements, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def tags(self) -> set[str]:
        return {tag for tag, _ in self.elements}


def page_of(text: str) -> Page:
    drawing = plots.profile_by_unit([Profile(text, (1.0, 0.1))], text, quantity=text)
    items = (
        Table(text, (text, "n"), ((text, "1"), (text, "2")), note=text),
        Figure(text, drawing, alt=text),
        Listing(text, text),
    )
    sections = (Section(text, (text, text), items), *[Section(text, (text,))] * 3)
    return Page(text, text, sections, ((text, text),))


PLAIN = Markup(render_page(page_of("plain")))
ALLOWED_TAGS = {
    *("html", "head", "meta", "link", "title", "style", "body", "main", "header", "h1", "h2", "p", "nav"),
    *("ol", "li", "a", "section", "span", "figure", "figcaption", "b", "div", "pre", "footer"),
    *("table", "thead", "tbody", "tr", "th", "td", "dl", "dt", "dd"),
    *("svg", "g", "defs", "clippath", "path", "rect", "use", "text", "tspan"),
}


def skeleton(markup: Markup) -> list[str]:
    """The elements that are there with any text, in order: an empty subtitle or note has none."""
    return [tag for tag, _ in markup.elements if tag in {"h1", "h2", "td", "figcaption", "pre", "svg", "dd"}]


def assert_inert(html: str) -> None:
    markup = Markup(html)
    assert markup.tags <= ALLOWED_TAGS
    for tag, attributes in markup.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in {"src", "href", "xlink:href", "action", "data", "srcset", "poster", "background"}:
                assert value.startswith("#") or value == "data:,", (tag, name, value)
            if name == "style":
                assert not re.search(r"url\((?!#)|@import", value), (tag, value)


@pytest.mark.parametrize("text", HOSTILE, ids=[ascii(text)[:30] for text in HOSTILE])
def test_no_string_becomes_markup_or_a_request(text: str) -> None:
    html = render_page(page_of(text))
    html.encode()
    assert_inert(html)
    markup = Markup(html)
    assert skeleton(markup) == skeleton(PLAIN)
    assert replace_unprintable(text).strip() in "".join(markup.words)


def test_no_label_of_any_figure_becomes_markup() -> None:
    for start in range(0, len(HOSTILE), 8):
        texts = HOSTILE[start : start + 8]
        curves = [Curve(text, (1.0, 2.0), (2.0, 1.0), (50.0, 10.0), error_name=text) for text in texts]
        lines = [DepthLine(text, (20, 56), ((9.0,), (8.0, 7.0))) for text in texts]
        title = " ".join(texts)
        drawings = (
            plots.training_curves(curves, title),
            plots.learning_rate([plots.RateCurve(text, lambda at: 0.1, 3) for text in texts], title),
            plots.error_against_depth(lines, title, error_name=texts[0]),
        )
        figures = tuple(Figure("c", drawing, "a") for drawing in drawings)
        assert_inert(render_page(Page("t", sections=(Section("s", items=figures),))))


def test_the_page_forbids_all_requests_itself() -> None:
    policy = next(a["content"] for _, a in PLAIN.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    style = "".join(re.findall("<style>(.*?)</style>", render_page(Page("t")), re.DOTALL))
    assert "url(" not in style
    assert "@import" not in style
    assert "//" not in style


@pytest.mark.parametrize(
    "drawing",
    [
        "<script>alert(1)</script>",
        "<p>not a drawing</p>",
        "<svg>",
        '<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
        '<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>',
        '<svg xmlns="http://www.w3.org/2000/svg"><a href="#x"/></svg>',
        '<svg xmlns="http://www.w3.org/2000/svg"><foreignObject/></svg>',
        '<svg xmlns="http://www.w3.org/2000/svg"><style>*{color:red}</style></svg>',
        '<svg xmlns="http://www.w3.org/2000/svg"><use href="https://evil.example/#a"/></svg>',
        '<svg xmlns="http://www.w3.org/2000/svg"><g style="fill: url(https://evil.example)"/></svg>',
        '<svg xmlns="http://www.w3.org/2000/svg"><g style="fill: u\\72l(//evil.example)"/></svg>',
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:h="http://www.w3.org/1999/xhtml"><h:script/></svg>',
        '<!DOCTYPE svg [<!ENTITY a "b">]><svg xmlns="http://www.w3.org/2000/svg">&a;</svg>',
        "",
    ],
)
def test_only_our_own_drawings_are_shown(drawing: str) -> None:
    page = Page("t", sections=(Section("s", items=(Figure("c", drawing, "a"),)),))
    with pytest.raises(ValueError, match=r"Figure\.svg"):
        render_page(page)


def test_items_are_numbered_by_kind() -> None:
    items = (Table("c", ("h",), ()), Listing("c", "x"), Listing("c", "y"))
    html = render_page(Page("t", sections=(Section("s", items=items), Section("s", items=items))))
    assert re.findall(r"<b>(.*?)\.</b>", html) == [
        *["Table 1", "Listing 1", "Listing 2"],
        *["Table 2", "Listing 3", "Listing 4"],
    ]


def test_no_two_elements_share_an_id() -> None:
    ids = [attributes["id"] for _, attributes in PLAIN.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) > 5


def test_numbers_are_set_flush_right_and_words_left() -> None:
    table = Table("c", ("unit", "error"), (("original", "6.61 ± 0.16"), ("4(b)", "—"), ("x", "5.93")))
    assert table.numeric == (False, True)
    assert '<td class="number short">5.93</td>' in render_page(
        Page("t", sections=(Section("s", items=(table,)),))
    )


@pytest.mark.parametrize(
    "cell", ["6.61", "-0.5", "−0.5", "1.7M", "93 %", "1,202", "1e-5", "6.61 (5.93)", "≈ 3"]
)
def test_what_reads_as_a_number(cell: str) -> None:
    assert Table("c", ("h",), ((cell,),)).numeric == (True,)


def test_a_row_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="row 2 has 1 cells, but the header has 2"):
        Table("c", ("a", "b"), (("1", "2"), ("3",)))


def test_the_same_page_gives_the_same_bytes() -> None:
    assert render_page(page_of("plain")) == render_page(page_of("plain"))


def test_write_replaces_the_page_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    assert write_page(Page("first"), path) == path
    write_page(Page("second"), path)
    assert "<h1>second</h1>" in path.read_text(encoding="utf-8")
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_a_page_that_cannot_be_written_names_its_path(tmp_path: Path) -> None:
    folder = tmp_path / "taken.html"
    folder.mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=re.escape(f"{folder} is a folder; only a plain file may be there")):
        write_page(Page("t"), folder)
    path = tmp_path / "file" / "report.html"
    with pytest.raises(StorageError, match=re.escape(f"cannot write {path} ")):
        write_page(Page("t"), path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "taken.html"]


def test_a_failed_render_leaves_the_older_page(tmp_path: Path) -> None:
    path = write_page(Page("first"), tmp_path / "report.html")
    with pytest.raises(ValueError, match="Figure"):
        write_page(Page("second", sections=(Section("s", items=(Figure("c", "", ""),)),)), path)
    assert "<h1>first</h1>" in path.read_text(encoding="utf-8")


def test_importing_the_report_is_light() -> None:
    heavy = "{'matplotlib', 'jinja2', 'markupsafe', 'numpy', 'torch', 'tyro', 'pyarrow'}"
    code = f"import sys, kilolayer.report; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("absent", ["matplotlib", "jinja2"])
def test_without_the_extra_one_line_says_what_to_install(
    absent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(InputError, match=r"pip install 'kilolayer\[report\]'"):
        render_page(
            Page("t", sections=(Section("s", items=(Figure("c", plots.training_curves([], "t"), "a"),)),))
        )
