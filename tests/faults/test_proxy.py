"""The proxy does to connections what it says, and nothing else."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.faults.ports import HOST
from tests.faults.proxy import CHUNK_BYTES, Proxy

WAIT_S = 10.0
# Nothing has come for so long; what comes after a stall shows that it was not lost.
SILENCE_S = 0.2


class Far:
    """What is behind a proxy: it sends back what it gets."""

    def __init__(self) -> None:
        self.began = 0
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.began += 1
        try:
            while data := await reader.read(CHUNK_BYTES):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            self.ended.set()
            writer.close()


class Near:
    """A client of the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def echoed(self, data: bytes) -> None:
        self.writer.write(data)
        await self.heard(data)

    async def heard(self, data: bytes) -> None:
        async with asyncio.timeout(WAIT_S):
            assert await self.reader.readexactly(len(data)) == data

    async def silent(self) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SILENCE_S):
                await self.reader.read(1)

    async def end(self) -> bytes:
        async with asyncio.timeout(WAIT_S):
            return await self.reader.read()


@asynccontextmanager
async def echo() -> AsyncIterator[tuple[Proxy, Far]]:
    far = Far()
    server = await asyncio.start_server(far.serve, HOST, 0)
    async with Proxy(server.sockets[0].getsockname()[1]) as proxy:
        yield proxy, far
    server.close()
    await server.wait_closed()


@asynccontextmanager
async def connected(proxy: Proxy) -> AsyncIterator[Near]:
    reader, writer = await asyncio.open_connection(HOST, proxy.port)
    try:
        yield Near(reader, writer)
    finally:
        writer.transport.abort()


async def test_bytes_pass_both_ways_and_ends_are_passed_on() -> None:
    async with echo() as (proxy, far), connected(proxy) as near:
        await near.echoed(b"x" * 10 * CHUNK_BYTES)
        near.writer.write_eof()
        assert await near.end() == b""
        async with asyncio.timeout(WAIT_S):
            await far.ended.wait()
            while proxy.connections:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.005)


async def test_a_delayed_proxy_is_late() -> None:
    async with echo() as (proxy, _), connected(proxy) as near:
        await near.echoed(b"first")
        with proxy.delayed(0.1):
            began_at = time.monotonic()
            await near.echoed(b"second")
            # There and back.
            assert time.monotonic() - began_at >= 0.2


async def test_a_stalled_proxy_says_nothing_and_loses_nothing() -> None:
    async with echo() as (proxy, far), connected(proxy) as near:
        await near.echoed(b"first")
        with proxy.stalled():
            near.writer.write(b"second")
            async with connected(proxy) as late:
                late.writer.write(b"third")
                await near.silent()
                await late.silent()
                assert far.began == 1
        await near.heard(b"second")


async def test_an_end_arrives_when_a_stall_is_over() -> None:
    async with echo() as (proxy, far), connected(proxy) as near:
        await near.echoed(b"first")
        with proxy.stalled():
            near.writer.transport.abort()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(SILENCE_S):
                    await far.ended.wait()
        async with asyncio.timeout(WAIT_S):
            await far.ended.wait()


@pytest.mark.parametrize("reset", [True, False])
async def test_a_cut_ends_both_sides(reset: bool) -> None:
    async with echo() as (proxy, far), connected(proxy) as near:
        await near.echoed(b"first")
        await proxy.cut(reset=reset)
        if reset:
            with pytest.raises(ConnectionResetError):
                await near.end()
        else:
            assert await near.end() == b""
        async with asyncio.timeout(WAIT_S):
            await far.ended.wait()
        assert proxy.connections == 0
        # Others may come at once.
        async with connected(proxy) as next_one:
            await next_one.echoed(b"second")


async def test_nobody_listens_on_a_proxy_that_refuses() -> None:
    async with echo() as (proxy, far):
        async with connected(proxy) as near, proxy.refusing():
            with pytest.raises(ConnectionResetError):
                await near.end()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(HOST, proxy.port)
        async with connected(proxy) as near:
            await near.echoed(b"again")
        assert far.began == 1 + proxy.connections or far.began == 2


async def test_a_client_learns_that_nothing_is_behind_the_proxy() -> None:
    async with echo() as (proxy, _):
        port = proxy.port
        async with Proxy(port) as outer:
            async with proxy.refusing(), connected(outer) as near:
                with pytest.raises(ConnectionResetError):
                    await near.end()
            async with connected(outer) as near:
                await near.echoed(b"again")
