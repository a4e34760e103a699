"""GraphQL over HTTP: POST and GET, streams as SSE or multipart, and a page for browsers.

The kind of operation decides the shape of the answer before `Accept` does: a query or a mutation is answered with
JSON whenever the client takes JSON, however many other types it lists, and a subscription is streamed.
"""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Final, TypeAlias, TypeVar
from urllib.parse import parse_qsl

from graphql import OperationType
from starlette.types import Message, Receive, Scope, Send

from graphql_api.admission import Admission
from graphql_api.auth import Doorkeeper
from graphql_api.context import Context
from graphql_api.errors import OperationNotAllowed, PersistedQueryNotFound, RateLimited, Unauthenticated, refusal
from graphql_api.execution.json import decode, encode
from graphql_api.execution.plan import Operation, Plans, RequestRefused
from graphql_api.logs import REQUEST_ID_HEADER, bind, request_id_of
from graphql_api.wire.headers import Headers, read_headers
from graphql_api.wire.http import Answer
from storage import BadInput, Refusal, Storage, TooLarge, Unavailable

T = TypeVar("T")
Echoed: TypeAlias = Sequence[tuple[bytes, bytes]]
"""The headers of a request that its answer has, too."""

JSON: Final = "application/json"
GRAPHQL_JSON: Final = "application/graphql-response+json"
EVENT_STREAM: Final = "text/event-stream"
MULTIPART: Final = "multipart/mixed"
HTML: Final = "text/html"
# In the order in which they are preferred when a client takes several alike.
_JSON_TYPES: Final = (JSON, GRAPHQL_JSON)
_STREAM_TYPES: Final = (EVENT_STREAM, MULTIPART)
HEARTBEAT_S: Final = 15.0
# Values of one header that are remembered with what they mean; clients send few different ones.
REMEMBERED_HEADERS_MAX: Final = 256
# What is read of such a header.
HEADER_CHARACTERS_MAX: Final = 1_024
_NEEDS_STREAM: Final = (
    f"A subscription needs a client that accepts {EVENT_STREAM} or {MULTIPART}, "
    "or a WebSocket that speaks graphql-transport-ws."
)
_NEEDS_JSON: Final = f"Answers are {JSON} or {GRAPHQL_JSON}, or streams, none of which is accepted."
# What is told is for whoever asked, at this time, and is what its type says.
SAFE_HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_SAFE_HEADERS: Final = [(name.lower().encode(), value.encode()) for name, value in SAFE_HEADERS.items()]


class Refused(Exception):
    """A request that is answered with an HTTP status of its own."""

    def __init__(self, status: int, error: Exception, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(str(error))
        self.status = status
        self.error = error
        self.headers = headers or {}


@dataclass(frozen=True, slots=True)
class Accepted:
    """What an `Accept` header says about the types that are served here."""

    # The type of an answer as JSON, and whether the client takes it.
    json_type: str
    takes_json: bool
    # The type of a stream; None when the client takes none.
    stream_type: str | None
    # Whether a page is liked best: then it is a browser.
    likes_page: bool


@dataclass(frozen=True, slots=True)
class Framing:
    """How answers follow each other in one response."""

    content_type: bytes
    frame: Callable[[bytes], bytes]
    start: bytes
    heartbeat: bytes
    end: bytes


def _event(answer: bytes) -> bytes:
    # Clients split events at LF LF; some know no other line ends.
    return b"event: next\ndata: %b\n\n" % answer


def _part(answer: bytes) -> bytes:
    return b'\r\ncontent-type: application/json; charset=utf-8\r\n\r\n{"payload":%b}\r\n--graphql' % answer


_FRAMINGS: Final = {
    EVENT_STREAM: Framing(b"text/event-stream; charset=utf-8", _event, b"", b":\n\n", b"event: complete\ndata: \n\n"),
    MULTIPART: Framing(
        b'multipart/mixed; boundary="graphql"; subscriptionSpec="1.0"',
        _part,
        b"--graphql",
        b"\r\ncontent-type: application/json; charset=utf-8\r\n\r\n{}\r\n--graphql",
        b"--\r\n",
    ),
}


class GraphQLOverHTTP:
    """The endpoint, by ASGI and without."""

    def __init__(
        self,
        storage: Storage,
        plans: Plans,
        doorkeeper: Doorkeeper,
        admission: Admission,
        *,
        page: Callable[[Headers], Answer] | None,
        vary_by_origin: bool,
        body_bytes_max: int,
        body_timeout_s: float,
        stopping: asyncio.Event,
    ) -> None:
        self._storage = storage
        self._plans = plans
        self._doorkeeper = doorkeeper
        self._admission = admission
        # What the middleware for other origins would add to an answer that has nothing to do with them.
        self._vary = [(b"vary", b"Origin")] if vary_by_origin else []
        # What a browser that opens the address is shown.
        self._page = page
        self._body_bytes_max = body_bytes_max
        self._body_timeout_s = body_timeout_s
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        headers = read_headers(scope["headers"])
        echoed = _echoed(headers)
        if echoed:
            send = _with_headers(send, echoed)
        accepted = _accepted(headers.get("accept", "*/*"))
        try:
            answer = await self._respond(scope, headers, accepted, receive, send)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client hears of it
            answer = _refused(error, accepted.json_type)
        if answer is not None:
            await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
            await send({"type": "http.response.body", "body": answer.body})

    async def answer(self, peer: str | None, headers: Headers, body: bytes) -> Answer | None:
        """The answer to a POST that came in one piece; None when it is a stream, or has to do with other origins."""
        json_type = JSON
        echoed = _echoed(headers)
        try:
            if "origin" in headers:
                return None
            accepted = _accepted(headers.get("accept", "*/*"))
            json_type = accepted.json_type
            answer = await self._run_operation(peer, headers, accepted, body)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client hears of it
            answer = _refused(error, json_type)
        if answer is not None:
            answer.headers.extend(echoed)
            answer.headers.extend(self._vary)
        return answer

    async def _run_operation(
        self, peer: str | None, headers: Headers, accepted: Accepted, body: bytes
    ) -> Answer | None:
        source = self._admission.source(peer, headers)
        self._admission.begin(source)
        _check_content(headers)
        operation = self._operation(accepted, body)
        authorization = headers.get("authorization")
        viewer = await self._admission.viewer(authorization, source)
        plan = await self._plans.plan(operation.query, operation.operation_name, operation.sha256)
        if plan.operation_type is OperationType.SUBSCRIPTION or not accepted.takes_json:
            self._admission.take_back(viewer, authorization, source)
            return None
        context = Context(self._storage, viewer)
        if plan.operation_type is OperationType.MUTATION:
            bind(address=self._admission.client(peer, headers))
            context.count_more = partial(self._admission.count_more, viewer, authorization, source)
        result = await self._plans.run(plan, operation.variables, context)
        return _answer(200, accepted.json_type, result)

    async def _respond(
        self, scope: Scope, headers: Headers, accepted: Accepted, receive: Receive, send: Send
    ) -> Answer | None:
        """The answer, or None when it was streamed."""
        method = scope["method"]
        client = scope.get("client")
        peer = client[0] if client else None
        source = self._admission.source(peer, headers)
        self._admission.begin(source)
        if method == "POST":
            _check_content(headers)
            operation = self._operation(accepted, await self._body(headers, receive))
        elif method == "GET":
            if self._page and accepted.likes_page:
                return self._page(headers)
            _check_accepted(accepted)
            operation = self._read(_parameters(scope["query_string"]))
        else:
            raise Refused(405, BadInput(f"GraphQL is served by GET and POST, got {method}."), {"Allow": "GET, POST"})
        authorization = headers.get("authorization")
        viewer = await self._admission.viewer(authorization, source)
        plan = await self._plans.plan(operation.query, operation.operation_name, operation.sha256)
        context = Context(self._storage, viewer)
        if plan.operation_type is OperationType.MUTATION:
            if method == "GET":
                raise Refused(405, BadInput("A mutation must be sent by POST."), {"Allow": "POST"})
            bind(address=self._admission.client(peer, headers))
            context.count_more = partial(self._admission.count_more, viewer, authorization, source)
        subscription = plan.operation_type is OperationType.SUBSCRIPTION
        if not subscription and accepted.takes_json:
            return _answer(200, accepted.json_type, await self._plans.run(plan, operation.variables, context))
        if accepted.stream_type is None:
            raise Refused(406, BadInput(_NEEDS_STREAM))
        answers = self._plans.stream(plan, operation.variables, context)
        with self._admission.stream(viewer, authorization, source):
            async with aclosing(answers):
                with self._doorkeeper.vigil.keeping(authorization) as expelled:
                    await self._stream(_FRAMINGS[accepted.stream_type], answers, expelled, receive, send)
        return None

    def _operation(self, accepted: Accepted, body: bytes) -> Operation:
        if len(body) > self._body_bytes_max:
            raise self._too_large()
        _check_accepted(accepted)
        try:
            request = decode(body)
        except BadInput as error:
            raise Refused(400, error) from None
        return self._read(request)

    def _read(self, request: Any) -> Operation:
        try:
            return self._plans.read(request)
        except BadInput as error:
            raise Refused(400, error) from None

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._body_bytes_max:
            raise self._too_large()
        try:
            async with asyncio.timeout(self._body_timeout_s):
                message = await receive()
                body = bytearray(message.get("body", b""))
                while message.get("more_body", False):
                    if len(body) > self._body_bytes_max:
                        raise self._too_large()
                    message = await receive()
                    body += message.get("body", b"")
        except TimeoutError:
            error = BadInput(f"The body must arrive within {self._body_timeout_s:g} s.")
            raise Refused(408, error, {"Connection": "close"}) from None
        if message["type"] == "http.disconnect":
            raise Refused(400, BadInput("The body broke off."))
        return bytes(body)

    def _too_large(self) -> Refused:
        error = TooLarge(f"A body must have at most {self._body_bytes_max} bytes.")
        return Refused(413, error, {"Connection": "close"})

    async def _stream(
        self,
        framing: Framing,
        answers: AsyncGenerator[bytes, None],
        expelled: asyncio.Future[Refusal],
        receive: Receive,
        send: Send,
    ) -> None:
        """Send answers until there are no more, the credential ends, the client is gone, or the server stops."""
        headers = [(b"content-type", framing.content_type), (b"cache-control", b"no-store, no-transform")]
        headers.append((b"x-content-type-options", b"nosniff"))
        # Proxies that gather a response before they pass it on would hold the news back.
        headers.append((b"x-accel-buffering", b"no"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        gone = asyncio.create_task(_disconnected(receive), name="stream: disconnect")
        stopping = asyncio.create_task(self._stopping.wait(), name="stream: stop")
        try:
            # The outer is closed first: it has a step of the inner under way.
            parts = _with_heartbeat(framing, answers, expelled, {gone, stopping})
            async with aclosing(answers), aclosing(parts):
                async for part in parts:
                    await send({"type": "http.response.body", "body": part, "more_body": True})
            if not gone.done():
                # A stream that we break off has no end of its own: its client is to come back.
                end = b"" if stopping.done() else framing.end
                await send({"type": "http.response.body", "body": end, "more_body": False})
        finally:
            gone.cancel()
            stopping.cancel()


def _echoed(headers: Headers) -> Echoed:
    """The ID of the request, which its lines in the log have from here on; nothing, when it came without one."""
    request_id = request_id_of(headers) if REQUEST_ID_HEADER in headers else None
    if request_id is None:
        return ()
    bind(request_id=request_id)
    return ((REQUEST_ID_HEADER.encode(), request_id.encode()),)


def _with_headers(send: Send, headers: Echoed) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"].extend(headers)
        await send(message)

    return send_with_headers


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _with_heartbeat(
    framing: Framing,
    answers: AsyncGenerator[bytes, None],
    expelled: asyncio.Future[Refusal],
    ends: set[asyncio.Task[Any]],
) -> AsyncGenerator[bytes, None]:
    yield framing.start
    while True:
        following = asyncio.create_task(_next(answers), name="stream: next")
        awaited: set[asyncio.Future[Any]] = {following, expelled, *ends}
        try:
            while not following.done():
                done, _ = await asyncio.wait(awaited, timeout=HEARTBEAT_S, return_when=asyncio.FIRST_COMPLETED)
                if done & ends:
                    return
                if expelled in done:
                    yield framing.frame(encode({"errors": [refusal(expelled.result())]}))
                    return
                if not done:
                    yield framing.heartbeat
            answer = following.result()
        finally:
            if not following.done():
                following.cancel()
                await asyncio.wait({following})
        if answer is None:
            return
        yield framing.frame(answer)


async def _next(answers: AsyncGenerator[bytes, None]) -> bytes | None:
    try:
        return await anext(answers, None)
    except RequestRefused as refused:
        return encode({"errors": refused.errors})
    except Refusal as error:
        return encode({"errors": [refusal(error)]})


def _answer(status: int, content_type: str, body: bytes, headers: Mapping[str, str] | None = None) -> Answer:
    sent = [
        (b"content-length", b"%d" % len(body)),
        (b"content-type", b"%b; charset=utf-8" % content_type.encode()),
        *_SAFE_HEADERS,
    ]
    if headers:
        sent += [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
    return Answer(status, sent, body)


def _refused(error: Exception, json_type: str) -> Answer:
    """What a client is told of a request that came to nothing."""
    if isinstance(error, RequestRefused):
        # The older type has 200 for everything that was understood as a request.
        return _answer(400 if json_type == GRAPHQL_JSON else 200, json_type, encode({"errors": error.errors}))
    told = error if isinstance(error, Refused) else _as_refused(error)
    return _answer(told.status, json_type, encode({"errors": [refusal(told.error)]}), told.headers)


def _as_refused(error: Exception) -> Refused:
    match error:
        case Unauthenticated():
            return Refused(401, error, {"WWW-Authenticate": "Bearer"})
        case PersistedQueryNotFound():
            # Its client sends the document now, which is how the protocol begins.
            return Refused(200, error)
        case OperationNotAllowed():
            return Refused(403, error)
        case RateLimited():
            return Refused(429, error, {"Retry-After": str(math.ceil(error.retry_after_s))})
        case Unavailable():
            return Refused(503, error)
    # A fault of ours; the client gets its number.
    return Refused(500, error)


def _remembered(read: Callable[[str], T]) -> Callable[[str], T]:
    """What a header means, remembered."""
    remembering = lru_cache(REMEMBERED_HEADERS_MAX)(read)
    return lambda value: remembering(value[:HEADER_CHARACTERS_MAX])


@_remembered
def _accepted(header: str) -> Accepted:
    weights: dict[str, tuple[float, int]] = {}
    for rank, entry in enumerate((header or "*/*").split(",")):
        media_type, *parameters = (part.strip().lower() for part in entry.split(";"))
        weight = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                try:
                    weight = float(value)
                except ValueError:
                    weight = 0.0
        if media_type:
            weights.setdefault(media_type, (weight, -rank))
    json_type = _best(weights, _JSON_TYPES)
    return Accepted(
        json_type or JSON,
        json_type is not None,
        _best(weights, _STREAM_TYPES),
        _best(weights, (*_JSON_TYPES, *_STREAM_TYPES, HTML)) == HTML,
    )


def _best(weights: Mapping[str, tuple[float, int]], offers: tuple[str, ...]) -> str | None:
    """The offer that the client likes best; of those it likes alike, the one it names first, then the first offer."""
    found: list[tuple[float, int, int, str]] = []
    for order, offer in enumerate(offers):
        for pattern in (offer, offer.split("/")[0] + "/*", "*/*"):
            if pattern in weights:
                weight, rank = weights[pattern]
                if weight > 0:
                    found.append((weight, rank, -order, offer))
                break
    return max(found)[3] if found else None


def _check_accepted(accepted: Accepted) -> None:
    if not accepted.takes_json and accepted.stream_type is None:
        raise Refused(406, BadInput(_NEEDS_JSON))


def _check_content(headers: Headers) -> None:
    _check_type(headers.get("content-type", ""))
    encoding = headers.get("content-encoding") or "identity"
    if encoding.lower() != "identity":
        raise Refused(415, BadInput(f"The Content-Encoding must be identity, got {encoding}."), {"Accept-Encoding": ""})


@_remembered
def _check_type(header: str) -> None:
    content_type, *parameters = (part.strip().lower() for part in header.split(";"))
    if content_type != JSON:
        got = content_type or "none"
        raise Refused(415, BadInput(f"The Content-Type must be {JSON}, got {got}."), {"Accept": JSON})
    for parameter in parameters:
        if parameter.startswith("charset=") and parameter.removeprefix("charset=").strip('"') not in ("utf-8", "utf8"):
            raise Refused(415, BadInput(f"The charset must be utf-8, got {parameter.removeprefix('charset=')}."))


def _parameters(query_string: bytes) -> dict[str, Any]:
    try:
        parameters: dict[str, Any] = dict(parse_qsl(query_string.decode("ascii"), errors="strict", max_num_fields=100))
    except ValueError:
        raise Refused(400, BadInput("The query string cannot be read; it must be URL-encoded UTF-8.")) from None
    for name in ("variables", "extensions"):
        if name in parameters:
            try:
                parameters[name] = decode(parameters[name].encode())
            except BadInput as error:
                raise Refused(400, BadInput(f"{name}: {error}")) from None
    return parameters
