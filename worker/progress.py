"""Progress as it is told: the latest number, at most one report in half a second, and the last one always.

To set a number costs no more than a comparison and never waits for the server; a task in the background sends it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from operator import length_hint
from typing import Final

from worker.errors import Refused, WorkerError

REPORTS_APART_S: Final = 0.5


class Progress:
    """The progress of one task on its way to the server."""

    def __init__(self, send: Callable[[int], Awaitable[None]], failed: Callable[[WorkerError], None]) -> None:
        self._send = send
        # Told when a report that nobody waits for could not be made.
        self._failed = failed
        self._waiting: int | None = None
        self._told: int | None = None
        self._told_at = float("-inf")
        self._sender: asyncio.Task[None] | None = None
        self._refused: Refused | None = None
        # Reports are made one after the other, so that numbers arrive in the order in which they were set.
        self._turn = asyncio.Lock()

    def set(self, percent: int) -> None:
        """Say how far it has come; it is told soon. When the server has refused to hear more, that is raised."""
        if self._refused is not None:
            raise self._refused
        if not 0 <= percent <= 100:
            raise ValueError(f"Progress is 0 to 100, got {percent}.")
        self._waiting = None if percent == self._told else percent
        if self._waiting is not None and self._sender is None:
            self._sender = asyncio.create_task(self._tell_soon(), name="progress")

    async def flush(self) -> None:
        """Tell now what waits to be told."""
        async with self._turn:
            percent, self._waiting = self._waiting, None
            if percent is None:
                return
            self._told_at = asyncio.get_running_loop().time()
            self._told = percent
            await self._send(percent)

    async def close(self) -> None:
        """Forget what waits, and tell nothing any more."""
        self._waiting = None
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.wait([self._sender])

    async def _tell_soon(self) -> None:
        clock = asyncio.get_running_loop().time
        try:
            while self._waiting is not None:
                if (early_s := self._told_at + REPORTS_APART_S - clock()) > 0:
                    await asyncio.sleep(early_s)
                try:
                    await self.flush()
                except WorkerError as error:
                    self._refused = error if isinstance(error, Refused) else None
                    self._failed(error)
        finally:
            self._sender = None


class Counter:
    """Items that have been done, as percent of all."""

    def __init__(self, items: object, total: int | None) -> None:
        self._total = length_hint(items, -1) if total is None else total
        if self._total < 0:
            raise ValueError("How many items there are cannot be seen from outside; say it by `total`.")
        self._done = 0
        self._percent = 0

    def next(self) -> int | None:
        """Count one more; the percent, when it has changed."""
        self._done += 1
        percent = min(100 * self._done // self._total, 100) if self._total else 100
        if percent == self._percent:
            return None
        self._percent = percent
        return percent
