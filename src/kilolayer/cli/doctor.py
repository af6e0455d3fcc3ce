"""kilolayer doctor: the machine, the versions, and a self-test, for a bug report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kilolayer.cli.option_types import Switch
from kilolayer.system.printer import print_json


@dataclass(frozen=True)
class DoctorOptions:
    """Show versions, devices, limits, and whether a tiny training repeats here.

    You can paste the output into a bug report: it names no user, no host and no folder.

    Exit status: 0 the self-test passed, 1 it failed.
    """

    json: Switch = False
    """Print JSON."""


def execute(options: DoctorOptions) -> int:
    """Describes the machine, runs the self-test, and prints both. The status is 1 if the self-test fails."""
    from kilolayer.runs.environment_report import describe_environment
    from kilolayer.runs.self_test import PROMISES

    report = {**describe_environment(), "self-test": _run_self_tests()}
    if options.json:
        print_json(report)
    else:
        _print(report)
    return 0 if all(test.get(promise) for test in report["self-test"] for promise in PROMISES) else 1


def _run_self_tests() -> list[dict[str, Any]]:
    """The results of the self-test on the CPU, and on the first GPU if there is one."""
    from kilolayer.runs.self_test import run_self_test
    from kilolayer.training import choose_device, choose_precision

    return [
        run_self_test(device, choose_precision("auto", device))
        for device in dict.fromkeys((choose_device("cpu"), choose_device("auto")))
    ]


def _print(report: dict[str, Any]) -> None:
    from kilolayer.system.terminal import print_text

    for part, content in report.items():
        print_text(part)
        for entry in content if isinstance(content, list) else [content]:
            for name, value in _rows(entry):
                print_text(f"  {name:<24} {value}", hanging=25)
            print_text("")


def _rows(content: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in content.items():
        yield name.replace("_", " "), _in_words(value)


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "unknown" if value is None else str(value)
