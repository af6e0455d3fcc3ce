"""kilolayer reproduce: trains the runs of a paper's table and compares the results with the paper."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kilolayer.cli.option_types import (
    OptionalFolder,
    OwnUnit,
    Switch,
)
from kilolayer.cli.options import RULE_FLAGS, RegistrationOptions, changed_flags
from kilolayer.errors import InputError

if TYPE_CHECKING:
    from kilolayer.sweep.registration import Registration
    from kilolayer.sweep.reproduction import Reproduction


@dataclass(frozen=True)
class ReproduceOptions(RegistrationOptions):
    """Reproduce tables of the papers, run by run, with statistics over seeds.

    Without a table's name it lists the tables. After a stop --resume DIR continues the
    sweep: finished runs are kept, the others continue from their checkpoints.
    """

    list: Switch = False
    """List tables, runs and cost; with --resume or --out, the state of the runs."""
    json: Switch = False
    """Print the list, or the findings at the end, as JSON."""
    dry_run: Switch = False
    """Show the runs and their cost; start and write nothing."""
    download: Switch = False
    """Fetch {DOWNLOAD} where it is missing."""
    select: Switch = False
    """Search b_g on held-out training images, in the cells for which the paper searched it."""
    out: OptionalFolder = None
    """The sweep's folder; otherwise runs/TABLE-XXXX."""
    resume: OptionalFolder = None
    """Continue the sweep in this folder, with its settings."""
    unit: OwnUnit = None
    """With --resume, or --list --out: FILE.py that defines the rows of your own. Its code runs."""


ALLOWED_WITH_RESUME = (
    "--resume", "--list", "--json", "--dry-run", "--select", "--download", "--workers", "--cores", "--engine",
    "--address", "--device", "--unit", "--amend",
)  # fmt: skip


def execute(options: ReproduceOptions) -> int:
    """Lists tables or runs, or runs the sweep and reports it. Returns the exit status."""
    from kilolayer.cli.registering import (
        registration_from_options,
        save_registration,
        with_registered_cores,
    )
    from kilolayer.cli.reproduction_request import check_reproduction_data, engine_from_options
    from kilolayer.cli.sweeping import run_reproduction, warn_of_cost
    from kilolayer.report import reproduction_list
    from kilolayer.sweep.registration import read_entries
    from kilolayer.sweep.reproduction import check_free, write_request

    if options.resume is None and not options.tables and not (options.list and options.out):
        return reproduction_list.print_paper_tables(options.json)
    reproduction = _open_or_plan(options)
    if options.list or options.dry_run:
        proposed = _proposed_registration(options, reproduction)
        return reproduction_list.print_reproduction_runs(reproduction, options.json, proposed)
    entries = read_entries(reproduction.folder)
    if not entries:  # else the differences from the registration are named
        check_free(reproduction)
    check_reproduction_data(reproduction, options.download)
    if options.select:
        from kilolayer.cli.sweeping import run_bias_search
        from kilolayer.sweep.bias_search import bias_searches

        bias_searches(reproduction)
    options = with_registered_cores(options, entries)
    chosen = engine_from_options(options, reproduction.request.own_rows)
    reproduction, registration = registration_from_options(options, reproduction, entries)
    write_request(reproduction)
    if registration is not None:
        save_registration(options, reproduction, registration, entries)
    if options.engine == "pool":
        warn_of_cost(reproduction)
    if options.select:
        return run_bias_search(reproduction, chosen, options.json)
    return run_reproduction(reproduction, chosen, options.json, registration)


def _proposed_registration(options: ReproduceOptions, reproduction: Reproduction) -> Registration | None:
    """What --register would write, for --dry-run; None where it is not asked for."""
    from kilolayer.cli.registering import registration_from_options
    from kilolayer.sweep.registration import read_entries

    if not options.dry_run or not options.register or read_entries(reproduction.folder):
        return None
    return registration_from_options(options, reproduction, ())[1]


def _open_or_plan(options: ReproduceOptions) -> Reproduction:
    """The sweep that the options continue, inspect, or begin."""
    from kilolayer.cli.registering import looks_from_options
    from kilolayer.cli.reproduction_request import request_from_options
    from kilolayer.sweep.reproduction import open_sweep, plan_reproduction

    if options.resume is not None:
        _reject_changes(options)
        return open_sweep(options.resume)
    if not options.tables:
        return open_sweep(str(options.out))
    if options.amend is not None:
        raise InputError("--amend changes the registration of a sweep that was begun; add --resume DIR")
    if options.unit is not None:
        raise InputError("--unit is for --resume; a row of your own is --row NAME=FILE.py:UNIT")
    return plan_reproduction(
        request_from_options(options, looks_from_options(options)),
        Path(options.out or f"runs/{options.tables[0]}-{secrets.token_hex(2)}"),
    )


def _reject_changes(options: ReproduceOptions) -> None:
    allowed = ALLOWED_WITH_RESUME + (RULE_FLAGS if options.amend is not None else ())
    refused = [flag for flag in changed_flags(options) if flag not in allowed]
    if refused:
        raise InputError(
            f"--resume takes everything from the sweep's sweep.json; leave out {', '.join(refused)}"
        )
