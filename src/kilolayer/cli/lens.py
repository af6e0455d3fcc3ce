"""kilolayer lens: a page in the browser for experiments with h, f and depth."""

from __future__ import annotations

import socket
import webbrowser
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kilolayer.cli.option_types import OwnUnit, Switch, Whole
from kilolayer.errors import InputError
from kilolayer.system.printer import print_line
from kilolayer.units.extensions import load_part

if TYPE_CHECKING:
    import uvicorn

HOST = "127.0.0.1"


@dataclass(frozen=True)
class LensOptions:
    """Play with h, f and depth in the browser: theory and a small live measurement, side by side.

    The page is served to this machine only; Ctrl-C ends it.
    """

    port: Whole = 0
    """The port to listen on; 0 takes a free one."""
    no_browser: Switch = False
    """Do not open the browser; only print the address."""
    unit: OwnUnit = None
    """A unit of your own, or a shortcut, branch or arrangement, that the page offers. The file's code
    runs."""


def execute(options: LensOptions) -> int:
    """Serves the page until Ctrl-C."""
    server, listening = _server(options.unit), _listening(options.port)
    with listening:
        address = f"http://{HOST}:{listening.getsockname()[1]}/"
        print_line(f"lens: {address}  (Ctrl-C ends it)")
        if not options.no_browser:
            webbrowser.open(address)
        server.run(sockets=[listening])
    return 0


def _server(unit: str | None) -> uvicorn.Server:
    try:
        import uvicorn

        from kilolayer.report.lens.app import application
    except ImportError as error:
        if (error.name or "").startswith("kilolayer"):
            raise
        raise InputError("the lens needs starlette and uvicorn: pip install 'kilolayer[lens]'") from error
    own = load_part(unit)[1] if unit else None
    name = unit.rpartition(":")[2] if unit else ""
    return uvicorn.Server(
        uvicorn.Config(
            application(own, name), log_level="warning", lifespan="off", timeout_graceful_shutdown=2
        )
    )


def _listening(port: int) -> socket.socket:
    if not 0 <= port < 2**16:
        raise InputError(f"--port is {port}; allowed: 0 to {2**16 - 1}")
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        raise InputError(f"--port {port} cannot be used: {error.strerror}; 0 takes a free one") from None
