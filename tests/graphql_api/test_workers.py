"""Several processes behind one port: what one changes, the subscribers of all see, and a dead one is replaced."""

import asyncio
import os
import signal
import socket
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import httpx

from graphql_api.workers import Workers
from storage import Create, open_storage
from tests.graphql_api.clients import WAIT_S, Socket, data
from tests.graphql_api.test_server import ends_with, program, watching
from tests.storage.helpers import submit

WORKERS: Final = 2
NOTE: Final = 'mutation { addEvent(taskId: "T", event: { eventType: LOG, message: "m" }) { seq } }'


def children(pid: int) -> set[int]:
    """The worker processes of a server."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                words = (entry / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if parent == pid and b"spawn_main" in words:
                found.add(int(entry.name))
    return found


async def until(condition: Any) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - processes come and go by themselves
            await asyncio.sleep(0.01)


def sockets_of(pid: int) -> int:
    """How many sockets a process has open."""
    return sum(str(file.readlink()).startswith("socket:") for file in Path(f"/proc/{pid}/fd").iterdir())


async def test_workers_share_a_port_and_hear_each_other(database: str) -> None:
    async with open_storage(database) as storage:
        await submit(storage, Create(task_id="T"))
    async with (
        program("serve", "--workers", str(WORKERS), SPECTRAL_DATABASE_URL=database) as server,
        httpx.AsyncClient(timeout=WAIT_S, trust_env=False) as http,
        AsyncExitStack() as sockets,
    ):
        url = await server.url()
        workers = children(server.process.pid)
        assert len(workers) == WORKERS
        before = {pid: sockets_of(pid) for pid in workers}
        watchers: list[Socket] = []
        # Whichever takes a connection: with enough of them each has some.
        async with asyncio.timeout(WAIT_S):
            while len(watchers) < 8 or any(sockets_of(pid) <= before[pid] for pid in workers):
                watchers.append(await sockets.enter_async_context(watching(url, "T")))
        for seq in range(2, 7):
            data((await http.post(url, json={"query": NOTE})).json())
            for watcher in watchers:
                update = (await watcher.take())["payload"]["data"]["taskUpdates"]
                assert update["task"]["seq"] == seq

        killed = min(workers)
        os.kill(killed, signal.SIGKILL)
        await until(lambda: len(children(server.process.pid) - {killed}) == WORKERS)
        server.terminate()
        assert await server.ended() == 0
    assert any("another takes its place" in line for line in server.log)
    assert "Traceback" not in "".join(server.log)


async def test_workers_do_not_outlive_their_parent(database: str) -> None:
    async with program("serve", SPECTRAL_WORKERS=WORKERS, SPECTRAL_DATABASE_URL=database) as server:
        await server.url()
        workers = children(server.process.pid)
        assert len(workers) == WORKERS
        server.process.kill()
        await server.process.wait()
        await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


async def test_workers_that_cannot_start_stop_the_start(database: str) -> None:
    ended = await ends_with(
        1, "serve", "--workers", str(WORKERS), SPECTRAL_DATABASE_URL=database, SPECTRAL_JWT_PUBLIC_KEY_FILE="/nowhere"
    )
    assert "/nowhere" in "".join(ended.log)
    assert "Traceback" not in "".join(ended.log)


async def test_an_answer_that_breaks_off_is_none() -> None:
    workers = Workers(print, count=1, end_within_s=1.0)
    ours, its = socket.socketpair()
    ready = asyncio.Event()
    hearing = asyncio.create_task(workers._hear(0, ours, ready))
    reader, writer = await asyncio.open_unix_connection(sock=its)
    writer.write(b"ready\n")
    await ready.wait()
    asking = asyncio.create_task(workers.ask(WAIT_S))
    await reader.readline()
    writer.write(b'[["half')
    # As a process does that is killed.
    writer.transport.abort()
    assert await asking == {0: None}
    await hearing
