"""Whatever is sent, the server answers it or says why not, and goes on: no crash, no hang, no memory that stays.

It is a process of its own, as it runs for users. ``make fuzz`` sends more; FUZZ_INPUTS says how many inputs in all.
"""

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
from random import Random
from typing import Any, Final

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from graphql_api.settings import PREFIX
from storage import Create, Permission, open_storage
from tests.graphql_api.clients import WAIT_S
from tests.hostile.inputs import document, json_values, scratched, text_of
from tests.storage.helpers import submit

INPUTS: Final = int(os.environ.get("FUZZ_INPUTS", "10000"))
# What no bound explains any more.
GROWTH_BYTES_MAX: Final = 96 * 1024 * 1024
STATUSES: Final = {200, 307, 400, 401, 403, 404, 405, 406, 408, 413, 415, 429, 431}
# The protocol's own, and those of WebSockets for frames and texts that are none.
CLOSINGS: Final = {1000, 1002, 1003, 1005, 1007, 1008, 1009, 4400, 4401, 4403, 4408, 4409, 4429}
SIMPLE: Final = b'{"query":"{viewer{name}}"}'
# Answered by whoever was introduced to; others are closed for it.
LAST: Final = '{"id":"last","type":"subscribe","payload":{"query":"{viewer{name}}"}}'
TYPES: Final = (
    *("application/json", "application/json; charset=utf-8", "application/graphql-response+json", "*/*", "text/html"),
    *("text/event-stream", "multipart/mixed", "text/plain", "application/x-www-form-urlencoded", "", ";;;", "a/b;q=x"),
)


def fuzz(examples: int) -> settings:
    """So many examples, the same in each run unless more are asked for."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize="FUZZ_INPUTS" not in os.environ,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


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

    def talk(self, messages: Sequence[str], frames: bytes) -> None:
        """Send messages and then bytes over a socket, and see that it goes on, or is closed for a reason."""
        try:
            with connect(
                f"ws://127.0.0.1:{self.port}/graphql",
                subprotocols=[Subprotocol("graphql-transport-ws")],
                additional_headers={"Authorization": f"Bearer {self.key}"},
                compression=None,
                open_timeout=WAIT_S,
                proxy=None,
            ) as client:
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
def serving(database: str) -> Iterator[Target]:
    """A server that must be up at the end, as large as before, with nothing in its log that is a fault of its own."""
    key = asyncio.run(_prepare(database))
    outside = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    with subprocess.Popen(
        [sys.executable, "-m", "graphql_api", "serve"],
        env={**outside, "SPECTRAL_PORT": "0", "SPECTRAL_DATABASE_URL": database},
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
                    target.ask("POST", "/graphql", {"Content-Type": "application/json"}, SIMPLE)
                before = target.rss_bytes()
                yield target
                target.ask("POST", "/graphql", {"Content-Type": "application/json"}, SIMPLE)
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
        await submit(storage, Create(task_id="id-1"), Create(task_id="12"))
        return await storage.keys.create("fuzz", [Permission.ADMIN])


def test_bodies(database: str) -> None:
    with serving(database) as target:

        @fuzz(INPUTS * 4 // 10)
        @given(st.data())
        def send(data: st.DataObject) -> None:
            random = Random(data.draw(st.integers(0, 2**32)))
            members: dict[str, Any] = {"query": "{ viewer { name } }", "variables": {"a": 1}, "operationName": None}
            match random.randrange(4):
                case 0:
                    body = data.draw(st.binary(max_size=300))
                case 1:
                    body = text_of(data.draw(json_values)).encode(errors="surrogatepass")
                case 2:
                    members[random.choice([*members, "extensions"])] = data.draw(json_values)
                    body = text_of(members).encode(errors="surrogatepass")
                case _:
                    body = scratched(json.dumps(members).encode(), random)
            usual = random.random() < 0.7
            headers = {"Content-Type": TYPES[0] if usual else random.choice(TYPES)}
            if random.random() < 0.5:
                headers["Accept"] = ", ".join(random.choices(TYPES, k=random.randrange(1, 4)))
            method = "POST" if usual else random.choice(["POST", "GET", "PUT", "DELETE", "OPTIONS", "PATCH"])
            target.ask(method, random.choice(["/graphql", "/graphql", "/graphql?query=%7B", "/", "/x"]), headers, body)

        send()
        assert {200, 400, 405, 415} <= target.answers.keys()


def test_documents(database: str) -> None:
    with serving(database) as target:

        @fuzz(INPUTS * 4 // 10)
        @given(st.integers(0, 2**32))
        def send(seed: int) -> None:
            random = Random(seed)
            made = document(random)
            body = text_of({"query": made.text, "variables": made.variables}).encode(errors="surrogatepass")
            accept = random.choice(["application/json", "application/graphql-response+json", "text/event-stream"])
            target.ask("POST", "/graphql", {"Content-Type": "application/json", "Accept": accept}, body)

        send()
        assert {200, 400, 406} <= target.answers.keys()


def test_sockets(database: str) -> None:
    with serving(database) as target:

        @fuzz(INPUTS * 2 // 10)
        @given(st.data())
        def send(data: st.DataObject) -> None:
            random = Random(data.draw(st.integers(0, 2**32)))
            introduction = ['{"type":"connection_init"}'] if random.random() < 0.7 else []
            target.talk(
                introduction + [_message(data, random) for _ in range(random.randrange(1, 8))],
                # Frames that no library would send; what comes back is the end.
                data.draw(st.binary(min_size=1, max_size=40)) if random.random() < 0.2 else b"",
            )

        send()
        assert {"alive", "next", "error", 4400, 4429} <= target.answers.keys()


def _message(data: st.DataObject, random: Random) -> str:
    if random.random() < 0.1:
        return text_of(data.draw(json_values))
    made = document(random)
    message: dict[str, Any] = {
        "type": random.choice(["connection_init", "subscribe", "subscribe", "subscribe", "complete", "ping", "pong"]),
        "id": random.choice(["1", "2", "3"]),
        "payload": {"query": made.text, "variables": made.variables},
    }
    match random.randrange(8):
        case 0:
            message[random.choice(list(message))] = data.draw(json_values)
        case 1:
            del message[random.choice(list(message))]
        case 2:
            return scratched(json.dumps(message).encode(), random).decode(errors="replace")
    return text_of(message)
