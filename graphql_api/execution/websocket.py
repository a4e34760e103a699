"""GraphQL over a WebSocket: the graphql-transport-ws protocol, and no other.

One entry in ``_operations`` is the whole truth of an operation's life: it is there from `subscribe` until its last
message is on its way, so its ID is free again when the client hears the end. What goes wrong with an operation is told
to that operation; the socket is closed only for breaking the protocol, because it carries the client's other operations
too.

A credential is renewed by a `ping` whose payload has an authorization, and the `pong` says whether it was accepted.

An operation has a task while it has something to wait for. A watch that has caught up has none: it listens, and an
update is written to the socket while it is published.
"""

import asyncio
import logging
from collections.abc import Awaitable
from contextlib import aclosing
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

from graphql import OperationType

from graphql_api.admission import RETRY_PLACE_S, Admission, counted_as
from graphql_api.auth import Doorkeeper, Viewer
from graphql_api.context import Context
from graphql_api.errors import Forbidden, RateLimited, refusal
from graphql_api.execution.deadlines import Deadlines
from graphql_api.execution.gauges import SocketGauges
from graphql_api.execution.json import decode, encode
from graphql_api.execution.plan import Plans, RequestRefused, Stream
from graphql_api.logs import bind, request_id_of
from graphql_api.wire.headers import Headers
from graphql_api.wire.websocket import INVALID_DATA, Refused, WebSocket
from storage import BadInput, ListWatch, Refusal, Storage, TooLarge, Unavailable, Update, Watch

log = logging.getLogger(__name__)

PROTOCOL: Final = "graphql-transport-ws"
ID_CHARACTERS_MAX: Final = 255

BAD_REQUEST: Final = 4400
UNAUTHORIZED: Final = 4401
FORBIDDEN: Final = 4403
SUBPROTOCOL_NOT_ACCEPTABLE: Final = 4406
INIT_TIMEOUT: Final = 4408
OPERATION_EXISTS: Final = 4409
# Nobody uses the socket. An end in order (1000) would be taken for the end of an operation that is on its way.
IDLE: Final = 4410
TOO_MANY_INITS: Final = 4429
TRY_AGAIN_LATER: Final = 1013


class ProtocolBroken(Exception):
    """The socket must be closed; the code says why."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class GraphQLOverWebSocket:
    """Accepts sockets and begins their sessions."""

    def __init__(
        self,
        path: str,
        storage: Storage,
        plans: Plans,
        doorkeeper: Doorkeeper,
        admission: Admission,
        *,
        allowed_origins: tuple[str, ...],
        connection_init_timeout_s: float,
        messages_per_second_max: int,
        idle_timeout_s: float,
        operations_max: int,
        message_bytes_max: int,
        open_bytes_max: int,
    ) -> None:
        self.path = path
        self.storage = storage
        self.plans = plans
        self.doorkeeper = doorkeeper
        self.admission = admission
        # Sessions without an operation.
        self.idle: Deadlines[Session] = Deadlines(
            idle_timeout_s, lambda session: session.close(IDLE, f"No operation for {idle_timeout_s:g} s")
        )
        self.allowed_origins = allowed_origins
        self.connection_init_timeout_s = connection_init_timeout_s
        self.messages_per_second_max = messages_per_second_max
        self.operations_max = operations_max
        self.message_bytes_max = message_bytes_max
        self.open_bytes_max = open_bytes_max
        self.gauges = SocketGauges()

    def choose(self, path: str, peer: str | None, headers: Headers) -> str | None:
        """Our protocol, if the client offers it; Refused for another path, a page of a foreign origin, one too many."""
        if path != self.path:
            raise Refused("404 Not Found")
        if not self._origin_allowed(headers):
            self.gauges.refused += 1
            log.warning("A socket from a page of another origin was refused: %.200r", headers.get("origin"))
            raise Refused("403 Forbidden")
        if not self.admission.sockets_of_sources.free(self.admission.source(peer, headers)):
            log.info("A socket was refused: %s has as many as one address may.", self.admission.client(peer, headers))
            raise Refused("429 Too Many Requests", f"retry-after: {RETRY_PLACE_S:.0f}\r\n")
        offered = [word.strip() for word in headers.get("sec-websocket-protocol", "").split(",")]
        return PROTOCOL if PROTOCOL in offered else None

    def open(self, socket: WebSocket, headers: Headers, subprotocol: str | None) -> "Session":
        """Begin a session; one that does not speak our protocol ends at once."""
        peer = socket.peer
        source = self.admission.source(peer, headers)
        try:
            self.admission.sockets_of_sources.take(source)
        except RateLimited:
            # One that broke off since it was chosen comes from nowhere, and there may be no place for those.
            source = None
        if source is not None and self.messages_per_second_max:
            socket.pace(self.messages_per_second_max)
        session = Session(self, socket, headers, source, self.admission.client(peer, headers))
        self.gauges.open += 1
        if subprotocol is None:
            socket.close(SUBPROTOCOL_NOT_ACCEPTABLE, f"Subprotocol not acceptable; offer {PROTOCOL}")
        return session

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


class Operation:
    """One operation of a session, from `subscribe` to its last message."""

    __slots__ = ("_next", "_session", "id", "size", "stream", "task", "viewer")

    def __init__(self, session: "Session", operation_id: str, size: int) -> None:
        self._session = session
        self.id = operation_id
        # The size of the message that asked for it.
        self.size = size
        # What stands before each of its answers.
        self._next = b'{"id":%b,"type":"next","payload":' % encode(operation_id)
        # While it has something to wait for.
        self.task: asyncio.Task[None] | None = None
        # Who asked for it, once that is known.
        self.viewer: Viewer | None = None
        # Once it has begun, if it is a subscription.
        self.stream: Stream | None = None

    def answer(self, body: bytes) -> None:
        """Send an answer."""
        self._session.socket.say(b"%b%b}" % (self._next, body))

    def hear(self, update: Update) -> bool:
        """Send an update while it is published, unless there is something to wait for first."""
        stream = self.stream
        assert stream is not None
        if not self._session.socket.has_room:
            return False
        body = stream.rendering.now(update)
        if body is None:
            return False
        self.answer(body)
        assert isinstance(stream.events, Watch | ListWatch)
        if stream.events.ended:
            self._session.finish(self, {"id": self.id, "type": "complete"})
        return True

    def wake(self) -> None:
        """Go on in a task: there is news that must be waited for."""
        self._session.run(self, {})

    def close(self) -> None:
        """Give up whatever it holds."""
        if self.task is not None:
            self.task.cancel()
        if self.stream is not None and isinstance(self.stream.events, Watch | ListWatch):
            self.stream.events.close()


class Session:
    """What is spoken over one socket."""

    __slots__ = (
        "_acknowledged",
        "_address",
        "_authorization",
        "_beginning",
        "_begun",
        "_counted_as",
        "_ended",
        "_endpoint",
        "_init_due",
        "_open_bytes",
        "_operations",
        "_request_id",
        "_source",
        "socket",
    )

    def __init__(
        self, endpoint: GraphQLOverWebSocket, socket: WebSocket, headers: Headers, source: str | None, address: str
    ) -> None:
        self._endpoint = endpoint
        self.socket = socket
        # From the handshake; what `connection_init` brings takes its place.
        self._authorization = headers.get("authorization")
        # Of the handshake.
        self._request_id = request_id_of(headers)
        # By which address the socket is counted, and by which credential once that is known to be good.
        self._source = source
        self._address = address
        self._counted_as: str | None = None
        self._acknowledged = False
        self._ended = False
        self._operations: dict[str, Operation] = {}
        # Those that have not begun yet, in the order in which they came; and what is set when one has.
        self._beginning: dict[Operation, None] = {}
        self._begun: asyncio.Event | None = None
        self._open_bytes = 0
        self._init_due: asyncio.TimerHandle | None = asyncio.get_running_loop().call_later(
            endpoint.connection_init_timeout_s, self._init_is_due
        )

    def expelled(self, error: Refusal) -> None:
        """End the subscriptions: their credential is good no more. The client may renew it, and subscribe again."""
        for operation in list(self._operations.values()):
            if operation.stream is not None:
                self.finish(operation, {"id": operation.id, "type": "error", "payload": [refusal(error)]})
                operation.close()

    def end(self) -> None:
        """Give up all operations, and its places among the sockets."""
        self._ended = True
        self._endpoint.gauges.open -= 1
        self._had_init()
        if self._authorization is not None:
            self._endpoint.doorkeeper.vigil.dismiss(self._authorization, self)
        self._endpoint.idle.end(self)
        self._endpoint.admission.sockets_of_sources.give_back(self._source)
        self._endpoint.admission.sockets_of_credentials.give_back(self._counted_as)
        operations, self._operations = self._operations, {}
        for operation in operations.values():
            operation.close()

    def take_binary(self) -> None:
        """Close: every message is text."""
        self._break(ProtocolBroken(BAD_REQUEST, "Messages must be text"))

    def take(self, text: bytes) -> Awaitable[None] | None:
        """Take a message."""
        try:
            return self._take(text)
        except ProtocolBroken as broken:
            self._break(broken)
            return None

    def run(self, operation: Operation, payload: dict[str, Any]) -> None:
        """Let an operation go on in a task."""
        operation.task = asyncio.create_task(self._run(operation, payload), name="operation")

    def finish(self, operation: Operation, last: dict[str, Any]) -> None:
        """Send an operation's last message, and free its ID."""
        # Only the operation that holds the ID gives it back: after a `complete` it may be another's.
        if self._operations.get(operation.id) is operation:
            self._forget(operation)
            self._say(last)

    def _take(self, text: bytes) -> Awaitable[None] | None:
        try:
            message = decode(text)
        except BadInput:
            try:
                text.decode()
            except UnicodeDecodeError:
                raise ProtocolBroken(INVALID_DATA, "Messages must be UTF-8") from None
            raise ProtocolBroken(BAD_REQUEST, "Messages must be JSON") from None
        if not isinstance(message, dict) or not isinstance(message.get("type"), str):
            raise ProtocolBroken(BAD_REQUEST, "Messages must be objects with a type")
        match message["type"]:
            case "connection_init":
                return self._init(message)
            case "ping":
                return self._ping(message)
            case "pong":
                pass
            case "subscribe":
                self._subscribe(message, len(text))
            case "complete":
                operation = self._operations.get(_id(message))
                if operation is not None:
                    self._forget(operation)
                    operation.close()
            case unknown:
                raise ProtocolBroken(BAD_REQUEST, f"Unknown message type: {unknown:.40}")
        return None

    def _init(self, message: dict[str, Any]) -> Awaitable[None] | None:
        if self._acknowledged:
            raise ProtocolBroken(TOO_MANY_INITS, "Too many initialisation requests")
        payload = message.get("payload")
        if not isinstance(payload, dict | None):
            raise ProtocolBroken(BAD_REQUEST, "The payload of connection_init must be an object")
        brought = _authorization(message)
        if brought is not None:
            self._authorization = brought
        if self._authorization is None:
            self._acknowledge()
            return None
        return self._check_credential()

    async def _check_credential(self) -> None:
        admission = self._endpoint.admission
        try:
            viewer = await admission.sign_in(self._authorization, self._source)
            if self._ended:
                return
            self._take_place(viewer, self._authorization)
        except (Unavailable, RateLimited) as error:
            self._break(ProtocolBroken(TRY_AGAIN_LATER, str(error)))
        except Refusal:
            self._break(ProtocolBroken(FORBIDDEN, "Forbidden"))
        else:
            self._acknowledge()

    def _take_place(self, viewer: Viewer, authorization: str | None) -> None:
        """Be counted by a credential, and by the one before no more; RateLimited when it has too many sockets."""
        places = self._endpoint.admission.sockets_of_credentials
        name = counted_as(viewer, authorization, self._source)
        if name == self._counted_as:
            return
        places.take(name)
        places.give_back(self._counted_as)
        self._counted_as = name

    def _ping(self, message: dict[str, Any]) -> Awaitable[None] | None:
        """Answer; with an authorization in the payload, renew the credential."""
        authorization = _authorization(message)
        if authorization is None:
            self._say({"type": "pong"})
            return None
        if not self._acknowledged:
            raise ProtocolBroken(UNAUTHORIZED, "Unauthorized")
        return self._renew(authorization)

    async def _renew(self, authorization: str) -> None:
        """Let a credential take the place of the one before, if it is good for all that is open."""
        try:
            # It costs what an operation costs, and is counted as one.
            self._endpoint.admission.begin(self._source)
            viewer = await self._endpoint.admission.sign_in(authorization, self._source)
            if self._ended:
                return
            for operation in self._operations.values():
                if operation.viewer is not None and not viewer.covers(operation.viewer):
                    raise Forbidden("The new credential may do less than the one by which operations are open.")
            self._take_place(viewer, authorization)
        except Exception as error:  # noqa: BLE001 - told to the client, masked unless it is a refusal
            self._say({"type": "pong", "payload": {"authorization": "refused", "error": refusal(error)}})
            return
        if self._authorization is not None:
            self._endpoint.doorkeeper.vigil.dismiss(self._authorization, self)
        self._authorization = authorization
        self._be_watched()
        self._say({"type": "pong", "payload": {"authorization": "accepted"}})

    def _be_watched(self) -> None:
        # While the credential was looked at, the socket may have been closed.
        if self._authorization is not None and not self._ended:
            self._endpoint.doorkeeper.vigil.admit(self._authorization, self)

    def _acknowledge(self) -> None:
        self._acknowledged = True
        self._had_init()
        self._endpoint.idle.begin(self)
        self._be_watched()
        self._say({"type": "connection_ack"})

    def close(self, code: int, reason: str) -> None:
        """Close the socket, and say why."""
        self._break(ProtocolBroken(code, reason))

    def _init_is_due(self) -> None:
        self._break(ProtocolBroken(INIT_TIMEOUT, "Connection initialisation timeout"))

    def _had_init(self) -> None:
        if self._init_due is not None:
            self._init_due.cancel()
            self._init_due = None

    def _subscribe(self, message: dict[str, Any], size: int) -> None:
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
        elif self._open_bytes + size > self._endpoint.open_bytes_max:
            error = TooLarge(f"The open operations of a socket may have at most {self._endpoint.open_bytes_max} bytes.")
        else:
            try:
                self._endpoint.admission.begin(self._source)
            except RateLimited as limited:
                error = limited
        if error is not None:
            self._say({"id": operation_id, "type": "error", "payload": [refusal(error)]})
            return
        operation = Operation(self, operation_id, size)
        if not self._operations:
            self._endpoint.idle.end(self)
        self._operations[operation_id] = operation
        self._beginning[operation] = None
        self._open_bytes += size
        self.run(operation, payload)

    async def _run(self, operation: Operation, payload: dict[str, Any]) -> None:
        last: dict[str, Any] | None
        if self._request_id is not None:
            bind(request_id=self._request_id)
        try:
            last = await self._perform(operation, payload)
        except RequestRefused as refused:
            last = {"id": operation.id, "type": "error", "payload": refused.errors}
        except Exception as error:  # noqa: BLE001 - told to the client, masked unless it is a refusal
            last = {"id": operation.id, "type": "error", "payload": [refusal(error)]}
        if last is not None:
            await self.socket.room()
            self.finish(operation, last)

    async def _perform(self, operation: Operation, payload: dict[str, Any]) -> dict[str, Any] | None:
        """Send the answers of an operation; return the message that ends it, or None when it listens for more."""
        if operation.stream is None:
            await self._begin(operation, payload)
        stream = operation.stream
        if stream is not None:
            if isinstance(stream.events, Watch | ListWatch):
                await self._follow(operation, stream, stream.events)
                if not stream.events.ended:
                    # Nothing is waited for any more, so this task ends.
                    operation.task = None
                    stream.events.listen(operation)
                    return None
            else:
                await self._send_all(operation, stream)
        return {"id": operation.id, "type": "complete"}

    async def _begin(self, operation: Operation, payload: dict[str, Any]) -> None:
        """Send the answer of a query or a mutation, or begin the stream of a subscription."""
        endpoint = self._endpoint
        request = endpoint.plans.read(payload)
        # Asked anew for each operation: a key may have been revoked since the socket was opened.
        viewer, authorization = None, None
        while viewer is None or authorization != self._authorization:
            # Renewed meanwhile, perhaps.
            authorization = self._authorization
            viewer = operation.viewer = await endpoint.admission.viewer(authorization, self._source)
        plan = await endpoint.plans.plan(request.query, request.operation_name, request.sha256)
        context = Context(endpoint.storage, viewer)
        if plan.operation_type is OperationType.MUTATION:
            bind(address=self._address)
            context.count_more = partial(endpoint.admission.count_more, viewer, authorization, self._source)
        if plan.operation_type is OperationType.SUBSCRIPTION:
            operation.stream = await endpoint.plans.open(plan, request.variables, context)
            # The same for all who are alike, rather than one for each.
            operation.viewer = operation.stream.rendering.viewer
            self._has_begun(operation)
            # A stream may last for days; what it does not need goes now.
            payload.clear()
            return
        # Whoever subscribes and then asks is answered when the subscription is there.
        while next(iter(self._beginning)) is not operation:
            self._begun = self._begun or asyncio.Event()
            await self._begun.wait()
        self._has_begun(operation)
        body = await endpoint.plans.run(plan, request.variables, context)
        await self.socket.room()
        if self._operations.get(operation.id) is operation:
            operation.answer(body)

    async def _follow(self, operation: Operation, stream: Stream, watch: Watch | ListWatch) -> None:
        """Send what a watch has, until it has nothing more at the moment."""
        try:
            while True:
                try:
                    update = await watch.fetch()
                except Exception as error:
                    raise stream.broken_off(error) from error
                if update is None:
                    return
                await self._send(operation, update)
        except BaseException:
            watch.close()
            raise

    async def _send_all(self, operation: Operation, stream: Stream) -> None:
        """Send what any other stream has, until its end."""
        async with aclosing(stream.events):  # type: ignore[type-var]
            while True:
                try:
                    event = await anext(stream.events)
                except StopAsyncIteration:
                    return
                except Exception as error:
                    raise stream.broken_off(error) from error
                await self._send(operation, event)

    async def _send(self, operation: Operation, event: Any) -> None:
        assert operation.stream is not None
        body = await operation.stream.rendering.get(event)
        await self.socket.room()
        operation.answer(body)

    def _has_begun(self, operation: Operation) -> None:
        self._beginning.pop(operation, None)
        if self._begun is not None:
            self._begun.set()
            self._begun = None

    def _forget(self, operation: Operation) -> None:
        self._has_begun(operation)
        del self._operations[operation.id]
        self._open_bytes -= operation.size
        if not self._operations:
            self._endpoint.idle.begin(self)

    def _say(self, message: dict[str, Any]) -> None:
        self.socket.say(encode(message))

    def _break(self, broken: ProtocolBroken) -> None:
        if self._ended:
            return
        self._endpoint.gauges.closed[broken.code] += 1
        about = {} if self._request_id is None else {"request_id": self._request_id}
        # Quoted and cut: the reason may hold what the client sent.
        log.info("A socket was closed: %.200r", str(broken), extra={"code": broken.code, **about})
        self.socket.close(broken.code, str(broken))


def _authorization(message: dict[str, Any]) -> str | None:
    """The credential that the payload of a message brings."""
    payload = message.get("payload")
    if isinstance(payload, dict):
        for name, value in payload.items():
            if name.lower() == "authorization" and value is not None:
                if not isinstance(value, str):
                    raise ProtocolBroken(BAD_REQUEST, f"The Authorization of {message['type']} must be a string")
                return value
    return None


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
