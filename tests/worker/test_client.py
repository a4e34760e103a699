"""Answers that are none, from whatever stands before the server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from worker.client import Client
from worker.errors import Refused, Unreachable


@asynccontextmanager
async def answered(status: str, body: bytes, headers: str = "") -> AsyncIterator[Client]:
    """A client of something that gives each request the same answer."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}Connection: close\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        client = Client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/graphql")
        try:
            yield client
        finally:
            await client.close()


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"<h1>Bad Gateway</h1>", ""),
        ("<h1>Passerelle erron\u00e9e</h1>".encode("latin-1"), ""),
        (b"[" * 100_000, ""),
        (b"not gzip", "Content-Encoding: gzip\r\n"),
        (b'{"errors": {"message": "no list"}}', ""),
        (b'{"errors": ["no object"]}', ""),
        (b'{"data": "no object"}', ""),
        (b'{"data": {"a": 1, "b": 2}}', ""),
    ],
)
async def test_what_a_proxy_says_is_no_answer_and_is_asked_again(body: bytes, headers: str) -> None:
    async with answered("502 Bad Gateway", body, headers) as client:
        with pytest.raises(Unreachable, match=r"answered with HTTP status 502 and no GraphQL|broke off"):
            await client.ask("query { viewer { name } }", {}, patience_s=0)


async def test_a_page_where_graphql_was_expected_is_refused() -> None:
    async with answered("200 OK", "<h1>Bienvenue \u00e0 tous</h1>".encode("latin-1")) as client:
        with pytest.raises(Refused, match="HTTP status 200 and no GraphQL"):
            await client.ask("query { viewer { name } }", {}, patience_s=0)
