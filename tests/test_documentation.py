"""Every command and every block of Python in README.md, CONTRIBUTING.md and docs/ does what the page says."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

import kilolayer
from documentation_blocks import PAGES, ROOT, SHELL, Block, Reader, blocks, commands
from kilolayer.cli.command_table import COMMANDS
from kilolayer.cli.old_flags import OLD_FLAGS

ALL = [block for page in PAGES for block in blocks(page)]
NAME = r"`(kilolayer(?:\.[A-Za-z_]\w*)+)"
NOT_RUN = [block for block in ALL if block.reason]
QUICK = [page for page in PAGES if any(block.runs and not block.slow for block in blocks(page))]
SLOW = [page for page in PAGES if any(block.slow for block in blocks(page))]


def named(value: Path | Block) -> str:
    return value.place if isinstance(value, Block) else str(value.relative_to(ROOT))


def follow(page: Path, folder: Path, *, slow: bool) -> None:
    reader = Reader.at(folder)
    for block in blocks(page):
        if slow or not block.slow:
            reader.follow(block)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


@pytest.mark.parametrize("page", QUICK, ids=named)
def test_what_a_page_says_works(page: Path, folder: Path) -> None:
    follow(page, folder, slow=False)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", SLOW, ids=named)
def test_what_a_page_says_works_where_it_takes_longer(page: Path, folder: Path) -> None:
    follow(page, folder, slow=True)


@pytest.mark.parametrize("block", NOT_RUN, ids=named)
def test_what_is_not_run_has_a_reason(block: Block) -> None:
    """`pytest -rs tests/test_documentation.py` lists them."""
    assert len(block.reason.split()) >= 2
    pytest.skip(f"{block.place}: {block.reason}")


def test_no_command_hides_in_plain_text() -> None:
    """A block of text shows what is printed; commands stand in blocks that are run."""
    hidden = [
        block.place
        for block in ALL
        if block.language not in {*SHELL, "python"}
        and re.search(rf"^(\$ )?kilolayer ({'|'.join(COMMANDS)})\b", block.text, re.MULTILINE)
    ]
    assert hidden == []


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_links_lead_to_files(name: str) -> None:
    """Those of the pages in docs/ are followed when the site is built."""
    links = re.findall(r"\]\(([^)#\s]+)", (ROOT / name).read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_names_of_the_package_exist() -> None:
    """Every `kilolayer.…` in the text can be imported; the log tells of names that were."""
    pages = [page for page in PAGES if "log" not in page.parts]
    named = {
        (page.name, name) for page in pages for name in re.findall(NAME, page.read_text(encoding="utf-8"))
    }
    assert named
    assert [(page, name) for page, name in sorted(named) if not exists(name)] == []


def exists(name: str) -> bool:
    """Whether `name` can be imported, or is an attribute of what can."""
    module, parts = kilolayer, name.split(".")[1:]
    for number, part in enumerate(parts):
        if not hasattr(module, part):
            try:
                import_module(".".join(["kilolayer", *parts[: number + 1]]))
            except ImportError:
                return False
        module = getattr(module, part)
    return True


def test_no_command_has_a_flag_under_its_earlier_name() -> None:
    old = re.compile(rf"\bkilolayer .*(?<!\S)({'|'.join(OLD_FLAGS)})(?=[\s=]|$)", re.MULTILINE)
    assert [block.place for block in ALL if old.search(block.text)] == []


def test_the_reader_sees_a_broken_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = ROOT / "page.md"
    reader = Reader.at(tmp_path)
    with pytest.raises(AssertionError, match="exit status 2"):
        reader.follow(Block(page, 1, "sh", "kilolayer show resnet21_cifar\n"))
    with pytest.raises(AssertionError, match="exit status 3"):
        reader.follow(Block(page, 1, "sh", "exit 3\n"))
    with pytest.raises(NameError):
        reader.follow(Block(page, 1, "python", "unheard_of\n"))
    reader.follow(Block(page, 1, "sh", "echo 269,722 parameters\n"))
    reader.follow(Block(page, 1, "text", "269,…  parameters\n", marks=("prints",)))
    with pytest.raises(AssertionError, match="not printed"):
        reader.follow(Block(page, 1, "text", "269,723 parameters\n", marks=("prints",)))
    reader.follow(Block(page, 1, "text", "270,001  parameters\n", marks=("prints alike",)))
    with pytest.raises(AssertionError, match="not printed"):
        reader.follow(Block(page, 1, "text", "270,001 numbers\n", marks=("prints alike",)))
    assert commands(Block(page, 1, "console", "$ a \\\n  b\nprinted\n$ c\n")) == ["a    b", "c"]
