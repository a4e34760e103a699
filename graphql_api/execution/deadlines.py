"""A time within which something must be done, watched by one timer for all who have it.

All have the same time, so they are due in the order in which they began, and only the first is looked at.
"""

import asyncio
import time
from collections.abc import Awaitable
from typing import Final, TypeVar

from storage import Unavailable

T = TypeVar("T")

# Those that are due within this are ended together.
TOGETHER_S: Final = 0.01


class _Due:
    """A task that waits, and until when it may."""

    __slots__ = ("at", "canceling", "over", "task")

    def __init__(self, at: float, task: "asyncio.Task[object]") -> None:
        self.at = at
        self.task = task
        self.canceling = task.cancelling()
        self.over = False


class TimeLimit:
    """Ends what takes longer than it may."""

    def __init__(self, limit_s: float) -> None:
        """Zero is no limit."""
        self._limit_s = limit_s
        self._due: dict[_Due, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def keep(self, result: Awaitable[T]) -> T:
        """Await a result; Unavailable when it does not come in time, and then it is canceled."""
        task = asyncio.current_task()
        if not self._limit_s or task is None:
            return await result
        due = _Due(time.monotonic() + self._limit_s, task)
        self._due[due] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._limit_s, self._look)
        try:
            return await result
        except asyncio.CancelledError:
            # Whoever else wants this task to end has its way.
            if due.over and task.uncancel() <= due.canceling:
                raise Unavailable(
                    f"This could not be answered within {self._limit_s:g} s, and was given up; ask for less."
                ) from None
            raise
        finally:
            self._due.pop(due, None)

    def _look(self) -> None:
        self._timer = None
        now = time.monotonic()
        while self._due:
            due = next(iter(self._due))
            if due.at > now + TOGETHER_S:
                self._timer = asyncio.get_running_loop().call_later(due.at - now, self._look)
                return
            del self._due[due]
            due.over = True
            due.task.cancel()
