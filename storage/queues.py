"""Who waits for tasks to claim: wakened in this process, and by other processes over the link.

As the feed, it is a hint: who is wakened asks for a claim, and may find that another was quicker. And as an
announcement may be lost, who waits asks every few seconds anyway.
"""

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from storage.feed import Announcer

# Before the name of a queue in an announcement. No task has such an ID.
_MARK: Final = "\0"
# What an announcement carries beside the name. Nobody reads it.
_NUMBER: Final = 1


class Ear:
    """Somebody who waits for one queue."""

    def __init__(self) -> None:
        self._wakened = asyncio.Event()

    def wake(self) -> None:
        """End the wait, or the next one if there is none."""
        self._wakened.set()

    async def wait(self, within_s: float) -> bool:
        """Wait to be wakened, but not longer than this; return whether it was so."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._wakened.wait()
        wakened = self._wakened.is_set()
        self._wakened.clear()
        return wakened


class Queues:
    """Those who wait in this process, by queue."""

    def __init__(self) -> None:
        self._ears: dict[str, set[Ear]] = {}
        # With other processes, the way to them.
        self.announcer: Announcer | None = None

    @contextmanager
    def listen(self, queue: str) -> Iterator[Ear]:
        """Hear of a queue while the block lasts."""
        ears = self._ears.get(queue)
        if ears is None:
            ears = self._ears[queue] = set()
            if self.announcer is not None:
                self.announcer.watch(_MARK + queue)
        ear = Ear()
        ears.add(ear)
        try:
            yield ear
        finally:
            ears.discard(ear)
            if not ears:
                del self._ears[queue]
                if self.announcer is not None:
                    self.announcer.forget(_MARK + queue)

    def wake(self, queues: Iterable[str]) -> None:
        """Tell everybody that tasks have become ready in these queues. Call it after the commit."""
        for queue in queues:
            if self.announcer is not None:
                self.announcer.announce(_MARK + queue, _NUMBER)
            self._wake_here(queue)

    def hear(self, announced: str) -> bool:
        """Take an announcement of another process; False: it is of a task."""
        if not announced.startswith(_MARK):
            return False
        self._wake_here(announced.removeprefix(_MARK))
        return True

    def _wake_here(self, queue: str) -> None:
        for ear in self._ears.get(queue, ()):
            ear.wake()
