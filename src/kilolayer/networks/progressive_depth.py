"""Progressive depth: only the first units of every stage are active, and training activates more of them.

An inactive unit computes x' = x and gets no gradient. Its F starts from 0 (the last convolution of F is 0, or
in an original unit the γ of its last BN), so the network's function does not change when the unit becomes
active; the gradient of that last layer is not 0, so the unit learns.
"""

from __future__ import annotations

from dataclasses import replace

from kilolayer.errors import InputError
from kilolayer.networks.description import Network, Stage
from kilolayer.units import ops as op
from kilolayer.units.unit import Layout


def num_active_units(stage: Stage, share: float) -> int:
    """The number of active units of `stage`: this share of all, rounded, and at least one."""
    return max(1, round(share * stage.units))


def active_network(network: Network, share: float) -> Network:
    """The network of the active units alone."""
    stages = (replace(stage, units=num_active_units(stage, share)) for stage in network.stages)
    return replace(network, stages=tuple(stages))


def check_progressive_depth(network: Network) -> None:
    """Raise `InputError` where a unit with F = 0 is not the identity, or cannot learn from F = 0."""
    for placed in network.units():
        why = None if placed.name.endswith(".0") else _obstacle(placed.layout)
        if why:
            raise InputError(
                f"progressive depth: units of this network cannot be inactive, because {why}; allowed: units "
                f"with an identity shortcut, in the original arrangement, full or ReLU-only pre-activation"
            )


def _obstacle(layout: Layout) -> str | None:
    if layout.h or layout.g or layout.p:
        return "their shortcut is not the identity"
    if layout.f not in ((), (op.ReLU(),)):
        return "a BN stands behind their addition"
    ends_in_weights = isinstance(layout.F[-1], op.Conv | op.BatchNorm)
    return None if ends_in_weights else "F ends neither in a convolution nor in a BN"
