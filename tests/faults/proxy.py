"""A TCP proxy that can do to connections what networks do: delay, stall, cut and refuse them.

What passes is never changed or lost while a connection lives. A stalled proxy still takes connections and bytes, as a
machine does whose cable was pulled: whoever waits hears nothing, not even of an end.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.faults.ports import HOST, free_port

CHUNK_BYTES: Final = 64 * 1024
BACKLOG: Final = 1_024
# Closing sends a reset instead of an end.
_RESET: Final = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class _Link:
    """One connection through the proxy."""

    task: asyncio.Task[None]
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    def abort(self, *, reset: bool) -> None:
        """End both sides at once; what was not passed on by now never is."""
        for writer in self.writers:
            if writer.transport.is_closing():
                continue
            if reset:
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()


class Proxy:
    """A port that leads to another port of this machine, or to a socket that has a path."""

    def __init__(self, target: int | Path) -> None:
        self.port = free_port()
        self._target = target
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._delay_s = 0.0
        self._passing = asyncio.Event()
        self._passing.set()

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._refuse()
        await self.cut()

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._links)

    @contextmanager
    def delayed(self, seconds: float) -> Iterator[None]:
        """While it lasts, everything arrives so much later."""
        self._delay_s = seconds
        try:
            yield
        finally:
            self._delay_s = 0.0

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """While it lasts, nothing arrives and nothing ends; what was sent meanwhile arrives afterwards."""
        self._passing.clear()
        try:
            yield
        finally:
            self._passing.set()

    async def cut(self, *, reset: bool = True) -> None:
        """End all connections: by a reset, or as if both sides had ended."""
        links = list(self._links)
        for link in links:
            link.abort(reset=reset)
            link.task.cancel()
        if links:
            await asyncio.wait([link.task for link in links])

    @asynccontextmanager
    async def refusing(self) -> AsyncIterator[None]:
        """Cut all connections; while it lasts, nobody listens on the port."""
        self._refuse()
        await self.cut()
        try:
            yield
        finally:
            await self._listen()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, HOST, self.port, backlog=BACKLOG)

    def _refuse(self) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        link = _Link(task, [writer])
        self._links.add(link)
        reset = True
        try:
            await self._passing.wait()
            if isinstance(self._target, Path):
                far_reader, far_writer = await asyncio.open_unix_connection(self._target)
            else:
                far_reader, far_writer = await asyncio.open_connection(HOST, self._target)
            link.writers.append(far_writer)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(reader, far_writer))
                pumps.create_task(self._pump(far_reader, writer))
            reset = False
        except* OSError:
            # One side is gone; the other learns it by a reset.
            pass
        except* asyncio.CancelledError:
            # Cut; and nobody waits for this task to end as cancelled.
            pass
        finally:
            self._links.discard(link)
            if reset:
                link.abort(reset=True)
            else:
                for one in link.writers:
                    one.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK_BYTES):
            if self._delay_s:
                await asyncio.sleep(self._delay_s)
            await self._passing.wait()
            writer.write(data)
            await writer.drain()
        await self._passing.wait()
        if not writer.transport.is_closing():
            writer.write_eof()
