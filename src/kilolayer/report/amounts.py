"""Durations and amounts of computation as text."""

from __future__ import annotations


def duration_text(seconds: float) -> str:
    """Seconds in words: "40 s", "3 min", "2.5 h", "12 days", "3,000 years"."""
    for below, unit, name in ((90, 1, "s"), (5400, 60, "min")):
        if seconds < below:
            return f"{seconds / unit:.0f} {name}"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    days = seconds / 86_400
    return f"{days:,.0f} days" if days < 730 else f"{days / 365:,.0f} years"


def flop_text(flop: float) -> str:
    """Floating-point operations with a prefix: "1.2 EFLOP"."""
    for factor, prefix in ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T")):
        if flop >= factor:
            return f"{flop / factor:.3g} {prefix}FLOP"
    return f"{flop / 1e9:.3g} GFLOP" if flop else "–"
