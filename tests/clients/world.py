"""A server that is killed and comes back on its port, and clients as programs that print what they see."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from storage import Permission, open_storage
from tests.docs.pages import BIN, TOP, surroundings
from tests.faults.ports import HOST, free_port
from tests.faults.processes import Server
from tests.graphql_api.clients import data

# How long anything that a client waits for may take: it may have to connect again, on a slow machine.
WAIT_S: Final = 60.0


@dataclass
class Client:
    """A program that watches, and the lines that it has printed."""

    process: asyncio.subprocess.Process
    lines: list[str] = field(default_factory=list)

    async def until(self, wanted: str) -> None:
        """Wait for a line, after those that were waited for before."""
        assert self.process.stdout is not None
        async with asyncio.timeout(WAIT_S):
            while line := (await self.process.stdout.readline()).decode():
                self.lines.append(line.rstrip("\n"))
                if self.lines[-1] == wanted:
                    return
        raise AssertionError(f"{wanted!r} was not printed, but {self.lines}")

    async def say(self, line: str) -> None:
        """Tell it something on its input."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        await self.process.stdin.drain()

    def hang_up(self) -> None:
        """Tell it nothing more."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    async def end(self) -> int:
        """Wait for its end; the status."""
        assert self.process.stdout is not None
        async with asyncio.timeout(WAIT_S):
            self.lines += (await self.process.stdout.read()).decode().splitlines()
            return await self.process.wait()

    @property
    def events(self) -> list[str]:
        """What it printed of events."""
        return [line for line in self.lines if line.startswith("event ")]


@dataclass
class World:
    """The server, the way to it, and who may do everything there."""

    server: Server
    http: httpx.AsyncClient
    key: str
    _stack: AsyncExitStack

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server.port}/graphql"

    async def ask(self, document: str, **variables: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.key}"}
        answer = await self.http.post(self.url, json={"query": document, "variables": variables}, headers=headers)
        (value,) = data(answer.json()).values()
        return value

    async def create(self, task_id: str) -> None:
        await self.ask("mutation($id: ID!) { create(taskId: $id) { seq } }", id=task_id)

    async def report(self, task_id: str, progress: int) -> None:
        await self.ask(
            "mutation($id: ID!, $p: Int!) { updateProgress(taskId: $id, progress: $p) { seq } }", id=task_id, p=progress
        )

    async def complete(self, task_id: str) -> None:
        await self.ask("mutation($id: ID!) { complete(taskId: $id) { seq } }", id=task_id)

    async def delete(self, task_id: str) -> None:
        await self.ask("mutation($id: ID!) { delete(taskId: $id) }", id=task_id)

    async def start(self) -> None:
        """Let the server serve."""
        await self.server.start()
        assert await self.server.ready(), self.server.last_words()

    async def killed(self) -> None:
        """The server dies, as by a power cut, and is started again."""
        await self.server.kill()
        await self.start()

    async def client(self, *command: str | Path, key: str = "", folder: Path = TOP) -> Client:
        """A program that watches; it ends with the test."""
        settings = {"SPECTRAL_URL": self.url, **({"SPECTRAL_KEY": key} if key else {})}
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=folder,
            env={**surroundings(), **settings},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )

        async def end() -> None:
            if process.returncode is None:
                process.kill()
            # Until it is read to its end, its pipe is open.
            await process.communicate()

        self._stack.push_async_callback(end)
        return Client(process)


@asynccontextmanager
async def world(database: str, log: Path, settings: Sequence[tuple[str, str]] = ()) -> AsyncIterator[World]:
    """A server on a database."""
    async with open_storage(database) as storage:
        key = await storage.keys.create("admin", [Permission.ADMIN])
    port = free_port()
    environment = surroundings(
        SPECTRAL_DATABASE_URL=database, SPECTRAL_HOST=HOST, SPECTRAL_PORT=str(port), **dict(settings)
    )
    server = Server("the server", [os.fspath(BIN / "spectral-notify"), "serve"], environment, log, port)
    async with (
        server,
        httpx.AsyncClient(timeout=WAIT_S, trust_env=False) as http,
        AsyncExitStack() as stack,
    ):
        made = World(server, http, key, stack)
        await made.start()
        yield made
