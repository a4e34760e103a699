"""What the parts cost that the service is made of: the least that any service on them could cost.

Each is a process of its own, as the service is:

* ``python -m bench.floors echo PORT ANSWER`` reads the JSON of each request and sends the same answer
* ``python -m bench.floors broadcast PORT FRAME`` sends the same frame to all its sockets for each request; the frame
  holds ``@SEQ@`` where the number of the event belongs
* ``python -m bench.floors lookup URL SECONDS POSTMASTER`` reads single tasks with the driver alone
* ``python -m bench.floors group URL SECONDS POSTMASTER`` reports progress on 32 tasks in one statement, again and again
"""

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, TypeAlias

import asyncpg
import orjson
import uvicorn
import uvloop

from bench.database import TASK_IDS, connect
from bench.processes import Cost

CONNECTIONS: Final = 10
GROUP: Final = 32
WARM_UP_S: Final = 0.5
SEQ: Final = "@SEQ@"

Scope: TypeAlias = dict[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[dict[str, Any]]]
Send: TypeAlias = Callable[[dict[str, Any]], Awaitable[None]]


# ---------------------------------------------------------------- servers


class Echo:
    """The least that answers a JSON request."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        orjson.loads(await _body(receive))
        await _answer(send, self._answer)


class Broadcast:
    """The least that sends one message to many sockets."""

    def __init__(self, frame: str) -> None:
        self._before, self._after = frame.split(SEQ)
        self._seq = 1
        self._sockets: set[Send] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._serve(receive, send)
        else:
            orjson.loads(await _body(receive))
            await self._publish()
            await _answer(send, b'{"data":{}}')

    async def _serve(self, receive: Receive, send: Send) -> None:
        """As much of the protocol as the load generator needs, so that both are measured by the same one."""
        await receive()
        await send({"type": "websocket.accept", "subprotocol": "graphql-transport-ws"})
        await receive()
        await send({"type": "websocket.send", "text": '{"type":"connection_ack"}'})
        operation = orjson.loads((await receive())["text"])["id"]
        snapshot = f'{{"id":"{operation}","type":"next","payload":{{"seq":{self._seq},"events":[]}}}}'
        await send({"type": "websocket.send", "text": snapshot})
        self._sockets.add(send)
        try:
            while (await receive())["type"] != "websocket.disconnect":
                pass
        finally:
            self._sockets.discard(send)

    async def _publish(self) -> None:
        self._seq += 1
        message = {"type": "websocket.send", "text": f"{self._before}{self._seq}{self._after}"}
        for send in list(self._sockets):
            await send(message)


async def _body(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message["body"]
        more = message.get("more_body", False)
    return body


async def _answer(send: Send, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _serve(app: Echo | Broadcast, port: int) -> None:
    # What the service asks of uvicorn, with the protocols that its own are made from.
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=port,
        loop="uvloop",
        http="httptools",
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        ws_ping_interval=30,
        ws_ping_timeout=20,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=2_048,
        timeout_keep_alive=75,
    )


# ---------------------------------------------------------------- the driver


async def _lookup(connection: asyncpg.Connection, task_ids: Iterator[str]) -> int:
    row = await connection.fetchrow(_LOOKUP, next(task_ids))
    assert row is not None
    return 1


async def _group(connection: asyncpg.Connection, task_ids: Iterator[str]) -> int:
    # In order, as whoever locks several rows must take them.
    wanted = sorted(itertools.islice(task_ids, GROUP))
    rows = await connection.fetch(_GROUP, wanted, [len(row) for row in wanted])
    assert len(rows) == GROUP
    return GROUP


async def _measure(
    url: str, ask: Callable[[asyncpg.Connection, Iterator[str]], Awaitable[int]], seconds: float, postmaster: int
) -> None:
    """Ask on all connections at once, and print what that took in this process."""
    # A group at a time, as the service writes; lookups on as many connections as it has.
    connections = [await connect(url) for _ in range(1 if ask is _group else CONNECTIONS)]
    task_ids = itertools.cycle(TASK_IDS)

    async def asking(connection: asyncpg.Connection, until: float) -> int:
        rows = 0
        while time.perf_counter() < until:
            rows += await ask(connection, task_ids)
        return rows

    async def all_asking(duration: float) -> int:
        until = time.perf_counter() + duration
        return sum(await asyncio.gather(*(asking(connection, until) for connection in connections)))

    await all_asking(WARM_UP_S)
    own = time.process_time()
    with Cost(None, postmaster) as cost:
        rows = await all_asking(seconds)
    own = time.process_time() - own
    figures = {
        "per_s": rows / cost.seconds,
        "cpu_us": own / rows * 1e6,
        "postgres_us": cost.postgres_s / rows * 1e6,
    }
    sys.stdout.write(json.dumps(figures) + "\n")
    for connection in connections:
        await connection.close()


_LOOKUP: Final = """
    SELECT task_id, status, progress, metadata, seq, created_by, created_at, updated_at, started_at, completed_at,
        failed_at, canceled_at
    FROM tasks
    WHERE task_id = $1
"""
_GROUP: Final = """
    WITH moved AS (
        UPDATE tasks
        SET progress = wanted.progress, seq = seq + 1, updated_at = now()
        FROM unnest($1::text[], $2::integer[]) AS wanted (task_id, progress)
        WHERE tasks.task_id = wanted.task_id
        RETURNING tasks.task_id, tasks.progress, seq, updated_at
    )
    INSERT INTO task_events (task_id, seq, event_type, message, progress, timestamp)
    SELECT task_id, seq, 'PROGRESS', format('Progress updated to %s%%', progress), progress, updated_at FROM moved
    RETURNING task_id, seq, message, timestamp
"""


def main() -> None:
    kind, *arguments = sys.argv[1:]
    if kind == "echo":
        _serve(Echo(arguments[1].encode()), int(arguments[0]))
    elif kind == "broadcast":
        _serve(Broadcast(arguments[1]), int(arguments[0]))
    else:
        ask = {"lookup": _lookup, "group": _group}[kind]
        uvloop.run(_measure(arguments[0], ask, float(arguments[1]), int(arguments[2])))


if __name__ == "__main__":
    main()
