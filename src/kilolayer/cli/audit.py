"""kilolayer audit: what anyone's network is, and where it departs from the papers."""

from __future__ import annotations

import json as json_text
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from kilolayer.cli.option_types import OptionalWhole, Switch, check_positive
from kilolayer.errors import InputError, KilolayerError

if TYPE_CHECKING:
    from torch import nn

    from kilolayer.audit import AuditReport as Report

AuditTarget = Annotated[Positional[str], arg(metavar="RUN_OR_WEIGHTS|FILE.py:CALLABLE")]


@dataclass(frozen=True)
class AuditOptions:
    """Say what a network is and where it departs from the papers.

    FILE.py:CALLABLE executes that file and calls CALLABLE with no arguments, which gives the module; a
    weights file is only read. Exit status: 0 without faults, 1 with faults, 2 where the input cannot be used.
    """

    subject: AuditTarget
    """A run, anyone's weights file, or a Python file and the callable in it that makes the network."""
    image_size: OptionalWhole = None
    """Side of the image that the network is traced with; otherwise 32, 224, 64, 28 and 299 are tried."""
    json: Switch = False
    """Print JSON."""


def execute(options: AuditOptions) -> int:
    """Audits the network and prints the report. The status is 1 where the audit finds faults."""
    check_positive(options, "image_size")
    report = _run_audit(options)
    if options.json:
        print(json_text.dumps(asdict(report) | {"clean": report.clean}, indent=2, ensure_ascii=False))
    else:
        from kilolayer.report.audit_text import print_audit

        print_audit(report)
    return 0 if report.clean else 1


def _run_audit(options: AuditOptions) -> Report:
    from kilolayer.audit import audit_model, audit_state
    from kilolayer.networks.user_module import is_user_module

    if is_user_module(options.subject):
        return audit_model(
            _build_module(options.subject), options.subject.rpartition(":")[2], side=options.image_size
        )
    if options.subject.endswith(".py"):
        raise InputError(f"{options.subject} names no network in it; write {options.subject}:CALLABLE")
    from kilolayer.weights import read_state_dict

    path = Path(options.subject)
    if path.is_dir():
        from kilolayer.runs import Run

        return audit_state(read_state_dict(Run.open(path).weights_file()), path.resolve().name)
    return audit_state(read_state_dict(path), path.stem)


def _build_module(subject: str) -> nn.Module:
    """The user's network. Raises `InputError` where the user's code fails, with its error in one line."""
    from kilolayer.networks.user_module import load_user_module

    try:
        return load_user_module(subject)
    except KilolayerError:
        raise
    except Exception as error:
        words = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise InputError(f"{subject} cannot be made: {words}") from None
