"""No test is written so that it cannot fail: each kind of such a test is found in its source.

What a scan cannot see (an assertion that is never reached, a tolerance that is too wide), the mutation pass
does: `benchmarks/mutations.py`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
CHECKS = {
    "raises", "warns", "fail", "assert_close", "assert_allclose", "assert_array_equal", "fromstring",
    "execute",  # of a notebook, whose cells assert
}  # fmt: skip
"""Calls that fail by themselves."""
COMPARISONS = {"equal", "allclose", "isclose", "array_equal"}
"""Calls that say whether, and fail never."""


def called(node: ast.AST) -> str:
    """The name of the function that a call calls; empty for what is no call."""
    match node:
        case ast.Call(func=ast.Attribute(attr=name)) | ast.Call(func=ast.Name(id=name)):
            return name
    return ""


def functions(trees: list[ast.Module]) -> Iterator[ast.FunctionDef]:
    return (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def checks_by_itself(node: ast.AST) -> bool:
    return isinstance(node, ast.Assert | ast.Raise) or called(node) in CHECKS or _checked_process(node)


def _checked_process(node: ast.AST) -> bool:
    """A program that must end well: `run(…, check=True)`."""
    return isinstance(node, ast.Call) and any(word.arg == "check" for word in node.keywords)


def checking_functions(trees: list[ast.Module]) -> set[str]:
    """The functions that check something, themselves or by a function that they call."""
    calls: dict[str, set[str]] = {}
    found: set[str] = set()
    for function in functions(trees):
        nodes = list(ast.walk(function))
        calls.setdefault(function.name, set()).update(map(called, nodes))
        if any(map(checks_by_itself, nodes)):
            found.add(function.name)
    while more := {name for name, names in calls.items() if name not in found and names & found}:
        found |= more
    return found


def faults_in(tree: ast.Module, checking: set[str]) -> Iterator[str]:
    """Each fault as "line: what it is"."""
    for function in functions([tree]):
        if function.name.startswith("test_") and not any(
            checks_by_itself(node) or called(node) in checking for node in ast.walk(function)
        ):
            yield f"{function.lineno}: {function.name} asserts nothing"
    for node in ast.walk(tree):
        if said := _fault(node):
            yield f"{node.lineno}: {said}"  # type: ignore[attr-defined]


def _fault(node: ast.AST) -> str:
    match node:
        case ast.Assert(
            test=ast.Constant() | ast.Tuple() | ast.List() | ast.JoinedStr() | ast.GeneratorExp()
        ):
            return "asserts what is always true"
        case ast.Assert(test=ast.Compare(left=left, comparators=[right])) if _same(left, right):
            return "compares a value with itself"
        case ast.Assert(test=ast.BoolOp(op=ast.Or(), values=values)) if any(map(_is_true, values)):
            return "asserts what is always true"
        case ast.Expr(value=ast.Compare() | ast.BoolOp()):
            return "compares without an assert"
        case ast.Expr(value=ast.Call() as call) if called(call) in COMPARISONS:
            return "compares without an assert"
        case ast.Call(args=[_, ast.List(elts=[]) | ast.Tuple(elts=[]), *_]) if called(node) == "parametrize":
            return "has no cases"
        case ast.For(iter=ast.List(elts=[]) | ast.Tuple(elts=[])):
            return "loops over nothing"
        case ast.Call(args=[value, *_], keywords=words) if called(node) == "approx":
            return _tolerance(value, {word.arg: word.value for word in words if word.arg})
    return ""


def _same(left: ast.AST, right: ast.AST) -> bool:
    """Two calls may give different values, and that they do not is what such a test says."""
    return ast.dump(left) == ast.dump(right) and not any(map(called, ast.walk(left)))


def _is_true(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and bool(node.value)


def _tolerance(value: ast.AST, words: dict[str, ast.expr]) -> str:
    """A tolerance that lets 0 pass for the value."""
    match words.get("rel"), words.get("abs"), value:
        case ast.Constant(value=float() | int() as rel), _, _ if rel >= 1:
            return f"lets 0 pass: rel={rel}"
        case _, ast.Constant(value=float() | int() as within), ast.Constant(value=float() | int() as wanted):
            return f"lets 0 pass: {wanted} ± {within}" if 0 < abs(wanted) <= within else ""
    return ""


def test_every_test_can_fail() -> None:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(TESTS.rglob("*.py"))}
    checking = checking_functions(list(trees.values()))
    found = [
        f"{path.relative_to(TESTS)}:{fault}"
        for path, tree in trees.items()
        for fault in faults_in(tree, checking)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def test_a():\n    run()", "1: test_a asserts nothing"),
        ("assert (x == 1, 'message')", "1: asserts what is always true"),
        ("assert 'text'", "1: asserts what is always true"),
        ("assert f(x) or True", "1: asserts what is always true"),
        ("assert (x > 0 for x in y)", "1: asserts what is always true"),
        ("assert x.y == x.y", "1: compares a value with itself"),
        ("x == 1", "1: compares without an assert"),
        ("torch.equal(x, y)", "1: compares without an assert"),
        ("@pytest.mark.parametrize('x', [])\ndef test_a(x): assert x", "1: has no cases"),
        ("for x in (): assert x", "1: loops over nothing"),
        ("assert x == approx(3.0, rel=1.5)", "1: lets 0 pass: rel=1.5"),
        ("assert x == approx(0.1, abs=0.5)", "1: lets 0 pass: 0.1 ± 0.5"),
    ],
)
def test_each_kind_is_seen(text: str, said: str) -> None:
    assert list(faults_in(ast.parse(text), set())) == [said]


@pytest.mark.parametrize(
    "text",
    [
        "def test_a():\n    with pytest.raises(E):\n        f()",
        "def test_a():\n    subprocess.run(words, check=True)",
        "assert f() == f()",
        "assert x == approx(0, abs=1e-6)",
        "assert x == approx(3.0, rel=0.1)",
        "assert torch.equal(x, y)",
    ],
)
def test_what_can_fail_is_left_alone(text: str) -> None:
    assert list(faults_in(ast.parse(text), set())) == []


def test_a_check_in_a_helper_counts() -> None:
    tree = ast.parse("def helper():\n    deeper()\ndef deeper():\n    assert x\ndef test_a():\n    helper()")
    assert list(faults_in(tree, checking_functions([tree]))) == []
