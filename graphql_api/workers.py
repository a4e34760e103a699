"""Several processes that serve one port: started, started again when one dies, and ended together.

uvicorn has such a parent, too; ours differs in what a worker is: it has a storage and an end of its own, not just an
application. A worker that loses its parent stops by itself.

Parent and worker have a line to each other, a Unix socket. The worker says that it serves; from then on it answers
whenever the parent asks, always the same question. One who does not answer is not asked again before it does.
"""

import asyncio
import logging
import multiprocessing
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from storage import StartupError

log = logging.getLogger(__name__)

# A worker that died is replaced at once, unless it did not live so long: then after that time.
SHORT_LIFE_S: Final = 2.0
# What one answer may have.
ANSWER_BYTES_MAX: Final = 8 * 1024 * 1024
_READY: Final = b"ready\n"
_spawn = multiprocessing.get_context("spawn")


class Workers:
    """Processes that all do the same."""

    def __init__(self, work: Callable[..., None], *arguments: Any, count: int, end_within_s: float) -> None:
        # Called in each process with its number, its end of the line to us, and these arguments.
        self._work = work
        self._arguments = arguments
        self._count = count
        self._end_within_s = end_within_s
        self._processes: dict[int, Any] = {}
        self._stopping = False
        # By worker: its line while it serves, and the answer that it owes.
        self._lines: dict[int, asyncio.StreamWriter] = {}
        self._owed: dict[int, asyncio.Future[bytes]] = {}
        self.replaced = 0
        """How many died and were replaced."""

    async def ask(self, within_s: float) -> dict[int, bytes | None]:
        """What each worker answers; None for one that does not, in this time."""
        owed = {number: self._ask(number) for number in range(self._count)}
        waiting = [answer for answer in owed.values() if answer is not None]
        if waiting:
            # They are not canceled: whoever asks next waits for the same.
            await asyncio.wait(waiting, timeout=within_s)
        return {
            number: answer.result() if answer is not None and answer.done() and not answer.cancelled() else None
            for number, answer in owed.items()
        }

    def _ask(self, number: int) -> asyncio.Future[bytes] | None:
        line = self._lines.get(number)
        if line is not None and number not in self._owed:
            self._owed[number] = asyncio.get_running_loop().create_future()
            line.write(b"?\n")
        return self._owed.get(number)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start them, and wait until all serve; end them when the block ends."""
        ready = [asyncio.Event() for _ in range(self._count)]
        keepers = [
            asyncio.create_task(self._keep(number, ready[number]), name=f"worker {number}")
            for number in range(self._count)
        ]
        all_ready = asyncio.create_task(_all(ready), name="workers: ready")
        try:
            await asyncio.wait({all_ready, *keepers}, return_when=asyncio.FIRST_COMPLETED)
            for keeper in keepers:
                if keeper.done():
                    keeper.result()
            yield
        finally:
            self._stopping = True
            all_ready.cancel()
            for process in self._processes.values():
                process.terminate()
            _, stuck = await asyncio.wait(keepers, timeout=self._end_within_s)
            if stuck:
                # It would keep the port.
                log.error("%d workers did not end within %.1f s; ending them.", len(stuck), self._end_within_s)
                for process in self._processes.values():
                    process.kill()
                await asyncio.wait(keepers)
            for keeper in keepers:
                if not keeper.cancelled():
                    keeper.exception()

    def _ending(self) -> bool:
        return self._stopping

    async def _keep(self, number: int, ready: asyncio.Event) -> None:
        while not self._ending():
            started_at = time.monotonic()
            ours, its = socket.socketpair()
            process = _spawn.Process(
                target=self._work, args=(number, its, *self._arguments), name=f"spectral-notify worker {number}"
            )
            try:
                process.start()
            except OSError as error:
                if not ready.is_set():
                    raise StartupError(f"A worker cannot be started: {error.strerror}.") from None
                log.error("Worker %d cannot be started: %s; trying again.", number, error.strerror)
                ours.close()
                its.close()
                await asyncio.sleep(SHORT_LIFE_S)
                continue
            self._processes[number] = process
            its.close()
            # A line that broke, or an answer that is too long: it serves nevertheless, for as long as it lives.
            with suppress(OSError, ValueError):
                await self._hear(number, ours, ready)
            await _readable(process.sentinel)
            process.join()
            if self._ending():
                return
            if not ready.is_set():
                raise StartupError(
                    f"A worker ended with status {process.exitcode} before it served; see the log above."
                )
            log.error("Worker %d ended with status %s; another takes its place.", number, process.exitcode)
            self.replaced += 1
            if time.monotonic() - started_at < SHORT_LIFE_S:
                await asyncio.sleep(SHORT_LIFE_S)

    async def _hear(self, number: int, line: socket.socket, ready: asyncio.Event) -> None:
        """Take what a worker says, until it is gone."""
        reader, writer = await asyncio.open_unix_connection(sock=line, limit=ANSWER_BYTES_MAX)
        try:
            # What breaks off is no answer.
            while (said := await reader.readline()).endswith(b"\n"):
                if said == _READY:
                    self._lines[number] = writer
                    ready.set()
                elif (owed := self._owed.pop(number, None)) is not None:
                    owed.set_result(said)
        finally:
            self._lines.pop(number, None)
            if (owed := self._owed.pop(number, None)) is not None:
                owed.cancel()
            writer.close()


async def _all(events: list[asyncio.Event]) -> None:
    for event in events:
        await event.wait()


async def _readable(number: int) -> None:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    loop.add_reader(number, lambda: None if future.done() else future.set_result(None))
    try:
        await future
    finally:
        loop.remove_reader(number)


@asynccontextmanager
async def answering(line: socket.socket, answer: Callable[[], bytes]) -> AsyncIterator[None]:
    """In a worker: say that it serves, and answer the parent, in one line each, while the block lasts."""
    reader, writer = await asyncio.open_unix_connection(sock=line)

    async def answer_all() -> None:
        with suppress(OSError):
            writer.write(_READY)
            while await reader.readline():
                writer.write(answer() + b"\n")
                await writer.drain()

    task = asyncio.create_task(answer_all(), name="answers to the parent")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
        writer.close()


def on_loss_of_parent(act: Callable[[], object]) -> None:
    """In a worker: do something when the parent is gone, however that happened."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        loop = asyncio.get_running_loop()

        def lost() -> None:
            loop.remove_reader(parent.sentinel)
            act()

        loop.add_reader(parent.sentinel, lost)
