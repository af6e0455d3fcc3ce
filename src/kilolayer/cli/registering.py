"""Turns the options of `kilolayer reproduce` into a registration: new, as in the folder, or amended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from kilolayer.cli.options import RULE_FLAGS, RegistrationOptions, changed_flags
from kilolayer.cli.reproduction_request import cores_of_a_run
from kilolayer.data.loading import load
from kilolayer.errors import InputError
from kilolayer.statistics import DecisionRule
from kilolayer.sweep.registration import (
    Entry,
    Registration,
    amend_registration,
    check_runs,
    check_unchanged,
    register,
    write_registration,
)
from kilolayer.sweep.reproduction import Reproduction, plan_reproduction

Options = TypeVar("Options", bound=RegistrationOptions)
TEST_NAMES = {"sign-flips": "sign flips", "paired-t": "paired t"}
SPENDING_NAMES = {"obrien-fleming": "O'Brien-Fleming", "pocock": "Pocock"}
PAPERS_FAILURE = 20.0
"""P2's "fail": a test error above 20 %, after the paper's own training."""


def looks_from_options(options: RegistrationOptions) -> tuple[int, ...] | None:
    """The numbers of --looks. Raises `InputError` for what is no such list."""
    if options.looks is None:
        return None
    try:
        looks = tuple(int(word) for word in options.looks.split(","))
    except ValueError:
        raise InputError(f"--looks is {options.looks!r}; allowed: numbers of seeds, such as 3,6,9") from None
    DecisionRule(looks)
    return looks


def with_registered_cores(options: Options, entries: Sequence[Entry]) -> Options:
    """The options with the registered number of cores, where they name none: figures depend on it."""
    if not entries or options.cores is not None:
        return options
    return replace(options, cores=entries[-1].registration.threads)


def registration_from_options(
    options: RegistrationOptions, reproduction: Reproduction, entries: Sequence[Entry]
) -> tuple[Reproduction, Registration | None]:
    """The sweep, with the seeds of an amendment, and its registration; None where it is not registered.

    Raises `InputError` where the options are not what was registered, or the registration was changed.
    """
    check_runs(reproduction)
    registered = entries[-1].registration if entries else None
    if registered is None and not options.register:
        if refused := _rule_flags(options):
            raise InputError(
                f"{', '.join(refused)} belong to a registration; add --register"
                if options.amend is None
                else f"--amend: {reproduction.folder} is not registered; leave it out"
            )
        return reproduction, None
    rule, fail_above = (
        _rule(options, reproduction, registered),
        _fail_above(options, reproduction, registered),
    )
    threads = cores_of_a_run(options)
    if options.amend is not None:
        reproduction = _with_seeds(reproduction, rule)
    elif registered is not None:
        requested = replace(
            registered, request=reproduction.request, rule=rule, fail_above=fail_above, threads=threads
        )
        check_unchanged(reproduction.folder, registered, requested)
    now = register(reproduction, rule, fail_above, threads=threads, load=load)
    if registered is None or options.amend is not None:
        return reproduction, now
    check_unchanged(reproduction.folder, registered, now)
    return reproduction, registered


def save_registration(
    options: RegistrationOptions,
    reproduction: Reproduction,
    registration: Registration,
    entries: Sequence[Entry],
) -> None:
    """Writes a new registration or an amendment; leaves one that is continued as it is."""
    if options.amend is not None:
        amend_registration(reproduction.folder, registration, options.amend)
    elif not entries:
        write_registration(reproduction, registration)


def _rule_flags(options: RegistrationOptions) -> list[str]:
    allowed: Iterable[str] = (*RULE_FLAGS, "--amend")
    return [flag for flag in changed_flags(options) if flag in allowed]


def _rule(
    options: RegistrationOptions, reproduction: Reproduction, registered: Registration | None
) -> DecisionRule:
    """The rule of the options; what they leave out is as registered, or by default."""
    seeds = len(reproduction.request.seeds)
    base = registered.rule if registered else DecisionRule((seeds,))
    changes: dict[str, Any] = {}
    if (looks := looks_from_options(options)) is not None:
        changes["looks"] = looks
    if options.test is not None:
        changes["test"] = TEST_NAMES[options.test]
    if options.spending is not None:
        changes["spending"] = SPENDING_NAMES[options.spending]
    if options.margin is not None:
        changes["margin"] = options.margin
    return replace(base, **changes)


def _fail_above(
    options: RegistrationOptions, reproduction: Reproduction, registered: Registration | None
) -> float:
    if options.fail_above is not None:
        return options.fail_above
    if registered is not None:
        return registered.fail_above
    request = reproduction.request
    if not request.size.scale.is_full or request.recipe is not None:
        raise InputError(
            "--register: the paper's fail, an error above 20 %, is for its own training; say which test "
            "error counts as failed here, such as --fail-above 80"
        )
    return PAPERS_FAILURE


def _with_seeds(reproduction: Reproduction, rule: DecisionRule) -> Reproduction:
    """The sweep with the seeds of an amended rule: those that it had, and the next numbers."""
    request, count = reproduction.request, rule.looks[-1]
    seeds = list(request.seeds[:count])
    following = (seed for seed in range(2**31) if seed not in request.seeds)
    seeds += [next(following) for _ in range(count - len(seeds))]
    return plan_reproduction(replace(request, seeds=tuple(seeds)), reproduction.folder)
