"""A socket as browsers' clients have one: they ping when it is silent, and leave when nothing answers."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException
from websockets.typing import Subprotocol

from graphql_api.app import PATH
from graphql_api.execution.websocket import PROTOCOL
from tests.faults.ports import HOST

CONNECT_TIMEOUT_S: Final = 3.0
# A ping follows so much silence; so much means that nobody is there.
PING_AFTER_S: Final = 1.0
SILENT_S: Final = 4.0
RECONNECT_WAITS_S: Final = (0.02, 0.3)


class Gone(Exception):
    """The server said nothing, not even to a ping, or asks to come again."""


LEAVING: Final = (Gone, OSError, WebSocketException)
"""What ends a connection."""


@asynccontextmanager
async def connected(port: int, key: str | None = None) -> AsyncIterator[ClientConnection]:
    """A socket that has said hello, while the block lasts."""
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        wire = await connect(
            f"ws://{HOST}:{port}{PATH}",
            subprotocols=[Subprotocol(PROTOCOL)],
            compression=None,
            proxy=None,
            ping_interval=None,
            max_queue=None,
            close_timeout=1,
        )
    try:
        credential = {} if key is None else {"payload": {"Authorization": f"Bearer {key}"}}
        await wire.send(json.dumps({"type": "connection_init", **credential}))
        yield wire
    finally:
        # Most clients do not say goodbye.
        wire.transport.abort()
        await wire.wait_closed()


async def begin(wire: ClientConnection, operation_id: str, document: str, variables: dict[str, Any]) -> None:
    """Begin an operation."""
    payload = {"query": document, "variables": variables}
    await wire.send(json.dumps({"id": operation_id, "type": "subscribe", "payload": payload}))


async def messages(wire: ClientConnection) -> AsyncGenerator[dict[str, Any], None]:
    """What is said, without pings and pongs, until the connection ends or is silent."""
    heard_at = time.monotonic()
    while True:
        try:
            async with asyncio.timeout(PING_AFTER_S):
                message = json.loads(await wire.recv())
        except TimeoutError:
            if time.monotonic() - heard_at > SILENT_S:
                raise Gone from None
            await wire.send('{"type":"ping"}')
            continue
        heard_at = time.monotonic()
        if message["type"] == "ping":
            await wire.send('{"type":"pong"}')
        elif message["type"] != "pong":
            yield message


def errors_of(message: dict[str, Any]) -> list[dict[str, Any]]:
    """What is wrong, by a message of whichever kind; nothing if it is an answer."""
    payload = message.get("payload")
    if message["type"] == "error":
        return list(payload or [])
    if message["type"] != "next" or not isinstance(payload, dict):
        return []
    return list(payload.get("errors") or [])


def passing(errors: list[dict[str, Any]]) -> bool:
    """Whether the server asks to come again."""
    extensions = errors[0].get("extensions", {})
    return extensions.get("code") == "UNAVAILABLE" and bool(extensions.get("retryable"))
