"""A time within which something must end, watched by one timer for all who have it.

All have the same time, so they are due in the order in which they began, and only the first is looked at.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Final, Generic, TypeVar

from storage import Unavailable

T = TypeVar("T")

# Those that are due within this are looked at together, and within a tenth of a time that is short.
TOGETHER_S: Final = 0.1
# So many that are late are told so before others have a turn.
IN_A_ROW: Final = 100


class Deadlines(Generic[T]):
    """Knows who is late."""

    def __init__(self, limit_s: float, late: Callable[[T], None]) -> None:
        """Zero is any time."""
        self._limit_s = limit_s
        self._late = late
        self._due_at: dict[T, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, one: T) -> None:
        """Call this one late, unless it ends in time."""
        if self._limit_s:
            self._due_at[one] = time.monotonic() + self._limit_s
            if self._timer is None:
                self._look_in(self._limit_s)

    def end(self, one: T) -> None:
        """It is in time, or gone."""
        self._due_at.pop(one, None)

    def _look_in(self, wait_s: float) -> None:
        # It serves many, so nothing that is bound to whoever begins goes with it.
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._look, context=Context())

    def _look(self) -> None:
        self._timer = None
        now = time.monotonic()
        called = 0
        while self._due_at:
            one, due_at = next(iter(self._due_at.items()))
            if due_at > now:
                self._look_in(max(due_at - now, min(TOGETHER_S, self._limit_s / 10)))
                return
            if called == IN_A_ROW:
                self._look_in(0.0)
                return
            called += 1
            del self._due_at[one]
            self._late(one)


class TimeLimit:
    """Ends what takes longer than it may."""

    def __init__(self, limit_s: float) -> None:
        """Zero is no limit."""
        self._limit_s = limit_s
        self._deadlines: Deadlines[_Wait] = Deadlines(limit_s, _Wait.give_up)

    async def keep(self, result: Awaitable[T]) -> T:
        """Await a result; Unavailable when it does not come in time, and then it is canceled."""
        task = asyncio.current_task()
        if not self._limit_s or task is None:
            return await result
        wait = _Wait(task)
        self._deadlines.begin(wait)
        try:
            return await result
        except asyncio.CancelledError:
            # Whoever else wants this task to end has its way.
            if wait.over and task.uncancel() <= wait.canceling:
                raise Unavailable(
                    f"This could not be answered within {self._limit_s:g} s, and was given up; ask for less."
                ) from None
            raise
        finally:
            self._deadlines.end(wait)


class _Wait:
    """A task that waits."""

    __slots__ = ("canceling", "over", "task")

    def __init__(self, task: "asyncio.Task[object]") -> None:
        self.task = task
        self.canceling = task.cancelling()
        self.over = False

    def give_up(self) -> None:
        self.over = True
        self.task.cancel()
