"""WebSockets as bytes: handshakes that are refused, frames of all sizes, peers that are silent or do not close."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.frames import Frame, Opcode

from graphql_api.app import PATH
from graphql_api.execution.websocket import PROTOCOL
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


async def test_a_flood_of_pings_leaves_others_their_turn(serving: Serving) -> None:
    async with serving() as api, raw_socket(api) as flooding, api.socket() as other:
        flood = Frame(Opcode.PING, b"").serialize(mask=True) * 50_000
        flooding.writer.write(flood)
        assert data(await other.ask("{ viewer { authenticated } }"))
        # The others were answered while most of the flood was still to come.
        pongs = 0
        while pongs < 50_000:
            pongs += (await flooding.take()) == (Opcode.PONG, b"")


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
        await until(lambda: not [c for c in api.server.server_state.connections if isinstance(c, wire.WebSocket)])


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
