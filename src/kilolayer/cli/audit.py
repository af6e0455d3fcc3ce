"""kilolayer audit: what anyone's network is, and where it departs from the papers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from kilolayer.cli.option_types import OptionalText, OptionalWhole, Switch, check_positive
from kilolayer.errors import InputError
from kilolayer.system.printer import print_json

if TYPE_CHECKING:
    from kilolayer.audit import AuditReport as Report

AuditTarget = Annotated[Positional[str], arg(metavar="RUN_OR_WEIGHTS|FILE.py:CALLABLE|MODULE:CALLABLE")]
STATUSES = {"clean": 0, "faults": 1, "nothing told": 3}


@dataclass(frozen=True)
class AuditOptions:
    """Say what a network is and where it departs from the papers.

    FILE.py:CALLABLE executes that file, MODULE:CALLABLE imports that module (timm.models.resnet:resnet50),
    and CALLABLE gives the network. A weights file is only read. Exit status: 0 without faults, 1 with faults,
    2 where the input cannot be used, 3 where nothing could be compared with the papers.
    """

    subject: AuditTarget
    """A run, anyone's weights file, or a Python file or module and the callable in it for the network."""
    call: OptionalText = None
    """The callable's arguments, literals only: --call "20, num_classes=10"."""
    image_size: OptionalWhole = None
    """Side of the image that the network is traced with; otherwise the usual sizes are tried from 32."""
    json: Switch = False
    """Print JSON."""


def execute(options: AuditOptions) -> int:
    """Audits the network and prints the report. Returns the exit status of its outcome."""
    check_positive(options, "image_size")
    report = _run_audit(options)
    if options.json:
        more = {"clean": report.clean, "outcome": report.outcome}
        print_json(asdict(report) | more)
    else:
        from kilolayer.report.audit_text import print_audit

        print_audit(report)
    return STATUSES[report.outcome]


def _run_audit(options: AuditOptions) -> Report:
    from kilolayer.audit import audit_model, audit_state
    from kilolayer.networks.user_module import is_user_module, load_user_module

    if is_user_module(options.subject):
        model = load_user_module(options.subject, arguments=options.call or "")
        return audit_model(model, options.subject.rpartition(":")[2], side=options.image_size)
    if options.call is not None:
        raise InputError(f"--call is for FILE.py:CALLABLE or MODULE:CALLABLE, not for {options.subject}")
    if options.subject.endswith(".py"):
        raise InputError(f"{options.subject} names no network in it; write {options.subject}:CALLABLE")
    from kilolayer.weights import read_state_dict

    path = Path(options.subject)
    if path.is_dir():
        from kilolayer.runs import Run

        return audit_state(read_state_dict(Run.open(path).weights_file()), path.resolve().name)
    return audit_state(read_state_dict(path), path.stem)
