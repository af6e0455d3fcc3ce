"""All commands: their groups, their examples, and their options as help and completion show them."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import Field, dataclass, fields, is_dataclass
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, get_type_hints

import tyro

from kilolayer.data.registry import downloads_text, names_text

GROUPS = {
    "learn": ("demo", "lens", "show", "models"),
    "train and use": ("train", "evaluate", "predict", "recipes", "check-data"),
    "measure": ("analyse", "audit"),
    "reproduce": ("reproduce", "report"),
    "this machine": ("bench", "doctor", "completion"),
}
COMMANDS = tuple(command for group in GROUPS.values() for command in group)

EXAMPLES = {
    "demo": """
# some minutes, then a table and a report
kilolayer demo
# two depths and half of the steps
kilolayer demo --depths 20 56 --iterations 88
# continue after a stop
kilolayer demo --out runs/demo-3f2a
""",
    "lens": """
# open the page in the browser
kilolayer lens
# on another machine, reached by ssh -L 8000:127.0.0.1:8000
kilolayer lens --port 8000 --no-browser
# always at the same address
kilolayer lens --port 8000
""",
    "show": """
# the unit, the stages, the counts
kilolayer show preact_resnet110_cifar
# the same with another shortcut
kilolayer show resnet110_cifar --shortcut scaled:0.5
# the unit as a drawing
kilolayer show resnet50 --svg unit.svg
""",
    "models": """
# all names
kilolayer models
# the CIFAR networks of Identity Mappings
kilolayer models 'preact*_cifar'
# for a program
kilolayer models --json
""",
    "train": """
# 20 layers on the digits that come with the package
kilolayer train
# 110 layers on CIFAR-10 by the paper's recipe
kilolayer train --model preact_resnet110_cifar --data cifar10 --download --recipe paper
# continue after a stop
kilolayer train --resume runs/NAME
""",
    "evaluate": """
# a run on its own test set
kilolayer evaluate runs/NAME
# a run on all labelled images in another folder
kilolayer evaluate runs/NAME --data pictures
# a page with the confusion matrix and the mistakes as images
kilolayer evaluate runs/NAME --data pictures --html mistakes.html
""",
    "predict": """
# one image
kilolayer predict runs/NAME cat.jpg
# a folder and all folders below it, as a table
kilolayer predict runs/NAME pictures --csv classes.csv
# a pattern, five classes for each image, for a program
kilolayer predict runs/NAME 'pictures/**/*.jpg' --top 5 --json
""",
    "recipes": """
# all of them
kilolayer recipes
# one in full
kilolayer recipes paper
# what differs between two
kilolayer recipes paper short
""",
    "check-data": """
# a folder with a folder for each class
kilolayer check-data pictures
# CIFAR-10 in a folder of yours
kilolayer check-data cifar10 --data-folder data
# every location, for a program
kilolayer check-data pictures --json
""",
    "analyse": """
# the gradient in two networks as initialised
kilolayer analyse gradient resnet110_cifar preact_resnet110_cifar
# all analyses of a run, as a page
kilolayer analyse all runs/NAME --html analysis.html
# a network of your own
kilolayer analyse decomposition net.py:make --units 'layer?.*'
""",
    "audit": """
# a network of your own
kilolayer audit net.py:make
# a callable of an installed module, with arguments
kilolayer audit timm.models.resnet:resnet50 --call num_classes=10
# anyone's weights; no code runs
kilolayer audit resnet50.safetensors
# for a program
kilolayer audit net.py:make --json
""",
    "reproduce": """
# all tables and their cost
kilolayer reproduce
# a table, seconds a run, to check that it works
kilolayer reproduce p2-table-2 --scale smoke --data digits
# continue after a stop
kilolayer reproduce --resume runs/p2-table-2-3f2a
""",
    "report": """
# a run
kilolayer report runs/NAME
# all runs of a folder, side by side
kilolayer report runs
# a sweep
kilolayer report runs/p2-table-2-3f2a
""",
    "bench": """
# training of two networks, in turns
kilolayer bench resnet20_cifar preact_resnet20_cifar
# inference beside torchvision's
kilolayer bench resnet50 --against torchvision:resnet50 --infer
# with and without the fused kernels
kilolayer bench resnet110_cifar resnet110_cifar@plain
""",
    "doctor": """
# inspect this machine and run the self-test
kilolayer doctor
# for a bug report
kilolayer doctor > doctor.txt
# for a program
kilolayer doctor --json
""",
    "completion": """
# bash, in ~/.bashrc
eval "$(kilolayer completion bash)"
# zsh, in ~/.zshrc after compinit
eval "$(kilolayer completion zsh)"
# fish, in ~/.config/fish/config.fish
kilolayer completion fish | source
""",
}
"""Three examples for each command: a comment, then the command line."""

MOST_USED = {
    "train": "--model --data --recipe --epochs --batch-size --lr --out --resume --init",
    "reproduce": "--list --dry-run --scale --data --seeds --rows --out --resume --json",
    "analyse": "--data --html --out --json --seeds",
    "evaluate": "--data --part --html --json",
}
"""The options that help shows first; the others follow in their groups."""


@dataclass(frozen=True)
class Option:
    """An option or a positional argument of the command line."""

    flags: tuple[str, ...]
    """All spellings; empty for a positional argument."""
    metavar: str
    """The placeholder of the value, "" for a switch."""
    choices: tuple[str, ...]
    help: str
    default: str
    group: str
    """The name of its group of options, "" for the command's own options."""


def options_class(command: str) -> Any:
    """The dataclass of a command's options."""
    home = import_module(f"kilolayer.cli.{command.replace('-', '_')}")
    return getattr(home, _type_name(command))


def _type_name(command: str) -> str:
    return "".join(word.capitalize() for word in command.split("-")) + "Options"


def examples_of(command: str) -> list[tuple[str, str]]:
    """The comment and the command line of each example."""
    lines = EXAMPLES[command].strip().splitlines()
    return [(purpose.removeprefix("# "), line) for purpose, line in zip(lines[::2], lines[1::2], strict=True)]


def command_summary(command: str) -> str:
    """A command in one sentence. We parse its source, because importing every command would be slow."""
    source = Path(__file__).parent / f"{command.replace('-', '_')}.py"
    classes = (
        node for node in ast.parse(source.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)
    )
    definition = next(node for node in classes if node.name == _type_name(command))
    return unwrap_paragraphs((ast.get_docstring(definition) or "").partition("\n\n")[0])


def command_description(command: str) -> str:
    """The description of a command, each paragraph on one line."""
    return _documentation(options_class(command))


def options_of(command: str) -> list[Option]:
    """The options of a command, in the order of its dataclass."""
    return list(_options(options_class(command), ""))


def group_text(command: str, group: str) -> str:
    """The description of a group of options."""
    kinds = (type(field.default) for field in fields(options_class(command)) if field.name == group)
    return _documentation(next(kinds))


def _options(kind: Any, group: str) -> Iterator[Option]:
    hints = get_type_hints(kind, include_extras=True)
    texts = _texts(kind)
    for field in fields(kind):
        if is_dataclass(field.default):
            yield from _options(type(field.default), field.name)
        else:
            yield _option(field, hints[field.name], texts.get(field.name, ""), group)


def _option(field: Field[Any], hint: Any, text: str, group: str) -> Option:
    marks = getattr(hint, "__metadata__", ())
    by_place = tyro.conf.Positional in marks
    metavars = [mark.metavar for mark in marks if getattr(mark, "metavar", None)]
    choices = [_choices(metavar) for metavar in metavars if _choices(metavar)]
    is_switch = isinstance(field.default, bool)
    name = field.name.replace("_", "-")
    pair = is_switch and tyro.conf.FlagCreatePairsOff not in marks
    return Option(
        flags=() if by_place else (f"--{name}", *([f"--no-{name}"] if pair else [])),
        metavar="" if is_switch else metavars[-1] if metavars else _metavar(field),
        choices=choices[-1] if choices else (),
        help=next((mark.help for mark in marks if getattr(mark, "help", None)), text),
        default=""
        if any(getattr(mark, "help_behavior_hint", None) == "" for mark in marks)
        else _shown(field),
        group=group,
    )


def _choices(metavar: str) -> tuple[str, ...]:
    """The choices in a metavar of the form `{first,second}`."""
    inner = metavar.strip("[]")
    return tuple(inner[1:-1].split(",")) if inner.startswith("{") else ()


def _metavar(field: Field[Any]) -> str:
    """A metavar for an option whose type has none."""
    kind = str(field.type)
    name = next(
        (name for word, name in (("int", "N"), ("Path", "DIR"), ("float", "X")) if word in kind), "TEXT"
    )
    return f"{name}..." if "tuple" in kind else name


def _shown(field: Field[Any]) -> str:
    value = field.default
    if isinstance(value, bool):
        return "on" if value else ""
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return str(value) if isinstance(value, int | float | str) else ""


@cache
def _texts(kind: Any) -> dict[str, str]:
    """The docstrings below the fields of a dataclass and of its bases, by field name."""
    texts: dict[str, str] = {}
    for base in reversed(list(filter(is_dataclass, kind.__mro__))):
        body = _definition(base).body
        for before, after in pairwise(body):
            match before, after:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    texts[name] = _with_names(unwrap_paragraphs(inspect.cleandoc(text)))
    return texts


def _with_names(text: str) -> str:
    """The text with the names of the registered data sets in it."""
    names = {
        "{DATASETS}": names_text(),
        "{DOWNLOADS}": downloads_text("and"),
        "{DOWNLOAD}": downloads_text("or"),
    }
    for word, value in names.items():
        text = text.replace(word, value)
    return text


def _documentation(kind: Any) -> str:
    """The class docstring, read from the source because `python -OO` drops docstrings."""
    return unwrap_paragraphs(ast.get_docstring(_definition(kind)) or "")


def _definition(kind: Any) -> ast.ClassDef:
    definition = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(definition, ast.ClassDef)  # noqa: S101
    return definition


def unwrap_paragraphs(text: str) -> str:
    """The text with each paragraph on one line."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))
