"""Hears when tasks of a queue may be claimed: the subscription `queueReady`, on a socket that is opened again.

What it hears is a hint, which may be lost and may be late; whoever waits for it asks every few seconds anyway.
"""

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any, Final

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException
from websockets.typing import Subprotocol

from worker.backoff import pauses
from worker.documents import QUEUE_READY

log: Final = logging.getLogger("spectral.worker")

PROTOCOL: Final = Subprotocol("graphql-transport-ws")
OPEN_TIMEOUT_S: Final = 10.0


class _Silent(Exception):
    """The server does not let this worker listen."""


async def listen(url: str, key: str | None, queue: str, ring: Callable[[], None]) -> None:
    """Call `ring` whenever tasks may have become ready, until canceled."""
    address = httpx.URL(url)
    wire_url = str(address.copy_with(scheme=address.scheme.replace("http", "ws")))
    waits = pauses()
    while True:
        try:
            async with connect(wire_url, subprotocols=[PROTOCOL], open_timeout=OPEN_TIMEOUT_S) as wire:
                async with asyncio.timeout(OPEN_TIMEOUT_S):
                    await _subscribe(wire, key, queue)
                log.debug("Listening for tasks of queue %s", queue)
                waits = pauses()
                await _hear(wire, ring)
        except (OSError, LookupError, AttributeError, TypeError, ValueError, WebSocketException, _Silent) as error:
            # Among them what a server says that is none of ours.
            log.debug("Nothing can be heard of queue %s, so it is asked for tasks every few seconds: %s", queue, error)
        await asyncio.sleep(next(waits))


async def _subscribe(wire: ClientConnection, key: str | None, queue: str) -> None:
    credential = {} if key is None else {"Authorization": f"Bearer {key}"}
    await _say(wire, {"type": "connection_init", "payload": credential})
    while (message := json.loads(await wire.recv())).get("type") != "connection_ack":
        await _answer(wire, message)
    await _say(wire, {"type": "subscribe", "id": "1", "payload": {"query": QUEUE_READY, "variables": {"queue": queue}}})


async def _hear(wire: ClientConnection, ring: Callable[[], None]) -> None:
    # The first message says what became ready while nobody listened.
    async for frame in wire:
        message = json.loads(frame)
        if message.get("type") == "next" and message["payload"]["data"]["queueReady"]["ready"]:
            ring()
        await _answer(wire, message)


async def _answer(wire: ClientConnection, message: dict[str, Any]) -> None:
    if message.get("type") == "ping":
        await _say(wire, {"type": "pong"})
    elif message.get("type") in ("error", "complete"):
        raise _Silent(json.dumps(message))


async def _say(wire: ClientConnection, message: dict[str, Any]) -> None:
    await wire.send(json.dumps(message))
