"""A real server in the loop of the test: uvicorn on a socket of its own, over a storage with a fresh database."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, TypeAlias

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import make_url

from graphql_api.app import build_app
from graphql_api.server import Server, _listening, _uvicorn_config, open_configured_storage
from graphql_api.settings import PREFIX, Settings
from storage import Permission
from tests.graphql_api.clients import WAIT_S, Api
from tests.postgres import execute

# All that these tests say holds for both ways of running an operation; `make test-interpreted` asks for the other.
EXECUTION: Final = os.environ.get("TEST_EXECUTION", "compiled")

Serving: TypeAlias = Callable[..., AbstractAsyncContextManager[Api]]
"""Takes settings, by name, and serves with them."""


class _PromptServer(Server):
    """The server, which says when it can be reached, and stops at once instead of at its next look at the clock."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.reachable = asyncio.Event()
        self._asked = asyncio.Event()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        self.reachable.set()
        await self._asked.wait()

    def stop(self) -> None:
        super().stop()
        self._asked.set()


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)


@pytest.fixture
def serving(database: str) -> Serving:
    admin_key = ""

    @asynccontextmanager
    async def serve(**options: Any) -> AsyncIterator[Api]:
        nonlocal admin_key
        # What time makes due is done only where a test is about it.
        timers = options.pop("timers", False)
        feed_url = options.pop("feed", None)
        options.setdefault("migrate_on_start", False)
        options.setdefault("execution", EXECUTION)
        settings = Settings(database_url=SecretStr(database), **options)
        with _listening("127.0.0.1", 0) as listener:
            origin = f"http://127.0.0.1:{listener.getsockname()[1]}"
            async with open_configured_storage(settings, database, feed_url=feed_url, timers=timers) as storage:
                admin_key = admin_key or await storage.keys.create("admin", [Permission.ADMIN])
                stopping = asyncio.Event()
                app = build_app(settings, storage, stopping)
                server = _PromptServer(_uvicorn_config(settings, app))
                serving = asyncio.create_task(server.serve(sockets=[listener]), name="server")
                await server.reachable.wait()
                try:
                    async with httpx.AsyncClient(base_url=origin, timeout=WAIT_S, trust_env=False) as http:
                        yield Api(origin, storage, server, stopping, http, admin_key)
                finally:
                    stopping.set()
                    server.stop()
                    await serving
                assert storage.feed.subscribers == 0, "a subscription outlived the server"
                assert storage.live.subscribers == 0, "a list is watched by nobody"
                assert len(app.websocket.doorkeeper.vigil) == 0, "a credential is watched over for nobody"

    return serve


Outage: TypeAlias = Callable[[], AbstractAsyncContextManager[None]]
"""While it lasts, the database ends every session and takes no new one."""


@pytest.fixture
def outage(database: str, server: str) -> Outage:
    name = make_url(database).database

    @asynccontextmanager
    async def last() -> AsyncIterator[None]:
        await execute(server, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        try:
            await execute(
                server, f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{name}'"
            )
            yield
        finally:
            await execute(server, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")

    return last
