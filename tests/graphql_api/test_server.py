"""The program as a process: how it starts, what it says, and how it ends."""

import asyncio
import os
import re
import shlex
import signal
import socket
import stat
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from websockets.asyncio.client import connect

from graphql_api.execution.websocket import PROTOCOL
from graphql_api.settings import PREFIX
from storage import Create, Status, open_storage
from tests.graphql_api.clients import WAIT_S, Socket, data
from tests.postgres import session
from tests.storage.helpers import until_blocked

# What is promised: how long the end may take.
STOP_S: Final = 10.0
CANCEL: Final = "mutation($id: ID!) { cancel(taskId: $id) { status } }"


@dataclass
class Program:
    """The program while it runs, and after."""

    process: asyncio.subprocess.Process
    log: list[str] = field(default_factory=list)
    printed: str = ""

    async def url(self) -> str:
        """Where it serves, which it says on stderr."""
        assert self.process.stderr is not None
        while line := (await self.process.stderr.readline()).decode():
            self.log.append(line)
            if found := re.search(r" serves (http://\S+) with access ", line):
                return found[1]
        raise AssertionError(f"the program ended: {self.log}")

    async def until_printed(self, end: str, *, after: str) -> str:
        """What it prints on stdout between two marks."""
        assert self.process.stdout is not None
        async with asyncio.timeout(WAIT_S):
            while end not in self.printed.partition(after)[2]:
                self.printed += (await self.process.stdout.readline()).decode()
        return self.printed.partition(after)[2].partition(end)[0]

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    async def ended(self) -> int:
        """Wait for the end; what it said is in `log` and `printed` then."""
        async with asyncio.timeout(WAIT_S):
            out, err = await self.process.communicate()
        self.printed += out.decode()
        self.log += err.decode().splitlines(keepends=True)
        assert self.process.returncode is not None
        return self.process.returncode


@asynccontextmanager
async def program(*arguments: str, **environ: Any) -> AsyncIterator[Program]:
    """Run the program with these settings and no others; end it if it still runs."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    settings = {"SPECTRAL_PORT": "0", **{name: str(value) for name, value in environ.items()}}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "graphql_api", *arguments),
        env={**outside, **settings},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    running = Program(process)
    try:
        yield running
    finally:
        if process.returncode is None:
            running.terminate()
            try:
                await running.ended()
            except TimeoutError:
                process.kill()
                await process.wait()
                raise


async def ends_with(code: int, *arguments: str, **environ: Any) -> Program:
    """Run the program to its end."""
    async with program(*arguments, **environ) as ran:
        assert await ran.ended() == code, ran.log
    return ran


async def waits_for_a_lock(database: str) -> None:
    """The program has come to where it must wait for somebody else."""
    async with asyncio.timeout(WAIT_S):
        await until_blocked(database)


@asynccontextmanager
async def watching(url: str, task_id: str) -> AsyncIterator[Socket]:
    """A socket that has seen the snapshot of a task."""
    protocols: Any = [PROTOCOL]
    async with connect(url.replace("http", "ws"), subprotocols=protocols, proxy=None) as wire:
        client = Socket(wire)
        await client.init()
        await client.update(await client.watch(task_id))
        yield client


async def test_what_was_accepted_is_finished_when_the_server_is_told_to_stop(database: str) -> None:
    async with open_storage(database) as storage:
        for task_id in ("by http", "by socket", "quiet"):
            await storage.writer.submit(Create(task_id=task_id))
    async with (
        program("serve", SPECTRAL_DATABASE_URL=database, SPECTRAL_LOCK_TIMEOUT_MS=60_000) as server,
        httpx.AsyncClient(timeout=WAIT_S, trust_env=False) as http,
        session(database) as other,
    ):
        url = await server.url()
        async with watching(url, "quiet") as first, watching(url, "by http") as second:
            async with other.transaction():
                # While somebody else holds the rows, nothing can be written.
                await other.execute("SELECT 1 FROM tasks FOR UPDATE")
                body = {"query": CANCEL, "variables": {"id": "by http"}}
                request = asyncio.create_task(http.post(url, json=body))
                await waits_for_a_lock(database)
                await second.subscribe(CANCEL, {"id": "by socket"})
                await second.say({"type": "ping"})
                assert await second.take() == {"type": "pong"}

                asked_at = time.monotonic()
                server.terminate()
                for client in (first, second):
                    assert (await client.closed())[0] in (1001, 1012)
                with pytest.raises(httpx.ConnectError):
                    await http.get(url)
                assert not request.done()
            response = await request
            assert data(response.json()) == {"cancel": {"status": "CANCELED"}}
        assert await server.ended() == 0
        assert time.monotonic() - asked_at < STOP_S
        assert not [line for line in server.log if "Traceback" in line or " ERROR " in line]
    async with open_storage(database) as storage:
        found = [await storage.reader.task(task_id) for task_id in ("by http", "by socket", "quiet")]
    assert [task and task.status for task in found] == [Status.CANCELED, Status.CANCELED, Status.PENDING]


async def test_a_client_that_never_ends_its_request_does_not_keep_the_server_from_stopping(database: str) -> None:
    async with program(
        "serve", SPECTRAL_DATABASE_URL=database, SPECTRAL_SHUTDOWN_TIMEOUT_MS=100, SPECTRAL_BODY_TIMEOUT_MS=60_000
    ) as server:
        url = httpx.URL(await server.url())
        _, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(
            b"POST /graphql HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
        )
        async with httpx.AsyncClient(trust_env=False) as http:
            # By the time this is answered, the other was read too.
            assert (await http.get(url.copy_with(path="/readyz"))).status_code == 200
        asked_at = time.monotonic()
        server.terminate()
        assert await server.ended() == 0
        assert time.monotonic() - asked_at < STOP_S
        writer.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_server_that_is_stopped_while_it_starts_ends_in_order(database: str, number: signal.Signals) -> None:
    async with session(database) as other, other.transaction():
        # The program waits for this before it can read which schema it finds.
        await other.execute("LOCK TABLE alembic_version")
        async with program("serve", SPECTRAL_DATABASE_URL=database) as server:
            await waits_for_a_lock(database)
            server.process.send_signal(number)
            assert await server.ended() == 0
    assert "Traceback" not in "".join(server.log)


async def test_a_port_that_is_taken_is_one_sentence(database: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = await ends_with(1, "serve", SPECTRAL_DATABASE_URL=database, SPECTRAL_PORT=port)
    (sentence,) = ended.log
    assert sentence.startswith(f"spectral-notify: Port {port} on 127.0.0.1 cannot be taken: ")
    assert "SPECTRAL_PORT" in sentence


async def test_a_database_of_one_s_own_comes_without_a_key(database: str) -> None:
    async with program("serve", SPECTRAL_DATABASE_URL=database) as server:
        await server.url()
        server.terminate()
        assert await server.ended() == 0
    assert server.printed == ""
    assert "spn_" not in "".join(server.log)


@pytest.fixture
def data_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="spectral-test-", dir="/tmp") as folder:
        yield Path(folder) / "data"


async def test_a_data_folder_serves_from_its_first_start_on(data_dir: Path) -> None:
    async with httpx.AsyncClient(timeout=WAIT_S, trust_env=False) as http:
        async with program("serve", SPECTRAL_DATA_DIR=data_dir) as server:
            url = await server.url()
            # The line that was printed, once, does what it says.
            command = shlex.split(await server.until_printed("\n\n", after="  curl "))
            headers = dict(command[at + 1].split(": ") for at, word in enumerate(command) if word == "-H")
            created = await http.post(command[0], headers=headers, content=command[command.index("-d") + 1])
            assert command[0] == url
            assert data(created.json())["create"]["taskId"] == "first"

            # Its key is also in a file that only its owner may read.
            file = data_dir / "admin.key"
            assert headers["Authorization"] == f"Bearer {await asyncio.to_thread(file.read_text)}".rstrip()
            assert stat.S_IMODE((await asyncio.to_thread(file.stat)).st_mode) == 0o600

            # Beside the server: another key, which works at once, and a second server, which does not.
            made, second = await asyncio.gather(
                ends_with(0, "keys", "create", "worker", "--permission", "READ", SPECTRAL_DATA_DIR=data_dir),
                ends_with(1, "serve", SPECTRAL_DATA_DIR=data_dir),
            )
            assert re.fullmatch(r"spn_\S+\n", made.printed)
            (recorded,) = made.log
            assert "spectral.audit: api_key.create actor=" in recorded
            assert made.printed.strip() not in recorded
            query = {"query": "{ viewer { name permissions } }"}
            viewer = await http.post(url, json=query, headers={"Authorization": f"Bearer {made.printed.strip()}"})
            assert data(viewer.json())["viewer"] == {"name": "worker", "permissions": ["READ", "REPORT"]}
            assert "already runs" in "".join(second.log)
            assert str(data_dir) in "".join(second.log)
            assert second.printed == ""
            listed = await ends_with(0, "keys", "list", SPECTRAL_DATA_DIR=data_dir)
            assert {line.split()[0] for line in listed.printed.splitlines()} == {"NAME", "admin", "worker"}
            server.terminate()
            assert await server.ended() == 0
        assert server.printed.count(" curl ") == 1
        # Where there is no Node.js, it says that there are no pages.
        said = [line for line in server.log if "make web" not in line]
        assert not [line for line in said if "spn_" in line or " WARNING " in line or " ERROR " in line]

        async with program("serve", SPECTRAL_DATA_DIR=data_dir) as server:
            url = await server.url()
            query = {"query": '{ task(taskId: "first") { createdBy } }'}
            assert data((await http.post(url, json=query)).json()) == {"task": {"createdBy": "admin"}}
            server.terminate()
            assert await server.ended() == 0
        assert server.printed == ""
        # Where there is no Node.js, it says that there are no pages.
        said = [line for line in server.log if "make web" not in line]
        assert not [line for line in said if "spn_" in line or " WARNING " in line or " ERROR " in line]
