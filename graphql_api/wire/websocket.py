"""WebSockets on a connection that uvicorn took: a handshake, messages in order, pings, an end.

There is no task and no queue for a socket: a message is given to its session as it is read, and what the session says
is written at once. So a socket that is idle is a few objects, and a message that goes to many costs each of them one
write. The frames themselves are read by ``websockets``.

What keeps one peer from costing others: a read is taken in slices and messages in small numbers, each in a turn of the
loop of its own; while the peer does not read what it is sent, nothing more is taken from it.
"""

import asyncio
import base64
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Iterable
from typing import Any, Final, Protocol
from urllib.parse import unquote

from uvicorn.config import Config
from uvicorn.server import ServerState
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol as Frames
from websockets.protocol import Side, State
from websockets.utils import accept_key

from graphql_api.wire.headers import Headers, read_headers

log = logging.getLogger(__name__)

# Of what one read brings, so many bytes are looked at before others have a turn.
SLICE_BYTES: Final = 8_192
# Messages that are taken before others have a turn.
MESSAGES_IN_A_ROW: Final = 16
# A message may come in so many frames.
FRAGMENTS_MAX: Final = 64
# A peer may send at once what it may send in so many seconds.
BURST_S: Final = 5.0
# How long the peer may take to answer a close.
CLOSE_WAIT_S: Final = 2.0
# A peer is looked at so often; one that was silent for a while is pinged, and one that then stays silent is gone. So a
# half-open connection is found within three of these.
LOOK_INTERVAL_S: Final = 19.0
# Those that are due within this are looked at together.
LOOKS_APART_S: Final = 1.0
# When the server stops, so much time for each socket: ten thousand clients come back over three seconds, ten at once.
DRAIN_OF_EACH_S: Final = 0.0003
# The reason in a close frame is at most 123 bytes of UTF-8.
REASON_BYTES_MAX: Final = 123

INVALID_DATA: Final = 1007
POLICY_VIOLATION: Final = 1008
SERVICE_RESTART: Final = 1012
INTERNAL_ERROR: Final = 1011
# Ours: "request timeout", as HTTP's 408. Clients come back after it.
NOT_READING: Final = 4408


class Refused(Exception):
    """The handshake is answered with an HTTP status."""

    def __init__(self, status: str, headers: str = "") -> None:
        super().__init__(status)
        self.status = status
        self.headers = headers


class Session(Protocol):
    """What is spoken over a socket."""

    def take(self, text: bytes) -> Awaitable[None] | None:
        """Take a message. While what it returns is awaited, no further one is taken."""

    def take_binary(self) -> None:
        """Take a message that is not text."""

    def end(self) -> None:
        """The socket is no more, or will be no more; nothing that is said arrives."""


class Endpoint(Protocol):
    """Who accepts sockets."""

    @property
    def message_bytes_max(self) -> int:
        """What a message may have."""

    def choose(self, path: str, peer: str | None, headers: Headers) -> str | None:
        """The subprotocol for a handshake, None for none; Refused when there is to be no socket."""

    def open(self, socket: "WebSocket", headers: Headers, subprotocol: str | None) -> Session:
        """Begin a session on a socket that was accepted."""


class Watchman:
    """Looks at every socket now and then, with one timer for all of them; and spreads their ends over some time."""

    def __init__(self, drain_s: float) -> None:
        self._drain_s = drain_s
        # In the order in which they are due.
        self._due: deque[tuple[float, WebSocket]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, socket: "WebSocket") -> None:
        """Look at a socket until it is gone."""
        self._due.append((time.monotonic() + LOOK_INTERVAL_S, socket))
        self._schedule()

    def farewell_s(self) -> float:
        """When to end a socket because the server stops: its client will connect elsewhere, and not with all others."""
        return random.random() * min(self._drain_s, DRAIN_OF_EACH_S * len(self._due))  # noqa: S311 - no secret

    def _schedule(self) -> None:
        if self._timer is None and self._due:
            wait_s = max(LOOKS_APART_S, self._due[0][0] - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._look)

    def _look(self) -> None:
        self._timer = None
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            _, socket = self._due.popleft()
            if socket.look():
                self._due.append((now + LOOK_INTERVAL_S, socket))
        self._schedule()


class WebSocket(asyncio.Protocol):
    """One connection, from its handshake to its end. uvicorn makes it, and tells it when to stop."""

    __slots__ = (
        "_closing",
        "_connections",
        "_endpoint",
        "_flow",
        "_fragments",
        "_frames",
        "_full",
        "_heard",
        "_held",
        "_interval_s",
        "_lingering",
        "_messages",
        "_paced_until",
        "_paused",
        "_rest",
        "_resting",
        "_scheduled",
        "_session",
        "_unsent_bytes",
        "_warned",
        "_watchman",
        "transport",
    )

    def __init__(self, endpoint: Endpoint, watchman: Watchman, connections: set[Any]) -> None:
        self._endpoint = endpoint
        self._watchman = watchman
        self._connections = connections
        self.transport: asyncio.Transport
        # None until the handshake.
        self._frames: Frames | None = None
        self._session: Session | None = None
        # The parts of a message that is not complete.
        self._fragments: list[bytes] | None = None
        # Messages that wait for their turn, and what was read and not looked at.
        self._messages: deque[bytes | None] | None = None
        self._rest = b""
        self._scheduled = False
        self._paused = False
        # Whether the session is busy with a message.
        self._held = False
        # Whether the peer does not read what it is sent; who waits for it to read waits for `_flow`.
        self._full = False
        self._flow: asyncio.Event | None = None
        # A message takes so long of the peer's time; how far that reaches; and whether it has none left.
        self._interval_s = 0.0
        self._paced_until = 0.0
        self._resting = False
        self._closing = False
        # Whether what is read is thrown away until the peer closes, too.
        self._lingering = False
        self._heard = True
        # Whether it was found silent, or not reading, when it was looked at last.
        self._warned = False
        # What waited for the peer to read, when it was looked at.
        self._unsent_bytes = 0

    # From the session.

    @property
    def peer(self) -> str | None:
        """The address of the other end of the connection; None when it has none."""
        name = self.transport.get_extra_info("peername")
        return name[0] if isinstance(name, tuple) else None

    def pace(self, messages_per_second: int) -> None:
        """Take so many messages a second, and five times as many at once. Beyond, the peer is read more slowly."""
        self._interval_s = 1 / messages_per_second

    @property
    def has_room(self) -> bool:
        """Whether what is said goes out, rather than wait for the peer to read."""
        return not self._full

    async def room(self) -> None:
        """Wait until there is room."""
        while self._full:
            if self._flow is None:
                self._flow = asyncio.Event()
            await self._flow.wait()

    def say(self, text: bytes) -> None:
        """Send a message; to a peer that is gone it says nothing."""
        if self._closing:
            return
        size = len(text)
        if size < 126:
            self.transport.write(b"\x81%c%b" % (size, text))
        elif size < 65_536:
            self.transport.write(b"\x81\x7e%b%b" % (size.to_bytes(2, "big"), text))
        else:
            self.transport.write(b"\x81\x7f%b%b" % (size.to_bytes(8, "big"), text))

    def close(self, code: int, reason: str = "") -> None:
        """Say why, end the session, and close the connection when the peer has answered, or has not for too long."""
        if self._closing or self._frames is None:
            return
        if self._frames.state is State.OPEN:
            encoded = reason.encode(errors="replace")[:REASON_BYTES_MAX]
            self._frames.send_close(code, encoded.decode(errors="ignore"))
        self._end()
        self._write_frames()
        if not self.transport.is_closing():
            self._go_on()
            asyncio.get_running_loop().call_later(CLOSE_WAIT_S, self.transport.abort)

    # From the transport.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count among the connections that uvicorn ends."""
        self.transport = transport
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the session."""
        self._connections.discard(self)
        self._end()
        self._rest = b""
        self._fragments = None
        if self._frames is not None:
            # It refers to itself by its parser, and would wait with its buffers for the garbage collector.
            self._frames.parser = None  # type: ignore[assignment]
            self._frames = None
        self.resume_writing()

    def pause_writing(self) -> None:
        """Have whoever speaks wait, and take nothing more: a pong is an answer, too."""
        self._full = True
        self._warned = False
        self._go_on()

    def resume_writing(self) -> None:
        """Let whoever waits speak."""
        self._full = False
        self._heard = True
        if self._flow is not None:
            self._flow.set()
            self._flow = None
        self._go_on()

    def shutdown(self) -> None:
        """Close, because the server stops."""
        if self._frames is None:
            self.transport.close()
        else:
            asyncio.get_running_loop().call_later(
                self._watchman.farewell_s(), self.close, SERVICE_RESTART, "The server is stopping; connect again."
            )

    def data_received(self, data: bytes) -> None:
        """Take what was read: frames, because the handshake is over."""
        if self._lingering:
            return
        self._heard = True
        self._rest += data
        if not (self._paused or self._scheduled):
            self._read()

    # Handshake.

    def shake_hands(self, method: str, target: bytes, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """Answer a request to become a WebSocket."""
        try:
            self._shake_hands(method, target, read_headers(pairs))
        except Exception:
            log.exception("A handshake failed.")
            self.transport.abort()

    def _shake_hands(self, method: str, target: bytes, headers: Headers) -> None:
        try:
            key = _key(method, headers)
            subprotocol = self._endpoint.choose(
                unquote(target.partition(b"?")[0].decode("latin-1")), self.peer, headers
            )
        except Refused as refused:
            self.transport.write(
                f"HTTP/1.1 {refused.status}\r\n{refused.headers}content-length: 0\r\nconnection: close\r\n\r\n".encode()
            )
            self.transport.close()
            return
        chosen = f"Sec-WebSocket-Protocol: {subprotocol}\r\n" if subprotocol else ""
        self.transport.write(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept_key(key)}\r\n{chosen}\r\n".encode()
        )
        self._frames = Frames(Side.SERVER, state=State.OPEN, max_size=self._endpoint.message_bytes_max)
        self._session = self._endpoint.open(self, headers, subprotocol)
        self._watchman.watch(self)

    # Frames, and messages made of them.

    def _read(self) -> None:
        assert self._frames is not None
        data, self._rest = self._rest[:SLICE_BYTES], self._rest[SLICE_BYTES:]
        self._frames.receive_data(data)
        for frame in self._frames.events_received():
            assert isinstance(frame, Frame)
            self._take_frame(frame)
        if self._closing:
            # Nothing is answered any more; what matters is whether the peer closes, too.
            if not all(self._frames.data_to_send()):
                self.transport.close()
        else:
            self._write_frames()
        self._go_on()

    def _take_frame(self, frame: Frame) -> None:
        if self._closing:
            return
        if self._interval_s:
            self._pay()
        if frame.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            return
        message: bytes | None = bytes(frame.data)
        if frame.opcode is Opcode.BINARY:
            message = None
        elif frame.opcode is Opcode.CONT or not frame.fin:
            message = self._whole(frame)
            if message is None:
                return
        if self._messages is None:
            self._messages = deque()
        self._messages.append(message)

    def _pay(self) -> None:
        """Count a frame; when there were too many, take nothing more until they are paid for."""
        now = time.monotonic()
        self._paced_until = max(self._paced_until, now) + self._interval_s
        wait_s = self._paced_until - now - BURST_S
        if wait_s > 0 and not self._resting:
            self._resting = True
            asyncio.get_running_loop().call_later(wait_s, self._rested)

    def _rested(self) -> None:
        wait_s = self._paced_until - time.monotonic() - BURST_S
        if wait_s > 0 and not self._closing:
            asyncio.get_running_loop().call_later(wait_s, self._rested)
            return
        self._resting = False
        self._go_on()

    def _whole(self, frame: Frame) -> bytes | None:
        """The message that this fragment completes."""
        if self._fragments is None:
            self._fragments = []
        self._fragments.append(bytes(frame.data))
        if len(self._fragments) > FRAGMENTS_MAX:
            self.close(POLICY_VIOLATION, "too many fragments")
            return None
        if not frame.fin:
            return None
        message, self._fragments = b"".join(self._fragments), None
        return message

    @property
    def _busy(self) -> bool:
        """Whether nothing may be taken from the peer at the moment."""
        return (self._held or self._full or self._resting) and not self._closing

    def _go_on(self) -> None:
        """Give messages to the session, as many as may be, then read on."""
        taken = 0
        while self._messages and taken < MESSAGES_IN_A_ROW and not self._busy:
            taken += 1
            self._give(self._messages.popleft())
        if not self._messages:
            self._messages = None
        more = bool(self._messages or self._rest)
        if more and not self._busy and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._have_a_turn)
        if self.transport.is_closing():
            return
        if more or self._busy:
            if not self._paused:
                self._paused = True
                self.transport.pause_reading()
        elif self._paused:
            self._paused = False
            self.transport.resume_reading()

    def _have_a_turn(self) -> None:
        self._scheduled = False
        if self._messages or self._busy or not self._rest:
            self._go_on()
        else:
            self._read()

    def _give(self, message: bytes | None) -> None:
        assert self._session is not None
        if message is None:
            self._session.take_binary()
            return
        busy = self._session.take(message)
        if busy is not None:
            self._held = True
            asyncio.ensure_future(busy).add_done_callback(self._release)

    def _release(self, done: asyncio.Future[None]) -> None:
        self._held = False
        if not done.cancelled() and (error := done.exception()) is not None:
            log.error("A message could not be taken.", exc_info=error)
            self.close(INTERNAL_ERROR, "Internal server error")
        self._go_on()

    def _write_frames(self) -> None:
        assert self._frames is not None
        for data in self._frames.data_to_send():
            if data:
                self.transport.write(data)
            else:
                # Both have said that they close, or the peer broke the protocol.
                self._end()
                self._hang_up()

    def _hang_up(self) -> None:
        """Close the connection; but to a peer that may still be sending, after it has read why.

        What it sends to a connection that is closed is answered by a reset, which can overtake the frame that says why.
        """
        assert self._frames is not None
        if self._frames.close_rcvd is not None or not self.transport.can_write_eof():
            self.transport.close()
            return
        self._lingering = True
        self._rest = b""
        self._go_on()
        self.transport.write_eof()
        asyncio.get_running_loop().call_later(CLOSE_WAIT_S, self.transport.abort)

    # Looks, and the end.

    def look(self) -> bool:
        """Ping a peer that was silent, and close when it stays so, or does not read; whether to look again."""
        if self._closing or self._frames is None or self.transport.is_closing():
            return False
        unsent_bytes, self._unsent_bytes = self._unsent_bytes, self.transport.get_write_buffer_size()
        if self._full:
            # It has to read before we listen to it again, and before a ping could reach it.
            if not self._warned or self._unsent_bytes < unsent_bytes:
                self._warned = True
                return True
            log.info("A socket was closed: its client read nothing for %.0f s.", LOOK_INTERVAL_S)
            self.close(NOT_READING, "Nothing was read; connect again")
            return False
        if self._heard:
            self._heard = self._warned = False
        elif not self._warned:
            self._warned = True
            self._frames.send_ping(b"")
            self._write_frames()
        else:
            log.info("A socket was closed: nothing was heard of its client for %.0f s.", 3 * LOOK_INTERVAL_S)
            self.close(INTERNAL_ERROR, "keepalive ping timeout")
            return False
        return True

    def _end(self) -> None:
        self._closing = True
        self._messages = None
        session, self._session = self._session, None
        if session is not None:
            session.end()


def protocol_of(endpoint: Endpoint, drain_s: float) -> Any:
    """What uvicorn takes as the class of its WebSocket connections; their ends are spread over `drain_s` at most."""
    watchman = Watchman(drain_s)

    def make(config: Config, server_state: ServerState, app_state: dict[str, Any]) -> WebSocket:
        return WebSocket(endpoint, watchman, server_state.connections)

    return make


def _key(method: str, headers: Headers) -> str:
    """The client's half of the handshake; uvicorn has seen that it wants to upgrade to a WebSocket."""
    if method != "GET":
        raise Refused("405 Method Not Allowed", "allow: GET\r\n")
    if headers.get("sec-websocket-version") != "13":
        raise Refused("426 Upgrade Required", "sec-websocket-version: 13\r\n")
    key = headers.get("sec-websocket-key", "")
    try:
        if len(base64.b64decode(key, validate=True)) == 16:
            return key
    except ValueError:
        pass
    raise Refused("400 Bad Request")
