"""The faults of a data set, as text on the terminal and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict

from kilolayer.data.defects import DEFECTS, DataReport
from kilolayer.system.terminal import print_text

MAX_SHOWN = 10
"""The most locations of a kind of fault that the terminal shows."""


def data_check_json(source: str, report: DataReport) -> str:
    """The faults with all their locations as JSON."""
    findings = [
        {**asdict(finding), "count": len(finding.places), "refused": finding.is_refused}
        for finding in report.findings
    ]
    looks = [
        {**asdict(finding), "count": len(finding.places), "words": finding.words} for finding in report.looks
    ]
    # ASCII, because file names need not be valid text.
    return json.dumps({"data": source, **asdict(report), "findings": findings, "looks": looks}, indent=2)


def print_data_check(source: str, report: DataReport) -> None:
    """Prints the counts of a data set, how its images are read, and its faults."""
    counts = ", ".join(f"{count:,} {name} images" for name, count in report.images.items())
    classes = "1 class" if report.classes == 1 else f"{report.classes:,} classes"
    print_text(f"{source}: {counts or 'no images'}, {classes}")
    for line in (*report.origin, *(look.words for look in report.looks)):
        print_text(f"  {line}", hanging=2)
    for finding in report.findings:
        print_text(
            f"\n{len(finding.places):,}: {DEFECTS[finding.kind]}"
            f"{'; training rejects them' if finding.is_refused else ''}"
        )
        print_text("\n".join(f"  {location}" for location in finding.places[:MAX_SHOWN]), hanging=2)
        if len(finding.places) > MAX_SHOWN:
            print_text(f"  and {len(finding.places) - MAX_SHOWN:,} more (all with --json)")
    if not report.findings:
        print_text("no faults found")
