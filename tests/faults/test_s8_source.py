"""S8: what must not stand in the source: everything that runs, unpacks or unpickles what a file asks for."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kilolayer

SOURCE = Path(kilolayer.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
UNPICKLING = {
    "pickle",
    "_pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "jsonpickle",
}
LISTING_ONLY = {"data/sources/cifar_pickle.py", "weights/pickle_scanner.py"}
"""They list a pickle's opcodes with `pickletools`, which builds and calls nothing."""
LOADS_LIBRARIES = "kernels/native_build.py"
"""It loads native code, from bytes that were checked; a path could be another file when it is opened."""
NEVER = {
    "os.system", "os.popen", "os.execv", "os.execl", "os.execvp", "os.spawnl", "pty.spawn", "tempfile.mktemp",
    "torch.hub.load", "torch.jit.load", "torch.package.PackageImporter",
    "torch.serialization.add_safe_globals",
    "yaml.load", "runpy.run_path", "subprocess.getoutput", "subprocess.getstatusoutput", "pandas.read_pickle",
}  # fmt: skip
BUILTINS = {"eval", "exec", "compile", "__import__"}
REQUIRED = {
    "torch.load": ("weights_only", True),
    "numpy.load": ("allow_pickle", False),
    "np.load": ("allow_pickle", False),
}
EVERYWHERE = ("0.0.0.0",)  # noqa: S104 - to be found, not used


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a name or attribute, "" of anything else."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=name):
            owner = dotted(value)
            return f"{owner}.{name}" if owner else name
    return ""


def keyword(call: ast.Call, name: str) -> object:
    """The constant given for a keyword; None where none is, or no constant."""
    given = [one.value for one in call.keywords if one.arg == name]
    return given[0].value if given and isinstance(given[0], ast.Constant) else None


def of_import(node: ast.AST, path: str) -> Iterator[str]:
    modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    if isinstance(node, ast.ImportFrom) and node.module:
        modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    for module in modules:
        if module.split(".")[0] in UNPICKLING or module.startswith("torch.distributed.checkpoint"):
            yield f"imports {module}"
        if module == "pickletools" and path not in LISTING_ONLY:
            yield "imports pickletools"
        if module in NEVER or module in REQUIRED:
            yield f"imports {module} by itself, where its calls cannot be followed"


def of_call(node: ast.AST, path: str) -> Iterator[str]:
    if not isinstance(node, ast.Call):
        return
    name = dotted(node.func)
    if isinstance(node.func, ast.Name) and name in BUILTINS:
        yield f"calls {name}"
    if name in NEVER:
        yield f"calls {name}"
    if name.endswith(("CDLL", "cdll.LoadLibrary", "torch.ops.load_library")) and path != LOADS_LIBRARIES:
        yield f"calls {name}"
    if name in REQUIRED and keyword(node, REQUIRED[name][0]) is not REQUIRED[name][1]:
        yield f"calls {name} without {REQUIRED[name][0]}={REQUIRED[name][1]}"
    if (
        name.rpartition(".")[2] in ("extractall", "extract", "unpack_archive")
        and keyword(node, "filter") != "data"
    ):
        yield f"unpacks by {name} without filter='data'"
    if keyword(node, "shell") not in (None, False):
        yield f"calls {name} in a shell"
    if keyword(node, "weights_only") is False:
        yield f"calls {name} with weights_only=False"
    if keyword(node, "autoescape") is False:
        yield f"calls {name} without escaping"


def of_text(node: ast.AST, path: str) -> Iterator[str]:
    if isinstance(node, ast.Constant) and node.value in EVERYWHERE:
        yield f"listens on {node.value}"
    if isinstance(node, ast.keyword) and node.arg == "shell" and not isinstance(node.value, ast.Constant):
        yield "decides at run time whether there is a shell"


def faults(text: str, path: str) -> list[str]:
    """What must not stand there, each with its line."""
    checks: tuple[Callable[[ast.AST, str], Iterator[str]], ...] = (of_import, of_call, of_text)
    return [
        f"{path}:{getattr(node, 'lineno', '?')} {said}"
        for node in ast.walk(ast.parse(text))
        for check in checks
        for said in check(node, path)
    ]


def test_the_source(count: Callable[..., None]) -> None:
    found = {path: faults(path.read_text(encoding="utf-8"), str(path.relative_to(SOURCE))) for path in FILES}
    assert len(FILES) > 100
    assert not [said for each in found.values() for said in each]
    count("S8", tried=len(FILES), held=sum(not each for each in found.values()))


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "import pickletools",
        "import torch.distributed.checkpoint as dcp",
        "from torch.distributed.checkpoint import load",
        "from torch import load\nfrom torch.hub import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "np.load(path)",
        "numpy.load(path, allow_pickle=True)",
        "archive.extractall(path)",
        "archive.extractall(path, filter='fully_trusted')",
        "shutil.unpack_archive(path)",
        "subprocess.run(command, shell=True)",
        "subprocess.run(command, shell=flag)",
        "os.system(command)",
        "eval(text)",
        "exec(text)",
        "__import__(name)",
        "torch.jit.load(path)",
        "torch.hub.load(repository)",
        "ctypes.CDLL(path)",
        "ctypes.cdll.LoadLibrary(path)",
        "torch.ops.load_library(path)",
        "Environment(autoescape=False)",
        "server.bind(('0.0.0.0', 80))",
    ],
)
def test_the_gate_sees_seeded_faults(text: str) -> None:
    assert faults(text, "data/new.py")


@pytest.mark.parametrize(
    "text",
    ["model.eval()", "torch.load(p, weights_only=True)", "re.compile(x)", "t.extractall(p, filter='data')"],
)
def test_the_gate_lets_the_rest_through(text: str) -> None:
    assert not faults(text, "data/new.py")
