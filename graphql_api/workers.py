"""Several processes that serve one port: started, started again when one dies, and ended together.

uvicorn has such a parent, too; ours differs in what a worker is: it has a storage and an end of its own, not just an
application. A worker that loses its parent stops by itself.
"""

import asyncio
import logging
import multiprocessing
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any, Final

from storage import StartupError

log = logging.getLogger(__name__)

# A worker that died is replaced at once, unless it did not live so long: then after that time.
SHORT_LIFE_S: Final = 2.0
_spawn = multiprocessing.get_context("spawn")


class Workers:
    """Processes that all do the same."""

    def __init__(self, work: Callable[..., None], *arguments: Any, count: int, end_within_s: float) -> None:
        # Called in each process with a connection on which it says that it serves, and these arguments.
        self._work = work
        self._arguments = arguments
        self._count = count
        self._end_within_s = end_within_s
        self._processes: dict[int, Any] = {}
        self._stopping = False

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
            heard, says = _spawn.Pipe(duplex=False)
            process = _spawn.Process(
                target=self._work, args=(says, *self._arguments), name=f"spectral-notify worker {number}"
            )
            try:
                process.start()
            except OSError as error:
                if not ready.is_set():
                    raise StartupError(f"A worker cannot be started: {error.strerror}.") from None
                log.error("Worker %d cannot be started: %s; trying again.", number, error.strerror)
                heard.close()
                says.close()
                await asyncio.sleep(SHORT_LIFE_S)
                continue
            self._processes[number] = process
            says.close()
            try:
                await _readable(heard)
                with suppress(EOFError):
                    heard.recv_bytes()
                    ready.set()
                await _readable(process.sentinel)
            finally:
                heard.close()
            process.join()
            if self._ending():
                return
            if not ready.is_set():
                raise StartupError(
                    f"A worker ended with status {process.exitcode} before it served; see the log above."
                )
            log.error("Worker %d ended with status %s; another takes its place.", number, process.exitcode)
            if time.monotonic() - started_at < SHORT_LIFE_S:
                await asyncio.sleep(SHORT_LIFE_S)


async def _all(events: list[asyncio.Event]) -> None:
    for event in events:
        await event.wait()


async def _readable(source: Connection | int) -> None:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    number = source if isinstance(source, int) else source.fileno()
    loop.add_reader(number, lambda: None if future.done() else future.set_result(None))
    try:
        await future
    finally:
        loop.remove_reader(number)


def on_loss_of_parent(act: Callable[[], object]) -> None:
    """In a worker: do something when the parent is gone, however that happened."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        loop = asyncio.get_running_loop()

        def lost() -> None:
            loop.remove_reader(parent.sentinel)
            act()

        loop.add_reader(parent.sentinel, lost)
