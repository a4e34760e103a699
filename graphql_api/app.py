"""The application: its endpoints, and what each is given.

The two that carry GraphQL are reached without a router before them; all else is Starlette's.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from graphql_api import pages
from graphql_api.admission import Admission
from graphql_api.auth import Doorkeeper
from graphql_api.execution.http import SAFE_HEADERS, GraphQLOverHTTP
from graphql_api.execution.operations import read_operations
from graphql_api.execution.plan import Plans
from graphql_api.execution.websocket import GraphQLOverWebSocket
from graphql_api.schema import schema
from graphql_api.settings import Settings
from graphql_api.tokens import Tokens
from graphql_api.wire.http import Endpoint
from storage import Storage

if TYPE_CHECKING:
    from graphql_api.traces import Traces

PATH: Final = "/graphql"
CHECK_BELIEVED_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class App:
    """What is served: all requests as ASGI has them, those to GraphQL without it, and sockets."""

    asgi: ASGIApp
    http: Endpoint
    websocket: GraphQLOverWebSocket
    plans: Plans


def build_app(settings: Settings, storage: Storage, stopping: asyncio.Event, traces: "Traces | None" = None) -> App:
    """The application. `stopping` is set when the server begins to stop: streams end, and it is not ready."""
    doorkeeper = Doorkeeper(settings.access, storage.keys, storage.task_tokens, Tokens(settings))
    admission = Admission(settings, doorkeeper)
    plans = (Plans if traces is None else traces.plans)(
        schema,
        compiled=settings.execution == "compiled",
        introspection=settings.introspection == "on",
        operations=read_operations(settings.operations) if settings.operations else None,
        complexity_max=settings.complexity_max,
        query_timeout_s=settings.query_timeout_ms / 1000,
    )
    shown = pages.Pages(pages.BUILT, dashboard=settings.dashboard == "on", explorer=settings.explorer == "on")
    http = GraphQLOverHTTP(
        storage,
        plans,
        doorkeeper,
        admission,
        page=shown.explorer if settings.explorer == "on" else None,
        vary_by_origin=bool(settings.allowed_origins),
        body_bytes_max=settings.body_bytes_max,
        body_timeout_s=settings.body_timeout_ms / 1000,
        stopping=stopping,
    )
    websocket = GraphQLOverWebSocket(
        PATH,
        storage,
        plans,
        doorkeeper,
        admission,
        allowed_origins=settings.allowed_origins,
        connection_init_timeout_s=settings.connection_init_timeout_ms / 1000,
        messages_per_second_max=settings.messages_per_second_per_socket_max,
        idle_timeout_s=settings.socket_idle_timeout_ms / 1000,
        operations_max=settings.operations_per_socket_max,
        message_bytes_max=settings.body_bytes_max,
        # One of the largest size, and as much again for all others.
        open_bytes_max=2 * settings.body_bytes_max,
    )
    if traces is None:
        return App(_routed(settings, storage, http, shown, stopping), http, websocket, plans)
    storage.writer.tracer = storage.feed.tracer = traces
    traced = traces.endpoint(http)
    return App(_routed(settings, storage, traced, shown, stopping), traced, websocket, plans)


def _routed(settings: Settings, storage: Storage, graphql: ASGIApp, shown: ASGIApp, stopping: asyncio.Event) -> ASGIApp:
    async def healthz(_: Request) -> Response:
        """Whether the process is alive; nothing outside of it is asked."""
        return JSONResponse({"status": "alive"}, headers=SAFE_HEADERS)

    check = _Believed(storage.check)

    async def readyz(_: Request) -> Response:
        """Whether requests can be served, and what is missing if not."""
        checks = {**await check(), "running": not stopping.is_set()}
        ready = all(checks.values())
        # A feed that is degraded is late by seconds, which is no reason to send clients elsewhere.
        answer = {"status": "ready" if ready else "not ready", "checks": checks, "feed": storage.feed_health}
        return JSONResponse(answer, 200 if ready else 503, SAFE_HEADERS)

    others = Starlette(routes=[Route("/healthz", healthz), Route("/readyz", readyz)])
    others.router.default = shown
    # The redirect would lead to whatever host the request names.
    others.router.redirect_slashes = False

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        """Lead to GraphQL at once, and to everything else by Starlette."""
        endpoint = graphql if scope["path"] == PATH else others
        await endpoint(scope, receive, send)

    origins = list(settings.allowed_origins)
    if not origins:
        return route
    return CORSMiddleware(
        route,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type", "X-Request-Id"],
        expose_headers=["X-Request-Id"],
        max_age=600,
    )


class _Believed:
    """A check that is made once for all who ask within a second; probes must not take the database from users."""

    def __init__(self, check: Callable[[], Awaitable[dict[str, bool]]]) -> None:
        self._check = check
        self._lock = asyncio.Lock()
        self._found: dict[str, bool] = {}
        self._believed_until = 0.0

    async def __call__(self) -> dict[str, bool]:
        async with self._lock:
            if time.monotonic() >= self._believed_until:
                self._found = await self._check()
                self._believed_until = time.monotonic() + CHECK_BELIEVED_S
        return self._found
