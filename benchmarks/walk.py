"""One parameter followed through the code: which functions hand it on, and in which modules they stand.

    python benchmarks/walk.py cli/train.py:execute:options [--word batch_size] [--json FILE]

The walk is read from the source; nothing is run. It enters a function when the parameter, or a value made
from it, is an argument or the object of a call, in the order of the lines, each function once. A *stay* is
a visit to one module without a break, a *room* a module, and a *climb* a step to a module on a higher
floor; a module stands one floor above the highest that it imports. A call whose function the source does
not name (a callback, a method of an object without an annotated class) is not followed. With `--word` only
the functions count that name this word: the walk of one option.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby, pairwise
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "kilolayer"
Function = ast.FunctionDef | ast.AsyncFunctionDef
Target = tuple["Module", "ast.ClassDef | None", "Function"]


@dataclass
class Module:
    """A module of the package: its definitions, and what its imports name."""

    name: str
    tree: ast.Module
    imported: dict[str, str] = field(default_factory=dict)
    """A name here → "module.name" or "module"."""

    def __post_init__(self) -> None:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("kilolayer"):
                self.imported |= {(a.asname or a.name): f"{node.module}.{a.name}" for a in node.names}

    @cached_property
    def definitions(self) -> dict[str, Function | ast.ClassDef]:
        return {node.name: node for node in self.tree.body if isinstance(node, Function | ast.ClassDef)}


class Package:
    def __init__(self, root: Path = SOURCE) -> None:
        self.modules: dict[str, Module] = {}
        for path in sorted(root.rglob("*.py")):
            parts = ("kilolayer", *path.relative_to(root).with_suffix("").parts)
            name = ".".join(parts).removesuffix(".__init__")
            self.modules[name] = Module(name, ast.parse(path.read_text(encoding="utf-8")))

    def resolve(self, module: Module, name: str) -> tuple[Module, Function | ast.ClassDef] | Module | None:
        """What a name means in a module: a definition with its module, a module, or None."""
        if name in module.definitions:
            return module, module.definitions[name]
        target = module.imported.get(name)
        if target is None:
            return None
        if target in self.modules:
            return self.modules[target]
        home, _, last = target.rpartition(".")
        return (
            self.resolve(self.modules[home], last) if home in self.modules and home != module.name else None
        )

    @cached_property
    def floors(self) -> dict[str, int]:
        """A module stands one floor above the highest that it imports."""
        floors: dict[str, int] = {}

        def floor(name: str, seen: frozenset[str]) -> int:
            if name not in floors:
                targets = {
                    target if target in self.modules else target.rpartition(".")[0]
                    for target in self.modules[name].imported.values()
                }
                below = targets & self.modules.keys() - seen - {name}
                floors[name] = max((floor(target, seen | {name}) + 1 for target in below), default=0)
            return floors[name]

        for name in self.modules:
            floor(name, frozenset())
        return floors


class Walk:
    def __init__(self, package: Package, word: str | None = None) -> None:
        self.package = package
        self.word = word
        self.entries: list[tuple[Module, str]] = []
        self.names: set[str] = set()
        self._entered: set[tuple[str, str, frozenset[str]]] = set()

    def enter(
        self, module: Module, owner: ast.ClassDef | None, function: Function, carried: set[str]
    ) -> None:
        qualname = f"{owner.name}.{function.name}" if owner else function.name
        key = (module.name, qualname, frozenset(carried))
        if key in self._entered:
            return
        self._entered.add(key)
        if self.word is None or self.word in set(_words(function)):
            self.entries.append((module, qualname))
        self.names |= carried
        Body(self, module, owner, function, set(carried)).follow()

    @property
    def stays(self) -> list[tuple[Module, list[str]]]:
        grouped = groupby(self.entries, key=lambda entry: entry[0].name)
        return [(self.package.modules[name], [qualname for _, qualname in visit]) for name, visit in grouped]

    @property
    def rooms(self) -> int:
        return len({module.name for module, _ in self.stays})

    @property
    def climbs(self) -> int:
        floors = [self.package.floors[module.name] for module, _ in self.stays]
        return sum(after > before for before, after in pairwise(floors))


class Body:
    """One function's body, read in the order of its lines."""

    def __init__(
        self, walk: Walk, module: Module, owner: ast.ClassDef | None, function: Function, carried: set[str]
    ) -> None:
        self.walk, self.module, self.owner, self.function, self.carried = (
            walk,
            module,
            owner,
            function,
            carried,
        )
        self.classes: dict[str, tuple[Module, ast.ClassDef]] = {}
        arguments = function.args
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            self._note_class(argument.arg, argument.annotation)
        if owner and arguments.args and arguments.args[0].arg in ("self", "cls"):
            self.classes[arguments.args[0].arg] = (module, owner)

    def follow(self) -> None:
        for statement in self.function.body:
            self._statement(statement)

    def _statement(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.ClassDef):
            return
        if isinstance(statement, Function):
            for inner in statement.body:
                self._statement(inner)
            return
        for expression in _own_expressions(statement):
            for call in _calls(expression):
                self._call(call)
        match statement:
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    self._bind(target, value)
            case (
                ast.AnnAssign(target=target, value=ast.expr() as value)
                | ast.AugAssign(target=target, value=value)
            ):
                self._bind(target, value)
            case ast.For(target=target, iter=value):
                self._bind(target, value)
            case ast.With(items=items):
                for item in items:
                    if item.optional_vars is not None:
                        self._bind(item.optional_vars, item.context_expr)
        for name in ("body", "orelse", "finalbody"):
            for inner in getattr(statement, name, []):
                self._statement(inner)
        for handler in getattr(statement, "handlers", []):
            for inner in handler.body:
                self._statement(inner)
        for case in getattr(statement, "cases", []):
            for inner in case.body:
                self._statement(inner)

    def _carries(self, expression: ast.AST) -> bool:
        return any(isinstance(node, ast.Name) and node.id in self.carried for node in ast.walk(expression))

    def _bind(self, target: ast.expr, value: ast.expr) -> None:
        if self._carries(value):
            self.carried |= {node.id for node in ast.walk(target) if isinstance(node, ast.Name)} - {
                "self",
                "cls",
            }
        if isinstance(target, ast.Name) and (made := self._class_of(value)):
            self.classes[target.id] = made

    def _call(self, call: ast.Call) -> None:
        handed = [*call.args, *(keyword.value for keyword in call.keywords)]
        receiver = call.func.value if isinstance(call.func, ast.Attribute) else None
        by_receiver = receiver is not None and self._carries(receiver)
        if not by_receiver and not any(map(self._carries, handed)):
            return
        for module, owner, function in self._targets(call.func):
            self.walk.enter(module, owner, function, self._parameters(call, owner, function, by_receiver))

    def _parameters(
        self, call: ast.Call, owner: ast.ClassDef | None, function: Function, by_receiver: bool
    ) -> set[str]:
        names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
        bound = owner is not None and names[:1] in (["self"], ["cls"])
        carried = {names[0]} if bound and by_receiver else set()
        for name, value in zip(names[bound:], call.args, strict=False):
            carried |= {name} if self._carries(value) else set()
        return carried | {k.arg for k in call.keywords if k.arg and self._carries(k.value)}

    def _targets(self, callee: ast.expr) -> list[Target]:
        match callee:
            case ast.Name(id=name):
                return _entrances(self.walk.package.resolve(self.module, name))
            case ast.Attribute(value=ast.Name(id=name), attr=attribute):
                if name in self.classes:
                    return _method(*self.classes[name], attribute)
                match self.walk.package.resolve(self.module, name):
                    case Module() as module:
                        return _entrances(self.walk.package.resolve(module, attribute))
                    case (module, ast.ClassDef() as owner):
                        return _method(module, owner, attribute)
            case ast.Attribute(value=value, attr=attribute) if made := self._class_of(value):
                return _method(*made, attribute)
        return []

    def _class_of(self, value: ast.expr) -> tuple[Module, ast.ClassDef] | None:
        if isinstance(value, ast.Name):
            return self.classes.get(value.id)
        if not isinstance(value, ast.Call):
            return None
        if isinstance(value.func, ast.Name):
            found = self.walk.package.resolve(self.module, value.func.id)
            if isinstance(found, tuple) and isinstance(found[1], ast.ClassDef):
                return found[0], found[1]
        for module, _, function in self._targets(value.func):
            if (made := _annotated_class(self.walk.package, module, function.returns)) is not None:
                return made
        return None

    def _note_class(self, name: str, annotation: ast.expr | None) -> None:
        if (made := _annotated_class(self.walk.package, self.module, annotation)) is not None:
            self.classes[name] = made


def _annotated_class(
    package: Package, module: Module, annotation: ast.expr | None
) -> tuple[Module, ast.ClassDef] | None:
    """The class of the package that an annotation names first, as `Run` in `Iterator[Run]`."""
    for node in ast.walk(annotation) if annotation is not None else ():
        if isinstance(node, ast.Name):
            match package.resolve(module, node.id):
                case (home, ast.ClassDef() as made):
                    return home, made
    return None


def _entrances(found: tuple[Module, Function | ast.ClassDef] | Module | None) -> list[Target]:
    match found:
        case (module, ast.ClassDef() as owner):
            return [*_method(module, owner, "__init__"), *_method(module, owner, "__post_init__")]
        case (module, function):
            return [(module, None, function)]
    return []


def _method(module: Module, owner: ast.ClassDef, name: str) -> list[Target]:
    return [(module, owner, node) for node in owner.body if isinstance(node, Function) and node.name == name]


def _words(function: Function) -> Iterator[str]:
    for node in ast.walk(function):
        match node:
            case (
                ast.Name(id=word) | ast.Attribute(attr=word) | ast.arg(arg=word) | ast.keyword(arg=str(word))
            ):
                yield word


def _own_expressions(statement: ast.stmt) -> Iterator[ast.expr]:
    for child in ast.iter_child_nodes(statement):
        if isinstance(child, ast.expr):
            yield child
        elif isinstance(child, ast.withitem):
            yield child.context_expr


def _calls(expression: ast.expr) -> list[ast.Call]:
    """The calls of an expression, arguments before the call that takes them."""
    calls = []
    for child in ast.iter_child_nodes(expression):
        if isinstance(child, ast.expr | ast.comprehension | ast.keyword):
            calls += _calls(child)  # type: ignore[arg-type]
    return [*calls, expression] if isinstance(expression, ast.Call) else calls


def walk(start: str, word: str | None = None, root: Path = SOURCE) -> Walk:
    """`start` is PATH:FUNCTION:PARAMETER, with a path under src/kilolayer."""
    path, function, parameter = start.split(":")
    package = Package(root)
    module = package.modules["kilolayer." + path.removesuffix(".py").replace("/", ".")]
    *owner, name = function.split(".")
    scope = module.definitions[owner[0]].body if owner else module.tree.body
    node = next(node for node in scope if isinstance(node, Function) and node.name == name)
    trip = Walk(package, word)
    trip.enter(module, module.definitions[owner[0]] if owner else None, node, {parameter})  # type: ignore[arg-type]
    return trip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("start", help="PATH:FUNCTION:PARAMETER, the path under src/kilolayer")
    parser.add_argument("--word", help="count only the functions that name this word")
    parser.add_argument(
        "--root", type=Path, default=SOURCE, help="the package's folder, of another version say"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    trip = walk(options.start, options.word, options.root)
    for number, (module, functions) in enumerate(trip.stays, 1):
        floor = trip.package.floors[module.name]
        print(
            f"{number:3} floor {floor:2}  {module.name.removeprefix('kilolayer.'):32} {', '.join(functions)}"
        )
    figures = {
        "start": options.start, "word": options.word, "stays": len(trip.stays), "rooms": trip.rooms,
        "climbs": trip.climbs, "names": len(trip.names),
    }  # fmt: skip
    print(json.dumps(figures))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
