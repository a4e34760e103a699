"""A client with one connection, as thin as may be: what it takes itself is not to be seen in what it measures."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import orjson

from bench.processes import Failed, Server, headers

_HEAD_END: Final = b"\r\n\r\n"
_LENGTH: Final = b"content-length: "
# An answer to a batch has a few hundred bytes for each item.
_READ_BYTES_MAX: Final = 4 * 1024 * 1024


class Client:
    """Sends one request after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, key: str | None) -> None:
        self._reader = reader
        self._writer = writer
        lines = [
            "POST /graphql HTTP/1.1",
            f"Host: {host}",
            *(f"{name}: {value}" for name, value in headers(key).items()),
        ]
        self._head = "\r\n".join([*lines, "Content-Length: "]).encode()

    async def ask(self, body: bytes) -> Any:
        """The data of the answer; or Failed with what came instead."""
        answer = orjson.loads(await self.send(body))
        if "errors" in answer:
            raise Failed(f"An answer that was not asked for: {str(answer)[:500]}")
        return answer["data"]

    async def send(self, body: bytes) -> bytes:
        """The bytes of the answer."""
        self._writer.write(b"%s%d%s%s" % (self._head, len(body), _HEAD_END, body))
        head = await self._reader.readuntil(_HEAD_END)
        if not head.startswith(b"HTTP/1.1 200 "):
            raise Failed(f"An answer that was not asked for: {head.decode()}")
        length = int(head[head.index(_LENGTH) + len(_LENGTH) :].split(b"\r\n", 1)[0])
        return await self._reader.readexactly(length)


@asynccontextmanager
async def calling(server: Server, key: str | None) -> AsyncIterator[Client]:
    """A connection to a server while the block lasts."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=_READ_BYTES_MAX)
    try:
        yield Client(reader, writer, f"127.0.0.1:{server.port}", key)
    finally:
        writer.close()
        await writer.wait_closed()


def body_of(document: str, **variables: object) -> bytes:
    """A request."""
    return orjson.dumps({"query": document, "variables": variables})
