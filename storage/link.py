"""The way to other processes: what changed here is announced there, and the other way round.

An announcement is a task's ID and the number that it has reached, made after the commit and never in its transaction.
It is a hint that may be lost: the follower's comparison with the table finds what no announcement told.
"""

import asyncio
import logging
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextvars import Context
from enum import StrEnum
from itertools import chain, repeat
from typing import Any, Final

import orjson

from storage.follower import Follower
from storage.live_follower import LOST, description
from storage.task import Task

log = logging.getLogger(__name__)

# The first announcement goes out at once; those that come while it is on its way, and for so long after, go together.
GATHER_S: Final = 0.010
# What a number can be in the table.
SEQ_MAX: Final = 2**63 - 1
# What announcements for lists carry as a number. Nobody reads it.
_FOR_LISTS: Final = 1
# A way that is broken is tried again after these, each shortened by chance; then always after the last.
RECONNECT_WAITS_S: Final = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0)


class Health(StrEnum):
    """How a process hears of the others."""

    ALONE = "alone"
    """It was told that there are none."""
    CONNECTED = "connected"
    """By announcements, and now and then by a look at the table."""
    DEGRADED = "degraded"
    """By looking at the table alone: every change is seen, some seconds late."""


class Link(ABC):
    """What every way has: it gathers what is to be announced, and says how it is."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        self._waiting: dict[str, int] = {}
        self._sending: asyncio.Task[None] | None = None
        self._health = Health.DEGRADED
        # Whether something was not announced that should have been.
        self._unsaid = False

    @property
    def health(self) -> Health:
        """How this process hears of the others."""
        return self._health

    def announce(self, task_id: str, seq: int) -> None:
        """Tell the others that a task has reached a number; 0 says that it is gone."""
        # Gone and born again meanwhile: to the others it is gone first.
        self._waiting[task_id] = seq if self._waiting.get(task_id, 1) else 0
        if self._sending is None:
            self._sending = asyncio.create_task(self._send_all(), name="announce", context=Context())

    def announce_end(self, task: Task) -> None:
        """Tell the others that a task is gone, and those who watch lists what it was."""
        self.announce(task.task_id, 0)
        self.announce(description(task), _FOR_LISTS)

    def watch(self, task_id: str) -> None:  # noqa: B027 - where all hear of everything, there is nothing to do
        """Hear of a task from now on."""

    def forget(self, task_id: str) -> None:  # noqa: B027
        """Hear of a task no more."""

    def watch_all(self) -> None:  # noqa: B027
        """Hear of every task from now on."""

    async def hears_all(self) -> None:  # noqa: B027
        """Wait until it is so, unless it cannot be."""

    def forget_all(self) -> None:  # noqa: B027
        """Hear only of those that are watched."""

    @abstractmethod
    async def start(self) -> None:
        """Begin to connect, and stay connected."""

    @abstractmethod
    async def close(self) -> None:
        """Announce what waits, and leave."""

    @abstractmethod
    async def send(self, announcements: Mapping[str, int]) -> None:
        """Send these to the others; what cannot be sent is lost."""

    async def sent(self) -> None:
        """Wait until nothing waits to be announced."""
        if self._sending is not None:
            await asyncio.wait({self._sending})

    def _become(self, health: Health) -> None:
        if health is not self._health:
            self._health = health
            if health is Health.CONNECTED:
                # What was announced meanwhile, by others or here, nobody has heard.
                self._follower.lost()
                if self._unsaid:
                    self._unsaid = False
                    self.announce(LOST, _FOR_LISTS)
            log.log(
                logging.INFO if health is Health.CONNECTED else logging.WARNING,
                "The feed between processes is %s.",
                health,
            )

    async def _send_all(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                waiting, self._waiting = self._waiting, {}
                next_at = loop.time() + GATHER_S
                if self._health is Health.CONNECTED:
                    await self.send(waiting)
                else:
                    self._unsaid = True
                if (wait_s := next_at - loop.time()) > 0:
                    await asyncio.sleep(wait_s)
        finally:
            self._sending = None


def reconnect_waits() -> Iterator[float]:
    """How long to wait before each new attempt, not the same in all processes."""
    for wait_s in chain(RECONNECT_WAITS_S, repeat(RECONNECT_WAITS_S[-1])):
        yield wait_s * random.uniform(0.5, 1)  # noqa: S311 - no secret


def packed(announcements: Iterable[tuple[str, int]], bytes_max: int) -> Iterable[str]:
    """The announcements as texts, each below a number of bytes."""
    parts: list[bytes] = []
    size = 2
    for announcement in announcements:
        part = orjson.dumps(announcement)
        if parts and size + len(part) >= bytes_max:
            yield f"[{b','.join(parts).decode()}]"
            parts, size = [], 2
        parts.append(part)
        size += len(part) + 1
    if parts:
        yield f"[{b','.join(parts).decode()}]"


def unpacked(text: str | bytes) -> list[tuple[str, int]]:
    """The announcements that a text holds; whatever else somebody may have sent is none."""
    try:
        found: Any = orjson.loads(text)
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, list):
        return []
    return [
        (one[0], one[1])
        for one in found
        if isinstance(one, list)
        and len(one) == 2
        and isinstance(one[0], str)
        and type(one[1]) is int
        and 0 <= one[1] <= SEQ_MAX
    ]
