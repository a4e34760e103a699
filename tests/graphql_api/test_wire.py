"""Connections as bytes: requests without end, handshakes that are refused, frames of all sizes, silent peers."""

import asyncio
import base64
import gc
import json
import re
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final
from urllib.parse import quote

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.frames import Frame, Opcode

from graphql_api.app import PATH
from graphql_api.execution.websocket import PROTOCOL
from graphql_api.wire import http as wire_http
from graphql_api.wire import websocket as wire
from tests.graphql_api.clients import WAIT_S, Api, data, until
from tests.graphql_api.conftest import Serving

KEY: Final = base64.b64encode(bytes(16)).decode()
HANDSHAKE: Final = {
    "Host": "localhost",
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Protocol": PROTOCOL,
}


class Raw:
    """A peer that does nothing by itself: it answers no ping and no close."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, opcode: Opcode, content: bytes = b"", *, fin: bool = True) -> None:
        """Send a frame."""
        self.writer.write(Frame(opcode, content, fin).serialize(mask=True))

    def say(self, message: object) -> None:
        """Send a message in one frame."""
        self.send(Opcode.TEXT, json.dumps(message).encode())

    async def take(self) -> tuple[Opcode, bytes]:
        """The next frame."""
        async with asyncio.timeout(WAIT_S):
            first, second = await self.reader.readexactly(2)
            size = second
            if second in (126, 127):
                size = int.from_bytes(await self.reader.readexactly(2 if second == 126 else 8), "big")
            assert first & 0x80
            return Opcode(first & 0x0F), await self.reader.readexactly(size)

    async def ended(self) -> None:
        """Wait for the end of the connection."""
        async with asyncio.timeout(WAIT_S):
            with suppress(ConnectionResetError):
                assert await self.reader.read() == b""


async def handshake(api: Api, head: str, **headers: str | None) -> tuple[str, Raw]:
    """Send the head of a handshake with some headers changed; the head of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(api.origin.rpartition(":")[2]))
    changed = {**HANDSHAKE, **{name.replace("_", "-"): value for name, value in headers.items()}}
    lines = [head, *(f"{name}: {value}" for name, value in changed.items() if value is not None)]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    async with asyncio.timeout(WAIT_S):
        answer = (await reader.readuntil(b"\r\n\r\n")).decode()
    return answer, Raw(reader, writer)


@asynccontextmanager
async def raw_socket(api: Api, *, init: bool = True) -> AsyncIterator[Raw]:
    """A peer that does nothing by itself, after its handshake."""
    answer, raw = await handshake(api, f"GET {PATH} HTTP/1.1")
    assert answer.startswith("HTTP/1.1 101 ")
    try:
        if init:
            raw.say({"type": "connection_init"})
            assert await raw.take() == (Opcode.TEXT, b'{"type":"connection_ack"}')
        yield raw
    finally:
        raw.writer.close()


def sockets(api: Api) -> list[wire.WebSocket]:
    """The sockets that the server has open."""
    connections: Any = api.server.server_state.connections
    return [connection for connection in connections if isinstance(connection, wire.WebSocket)]


async def test_a_handshake_is_answered_as_the_protocol_says(serving: Serving) -> None:
    async with serving() as api:
        answer, raw = await handshake(api, f"GET {PATH} HTTP/1.1", Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ==")
        raw.writer.close()
    status, *lines = answer.split("\r\n")
    assert status == "HTTP/1.1 101 Switching Protocols"
    # The example of RFC 6455.
    assert "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in lines
    assert f"Sec-WebSocket-Protocol: {PROTOCOL}" in lines


async def test_a_handshake_that_is_none_is_refused_and_the_connection_closed(
    serving: Serving, subtests: pytest.Subtests
) -> None:
    get = f"GET {PATH} HTTP/1.1"
    cases: list[tuple[str, dict[str, str | None], str]] = [
        ("GET /elsewhere HTTP/1.1", {}, "404 Not Found"),
        (f"GET {PATH}/ HTTP/1.1", {}, "404 Not Found"),
        (f"POST {PATH} HTTP/1.1", {}, "405 Method Not Allowed"),
        (get, {"Sec_WebSocket_Version": "8"}, "426 Upgrade Required"),
        (get, {"Sec_WebSocket_Version": None}, "426 Upgrade Required"),
        (get, {"Sec_WebSocket_Key": None}, "400 Bad Request"),
        (get, {"Sec_WebSocket_Key": "short"}, "400 Bad Request"),
        (get, {"Sec_WebSocket_Key": "\N{SNOWMAN}" * 8}, "400 Bad Request"),
        (get, {"Sec_WebSocket_Key": base64.b64encode(bytes(15)).decode()}, "400 Bad Request"),
        (get, {"Origin": "https://elsewhere.example"}, "403 Forbidden"),
        (get, {"Origin": "http://["}, "403 Forbidden"),
    ]
    async with serving() as api:
        for head, headers, status in cases:
            with subtests.test(head=head, **headers):
                answer, raw = await handshake(api, head, **headers)
                assert answer.startswith(f"HTTP/1.1 {status}\r\n")
                await raw.ended()
                raw.writer.close()
        await until(lambda: not sockets(api))


async def test_messages_of_every_size_come_whole(serving: Serving, subtests: pytest.Subtests) -> None:
    async with serving() as api, raw_socket(api) as raw:
        await api.create("T")
        empty = len('{"id":"1","type":"next","payload":{"data":{"task":{"metadata":""}}}}')
        for size in (125, 126, 127, 65_535, 65_536, 200_000):
            with subtests.test(size=size):
                task_id = f"T-{size}"
                await api.create(task_id, metadata="m" * (size - empty))
                raw.say(
                    {"type": "subscribe", "id": "1", "payload": {"query": f'{{task(taskId:"{task_id}"){{metadata}}}}'}}
                )
                opcode, text = await raw.take()
                assert (opcode, len(text)) == (Opcode.TEXT, size)
                assert len(json.loads(text)["payload"]["data"]["task"]["metadata"]) == size - empty
                assert await raw.take() == (Opcode.TEXT, b'{"id":"1","type":"complete"}')


async def test_a_message_in_fragments_is_taken_when_it_is_whole_and_pings_may_come_between(serving: Serving) -> None:
    async with serving() as api, raw_socket(api) as raw:
        raw.send(Opcode.TEXT, b'{"type"', fin=False)
        raw.send(Opcode.PING, b"between")
        raw.send(Opcode.CONT, b':"pi', fin=False)
        raw.send(Opcode.CONT, b'ng"}')
        assert await raw.take() == (Opcode.PONG, b"between")
        assert await raw.take() == (Opcode.TEXT, b'{"type":"pong"}')


@pytest.mark.parametrize("over", [0, 1])
async def test_a_message_has_a_bound_on_its_fragments(serving: Serving, over: int) -> None:
    async with serving() as api, raw_socket(api) as raw:
        raw.send(Opcode.TEXT, b'{"type":"ping"}', fin=False)
        for _ in range(wire.FRAGMENTS_MAX - 2 + over):
            raw.send(Opcode.CONT, b" ", fin=False)
        raw.send(Opcode.CONT, b" ")
        opcode, said = await raw.take()
        if over:
            assert (opcode, said[:2]) == (Opcode.CLOSE, wire.POLICY_VIOLATION.to_bytes(2, "big"))
        else:
            assert (opcode, said) == (Opcode.TEXT, b'{"type":"pong"}')


@pytest.mark.parametrize("over", [0, 1])
async def test_a_message_has_a_bound_on_its_bytes(serving: Serving, over: int) -> None:
    async with serving(body_bytes_max=10_000) as api, raw_socket(api) as raw:
        raw.send(Opcode.TEXT, b'{"type":"ping"}'.ljust(10_000 + over))
        opcode, said = await raw.take()
        if over:
            assert (opcode, said[:2]) == (Opcode.CLOSE, (1009).to_bytes(2, "big"))
        else:
            assert (opcode, said) == (Opcode.TEXT, b'{"type":"pong"}')


async def test_a_message_larger_than_a_slice_is_taken_and_those_behind_it_in_order(serving: Serving) -> None:
    async with serving() as api, raw_socket(api) as raw:
        for number in range(50):
            payload = {"query": f"{{ n{number}: viewer {{ authenticated }} }}", "variables": {"x": "x" * 20_000}}
            raw.say({"type": "subscribe", "id": f"o{number}", "payload": payload})
        raw.say({"type": "ping"})
        answers = [json.loads((await raw.take())[1]) for _ in range(101)]
        begun = [answer["id"] for answer in answers if answer["type"] == "next"]
        assert begun == [f"o{number}" for number in range(50)]
        # All of them had been begun when the ping behind them was taken.
        assert {"type": "pong"} in answers


@pytest.mark.parametrize("kind", ["pings", "messages"])
async def test_a_flood_leaves_others_their_turn(serving: Serving, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    one = Frame(*((Opcode.PING, b"") if kind == "pings" else (Opcode.TEXT, b'{"type":"ping"}'))).serialize(mask=True)
    answer = (Opcode.PONG, b"") if kind == "pings" else (Opcode.TEXT, b'{"type":"pong"}')
    count = 20_000
    async with serving() as api, raw_socket(api) as flooding, api.socket() as other:
        looked = Looked(monkeypatch)
        flooding.writer.write(one * count)
        assert data(await other.ask("{ viewer { authenticated } }"))
        # The other was answered while most of the flood was still to come.
        assert looked.frames < count // 2
        for _ in range(count):
            assert await flooding.take() == answer


class Looked:
    """How many frames the server has looked at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.frames = 0
        give = wire.WebSocket._give
        take = wire.WebSocket._take_frame

        def count_pings(socket: wire.WebSocket, frame: Frame) -> None:
            self.frames += frame.opcode is Opcode.PING
            take(socket, frame)

        def count_messages(socket: wire.WebSocket, message: bytes | None) -> None:
            self.frames += 1
            give(socket, message)

        monkeypatch.setattr(wire.WebSocket, "_take_frame", count_pings)
        monkeypatch.setattr(wire.WebSocket, "_give", count_messages)


async def test_what_comes_behind_a_greeting_that_must_be_looked_at_waits_for_it(serving: Serving) -> None:
    async with serving(access="closed") as api, raw_socket(api, init=False) as raw:
        raw.say({"type": "connection_init", "payload": {"Authorization": f"Bearer {api.admin_key}"}})
        raw.say({"type": "subscribe", "id": "1", "payload": {"query": "{ viewer { name } }"}})
        assert (await raw.take())[1] == b'{"type":"connection_ack"}'
        assert json.loads((await raw.take())[1])["payload"] == {"data": {"viewer": {"name": "admin"}}}


async def test_a_client_that_leaves_while_its_credential_is_looked_at_is_forgotten(serving: Serving) -> None:
    async with serving(access="closed") as api:
        async with raw_socket(api, init=False) as raw:
            raw.say({"type": "connection_init", "payload": {"Authorization": f"Bearer {api.admin_key}"}})
        await until(lambda: not sockets(api))


async def test_a_peer_that_does_not_answer_a_close_is_not_waited_for(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "CLOSE_WAIT_S", 0.05)
    async with serving() as api, raw_socket(api) as raw:
        raw.say({"type": "nonsense"})
        opcode, content = await raw.take()
        assert (opcode, content[:2]) == (Opcode.CLOSE, (4400).to_bytes(2, "big"))
        await raw.ended()


async def test_a_peer_that_answers_a_close_is_let_go_at_once(serving: Serving) -> None:
    async with serving() as api, raw_socket(api) as raw:
        raw.say({"type": "nonsense"})
        # What it had sent before it knew is not an error.
        raw.say({"type": "ping"})
        _, content = await raw.take()
        raw.send(Opcode.CLOSE, content)
        await raw.ended()


async def test_a_close_is_answered_with_the_same_code(serving: Serving) -> None:
    async with serving() as api, raw_socket(api) as raw:
        await api.create("T")
        raw.say({"type": "subscribe", "id": "1", "payload": {"query": 'subscription{taskUpdates(taskId:"T"){type}}'}})
        await raw.take()
        raw.send(Opcode.CLOSE, (1000).to_bytes(2, "big"))
        assert await raw.take() == (Opcode.CLOSE, (1000).to_bytes(2, "big"))
        await raw.ended()
        assert api.storage.feed.subscribers == 0


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"\xc1\x80\0\0\0\0", 1002),  # a reserved bit
        (b"\x83\x80\0\0\0\0", 1002),  # an opcode that means nothing
        (b"\x81\x00", 1002),  # no mask
        (b"\x80\x80\0\0\0\0", 1002),  # a continuation of nothing
        (b"\x09\x80\0\0\0\0", 1002),  # a ping in fragments
    ],
)
async def test_frames_that_break_the_protocol_close_the_socket(serving: Serving, content: bytes, code: int) -> None:
    async with serving() as api, raw_socket(api) as raw:
        raw.writer.write(content)
        opcode, reason = await raw.take()
        assert (opcode, reason[:2]) == (Opcode.CLOSE, code.to_bytes(2, "big"))
        await raw.ended()


async def test_a_peer_that_is_still_sending_reads_why_its_socket_was_closed(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(body_bytes_max=10_000) as api, raw_socket(api) as raw:
        # More than lies in the buffers on the way: it is sent while the server has closed already.
        raw.send(Opcode.TEXT, b" " * 16_000_000)
        await raw.writer.drain()
        opcode, reason = await raw.take()
        assert (opcode, reason[:2]) == (Opcode.CLOSE, (1009).to_bytes(2, "big"))
        raw.writer.write(b" " * 1_000_000)
        await raw.writer.drain()
        assert await raw.reader.read() == b""
    # It does not linger for ever.
    monkeypatch.setattr(wire, "CLOSE_WAIT_S", 0.05)
    async with serving(body_bytes_max=10_000) as api, raw_socket(api) as raw:
        raw.send(Opcode.TEXT, b" " * 10_001)
        with pytest.raises(ConnectionError):
            while True:
                raw.writer.write(b" " * 1_000_000)
                await raw.writer.drain()
                # As much as the loop needs for others.
                await asyncio.sleep(0)


async def test_a_peer_that_is_silent_is_pinged_and_one_that_stays_so_is_closed(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "LOOK_INTERVAL_S", 0.02)
    monkeypatch.setattr(wire, "LOOKS_APART_S", 0.01)
    monkeypatch.setattr(wire, "CLOSE_WAIT_S", 0.05)
    async with serving() as api, api.socket() as alive, raw_socket(api) as silent:
        connection: ClientConnection = alive.wire
        assert await silent.take() == (Opcode.PING, b"")
        opcode, content = await silent.take()
        assert (opcode, content[:2]) == (Opcode.CLOSE, (1011).to_bytes(2, "big"))
        await silent.ended()
        # The other one was looked at as often; its library answers pings.
        assert connection.close_code is None
        assert data(await alive.ask("{ viewer { authenticated } }"))


async def test_a_peer_that_reads_slowly_is_alive(serving: Serving) -> None:
    class Slow:
        """A transport whose peer has read something since it was looked at."""

        unsent_bytes = 1_000

        def get_write_buffer_size(self) -> int:
            self.unsent_bytes -= 1
            return self.unsent_bytes

        def is_closing(self) -> bool:
            return False

    async with serving() as api, raw_socket(api):
        (socket,) = sockets(api)
        transport, socket.transport = socket.transport, Slow()  # type: ignore[assignment]
        socket._heard, socket._full = False, True
        socket._unsent_bytes = 1_001
        for _ in range(5):
            assert socket.look()
        socket._full, socket.transport = False, transport


async def test_a_peer_that_reads_nothing_is_closed(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "LOOK_INTERVAL_S", 0.05)
    monkeypatch.setattr(wire, "LOOKS_APART_S", 0.01)
    monkeypatch.setattr(wire, "CLOSE_WAIT_S", WAIT_S)
    async with serving() as api, raw_socket(api) as raw:
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        (socket,) = sockets(api)
        while socket.has_room:
            socket.say(b" " * 100_000)
        await until(lambda: not sockets(api) or socket._closing)
        # It is told, should it read after all.
        raw.writer.transport.resume_reading()  # type: ignore[attr-defined]
        opcode, content = await raw.take()
        while opcode is Opcode.TEXT:
            opcode, content = await raw.take()
        assert (opcode, content[:2]) == (Opcode.CLOSE, (4408).to_bytes(2, "big"))


async def test_a_socket_that_is_gone_leaves_nothing_to_the_garbage_collector(serving: Serving) -> None:
    async with serving() as api:
        gc.collect()
        gc.disable()
        try:
            async with raw_socket(api) as raw:
                raw.writer.write(b"\x81\xff" + (900_000).to_bytes(8, "big") + bytes(4) + bytes(500_000))
                raw.send(Opcode.PING)
                (socket,) = sockets(api)
                left: list[weakref.ref[Any]] = [weakref.ref(socket._frames), weakref.ref(socket._frames.reader)]  # type: ignore[union-attr]
                del socket
            await until(lambda: not sockets(api))
            assert [reference() for reference in left] == [None, None]
        finally:
            gc.enable()


async def http(api: Api) -> Raw:
    """A connection on which nothing was said."""
    return Raw(*await asyncio.open_connection("127.0.0.1", int(api.origin.rpartition(":")[2])))


def post(body: bytes, path: str = PATH) -> bytes:
    """A request."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


QUERY: Final = b'{"query": "{ viewer { authenticated } }"}'


@pytest.mark.parametrize("flood", [b"a: b\r\n", b"a" * 1_000])
async def test_what_comes_behind_a_body_has_a_bound(serving: Serving, flood: bytes) -> None:
    async with serving() as api:
        raw = await http(api)
        raw.writer.write(
            b"POST /graphql HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\nt: "
        )
        sent = 0
        with suppress(ConnectionError):
            while sent < 50_000_000:
                raw.writer.write(flood * 100)
                sent += 100 * len(flood)
                await raw.writer.drain()
        assert sent < 50_000_000
        await raw.ended()
        raw.writer.close()


async def test_a_handshake_behind_a_stream_ends_both(serving: Serving) -> None:
    async with serving() as api:
        await api.create("T")
        stream = quote('subscription { taskUpdates(taskId: "T") { type } }')
        raw = await http(api)
        lines = [f"{name}: {value}" for name, value in HANDSHAKE.items()]
        raw.writer.write(f"GET {PATH}?query={stream} HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n".encode())
        async with asyncio.timeout(WAIT_S):
            await raw.reader.readuntil(b"SNAPSHOT")
        assert api.storage.feed.subscribers == 1
        raw.writer.write("\r\n".join([f"GET {PATH} HTTP/1.1", *lines, "", ""]).encode())
        async with asyncio.timeout(WAIT_S):
            assert b"101 Switching" not in await raw.reader.read()
        raw.writer.close()
        await until(lambda: api.storage.feed.subscribers == 0)
        assert not sockets(api)


async def test_a_request_may_begin_in_the_same_read_as_a_large_one_ends(serving: Serving) -> None:
    async with serving() as api:
        raw = await http(api)
        large = QUERY[:-1] + b', "variables": {"x": "' + b"x" * 150_000 + b'"}}'
        following = post(QUERY)
        raw.writer.write(post(large) + following[:20])
        async with asyncio.timeout(WAIT_S):
            assert b" 200 " in await raw.reader.readuntil(b"\r\n\r\n")
            raw.writer.write(following[20:])
            await raw.reader.readuntil(b"}}}HTTP/1.1 200 OK")
        raw.writer.close()


async def test_requests_that_wait_on_one_connection_have_a_bound(serving: Serving) -> None:
    async with serving() as api:
        raw = await http(api)
        # One that is answered, and as many as may wait.
        together = 1 + wire_http.PIPELINED_REQUESTS_MAX
        raw.writer.write(post(QUERY) * together)
        async with asyncio.timeout(WAIT_S):
            answered = b""
            while answered.count(b" 200 OK") < together:
                answered += await raw.reader.read(65_536)
        raw.writer.write(post(QUERY) * 10_000)
        async with asyncio.timeout(WAIT_S):
            with suppress(ConnectionError):
                answered = await raw.reader.read()
        assert answered.count(b" 200 OK") < 10_000
        raw.writer.close()


@pytest.mark.parametrize(
    "wish",
    [
        b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAA",
        b"Connection: close\r\nUpgrade: h2c\r\nConnection: upgrade",
    ],
)
@pytest.mark.parametrize("reads", [1, 2, 1_000])
async def test_the_wish_for_another_protocol_is_not_heard(serving: Serving, wish: bytes, reads: int) -> None:
    """Java's client utters it with each request over plain HTTP."""
    body = QUERY
    head = b"POST /graphql HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + wish
    chunked = b"\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    measured = b"\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    bare = b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + wish + b"\r\n\r\n"
    for request, answer in ((head + chunked, b"}}}"), (head + measured, b"}}}"), (bare, b"HTTP/1.1 200 OK")):
        async with serving() as api:
            raw = await http(api)
            for part in (request[at : at + reads] for at in range(0, len(request), reads)):
                raw.writer.write(part)
                await raw.writer.drain()
            raw.writer.write(post(QUERY))
            async with asyncio.timeout(WAIT_S):
                if b"close" in wish:
                    assert (await raw.reader.read()).count(b"HTTP/1.1 200 OK") == 1
                else:
                    await raw.reader.readuntil(answer)
                    await raw.reader.readuntil(b"}}}")
            raw.writer.close()


@pytest.mark.parametrize("length", [b"Content-Length: 33", b"Transfer-Encoding: chunked"])
@pytest.mark.parametrize("line", [b"POST /graphql HTTP/1.1", b"GET /graphql HTTP/1.1"])
async def test_no_body_is_taken_for_a_request_because_another_protocol_is_wished_for(
    serving: Serving, line: bytes, length: bytes
) -> None:
    head = b"\r\n".join([line, b"Host: x", b"Connection: Upgrade", b"Upgrade: h2c", length, b"", b""])
    body = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    async with serving() as api:
        raw = await http(api)
        # In a read of its own, as a proxy may send it.
        raw.writer.write(head)
        await raw.writer.drain()
        raw.writer.write(body)
        async with asyncio.timeout(WAIT_S):
            answer = await raw.reader.readuntil(b"HTTP/1.1 4")
            # To a request that can have a body; and what was sent is no answer's business but that of this one.
            raw.writer.write(b"nonsense\r\n\r\n")
            answer += await raw.reader.read()
        assert b" 200 " not in answer
        raw.writer.close()


async def test_this_is_no_proxy(serving: Serving) -> None:
    async with serving() as api:
        raw = await http(api)
        raw.writer.write(b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n")
        async with asyncio.timeout(WAIT_S):
            assert (await raw.reader.read()).startswith(b"HTTP/1.1 400 ")
        raw.writer.close()


@pytest.mark.parametrize("behind", [b"\r\n", b"POST /graphql"])
async def test_a_connection_always_waits_for_something(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, behind: bytes
) -> None:
    async with serving() as api:
        raw = await http(api)
        raw.writer.write(post(QUERY))
        async with asyncio.timeout(WAIT_S):
            await raw.reader.readuntil(b"}}}")
        monkeypatch.setattr(wire_http, "HEADERS_TIMEOUT_S", 0.05)
        raw.writer.write(behind)
        await raw.ended()
        raw.writer.close()


async def test_a_connection_is_closed_when_its_request_was_answered_before_it_was_whole(serving: Serving) -> None:
    async with serving() as api:
        raw = await http(api)
        raw.writer.write(post(b"x" * 100, "/nothing")[:-50])
        async with asyncio.timeout(WAIT_S):
            assert b" 404 " in await raw.reader.read()
        raw.writer.close()


async def test_what_http_waits_for_does_not_concern_a_socket(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_http, "HEADERS_TIMEOUT_S", 0.05)
    async with serving() as api, api.socket() as socket, raw_socket(api) as raw:
        for _ in range(2):
            # One that came later is closed for saying nothing.
            silent = await http(api)
            await silent.ended()
            silent.writer.close()
        assert data(await socket.ask("{ viewer { authenticated } }"))
        raw.say({"type": "ping"})
        assert await raw.take() == (Opcode.TEXT, b'{"type":"pong"}')


async def test_a_request_is_answered_alike_in_one_piece_and_in_two(serving: Serving, subtests: pytest.Subtests) -> None:
    query = b'{"query":"query($id: ID!) { task(taskId: $id) { id seq } }","variables":{"id":"T"}}'
    cases: dict[str, tuple[bytes, dict[str, str | None]]] = {
        "an answer": (query, {}),
        "the newer type": (query, {"Accept": "application/graphql-response+json"}),
        "a connection that ends": (query, {"Connection": "close"}),
        "a refused document": (b'{"query":"{ nothing }"}', {}),
        "a refused document of the newer type": (
            b'{"query":"{ nothing }"}',
            {"Accept": "application/graphql-response+json"},
        ),
        "variables that do not fit": (b'{"query":"query($id: ID!) { task(taskId: $id) { id } }"}', {}),
        "a fault in a field": (b'{"query":"{ task(taskId: \\"\\") { id } }"}', {}),
        "no JSON": (b"{", {}),
        "no request": (b"[]", {}),
        "a wrong key": (query, {"Authorization": "Bearer spn_wrong"}),
        "a page": (query, {"Accept": "text/html"}),
        "a subscription": (
            b'{"query":"subscription { taskUpdates(taskId: \\"T\\") { type } }"}',
            {"Accept": "application/json"},
        ),
        "another origin": (query, {"Origin": "https://there.example"}),
    }
    for origins in ((), ("https://there.example",), ("*",)):
        async with serving(body_bytes_max=1_024, allowed_origins=origins) as api:
            if not origins:
                await api.create("T")
            for name, (body, headers) in cases.items():
                with subtests.test(name, origins=origins):
                    whole = await _answered(api, body, headers, pieces=1)
                    assert whole == await _answered(api, body, headers, pieces=2)
            assert b'"seq":1' in await _answered(api, query, {}, pieces=1)


async def _answered(api: Api, body: bytes, headers: dict[str, str | None], *, pieces: int) -> bytes:
    """The answer to a POST, without its date."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(api.origin.rpartition(":")[2]))
    changed = {"Host": "localhost", "Content-Type": "application/json", "Content-Length": len(body), **headers}
    lines = [f"POST {PATH} HTTP/1.1", *(f"{name}: {value}" for name, value in changed.items())]
    head = "\r\n".join([*lines, "", ""]).encode()
    ours = writer.get_extra_info("sockname")[:2]

    def begun() -> bool:
        connections: Any = api.server.server_state.connections
        return any(one.client == ours and one.cycle is not None for one in connections if hasattr(one, "cycle"))

    try:
        if pieces == 1:
            writer.write(head + body)
        else:
            writer.write(head)
            await until(begun)
            writer.write(body)
        async with asyncio.timeout(WAIT_S):
            answer = await reader.readuntil(b"\r\n\r\n")
            size = re.search(rb"content-length: (\d+)", answer)
            assert size is not None, answer
            content = await reader.readexactly(int(size[1]))
    finally:
        writer.close()
    return re.sub(rb"date: [^\r]*\r\n", b"", answer) + content


async def test_connections_that_are_done_wait_for_no_collector(serving: Serving) -> None:
    async with serving() as api:
        await _answered(api, b'{"query":"{ viewer { name } }"}', {}, pieces=1)
        gc.collect()
        gc.disable()
        try:
            before = _http_connections()
            for _ in range(20):
                await _answered(api, b'{"query":"{ viewer { name } }"}', {}, pieces=1)
            await until(lambda: _http_connections() <= before)
        finally:
            gc.enable()


def _http_connections() -> int:
    return sum(isinstance(thing, wire_http.HttpProtocol) for thing in gc.get_objects())


async def test_an_answer_that_says_so_ends_its_connection(serving: Serving) -> None:
    async with serving(body_bytes_max=1_024) as api:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(api.origin.rpartition(":")[2]))
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2000\r\n\r\n"
        writer.write(head.encode() + b"x" * 2_000)
        async with asyncio.timeout(WAIT_S):
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert answer.count(b"connection: close") == 1
        writer.close()


async def test_what_comes_behind_a_body_is_no_header(serving: Serving) -> None:
    async with serving() as api:
        body = b'{"query":"{ viewer { authenticated } }"}'
        reader, writer = await asyncio.open_connection("127.0.0.1", int(api.origin.rpartition(":")[2]))
        writer.write(
            f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
            f"Connection: close\r\n\r\n{len(body):x}\r\n".encode()
            + body
            + f"\r\n0\r\nAuthorization: Bearer {api.admin_key}\r\n\r\n".encode()
        )
        async with asyncio.timeout(WAIT_S):
            assert b'{"authenticated":false}' in await reader.read()
        writer.close()
