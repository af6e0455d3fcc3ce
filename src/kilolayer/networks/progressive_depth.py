"""Networks of which the first units of every stage are at work while the others rest, as identities.

A unit that rests computes x' = x and gets no gradient. Its F starts from 0, so the network computes the same
function before and after it begins to work: F's last convolution (in an original unit the γ of F's last BN)
is 0, and the gradients of that are not.
"""

from __future__ import annotations

from dataclasses import replace

from kilolayer.errors import InputError
from kilolayer.networks.description import Network, Stage
from kilolayer.units import ops as op
from kilolayer.units.unit import Layout


def num_active_units(stage: Stage, share: float) -> int:
    """How many units of `stage` are at work: this share of them, rounded, and at least one."""
    return max(1, round(share * stage.units))


def active_network(network: Network, share: float) -> Network:
    """`network` with nothing but the units that are at work."""
    stages = (replace(stage, units=num_active_units(stage, share)) for stage in network.stages)
    return replace(network, stages=tuple(stages))


def check_progressive_depth(network: Network) -> None:
    """Raises `InputError` where a unit with F = 0 is no identity, or would not learn from there."""
    for placed in network.units():
        why = None if placed.name.endswith(".0") else _obstacle(placed.layout)
        if why:
            raise InputError(
                f"growth: units of this network cannot rest, because {why}; allowed: units with an identity "
                f"shortcut, in the original arrangement or in full or ReLU-only pre-activation"
            )


def _obstacle(layout: Layout) -> str | None:
    if layout.h or layout.g or layout.p:
        return "their shortcut is no identity"
    if layout.f not in ((), (op.ReLU(),)):
        return "a BN stands behind their addition"
    ends_in_weights = isinstance(layout.F[-1], op.Conv | op.BatchNorm)
    return None if ends_in_weights else "F ends neither in a convolution nor in a BN"
