"""A server as a process of its own, and somebody who creates tasks there and looks at them."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import httpx

from storage import Permission, open_storage
from tests.graphql_api.clients import WAIT_S, data
from tests.graphql_api.test_server import Program, program
from worker import Worker

LOOK: Final = """
query ($id: ID!) {
  task(taskId: $id) {
    status progress attempt nextAttemptAt worker leaseExpiresAt
    lastEvent { message metadata }
    history(last: 1000) { eventType message progress metadata }
  }
}"""
CREATE: Final = """
mutation ($id: ID!, $metadata: JSON, $options: TaskOptions) {
  create(taskId: $id, metadata: $metadata, options: $options) { seq }
}"""
CANCEL: Final = "mutation ($id: ID!) { cancel(taskId: $id) { seq } }"


@dataclass
class World:
    """The server and the way to it."""

    url: str
    key: str
    http: httpx.AsyncClient
    server: Program

    async def ask(self, document: str, **variables: Any) -> Any:
        body = {"query": document, "variables": variables}
        headers = {"Authorization": f"Bearer {self.key}"}
        answer = await self.http.post(self.url, json=body, headers=headers)
        (value,) = data(answer.json()).values()
        return value

    async def create(self, task_id: str, *, metadata: Any = None, attempts: int = 1) -> None:
        """A task that workers of the queue "video" may claim; a failed attempt is followed by another at once."""
        retry = {"maxAttempts": attempts, "initialDelaySeconds": 0}
        await self.ask(CREATE, id=task_id, metadata=metadata, options={"queue": "video", "retry": retry})

    async def cancel(self, task_id: str) -> None:
        await self.ask(CANCEL, id=task_id)

    async def look(self, task_id: str) -> Any:
        return await self.ask(LOOK, id=task_id)

    def worker(self, **options: Any) -> Worker:
        return Worker(self.url, self.key, **{"queue": "video", "name": "host-1", **options})


@asynccontextmanager
async def world(database: str, **settings: Any) -> AsyncIterator[World]:
    async with open_storage(database) as storage:
        key = await storage.keys.create("admin", [Permission.ADMIN])
    async with (
        program("serve", SPECTRAL_DATABASE_URL=database, **settings) as server,
        httpx.AsyncClient(timeout=WAIT_S, trust_env=False) as http,
    ):
        yield World(await server.url(), key, http, server)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


__all__ = ["CREATE", "WAIT_S", "World", "free_port", "world"]
