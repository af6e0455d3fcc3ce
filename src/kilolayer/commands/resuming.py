"""Continuing a run: what may be given with --resume, and what the run's folder says."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from kilolayer.errors import InputError

if TYPE_CHECKING:
    from kilolayer.commands.train import Train
    from kilolayer.runs import Run

ALLOWED_WITH_RESUME = ("--resume", "--device", "--threads", "--save-every", "--tensorboard")


def restarted() -> bool:
    """Whether torchrun started this command again (--max-restarts), which then goes on with its own run."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def suffix() -> str:
    """Four letters that set a run's folder apart; under torchrun the same at every restart."""
    job = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return secrets.token_hex(2) if job == "none" else blake2b(job.encode(), digest_size=2).hexdigest()


def is_done(run: Run) -> bool:
    result = run.result()
    if result is None:
        return False
    if result.get("status") != "done":
        raise InputError(f"{run.path} cannot go on: {result.get('reason', 'it diverged')}")
    print(f"{run.path} is done: test error {result['test_error']:.2f} %")
    return True


def refuse_changes(options: Train) -> None:
    """`InputError` naming the options that a resumed run cannot take."""
    if options.resume is None:
        return
    refused = [flag for flag in _changed(options) if flag not in ALLOWED_WITH_RESUME]
    if refused:
        raise InputError(
            f"--resume takes everything from the run's config.json; leave out {', '.join(refused)}"
        )


def _changed(options: Any) -> Iterator[str]:
    """The flags of those fields that are not at their default."""
    for field in fields(options):
        value = getattr(options, field.name)
        if is_dataclass(value):
            yield from _changed(value)
        elif value != field.default:
            yield "--" + field.name.replace("_", "-")


def threads_before(run: Run) -> int | None:
    """As many threads as the run had: with another number its figures would not repeat."""
    try:
        starts = json.loads(run.file("environment.json").read_text(encoding="utf-8"))
        return min(int(starts[-1]["threads"]), os.cpu_count() or 1)
    except (OSError, ValueError, LookupError, TypeError):
        return None
