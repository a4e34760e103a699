"""GraphQL over a WebSocket: the graphql-transport-ws protocol, and no other.

One entry in ``_operations`` is the whole truth of an operation's life: it is there from `subscribe` until its last
message is on its way, so its ID is free again when the client hears the end. What goes wrong with an operation is told
to that operation; the socket is closed only for breaking the protocol, because it carries the client's other operations
too.
"""

import asyncio
import logging
from contextlib import aclosing
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from graphql_api.auth import Doorkeeper
from graphql_api.context import Context
from graphql_api.errors import refusal
from graphql_api.execution.json import decode, encode
from graphql_api.execution.plan import Plans, RequestRefused, read_operation
from storage import BadInput, Refusal, Storage, TooLarge, Unavailable

log = logging.getLogger(__name__)

PROTOCOL: Final = "graphql-transport-ws"
# The reason in a close frame is at most 123 bytes of UTF-8.
REASON_BYTES_MAX: Final = 123
# A client may queue many messages at once, and taking them does not wait; others get their turn after so many.
MESSAGES_IN_A_ROW: Final = 16
ID_CHARACTERS_MAX: Final = 255

BAD_REQUEST: Final = 4400
UNAUTHORIZED: Final = 4401
FORBIDDEN: Final = 4403
SUBPROTOCOL_NOT_ACCEPTABLE: Final = 4406
INIT_TIMEOUT: Final = 4408
OPERATION_EXISTS: Final = 4409
TOO_MANY_INITS: Final = 4429
TRY_AGAIN_LATER: Final = 1013


class ProtocolBroken(Exception):
    """The socket must be closed; the code says why."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Gone(Exception):
    """The client has closed the socket, or the wire was cut."""


class GraphQLOverWebSocket:
    """The ASGI endpoint."""

    def __init__(
        self,
        storage: Storage,
        plans: Plans,
        doorkeeper: Doorkeeper,
        *,
        allowed_origins: tuple[str, ...],
        connection_init_timeout_s: float,
        operations_max: int,
        open_bytes_max: int,
    ) -> None:
        self.storage = storage
        self.plans = plans
        self.doorkeeper = doorkeeper
        self.allowed_origins = allowed_origins
        self.connection_init_timeout_s = connection_init_timeout_s
        self.operations_max = operations_max
        self.open_bytes_max = open_bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        headers = Headers(scope=scope)
        await receive()
        if not self._origin_allowed(headers):
            # Closed before it is accepted: the handshake is answered with 403.
            log.warning("A socket from a page of another origin was refused: %.200r", headers.get("origin"))
            await send({"type": "websocket.close", "code": 1008})
            return
        known = PROTOCOL in scope["subprotocols"]
        await send({"type": "websocket.accept", "subprotocol": PROTOCOL if known else None})
        if not known:
            await send(_close(SUBPROTOCOL_NOT_ACCEPTABLE, f"Subprotocol not acceptable; offer {PROTOCOL}"))
            return
        await Socket(self, headers.get("authorization"), receive, send).serve()

    def _origin_allowed(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        # Only browsers send it, and only in browsers can another site's page use somebody's session.
        if origin is None or "*" in self.allowed_origins or origin in self.allowed_origins:
            return True
        try:
            page = urlsplit(origin).netloc.lower()
        except ValueError:
            return False
        return page != "" and page == headers.get("host", "").lower()


class Socket:
    """One connection, from its acceptance to its end."""

    def __init__(self, endpoint: GraphQLOverWebSocket, authorization: str | None, receive: Receive, send: Send) -> None:
        self._endpoint = endpoint
        # From the handshake; what `connection_init` brings takes its place.
        self._authorization = authorization
        self._receive = receive
        self._send = send
        self._acknowledged = False
        self._operations: dict[str, asyncio.Task[None]] = {}
        # Those in `_operations`, and those that were told to end and have not; each with the size of what asked for it.
        self._tasks: dict[asyncio.Task[None], int] = {}

    async def serve(self) -> None:
        """Take messages until the client is gone or breaks the protocol; then end its operations."""
        try:
            try:
                async with asyncio.timeout(self._endpoint.connection_init_timeout_s):
                    while not self._acknowledged:
                        await self._take()
            except TimeoutError:
                raise ProtocolBroken(INIT_TIMEOUT, "Connection initialisation timeout") from None
            taken = 0
            while True:
                await self._take()
                taken += 1
                if taken % MESSAGES_IN_A_ROW == 0:
                    await asyncio.sleep(0)
        except ProtocolBroken as broken:
            # Quoted and cut: the reason may hold what the client sent.
            log.info("A socket was closed: %d %.200r", broken.code, str(broken))
            await self._close(broken.code, str(broken))
        except Gone:
            pass
        finally:
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)

    async def _take(self) -> None:
        received = await self._receive()
        if received["type"] == "websocket.disconnect":
            raise Gone
        text = received.get("text")
        if text is None:
            raise ProtocolBroken(BAD_REQUEST, "Messages must be text")
        try:
            message = decode(text.encode())
        except BadInput:
            raise ProtocolBroken(BAD_REQUEST, "Messages must be JSON") from None
        if not isinstance(message, dict) or not isinstance(message.get("type"), str):
            raise ProtocolBroken(BAD_REQUEST, "Messages must be objects with a type")
        match message["type"]:
            case "connection_init":
                await self._init(message)
            case "ping":
                await self._say({"type": "pong"})
            case "pong":
                pass
            case "subscribe":
                await self._subscribe(message, len(text))
            case "complete":
                task = self._operations.pop(_id(message), None)
                if task is not None:
                    task.cancel()
            case unknown:
                raise ProtocolBroken(BAD_REQUEST, f"Unknown message type: {unknown:.40}")

    async def _init(self, message: dict[str, Any]) -> None:
        if self._acknowledged:
            raise ProtocolBroken(TOO_MANY_INITS, "Too many initialisation requests")
        payload = message.get("payload")
        if not isinstance(payload, dict | None):
            raise ProtocolBroken(BAD_REQUEST, "The payload of connection_init must be an object")
        for name, value in (payload or {}).items():
            if name.lower() == "authorization" and value is not None:
                if not isinstance(value, str):
                    raise ProtocolBroken(BAD_REQUEST, "The Authorization of connection_init must be a string")
                self._authorization = value
        try:
            await self._endpoint.doorkeeper.viewer(self._authorization)
        except Unavailable as error:
            raise ProtocolBroken(TRY_AGAIN_LATER, str(error)) from None
        except Refusal:
            raise ProtocolBroken(FORBIDDEN, "Forbidden") from None
        await self._say({"type": "connection_ack"})
        self._acknowledged = True

    async def _subscribe(self, message: dict[str, Any], size: int) -> None:
        if not self._acknowledged:
            raise ProtocolBroken(UNAUTHORIZED, "Unauthorized")
        operation_id = _id(message)
        if operation_id in self._operations:
            raise ProtocolBroken(OPERATION_EXISTS, f"Subscriber for {operation_id} already exists")
        payload = message.get("payload")
        if not isinstance(payload, dict):
            raise ProtocolBroken(BAD_REQUEST, "The payload of subscribe must be an object")
        error: Refusal | None = None
        if len(self._operations) >= self._endpoint.operations_max:
            error = BadInput(f"A socket may have at most {self._endpoint.operations_max} operations open.")
        elif sum(self._tasks.values(), size) > self._endpoint.open_bytes_max:
            error = TooLarge(f"The open operations of a socket may have at most {self._endpoint.open_bytes_max} bytes.")
        if error is not None:
            await self._say({"id": operation_id, "type": "error", "payload": [refusal(error)]})
            return
        # A client that reads nothing while it asks for more waits until its answers are on the wire.
        while len(self._tasks) >= self._endpoint.operations_max:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        task = asyncio.create_task(self._run(operation_id, payload), name=f"operation {operation_id[:40]}")
        self._operations[operation_id] = task
        self._tasks[task] = size
        task.add_done_callback(self._tasks.pop)

    async def _run(self, operation_id: str, payload: dict[str, Any]) -> None:
        try:
            last = await self._perform(operation_id, payload)
            # Only the operation that holds the ID gives it back: after a `complete` it may be another's.
            if self._operations.get(operation_id) is asyncio.current_task():
                # Freed when the message is out; until then a `complete` can still call it back.
                await self._say(last)
                self._operations.pop(operation_id, None)
        except (Gone, OSError):
            # The wire was cut while we spoke; the loop that takes messages hears of it too.
            pass

    async def _perform(self, operation_id: str, payload: dict[str, Any]) -> dict[str, Any]:
        """Send every answer of an operation; return the message that ends it."""
        endpoint = self._endpoint
        try:
            operation = read_operation(payload)
            # Asked anew for each operation: a key may have been revoked since the socket was opened.
            viewer = await endpoint.doorkeeper.viewer(self._authorization)
            plan = endpoint.plans.plan(operation.query, operation.operation_name)
            variables = plan.declared(operation.variables)
            # A stream may last for days; what it does not need goes now.
            del operation
            payload.clear()
            stream = endpoint.plans.stream(plan, variables, Context(endpoint.storage, viewer))
            async with aclosing(stream), aclosing(endpoint.doorkeeper.guard(self._authorization, stream)) as answers:
                async for answer in answers:
                    await self._say({"id": operation_id, "type": "next", "payload": answer})
        except (Gone, OSError):
            raise
        except RequestRefused as refused:
            return {"id": operation_id, "type": "error", "payload": refused.errors}
        except Exception as error:  # noqa: BLE001 - told to the client, masked unless it is a refusal
            return {"id": operation_id, "type": "error", "payload": [refusal(error)]}
        return {"id": operation_id, "type": "complete"}

    async def _say(self, message: dict[str, Any]) -> None:
        try:
            await self._send({"type": "websocket.send", "text": encode(message).decode()})
        except RuntimeError as error:
            # The server's way to say that the socket was closed on our side.
            raise Gone from error

    async def _close(self, code: int, reason: str) -> None:
        try:
            await self._send(_close(code, reason))
        except (OSError, RuntimeError):
            log.debug("A socket was gone before it could be closed.")


def _id(message: dict[str, Any]) -> str:
    operation_id = message.get("id")
    if not isinstance(operation_id, str) or not 0 < len(operation_id) <= ID_CHARACTERS_MAX:
        raise ProtocolBroken(BAD_REQUEST, f"An id must be a string of 1 to {ID_CHARACTERS_MAX} characters")
    try:
        # It is sent back with each answer.
        operation_id.encode()
    except UnicodeEncodeError:
        raise ProtocolBroken(BAD_REQUEST, "An id must be valid Unicode") from None
    return operation_id


def _close(code: int, reason: str) -> dict[str, Any]:
    encoded = reason.encode(errors="replace")[:REASON_BYTES_MAX]
    return {"type": "websocket.close", "code": code, "reason": encoded.decode(errors="ignore")}
