"""uvicorn's protocols with the bounds that they lack: what a connection may cost before our code hears of it."""

import asyncio
from typing import Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

HEADERS_BYTES_MAX: Final = 65_536
# From the first byte of a request, or from the connection, to the end of the headers.
HEADERS_TIMEOUT_S: Final = 15.0
FRAGMENTS_MAX: Final = 64
_POLICY_VIOLATION: Final = 1008


class HttpProtocol(HttpToolsProtocol):
    """HTTP whose headers have a size and a time."""

    _headers_due: asyncio.TimerHandle | None = None
    _headers_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect headers."""
        super().connection_made(transport)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing more."""
        self._had_headers()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Expect headers, which begin now."""
        super().on_message_begin()
        self._headers_bytes = 0
        if self._headers_due is None:
            self._expect_headers()

    def on_url(self, url: bytes) -> None:
        """Count it."""
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count it."""
        super().on_header(name, value)
        self._count(len(name) + len(value))

    def on_headers_complete(self) -> None:
        """Expect no more headers."""
        self._had_headers()
        super().on_headers_complete()

    def _expect_headers(self) -> None:
        self._headers_due = self.loop.call_later(HEADERS_TIMEOUT_S, self.transport.close)

    def _had_headers(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def _count(self, size: int) -> None:
        self._headers_bytes += size
        if self._headers_bytes > HEADERS_BYTES_MAX:
            raise httptools.HttpParserError(f"more than {HEADERS_BYTES_MAX} bytes of headers")


class SocketProtocol(WebSocketsSansIOProtocol):
    """WebSockets that take one read from the wire in each turn of the loop, so that no peer can fill a turn with
    frames that cost much and mean nothing.
    """

    def data_received(self, data: bytes) -> None:
        """Take a read, and the next one when everybody else had a turn."""
        super().data_received(data)
        if not self.handshake_initiated and self.conn.handshake_exc is not None:
            # Refused by the library, which tells nobody.
            self.transport.close()
        elif not self.read_paused and not self.transport.is_closing():
            self.transport.pause_reading()
            self.loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        if not self.read_paused and not self.transport.is_closing():
            self.transport.resume_reading()

    def handle_cont(self, event: Frame) -> None:
        """Take a fragment, of which a message has few."""
        super().handle_cont(event)
        if len(self.frames) > FRAGMENTS_MAX and not self.close_sent:
            self.frames = []
            self.conn.fail(_POLICY_VIOLATION, "too many fragments")
            self.handle_parser_exception()
