"""The composition root: everything is made here, once, and handed to whoever needs it."""

import asyncio
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route, WebSocketRoute

from graphql_api.auth import Doorkeeper
from graphql_api.execution.http import GraphQLOverHTTP
from graphql_api.execution.plan import Plans
from graphql_api.execution.websocket import GraphQLOverWebSocket
from graphql_api.schema import schema
from graphql_api.settings import Settings
from graphql_api.tokens import Tokens
from storage import Storage

PATH = "/graphql"


def build_app(settings: Settings, storage: Storage, stopping: asyncio.Event) -> Starlette:
    """The ASGI application. `stopping` is set when the server begins to stop: streams end, and it is not ready."""
    doorkeeper = Doorkeeper(settings.access, storage.keys, Tokens(settings))
    plans = Plans(schema)
    http = GraphQLOverHTTP(
        storage,
        plans,
        doorkeeper,
        explorer=settings.explorer == "on",
        body_bytes_max=settings.body_bytes_max,
        body_timeout_s=settings.body_timeout_ms / 1000,
        stopping=stopping,
    )
    websocket = GraphQLOverWebSocket(
        storage,
        plans,
        doorkeeper,
        allowed_origins=settings.allowed_origins,
        connection_init_timeout_s=settings.connection_init_timeout_ms / 1000,
        operations_max=settings.operations_per_socket_max,
    )

    async def healthz(_: Request) -> Response:
        """Whether the process is alive; nothing outside of it is asked."""
        return JSONResponse({"status": "alive"})

    async def readyz(_: Request) -> Response:
        """Whether requests can be served, and what is missing if not."""
        checks = {**await storage.check(), "running": not stopping.is_set()}
        ready = all(checks.values())
        return JSONResponse({"status": "ready" if ready else "not ready", "checks": checks}, 200 if ready else 503)

    async def home(_: Request) -> Response:
        """Lead people who open the server in a browser to the explorer."""
        return RedirectResponse(PATH)

    origins: Any = list(settings.allowed_origins)
    cors = Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type"],
        max_age=600,
    )
    return Starlette(
        routes=[
            Route(PATH, http),
            WebSocketRoute(PATH, websocket),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/", home),
        ],
        middleware=[cors] if origins else [],
    )
