"""How the code reads to a stranger, in figures: words, names, lengths, comments, circles.

    python benchmarks/readability.py [--before CHECKOUT] [--json results/readability.json] [--words]

A figure judges no code; it shows where to look. What each row counts stands beside it in ROWS.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import statistics
import subprocess
import sys
import time
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "kilolayer"

# Words that name nothing: pronouns, participles and adverbs that stand alone as an identifier.
FILLERS = frozenset(
    re.findall(
        r"\w+",
        """found one each place made kept told here known own whole given taken said seen there such what left
        same other others them they it those these asked done held put gone drawn wanted needed called rest
        some begun which thing things alike alone beside together both meant""",
    )
)
IRREGULAR = frozenset(
    re.findall(
        r"\w+",
        """drawn taken made told kept found given shown written read begun known seen held left built sent
        meant spent bound led met put set cut split chosen hidden grown thrown run done gone said""",
    )
)
# Participles that are verbs or nouns as well: read(), set_x(), split().
VERBS_TOO = frozenset(("read", "set", "cut", "split", "run", "put", "left", "bound"))

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources(root: Path = SOURCE) -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(root.rglob("*.py"))}


def identifiers(tree: ast.AST) -> Iterator[str]:
    """Every use of a name: variables, attributes, parameters, keywords, definitions, imports, captures."""
    for node in ast.walk(tree):
        match node:
            case (
                ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.alias(asname=str(name))
            ):
                yield name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.keyword(arg=str(name)) | ast.MatchAs(name=str(name)) | ast.ExceptHandler(name=str(name)):
                yield name


def fillers(trees: dict[Path, ast.Module]) -> Counter[str]:
    uses = (name.strip("_").lower() for tree in trees.values() for name in identifiers(tree))
    return Counter(name for name in uses if name in FILLERS)


def functions(trees: dict[Path, ast.Module]) -> list[Function]:
    return [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, Function)]


def is_participle(name: str) -> bool:
    first = name.strip("_").split("_")[0]
    return first not in VERBS_TOO and (first in IRREGULAR or bool(re.fullmatch(r"\w{2,}[^e]ed", first)))


def public_names(trees: dict[Path, ast.Module], root: Path = SOURCE) -> dict[str, set[str]]:
    """Each public module, class and function of a module with the places that define it.

    A package is not counted beside its modules, nor a name that an `__init__` hands on.
    """
    places: dict[str, set[str]] = defaultdict(set)
    for path, tree in trees.items():
        where = path.relative_to(root).as_posix()
        if not path.stem.startswith("_"):
            places[path.stem].add(where)
        for node in tree.body:
            if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].add(f"{where}:{node.name}")
    return places


def homonyms(trees: dict[Path, ast.Module], root: Path = SOURCE) -> dict[str, set[str]]:
    """Public names with two or more referents. A function in the module of its own name is one referent."""
    several = {}
    for name, places in public_names(trees, root).items():
        modules = {place.split(":")[0] for place in places}
        if len(modules) > 1:
            several[name] = places
    return several


def imports(trees: dict[Path, ast.Module], root: Path = SOURCE) -> dict[str, set[str]]:
    """Which module of the package imports which, at its top or inside a function."""
    modules = {".".join(("kilolayer", *path.relative_to(root).with_suffix("").parts)): path for path in trees}
    edges: dict[str, set[str]] = {name.removesuffix(".__init__"): set() for name in modules}
    for name, path in modules.items():
        for node in ast.walk(trees[path]):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "kilolayer":
                for alias in node.names:
                    target = f"{node.module}.{alias.name}"
                    edges[name.removesuffix(".__init__")].add(target if target in edges else node.module)
    return edges


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    components: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for target in edges.get(module, ()):
            if target not in index:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], index[target])
        if low[module] == index[module]:
            cut = stack.index(module)
            component = stack[cut:]
            del stack[cut:]
            if len(component) > 1:
                components.append(sorted(component))

    for module in edges:
        if module not in index:
            visit(module)
    return components


def comment_lines(path: Path) -> int:
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
    return sum(token.type == tokenize.COMMENT for token in tokens)


def docstring_lines(tree: ast.Module) -> int:
    owners = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | Function)]
    return sum(len((ast.get_docstring(node) or "").splitlines()) for node in owners)


def words_to_the_reader(checkout: Path) -> float:
    """How often "you" or "your" stands in 1,000 words of the documentation."""
    pages = [*(checkout / "docs").rglob("*.md"), checkout / "README.md"]
    text = "\n".join(path.read_text(encoding="utf-8") for path in pages)
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    words = re.findall(r"[A-Za-z']+", prose)
    return 1000 * sum(word.lower() in ("you", "your", "yours") for word in words) / max(len(words), 1)


def table(checkout: Path = ROOT) -> dict[str, float]:
    root = checkout / "src" / "kilolayer"
    trees = sources(root)
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in trees)
    lengths = sorted((node.end_lineno or 0) - node.lineno + 1 for node in functions(trees))
    parameters = [
        argument
        for node in functions(trees)
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        if argument.arg not in ("self", "cls")
    ]
    names = public_names(trees, root)
    return {
        "modules": len(trees),
        "lines": lines,
        "function lines, median": statistics.median(lengths),
        "function lines, 90th percentile": lengths[int(0.9 * len(lengths))],
        "function lines, longest": lengths[-1],
        "annotated parameters, %": 100
        * sum(parameter.annotation is not None for parameter in parameters)
        / len(parameters),
        "filler identifiers per 1,000 lines": 1000 * sum(fillers(trees).values()) / lines,
        "functions named by a participle, %": 100
        * sum(is_participle(node.name) for node in functions(trees))
        / len(lengths),
        "public names with several meanings, %": 100 * len(homonyms(trees, root)) / len(names),
        "comment lines per 100": 100 * sum(map(comment_lines, trees)) / lines,
        "docstring lines per 100": 100 * sum(map(docstring_lines, trees.values())) / lines,
        "circles of modules": len(circles(imports(trees, root))),
        '"you" per 1,000 words of documentation': words_to_the_reader(checkout),
    }


def commit_of(checkout: Path) -> str:
    words = ("git", "-C", str(checkout), "rev-parse", "--short", "HEAD")
    return subprocess.check_output(words, text=True).strip()  # noqa: S603


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, help="a checkout of another version, to stand beside this one")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    parser.add_argument("--words", action="store_true", help="list fillers, homonyms, participles, circles")
    options = parser.parse_args()
    checkouts = {"before": options.before, "after": ROOT} if options.before else {"after": ROOT}
    figures = {version: table(checkout) for version, checkout in checkouts.items()}
    for name in figures["after"]:
        print(f"{name:45}", *(f"{row[name]:10.1f}" for row in figures.values()))
    if options.words:
        trees = sources()
        print("fillers:", ", ".join(f"{word} {count}" for word, count in fillers(trees).most_common()))
        for name, places in sorted(homonyms(trees).items()):
            print(f"{name}: {', '.join(sorted(places))}")
        print("participles:", ", ".join(sorted({n.name for n in functions(trees) if is_participle(n.name)})))
        for circle in circles(imports(trees)):
            print("circle:", " - ".join(circle))
    if options.json:
        record = {
            "command": " ".join(sys.argv),
            "date": time.strftime("%Y-%m-%d"),
            "commits": {version: commit_of(checkout) for version, checkout in checkouts.items()},
            "figures": {
                version: {name: round(value, 2) for name, value in row.items()}
                for version, row in figures.items()
            },
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
