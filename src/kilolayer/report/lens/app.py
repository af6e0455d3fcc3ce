"""The lens as a web application: one page, and two addresses that its script requests."""

from __future__ import annotations

from functools import partial
from threading import Event
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from kilolayer.errors import InputError
from kilolayer.report import page_assets
from kilolayer.report.lab import equation_markup
from kilolayer.report.lens.measurement import measure_lens_network
from kilolayer.report.lens.settings import (
    BRANCHES,
    OWN,
    RANGES,
    SHORTCUTS,
    SLIDERS,
    LensSettings,
    Part,
    own_parts,
    words,
)
from kilolayer.report.lens.view import lens_response
from kilolayer.report.page import template_environment

if TYPE_CHECKING:
    from starlette.requests import Request

POLL = 0.05
"""Seconds between two checks whether the browser is still connected."""


def application(user_part: Part | None = None, name: str = "") -> Starlette:
    """The application. It answers only to names of this machine, so that no other page can use it.

    `user_part` is a unit of your own, or a part of one, which the page offers under `name`.
    """
    limiter = anyio.CapacityLimiter(1)

    async def predicted(request: Request) -> Response:
        return JSONResponse(
            await anyio.to_thread.run_sync(
                lens_response, LensSettings.from_query(request.query_params, user_part)
            )
        )

    async def measured(request: Request) -> Response:
        """The prediction and the measurement, which stops as soon as the page requests another one."""
        choice, cancelled = LensSettings.from_query(request.query_params, user_part), Event()
        answer: list[dict[str, Any] | None] = []

        async def watch() -> None:
            try:
                while not await request.is_disconnected():
                    await anyio.sleep(POLL)
            finally:
                cancelled.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            work = partial(_measure_choice, choice, cancelled)
            answer.append(await anyio.to_thread.run_sync(work, limiter=limiter))
            tasks.cancel_scope.cancel()
        return JSONResponse(answer[0])

    script = f"/plotly-{page_assets.plotly_version()}.js"
    routes = [
        Route("/", partial(_page, render_lens(script, user_part, name))),
        Route(script, _script),
        Route("/predict", predicted),
        Route("/measure", measured),
    ]
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    return Starlette(routes=routes, middleware=[hosts], exception_handlers={InputError: _error_response})


def _measure_choice(choice: LensSettings, cancelled: Event) -> dict[str, Any] | None:
    network = choice.network()
    propagation = (
        None if cancelled.is_set() else measure_lens_network(network, choice.images, cancelled.is_set)
    )
    return lens_response(choice, propagation) if propagation else None


async def _page(page: str, request: Request) -> Response:
    return HTMLResponse(page)


async def _script(request: Request) -> Response:
    """Plotly's script. Its address has its version, so that a browser requests it only once."""
    headers = {"cache-control": "public, max-age=31536000, immutable"}
    return Response(page_assets.plotly_js(), media_type="text/javascript", headers=headers)


def render_lens(script: str, user_part: Part | None = None, name: str = "") -> str:
    """The page as HTML. Plotly's script, at the address `script`, and the figures are requested later."""
    environment = template_environment()
    environment.filters["equation"] = equation_markup
    template = environment.from_string(page_assets.read_asset("page.html.j2", __package__))
    branches = {word: unit.branch for word, unit in BRANCHES.items()}
    if (branch := own_parts(user_part).get("branch")) is not None:
        branches[OWN] = branch
    steps = {word: 3 * branch.layers for word, branch in branches.items()}
    sliders = {
        slider: " ".join(word for word, kind in SHORTCUTS.items() if field in kind.numbers)
        for field, slider in SLIDERS.items()
    }
    return template.render(
        choice=LensSettings.with_own(user_part),
        words=words(user_part),
        own_name=name,
        ranges=RANGES,
        steps=steps,
        sliders=sliders,
        plotly=script,
        **page_assets.embedded_assets(
            [page_assets.read_asset("charts.js"), page_assets.read_asset("lens.js", __package__)],
            [
                page_assets.read_asset("page.css"),
                page_assets.read_asset("lab.css"),
                page_assets.read_asset("lens.css", __package__),
            ],
        ),
    )


async def _error_response(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 400)
