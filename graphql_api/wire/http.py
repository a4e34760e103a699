"""uvicorn's HTTP with the bounds that it lacks, and with each answer in one write.

A request that comes in one piece, to the endpoint that has most of them, is answered without ASGI: it needs no messages
to and fro, and nothing to wait for.
"""

import asyncio
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from graphql_api.wire.headers import Headers, read_headers

HEADERS_BYTES_MAX: Final = 65_536
# From the connection, or from the first bytes of a request, to the end of its headers.
HEADERS_TIMEOUT_S: Final = 15.0
# The header with which an answer ends its connection.
CLOSE: Final = (b"connection", b"close")
# Requests on one connection that wait while another is answered.
PIPELINED_REQUESTS_MAX: Final = 64


class Answer(NamedTuple):
    """What a request is answered with."""

    status: int
    headers: list[tuple[bytes, bytes]]
    """All that it has, with its length, and nothing that a client sent, unless it was looked at."""
    body: bytes


class Endpoint(Protocol):
    """Who answers requests that came in one piece."""

    async def answer(self, peer: str | None, headers: Headers, body: bytes) -> Answer | None:
        """The answer to a POST. None: it has more parts than one, or needs more than this; ask as ASGI does."""


class _Joined:
    """A transport as an answer sees it: what is written in one turn of the loop goes out in one write.

    uvicorn writes the head of an answer and its body one after the other, and each write is a call of the kernel.
    """

    __slots__ = ("_due", "_transport", "_written")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._written: list[bytes] = []
        self._due: asyncio.Handle | None = None

    def write(self, data: bytes) -> None:
        """Write, at the end of this turn at the latest."""
        self._written.append(data)
        if self._due is None:
            self._due = asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Write what waits."""
        if self._due is not None:
            self._due.cancel()
            self._due = None
            written, self._written = self._written, []
            if not self._transport.is_closing():
                self._transport.write(b"".join(written))

    def close(self) -> None:
        """Close, when all is written."""
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class HttpProtocol(HttpToolsProtocol):
    """HTTP whose headers, trailers and pipelines have bounds, and whose connections always have something to wait for.

    A request that comes in one piece costs no timer but that of the silence after its answer.
    """

    _joined: _Joined
    _headers_due: asyncio.TimerHandle | None = None
    _headers_bytes = 0
    _in_headers = False
    # The status of a request whose beginning is too large.
    _too_large = b""
    # Whether it wishes for a protocol that is not spoken here.
    _wishful = False
    # Whether what was read last had any part that was complete, and what was read since the last such part.
    _parsed = False
    _unparsed_bytes = 0

    def __init__(self, endpoint: Endpoint, path: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._endpoint = endpoint
        self._path = path

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect headers."""
        super().connection_made(transport)
        self._joined = _Joined(transport)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing more."""
        self._had_headers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take a read, and see that the next one comes in time unless a request is being answered."""
        self._parsed = False
        self._unset_keepalive_if_required()
        unread = data
        while unread:
            unread = self._parse(unread)
        parser: Any = self.parser
        if parser is None:
            # A socket has the connection now, or it is lost.
            return
        self._unparsed_bytes = 0 if self._parsed else self._unparsed_bytes + len(data)
        if self._unparsed_bytes > HEADERS_BYTES_MAX:
            self.transport.close()
        if not self._answering and self._headers_due is None and self.timeout_keep_alive_task is None:
            self._expect_headers()

    def _parse(self, data: bytes) -> bytes:
        """Have the parser take it; what it does not, because of a wish for another protocol, is to be parsed next."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.logger.warning("A request could not be read: %s", error)
            self.send_400_response("Invalid HTTP request received.")
        except httptools.HttpParserUpgrade as upgrade:
            if not self._wishful:
                self.handle_websocket_upgrade()
                return b""
            return self._without_wish() + data[upgrade.args[0] :]
        return b""

    def _without_wish(self) -> bytes:
        """The beginning of the request again, without the wish for another protocol: there is none but sockets.

        The parser leaves what follows to that protocol, be it the body, so another one begins at the same place.
        """
        self._wishful = False
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                tokens = (token.strip() for token in value.split(b","))
                value = b", ".join(token for token in tokens if token.lower() != b"upgrade")
            if name != b"upgrade":
                lines.append(b"%b: %b" % (name, value))
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return b"\r\n".join([*lines, b"", b""])

    def on_message_begin(self) -> None:
        """Expect headers, which begin now."""
        super().on_message_begin()
        self._headers_bytes = 0
        self._in_headers = True

    def on_url(self, url: bytes) -> None:
        """Count it."""
        super().on_url(url)
        self._count(url, b"", b"414 URI Too Long")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count it. What comes behind a body counts, too, but is no header: those were looked at before it came."""
        self._count(name, value, b"431 Request Header Fields Too Large")
        if self._in_headers:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Expect no more headers."""
        self._had_headers()
        self._in_headers = False
        if self.parser.should_upgrade() and not self._should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise httptools.HttpParserError("this is no proxy")
            self._wishful = True
            return
        if len(self.pipeline) >= PIPELINED_REQUESTS_MAX:
            raise httptools.HttpParserError(f"more than {PIPELINED_REQUESTS_MAX} requests wait for their answers")
        super().on_headers_complete()
        cycle: Any = self.cycle
        if cycle is not None:
            cycle.transport = self._joined

    def on_message_complete(self) -> None:
        """Take the end of a request, but for one that is to be read again."""
        if not self._wishful:
            super().on_message_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._parsed = True
        super().on_body(body)

    def on_response_complete(self) -> None:
        """Send an answer that is complete."""
        self._joined.flush()
        if self.cycle.more_body and not self._answering:
            # Nobody wants the rest of the request.
            self.transport.close()
        super().on_response_complete()
        if self.pipeline:
            self.flow.pause_reading()

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be read as a request, or is too large to be read."""
        if not self._too_large:
            super().send_400_response(msg)
            return
        self.transport.write(b"HTTP/1.1 %b\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % self._too_large)
        self.transport.close()

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over, and let go of what belonged to HTTP: sockets live long."""
        if self.pipeline or self._answering:
            # Whoever still answers on this connection would speak into the socket, and never hear of its end.
            self.transport.close()
            return
        self._unset_keepalive_if_required()
        self.connections.discard(self)
        make: Any = self.ws_protocol_class
        socket = make(config=self.config, server_state=self.server_state, app_state=self.app_state)
        socket.connection_made(self.transport)
        socket.shake_hands(self.scope["method"], self.url, self.headers)
        self.transport.set_protocol(socket)
        self.parser = None  # type: ignore[assignment]

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Begin to answer; the task's first step is in the next turn of the loop, when all that was read is parsed."""
        scope = cycle.scope
        if scope["path"] != self._path or scope["method"] != "POST":
            super()._start_asgi_task(cycle, app)
            return
        task = self.loop.create_task(self._answer(cycle, app))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _answer(self, cycle: RequestResponseCycle, app: Any) -> None:
        answer = None
        if not cycle.more_body:
            try:
                peer = self.client[0] if self.client else None
                answer = await self._endpoint.answer(peer, read_headers(cycle.scope["headers"]), bytes(cycle.body))
            except BaseException:
                # The end of the server; whatever is wrong with a request has an answer.
                self.transport.close()
                raise
        if answer is None:
            await cycle.run_asgi(app)
            return
        if self.flow.write_paused:
            await self.flow.drain()
        if cycle.disconnected or self.transport.is_closing():
            return
        parts = [STATUS_LINE[answer.status]]
        for name, value in (*cycle.default_headers, *answer.headers):
            parts += (name, b": ", value, b"\r\n")
        if CLOSE in answer.headers:
            cycle.keep_alive = False
        elif not cycle.keep_alive:
            parts.append(b"connection: close\r\n")
        parts.append(b"\r\n")
        parts.append(answer.body)
        self.transport.write(b"".join(parts))
        cycle.response_started = cycle.response_complete = True
        # The cycle knows this connection; this way both are gone when they are done, and not when somebody collects.
        cycle.on_response = lambda: None
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()

    @property
    def _answering(self) -> bool:
        """Whether the request that came last is being answered, or waits for that."""
        cycle: Any = self.cycle
        return cycle is not None and not cycle.response_complete

    def _expect_headers(self) -> None:
        self._headers_due = self.loop.call_later(HEADERS_TIMEOUT_S, self.transport.close)

    def _had_headers(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def _count(self, name: bytes, value: bytes, at_the_bound: bytes) -> None:
        self._parsed = True
        self._headers_bytes += len(name) + len(value)
        if self._headers_bytes > HEADERS_BYTES_MAX:
            self._too_large = at_the_bound
            raise httptools.HttpParserError(f"more than {HEADERS_BYTES_MAX} bytes of headers")


def protocol_of(endpoint: Endpoint, path: str) -> Any:
    """What uvicorn takes as the class of its HTTP connections."""
    return partial(HttpProtocol, endpoint, path)
