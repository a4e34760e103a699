"""Who hears of a change: publish and subscribe in this process, keyed by task.

The feed is a hint, the log is the truth. A subscriber's buffer is bounded; when it overruns, the buffer is dropped
and the subscriber is told that there is something to read in the log. Publishing never waits for anybody.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from storage.task import Update

# A subscriber that is this far behind reads the log instead. What is buffered is shared by all subscribers of the task.
BUFFERED_UPDATES_MAX: Final = 64
BUFFERED_EVENTS_MAX: Final = 256
BUFFERED_BYTES_MAX: Final = 1024 * 1024


class Subscriber:
    """One ear. Only the watch that opened it takes from it."""

    __slots__ = ("_bytes", "_events", "_overrun", "_updates", "_waiter")

    def __init__(self) -> None:
        self._updates: deque[Update] = deque()
        self._events = 0
        self._bytes = 0
        self._overrun = False
        self._waiter: asyncio.Future[None] | None = None

    async def take(self) -> list[Update] | None:
        """Wait for news. None says that the buffer overran: what happened stands in the log."""
        while not self._updates and not self._overrun:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._overrun:
            self._overrun = False
            return None
        taken = list(self._updates)
        self._updates.clear()
        self._events = self._bytes = 0
        return taken

    def put(self, update: Update) -> None:
        """Add an update, or drop all when there is no more room."""
        if not self._overrun:
            if (
                len(self._updates) >= BUFFERED_UPDATES_MAX
                or self._events >= BUFFERED_EVENTS_MAX
                or (self._updates and self._bytes + update.size > BUFFERED_BYTES_MAX)
            ):
                self.look()
                return
            self._updates.append(update)
            self._events += len(update.events)
            self._bytes += update.size
        self._wake()

    def look(self) -> None:
        """Say that there may be something in the log which nobody published here."""
        self._updates.clear()
        self._events = self._bytes = 0
        self._overrun = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Feed:
    """The feed of a process that is alone: what is committed here is all that there is to hear."""

    def __init__(self) -> None:
        self._subscribers: dict[str, set[Subscriber]] = {}

    @contextmanager
    def subscribe(self, task_id: str) -> Iterator[Subscriber]:
        """Hear every update of a task that is published from now on."""
        subscriber = Subscriber()
        self._subscribers.setdefault(task_id, set()).add(subscriber)
        try:
            yield subscriber
        finally:
            remaining = self._subscribers[task_id]
            remaining.discard(subscriber)
            if not remaining:
                del self._subscribers[task_id]

    def publish(self, update: Update) -> None:
        """Tell the task's subscribers. Call it after the commit, in the order of commits."""
        for subscriber in self._subscribers.get(update.task.task_id, ()):
            subscriber.put(update)

    def look(self, task_ids: Iterable[str]) -> None:
        """Say that the log of these tasks may hold something that was not published."""
        for task_id in task_ids:
            for subscriber in self._subscribers.get(task_id, ()):
                subscriber.look()

    @property
    def subscribers(self) -> int:
        """How many subscribers there are."""
        return sum(map(len, self._subscribers.values()))
