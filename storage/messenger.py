"""Brings to tasks what became of those that they wait for.

A message is a row of the table until it is taken, so nothing rests on who brings it: one that is not brought, because
there were too many or the process died, is found by the timers.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Final

from storage.commands import Command, Settle
from storage.errors import Refusal

log = logging.getLogger(__name__)

# Messages that wait to be brought. The table keeps the rest.
WAITING_MESSAGES_MAX: Final = 10_000
# Commands of a process's own that are under way at a time, so that most room is for others'.
UNDER_WAY_MAX: Final = 200


class Messenger:
    """Brings messages one lot after the other."""

    def __init__(self, submit: Callable[[Command], Awaitable[object]]) -> None:
        self._submit = submit
        self._waiting: deque[Settle] = deque()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def bring(self, messages: Sequence[Settle]) -> None:
        """Bring these, as soon as may be."""
        self._waiting.extend(islice(messages, max(0, WAITING_MESSAGES_MAX - len(self._waiting))))
        if self._task is None and self._waiting and not self._closed:
            self._task = asyncio.create_task(self._run(), name="messenger")

    async def brought(self) -> None:
        """Wait until nothing waits to be brought, with what follows from it."""
        while self._task is not None:
            await asyncio.wait({self._task})

    async def close(self) -> None:
        """Bring no more; the table keeps what is left."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        try:
            while self._waiting:
                lot = [self._waiting.popleft() for _ in range(min(UNDER_WAY_MAX, len(self._waiting)))]
                await submit_all(self._submit, lot)
        finally:
            self._task = None


async def submit_all(submit: Callable[[Command], Awaitable[object]], commands: Sequence[Command]) -> list[Command]:
    """Submit commands that nobody waits for; return those that were not done. They are found again."""
    outcomes = await asyncio.gather(*map(submit, commands), return_exceptions=True)
    for error in outcomes:
        if isinstance(error, BaseException) and not isinstance(error, Refusal):
            log.error("A command of the program's own failed.", exc_info=error)
    return [command for command, outcome in zip(commands, outcomes, strict=True) if isinstance(outcome, BaseException)]
