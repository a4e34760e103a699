"""uvicorn's HTTP with the bounds that it lacks: what a connection may cost before our code hears of it."""

import asyncio
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADERS_BYTES_MAX: Final = 65_536
# From the connection, or from the first bytes of a request, to the end of its headers.
HEADERS_TIMEOUT_S: Final = 15.0


class _Corked:
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
            self._transport.write(b"".join(written))

    def close(self) -> None:
        """Close, when all is written."""
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class HttpProtocol(HttpToolsProtocol):
    """HTTP whose headers have a size and a time. A request that comes in one piece costs no timer."""

    _corked: _Corked

    _headers_due: asyncio.TimerHandle | None = None
    _headers_bytes = 0
    # Whether a request has begun whose headers have not ended.
    _in_headers = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect headers."""
        super().connection_made(transport)
        self._corked = _Corked(transport)
        self._headers_due = self.loop.call_later(HEADERS_TIMEOUT_S, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing more."""
        self._had_headers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take a read; see that its headers are not too many, and that the rest of them comes in time."""
        super().data_received(data)
        if self._in_headers:
            self._count(len(data))
            if self._headers_due is None:
                self._headers_due = self.loop.call_later(HEADERS_TIMEOUT_S, self.transport.close)

    def on_message_begin(self) -> None:
        """Expect headers, which begin now."""
        super().on_message_begin()
        self._headers_bytes = 0
        self._in_headers = True

    def on_headers_complete(self) -> None:
        """Expect no more headers."""
        self._had_headers()
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > HEADERS_BYTES_MAX:
            raise httptools.HttpParserError(f"more than {HEADERS_BYTES_MAX} bytes of headers")
        super().on_headers_complete()
        if self.cycle is not None:
            self.cycle.transport = self._corked  # type: ignore[assignment]

    def on_response_complete(self) -> None:
        """Send an answer that is complete."""
        self._corked.flush()
        super().on_response_complete()

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over, and let go of what belonged to HTTP: sockets live long."""
        super().handle_websocket_upgrade()
        self.parser = None  # type: ignore[assignment]

    def _had_headers(self) -> None:
        self._in_headers = False
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def _count(self, size: int) -> None:
        self._headers_bytes += size
        if self._headers_bytes > HEADERS_BYTES_MAX and not self.transport.is_closing():
            self.send_400_response("Too many headers.")
