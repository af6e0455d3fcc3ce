"""The way to a Ray cluster, or to a plain sentence about why there is none."""

from __future__ import annotations

import logging
import os
import socket
from typing import Any

from kilolayer.errors import InputError

SECONDS_TO_ANSWER = 5.0
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "GLOG_minloglevel": "3"}
"""Ray's settings without which it writes to the terminal, and to its makers."""


def connect(address: str | None) -> Any:
    """Ray, connected to `address`, or to the cluster of this machine, or to one made here.

    Raises `InputError` where Ray is missing or nothing answers.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise InputError("--engine ray needs Ray: pip install 'kilolayer[cluster]'") from None
    if ray.is_initialized():
        return ray
    _check_answers(address)
    try:
        ray.init(address, log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"at {address}" if address else "on this machine"
        raise InputError(f"no Ray cluster {where}: {first_line(error)}") from None
    return ray


def _check_answers(address: str | None) -> None:
    """Ray itself tries for a minute, and ends the whole program where nothing answers."""
    host, _, port = (address or "").rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"no Ray cluster at {address}: {error}; see: ray start --help") from None


def first_line(error: Exception) -> str:
    """An error's message without the explanations that Ray adds."""
    return str(error).strip().partition("\n")[0]
