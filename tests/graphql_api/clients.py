"""A running API as its clients meet it: over HTTP, and over a WebSocket that queues from the first byte."""

import asyncio
import json
import socket as sockets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from graphql_api.app import PATH
from graphql_api.execution.websocket import PROTOCOL
from graphql_api.server import Server
from storage import Storage

# How long anything that a client waits for may take, on the slowest machine.
WAIT_S: Final = 20.0

Answer: TypeAlias = dict[str, Any]
Transport = Literal["http", "socket"]
TRANSPORTS: Final[tuple[Transport, ...]] = ("http", "socket")
Ask: TypeAlias = Callable[..., Awaitable[Answer]]
"""Takes a document and its variables, and gives `data` and `errors`, whatever the transport."""

SEEN: Final = "{ task(taskId: $id) { taskId status progress seq history(last: 1000) { seq message } } }"
WATCH: Final = """
    subscription($id: ID!, $afterSeq: Int) {
      taskUpdates(taskId: $id, afterSeq: $afterSeq) { type task { seq status progress } events { seq message } }
    }
"""


class Socket:
    """A client of graphql-transport-ws. It takes messages one by one; those not taken yet wait in order."""

    def __init__(self, wire: ClientConnection) -> None:
        self.wire = wire
        self._ids = iter(range(1, 1_000_000))

    async def send(self, frame: str | bytes) -> None:
        """Send whatever it is."""
        await self.wire.send(frame)

    async def say(self, message: Any) -> None:
        """Send a message."""
        await self.wire.send(json.dumps(message))

    async def take(self) -> Answer:
        """The next message."""
        async with asyncio.timeout(WAIT_S):
            message = json.loads(await self.wire.recv())
        assert isinstance(message, dict)
        return message

    async def init(self, payload: Any = None) -> None:
        """Shake hands."""
        await self.say({"type": "connection_init", "payload": payload})
        assert await self.take() == {"type": "connection_ack"}

    async def subscribe(self, query: str, variables: Answer | None = None, operation_id: str | None = None) -> str:
        """Begin an operation; return its ID."""
        operation_id = operation_id or str(next(self._ids))
        payload = {"query": query, "variables": variables}
        await self.say({"type": "subscribe", "id": operation_id, "payload": payload})
        return operation_id

    async def watch(self, task_id: str, after_seq: int | None = None) -> str:
        """Begin to watch a task."""
        return await self.subscribe(WATCH, {"id": task_id, "afterSeq": after_seq})

    async def following(self, operation_id: str) -> Answer:
        """The next message, which must be this operation's `next`: its payload."""
        message = await self.take()
        assert message == {"id": operation_id, "type": "next", "payload": message.get("payload")}, message
        payload = message["payload"]
        assert isinstance(payload, dict)
        return payload

    async def update(self, operation_id: str) -> Answer:
        """The next message, which must be an update of a watched task."""
        answer = await self.following(operation_id)
        assert answer.keys() == {"data"}, answer
        update = answer["data"]["taskUpdates"]
        assert isinstance(update, dict)
        return update

    async def until_complete(self, operation_id: str) -> list[Answer]:
        """The payloads of an operation up to its `complete`; no other operation may speak meanwhile."""
        answers = []
        while (message := await self.take()) != {"id": operation_id, "type": "complete"}:
            assert (message["type"], message["id"]) == ("next", operation_id), message
            answers.append(message["payload"])
        return answers

    async def updates(self, operation_id: str) -> list[Answer]:
        """The updates of a watched task up to the end of the stream."""
        return [answer["data"]["taskUpdates"] for answer in await self.until_complete(operation_id)]

    async def ask(self, query: str, variables: Answer | None = None) -> Answer:
        """Run a query or a mutation."""
        operation_id = await self.subscribe(query, variables)
        message = await self.take()
        assert message["id"] == operation_id, message
        if message["type"] == "error":
            return {"errors": message["payload"]}
        assert message["type"] == "next", message
        assert await self.take() == {"id": operation_id, "type": "complete"}
        payload = message["payload"]
        assert isinstance(payload, dict)
        return payload

    async def closed(self) -> tuple[int | None, str | None]:
        """Wait for the server to close the socket, and see that it says nothing before; the code and the reason."""
        try:
            message = await self.take()
        except ConnectionClosed:
            return self.wire.close_code, self.wire.close_reason
        raise AssertionError(f"the socket should be closed, got {message}")


@dataclass(frozen=True, slots=True)
class Api:
    """A server that runs, what is behind it, and a client who may do everything."""

    origin: str
    storage: Storage
    server: Server
    # Set when the server begins to stop, as a signal does it.
    stopping: asyncio.Event
    # Without a credential of its own; each request brings what it needs.
    http: httpx.AsyncClient
    admin_key: str

    async def post(self, body: Any, *, key: str | None = None, headers: dict[str, str] | None = None) -> httpx.Response:
        """Send a request as JSON, with whatever credential."""
        credential = {} if key is None else {"Authorization": f"Bearer {key}"}
        return await self.http.post(PATH, json=body, headers={**credential, **(headers or {})})

    async def ask(self, query: str, variables: Answer | None = None, *, key: str | None = None) -> Answer:
        """Run an operation over HTTP; as the admin unless another key is named."""
        body = {"query": query, "variables": variables}
        response = await self.post(body, key=self.admin_key if key is None else key)
        assert response.status_code == 200, response.text
        answer = response.json()
        assert isinstance(answer, dict)
        return answer

    async def create(self, task_id: str, **arguments: Any) -> None:
        """Make a task, PENDING and without metadata unless told otherwise."""
        variables = {"id": task_id, **arguments}
        data(
            await self.ask(
                "mutation($id: ID!, $status: TaskStatus, $metadata: JSON)"
                "{ create(taskId: $id, status: $status, metadata: $metadata) { id } }",
                variables,
            )
        )

    async def report(self, task_id: str, progress: int) -> None:
        """Report progress."""
        query = "mutation($id: ID!, $progress: Int!) { updateProgress(taskId: $id, progress: $progress) { seq } }"
        data(await self.ask(query, {"id": task_id, "progress": progress}))

    async def complete(self, task_id: str) -> None:
        """End a task."""
        data(await self.ask("mutation($id: ID!) { complete(taskId: $id) { seq } }", {"id": task_id}))

    async def seen(self, task_id: str) -> Answer:
        """A task with its whole history: what refused operations must leave as it was."""
        task = data(await self.ask(f"query($id: ID!) {SEEN}", {"id": task_id}))["task"]
        assert isinstance(task, dict)
        return task

    @asynccontextmanager
    async def socket(
        self,
        payload: Any = None,
        *,
        init: bool = True,
        key: str | None = None,
        protocols: Iterable[str] = (PROTOCOL,),
        **options: Any,
    ) -> AsyncIterator[Socket]:
        """A socket, greeted unless told otherwise; the credential goes into the greeting."""
        if key is not None:
            payload = {"Authorization": f"Bearer {key}"}
        options.setdefault("max_queue", None)
        async with connect(
            self.origin.replace("http", "ws") + PATH,
            subprotocols=[Subprotocol(protocol) for protocol in protocols] or None,
            compression=None,
            proxy=None,
            max_size=None,
            **options,
        ) as wire:
            socket = Socket(wire)
            if init:
                await socket.init(payload)
            yield socket

    @asynccontextmanager
    async def narrow_socket(self) -> AsyncIterator[Socket]:
        """A socket with small buffers on its way, so that what is not read stays with the server."""
        with sockets.socket() as wire:
            wire.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 16 * 1024)
            wire.setblocking(False)
            host, port = self.origin.removeprefix("http://").split(":")
            await asyncio.get_running_loop().sock_connect(wire, (host, int(port)))
            async with self.socket(sock=wire) as socket:
                yield socket

    @asynccontextmanager
    async def over(self, transport: Transport) -> AsyncIterator[Ask]:
        """Ask as the admin, one way or the other."""
        if transport == "http":
            yield self.ask
        else:
            async with self.socket(key=self.admin_key) as socket:
                yield socket.ask


def data(answer: Answer) -> Answer:
    """The data of an answer without errors."""
    assert answer.keys() == {"data"}, answer
    found = answer["data"]
    assert isinstance(found, dict)
    return found


def error(answer: Answer) -> Answer:
    """The one error of an answer."""
    assert len(answer.get("errors", ())) == 1, answer
    found = answer["errors"][0]
    assert isinstance(found, dict)
    return found


def code(answer: Answer) -> str:
    """The code of the one error of an answer."""
    return str(error(answer)["extensions"]["code"])


def numbers(updates: Iterable[Answer]) -> list[int]:
    """The numbers of the events in updates."""
    return [event["seq"] for update in updates for event in update["events"]]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that the server tells nobody: each turn of the loop brings it nearer."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.005)
