"""A server as a process of its own, as it runs for users, and a client that looks at everything it answers."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from graphql_api.settings import PREFIX
from storage import Create, Permission, open_storage
from tests.graphql_api.clients import WAIT_S
from tests.storage.helpers import submit

# The tasks that are there.
TASK_IDS: Final = ("id-1", "12")
# What no bound explains any more.
GROWTH_BYTES_MAX: Final = 96 * 1024 * 1024
STATUSES: Final = {200, 307, 400, 401, 403, 404, 405, 406, 408, 413, 415, 429, 431}
# The protocol's own, and those of WebSockets for frames and texts that are none.
CLOSINGS: Final = {1000, 1002, 1003, 1005, 1007, 1008, 1009, 4400, 4401, 4403, 4408, 4409, 4429}
SIMPLE: Final = b'{"query":"{viewer{name}}"}'
JSON: Final = {"Content-Type": "application/json"}
# Answered by whoever was introduced to; others are closed for it.
LAST: Final = '{"id":"last","type":"subscribe","payload":{"query":"{viewer{name}}"}}'


class Target:
    """The server, and what it has answered so far."""

    def __init__(self, port: int, pid: int, key: str) -> None:
        self.port = port
        self.key = key
        self.answers: Counter[Any] = Counter()
        self._pid = pid
        self._connection: socket.socket | None = None

    def rss_bytes(self) -> int:
        """The memory that the process has in RAM."""
        return int(Path(f"/proc/{self._pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def ask(self, method: str, target: str, headers: dict[str, str], body: bytes) -> None:
        """Send a request, and see that the answer is one."""
        head = [f"{method} {target} HTTP/1.1", "Host: server", f"Authorization: Bearer {self.key}"]
        head += [f"{name}: {value}" for name, value in headers.items()]
        request = "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode("latin-1", "replace") + body
        if self._connection is None:
            self._connection = socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_S)
        self._connection.sendall(request)
        status, sent, content = self._answer()
        self.answers[status] += 1
        if status == 503:
            assert json.loads(content)["errors"][0]["extensions"]["code"] == "UNAVAILABLE", content
        else:
            assert status in STATUSES, (status, content)
        assert b"INTERNAL_SERVER_ERROR" not in content, content
        if "json" in sent.get("content-type", ""):
            assert json.loads(content).keys() & {"data", "errors"}, content

    def _answer(self) -> tuple[int, dict[str, str], bytes]:
        assert self._connection is not None
        with self._connection.makefile("rb") as file:
            status = int(file.readline().split()[1])
            headers = {}
            while line := file.readline().strip():
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
            stream = "content-length" not in headers
            content = b"" if stream else file.read(int(headers["content-length"]))
        if stream or headers.get("connection") == "close":
            self._connection.close()
            self._connection = None
        return status, headers, content

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()

    def open_socket(self) -> ClientConnection:
        """A socket over which nothing was said yet."""
        return connect(
            f"ws://127.0.0.1:{self.port}/graphql",
            subprotocols=[Subprotocol("graphql-transport-ws")],
            additional_headers={"Authorization": f"Bearer {self.key}"},
            compression=None,
            open_timeout=WAIT_S,
            proxy=None,
        )

    def talk(self, messages: Sequence[str], frames: bytes) -> None:
        """Send messages and then bytes over a socket, and see that it goes on, or is closed for a reason."""
        try:
            with self.open_socket() as client:
                for message in messages:
                    client.send(message.encode(errors="surrogatepass"), text=True)
                if frames:
                    # It may have been closed by now.
                    with suppress(OSError):
                        client.socket.sendall(frames)
                        client.socket.shutdown(socket.SHUT_WR)
                else:
                    client.send(LAST)
                while '"id":"last"' not in (answer := client.recv(WAIT_S, decode=True)):
                    assert "INTERNAL_SERVER_ERROR" not in answer, answer
                    self.answers[json.loads(answer)["type"]] += 1
                self.answers["alive"] += 1
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd else None
            self.answers[code] += 1
            assert code in CLOSINGS or (code is None and frames), closed


@contextmanager
def serving(database: str, **settings: str) -> Iterator[Target]:
    """A server that must be up at the end, as large as before, with nothing in its log that is a fault of its own."""
    key = asyncio.run(_prepare(database))
    outside = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    with subprocess.Popen(
        [sys.executable, "-m", "graphql_api", "serve"],
        env={**outside, "SPECTRAL_PORT": "0", "SPECTRAL_DATABASE_URL": database, **settings},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        said: list[str] = []
        try:
            while "127.0.0.1:" not in "".join(said[-1:]):
                said.append(process.stderr.readline())
                assert said[-1], said
            # Or it would wait for somebody to read.
            reading = threading.Thread(target=said.extend, args=[process.stderr])
            reading.start()
            target = Target(int(said[-1].partition("127.0.0.1:")[2].partition("/")[0]), process.pid, key)
            with closing(target):
                for _ in range(50):
                    target.ask("POST", "/graphql", JSON, SIMPLE)
                before = target.rss_bytes()
                yield target
                target.ask("POST", "/graphql", JSON, SIMPLE)
                grown = target.rss_bytes() - before
            process.terminate()
            assert process.wait(WAIT_S) == 0
            reading.join()
        finally:
            process.kill()
    text = "".join(said)
    assert "Traceback" not in text, text[-5_000:]
    assert "Internal server error" not in text, text[-5_000:]
    assert grown < GROWTH_BYTES_MAX, f"{grown:,} bytes more than before, after {target.answers}"


async def _prepare(database: str) -> str:
    async with open_storage(database, upgrade=False) as storage:
        await submit(storage, *(Create(task_id=task_id) for task_id in TASK_IDS))
        return await storage.keys.create("fuzz", [Permission.ADMIN])
