"""One subscription, on a socket of its own: graphql-transport-ws as far as a client needs it."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from worker.client import PASSING, Again, Client, unreachable, verdict
from worker.errors import Refused, Unreachable, refusal

PROTOCOL: Final = Subprotocol("graphql-transport-ws")
OPEN_TIMEOUT_S: Final = 10.0
# A chunk of a history is at most 8 MB, and some more as JSON.
MESSAGE_BYTES_MAX: Final = 64 * 1024 * 1024
# How a server closes a socket that greets with a credential which is not good.
_FORBIDDEN: Final = 4403


@dataclass(frozen=True, slots=True)
class Begun:
    """The subscription has begun; what was to be asked then was answered so."""

    answer: Any


async def subscribe(
    client: Client, document: str, variables: Mapping[str, Any], *, then: tuple[str, Mapping[str, Any]] | None = None
) -> AsyncGenerator[Any, None]:
    """What the one field of a subscription brings, until the server completes it.

    `Unreachable` when the connection breaks or the server says to come back; whoever does asks for what came after the
    last thing seen. `Refused` when coming back changes nothing. A query that is given as `then` is asked on the same
    socket, where it is answered after the subscription has begun; its answer comes as `Begun`.
    """
    url = client.url
    address = httpx.URL(url)
    wire_url = str(address.copy_with(scheme=address.scheme.replace("http", "ws")))
    try:
        async with _Here(
            wire_url,
            subprotocols=[PROTOCOL],
            open_timeout=OPEN_TIMEOUT_S,
            max_size=MESSAGE_BYTES_MAX,
            proxy=None if client.direct else True,
        ) as wire:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await _begin(wire, client.key)
                await _ask(wire, "1", document, variables)
                if then is not None:
                    await _ask(wire, "2", *then)
            async for frame in wire:
                message = json.loads(frame)
                match message["type"]:
                    case "next" if not message["payload"].get("errors"):
                        (answer,) = message["payload"]["data"].values()
                        yield answer if message["id"] == "1" else Begun(answer)
                    case "next":
                        _refuse(url, message["payload"]["errors"])
                    case "error":
                        _refuse(url, message["payload"])
                    case "complete" if message["id"] == "1":
                        return
                    case "ping":
                        await _say(wire, {"type": "pong"})
            raise Unreachable(f"{url} closed the socket.")
    except ConnectionClosed as closed:
        if closed.rcvd is not None and closed.rcvd.code == _FORBIDDEN:
            raise refusal("UNAUTHENTICATED", closed.rcvd.reason or "The credential is not good.", {}) from None
        raise Unreachable(f"{url} {_ended(closed)}") from None
    except InvalidStatus as answer:
        status = answer.response.status_code
        if status in PASSING:
            raise Unreachable(f"{url} answered the handshake with HTTP status {status}.") from None
        raise Refused(f"HTTP_{status}", f"{url} serves no sockets: it answered with HTTP status {status}.") from None
    except (OSError, WebSocketException) as error:
        raise Unreachable(f"{url} cannot be reached: {str(error) or type(error).__name__}") from None
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        raise Refused("NOT_THE_API", f"{url} says what is none of graphql-transport-ws: {error!r}.") from None


class _Here(connect):
    """A connection to the server that was named, and to none to which that one would send the credential on."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        """Follow none, as over HTTP."""
        return exc


async def _begin(wire: ClientConnection, key: str | None) -> None:
    credential = {} if key is None else {"Authorization": f"Bearer {key}"}
    await _say(wire, {"type": "connection_init", "payload": credential})
    while json.loads(frame := await wire.recv()).get("type") != "connection_ack":
        if json.loads(frame).get("type") == "ping":
            await _say(wire, {"type": "pong"})


async def _ask(wire: ClientConnection, number: str, document: str, variables: Mapping[str, Any]) -> None:
    await _say(wire, {"type": "subscribe", "id": number, "payload": {"query": document, "variables": variables}})


def _ended(closed: ConnectionClosed) -> str:
    if closed.rcvd is None:
        return "broke off the socket"
    return f"closed the socket: {closed.rcvd.reason or f'code {closed.rcvd.code}'}"


def _refuse(url: str, errors: Any) -> NoReturn:
    refused = verdict(errors[0])
    if isinstance(refused, Again):
        raise refused.refused or unreachable(url, refused)
    raise refused


async def _say(wire: ClientConnection, message: dict[str, Any]) -> None:
    await wire.send(json.dumps(message))
